"""`verify`: what lies in `figures/` is what the records say, or it says what is not."""

import pytest

from cpt_repro.files import file_digest, read_json, write_json
from cpt_repro.report.verify import verify

from .conftest import DRAWN, planned

#: The ledger takes some seconds.
pytestmark = pytest.mark.slow
FIVE = "ibrahim2024/405m/pile--sp/replay-0.05/seed-0"


def check(one):
    lines = []
    result = verify(one.catalogue, one.records, keys=DRAWN, say=lines.append)
    return result, lines, "\n".join(result.summary())


def states(result):
    return {name: file.state for name, file in result.files.items() if file.state != "equal"}


def test_verify_accepts_what_was_made(made):
    result, lines, text = check(made)
    assert result.ok, text
    folder = made.project.figures / "pocket"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(result.files) == there - {"index.json"}  # the record of the page's hash
    assert text == f"{len(there) - 1} files equal, 0 differ, 0 missing"
    assert "ibrahim2024/table_02: equal" in lines
    assert result.as_json()["ok"] and result.as_json()["files"]["claims.md"]["state"] == "equal"


def test_verify_finds_changed_bytes_and_missing_files(spoilt):
    folder = spoilt.figures / "ibrahim2024"
    png, table = folder / "figure_02.png", folder / "table_02.csv"
    raw = bytearray(png.read_bytes())
    raw[-20] ^= 1
    png.write_bytes(raw)
    (folder / "figure_02.svg").unlink()  # as in a clone; the sidecar has its hash
    (folder / "table_02.tex").unlink()
    (spoilt.figures / "claims.md").unlink()
    (spoilt.figures / "index.html").unlink()
    table.write_text(table.read_text().replace("0", "1", 1))
    result, _, text = check(spoilt())
    assert not result.ok
    assert states(result) == {
        "ibrahim2024/figure_02.png": "differs", "ibrahim2024/table_02.csv": "differs", "claims.md": "missing",
    }  # fmt: skip
    for name in ("ibrahim2024/figure_02.svg", "ibrahim2024/table_02.tex", "index.html"):
        assert result.files[name].state == "equal", name
    assert file_digest(png) in text and result.files["ibrahim2024/figure_02.png"].again in text
    assert "2 differ, 1 missing" in text


def test_verify_finds_a_hash_that_is_not_of_the_file_and_a_broken_sidecar(spoilt):
    sidecar = spoilt.figures / "ibrahim2024" / "figure_02.json"
    about = read_json(sidecar)
    sidecar.with_suffix(".svg").unlink()
    write_json(sidecar, about | {"files": about["files"] | {"figure_02.svg": "0" * 64}})
    (spoilt.figures / "ibrahim2024" / "table_09.json").write_text('{"stale": []}')
    result, _, _ = check(spoilt())
    differing = {f"ibrahim2024/{name}" for name in ("figure_02.svg", "figure_02.json", "table_09.json")}
    assert set(states(result)) == differing
    assert "ibrahim2024/table_09.json" in result.failed and "report" not in result.failed


def test_verify_finds_a_changed_receipt(spoilt):
    path = spoilt.root / "results" / "pocket" / "runs" / FIVE / "receipt.json"
    receipt = read_json(path)
    receipt["losses"]["pile"]["final"]["loss"] += 0.1
    write_json(path, receipt)
    result, _, text = check(spoilt())
    assert not result.ok and result.changed == {"ibrahim2024/table_02": [f"receipt {FIVE}"]}
    assert result.files["ibrahim2024/table_02.csv"].state == "differs"
    assert result.files["ibrahim2024/figure_02.png"].state == "equal"
    assert f"drawn from other records than those there now: receipt {FIVE}" in text


def test_verify_names_a_record_that_cannot_be_read(spoilt):
    path = spoilt.root / "results" / "pocket" / "runs" / FIVE / "receipt.json"
    path.write_text("{")
    result, _, text = check(spoilt())
    assert not result.ok and f"{path}: not valid JSON" in text


def test_the_committed_figures_are_what_the_committed_records_say(repository):
    one = planned(repository)
    result = verify(one.catalogue, one.records, keys=DRAWN)
    del result.files["index.html"]  # the one there is of all exhibits, and these are three
    assert result.ok, "\n".join(result.summary())
