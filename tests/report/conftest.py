"""A project with some of pocket's records, some exhibits drawn from them, the ledger and the page."""

import shutil
from types import SimpleNamespace

import pytest

from cpt_repro.claims.ledger import build_ledger, write_ledger
from cpt_repro.declarations.scale import load_scale
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.draw import draw
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Records
from cpt_repro.report.page import write_report
from cpt_repro.report.values import write_values

#: Exhibits that draw fast: a diagram, losses, generations, settings.
DRAWN = [("ibrahim2024", "figure_02"), ("ibrahim2024", "table_02"), ("ibrahim2024", "table_09")]


def planned(project, *papers, scale="pocket"):
    """A project with the catalogue and the records of some papers."""
    plan = Plan(project, load_scale(project, scale), papers)
    return SimpleNamespace(project=project, plan=plan, catalogue=Catalogue(plan), records=Records(plan))


def opened(repository, root):
    """The project in `root` as it lies now."""
    project = repository.with_(results=root / "results", figures=root / "figures")
    one = planned(project, "gupta2023", "ibrahim2024")
    one.root = root
    return one


@pytest.fixture(scope="package")
def made(repository, tmp_path_factory):
    """What `opened` gives, complete; tests leave it alone."""
    root = tmp_path_factory.mktemp("report")
    shutil.copytree(repository.results / "pocket", root / "results" / "pocket")
    one = opened(repository, root)
    for key in DRAWN:
        draw(one.catalogue, one.records, *key)
    write_ledger(build_ledger(one.catalogue, one.records), one.project.figures / "pocket")
    write_values(one.catalogue, one.records, one.project.figures / "pocket")
    write_report(one.catalogue, one.records)
    return one


@pytest.fixture
def spoilt(repository, made, tmp_path):
    """`spoilt()` opens a copy of it, to be spoilt at `spoilt.root` before."""
    root = shutil.copytree(made.root, tmp_path / "copy")
    reopened = lambda: opened(repository, root)  # noqa: E731
    reopened.root, reopened.figures = root, root / "figures" / "pocket"
    return reopened
