"""All that is made from records: the same bytes by one process and by several, and every failure told."""

import os
import signal

import pytest

from cpt_repro.errors import UserError
from cpt_repro.report import making
from cpt_repro.report.making import make_all

from .conftest import DRAWN

pytestmark = pytest.mark.slow


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_one_process_and_two_make_the_same_bytes_in_the_same_order(made, tmp_path):
    one, two = (
        list(make_all(made.catalogue, made.records, tmp_path / str(count), DRAWN, count)) for count in (1, 2)
    )
    names = [f"{paper}/{key}" for paper, key in DRAWN]
    assert [thing.what for thing in one] == [thing.what for thing in two] == [*names, "claims", "report"]
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(made.project.figures)
    for thing in (*one, *two):
        assert thing.paths and thing.failed is None and thing.seconds > 0 < thing.cpu_seconds


@pytest.mark.parametrize("count", [1, 2])
def test_what_fails_is_told_and_the_rest_is_made(made, tmp_path, count):
    keys = [*DRAWN, ("ibrahim2024", "figure_99")]
    things = list(make_all(made.catalogue, made.records, tmp_path, keys, count))
    failed = {thing.what: str(thing.failed) for thing in things if thing.failed}
    assert list(failed) == ["ibrahim2024/figure_99"] and "is unknown" in failed["ibrahim2024/figure_99"]
    assert {path.name for path in things[-1].paths} == {"index.html"}


def test_a_killed_child_is_told(made, tmp_path, monkeypatch):
    class Killed(making._Maker):
        def make(self, what):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(making, "_Maker", Killed)
    with pytest.raises(UserError, match="a drawing process was killed"):
        list(make_all(made.catalogue, made.records, tmp_path, DRAWN, 2))
