"""What is declared to be shown: complete, told apart, checked with hints, with a third paper beside."""

import importlib
import pkgutil
import shutil
from functools import partial
from types import SimpleNamespace

import pytest

import cpt_repro.exhibits
from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.study import Studies
from cpt_repro.errors import UserError
from cpt_repro.exhibits import catalogue as room
from cpt_repro.exhibits.base import FigureKind, Kind, TableKind, View
from cpt_repro.exhibits.catalogue import Catalogue, load_exhibits
from cpt_repro.exhibits.draw import notes
from cpt_repro.planning.plan import Plan

from .conftest import Some, legend

PAPERS = ("gupta2023", "ibrahim2024")
#: Curves in each panel, by the papers' legends; lines of reference and diagrams not counted.
CURVES = {
    "gupta2023": {
        "figure_01": [4, 4], "figure_02": [5], "figure_03": [5], "figure_04": [4], "figure_05": [4],
        "figure_06": [4], "figure_07": [6], "figure_08": [6], "figure_09": [7, 7],
    },
    "ibrahim2024": {
        "figure_03": [4, 4, 4, 4], "figure_04": [5, 5, 5, 5], "figure_05": [6, 6, 6, 6],
        "figure_06": [5, 5, 5, 5], "figure_07": [5, 5, 5, 5], "figure_08": [5, 5], "figure_09": [3, 3],
        "figure_10": [5, 5], "figure_11": [1, 1], "figure_12": [6, 6], "figure_13": [2, 2],
    },
}  # fmt: skip


def panels(exhibit):
    return exhibit.panels if exhibit.kind == "curves" else (exhibit,)


def test_every_exhibit_of_both_papers_is_declared(pocket):
    catalogue = pocket().catalogue
    for paper, figures, tables in (("gupta2023", 9, 1), ("ibrahim2024", 13, 14)):
        keys = [f"figure_{n:02d}" for n in range(1, figures + 1)]
        keys += [f"table_{n:02d}" for n in range(1, tables + 1)]
        exhibits = catalogue.declared(paper).exhibits
        assert list(exhibits) == keys
        for key, counts in CURVES[paper].items():
            assert [len(panel.curves) for panel in panels(exhibits[key])] == counts, key


def test_everything_trained_is_shown(pocket):
    for paper in PAPERS:
        exhibits = pocket().catalogue.declared(paper).exhibits.values()
        shown = {name for one in exhibits for name in [*one.runs, *one.evaluations]}
        declared = pocket().catalogue.plan.studies[paper].paper
        # Gupta's upstream model was downloaded; here it is trained, and only its children are drawn.
        assert {*declared.runs, *declared.merges} - shown <= {"410m/pile"}


@pytest.mark.parametrize("paper", PAPERS)
def test_curves_of_a_panel_can_be_told_apart(pocket, paper):
    declared = pocket().catalogue.declared(paper)
    used = set()
    for key, exhibit in declared.exhibits.items():
        used |= {id(declared.style(run)) for run in exhibit.runs if exhibit.makes == "figure"}
        for panel in panels(exhibit) if exhibit.kind in ("curves", "plane") else ():
            chains = [{declared.style(run) for run in curve.runs} for curve in panel.curves]
            assert all(len(looks) == 1 for looks in chains), key  # one look along a chain
            looks = [looks.pop() for looks in chains]
            labels = [curve.label or look.label for curve, look in zip(panel.curves, looks, strict=True)]
            # Of one colour are runs that differ in one thing, told by the dash: Figure 12's sizes.
            assert len(set(labels)) == len({(look.colour, look.dash) for look in looks}) == len(looks), key
            assert len({look.colour for look in looks}) == len(looks) or key == "figure_12"
            assert len({(look.dash, look.marker) for look in looks}) == len(looks), key
            reference = getattr(panel, "reference", None)
            if reference and reference.drawn:
                assert declared.style(reference.run).colour not in {look.colour for look in looks}, key
    assert {name for name, look in declared.styles.items() if id(look) not in used} <= {"410m/pile"}


def test_needs_name_runs_models_and_corpora(pocket):
    catalogue = pocket().catalogue
    needs = catalogue.needs("ibrahim2024", "table_06")
    assert needs.runs == () and "ibrahim2024/405m/ties/sp-0.25/seed-0" in needs.models
    needs = catalogue.needs("ibrahim2024", "figure_11")
    assert needs.runs[0] == "ibrahim2024/405m/pile--sp-domains/stage-1/seed-0" and needs.models == ()
    mixed = {run.id for run in catalogue.plan.find("ibrahim2024", "405m/pile--sp/replay-0.05")}
    assert {run for run in needs.runs if "replay" in run} == mixed
    assert catalogue.needs("gupta2023", "table_01").corpora == ("sp",)
    continued = catalogue.plan.find("ibrahim2024", "405m/pile--german/replay-0.25")
    assert set(catalogue.generating.values()) == {"german"} and {run.id for run in continued} < set(
        catalogue.generating
    )
    assert set(catalogue.generating) < set(catalogue.models)
    assert list(catalogue.models) == list(Catalogue(catalogue.plan).models)


def test_a_kind_is_a_file_and_a_line():
    modules = [
        importlib.import_module(f"cpt_repro.exhibits.{m.name}")
        for m in pkgutil.iter_modules(cpt_repro.exhibits.__path__)
    ]
    kinds = {
        one: module.__name__
        for module in modules
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Kind) and one.__module__ == module.__name__
    }
    kinds = {one: name for one, name in kinds.items() if one not in (Kind, FigureKind, TableKind)}
    assert set(kinds) == set(room.KINDS) and len(set(kinds.values())) == len(kinds)
    for kind, module in kinds.items():
        assert module.rpartition(".")[2] == kind.model_fields["kind"].default


# -- faults

E, P, D = "exhibits.yaml", "published.yaml", "discrepancies.yaml"


def at(repository, folder, changes):
    """The studies of a copy of the declarations with some texts replaced."""
    shutil.copytree(repository.papers, folder / "configs" / "papers")
    (folder / "configs" / "scales").mkdir()
    for file, (old, new) in changes.items():
        path = folder / "configs" / "papers" / "ibrahim2024" / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return Studies(repository.with_(root=folder))["ibrahim2024"]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (E, "[405m/pile--sp/constant-3e-4]", "[405m/pile--sp/constant3e-4]", ["figure_04", "constant-3e-4'"]),
        (E, "order: [wiki", "ordre: [wiki", ["table_01", "unknown", "'order'"]),
        (E, "corpus: sp\n", "corpus: spp\n", ["table_01.domains.corpus", "Did you mean 'sp'"]),
        (E, '"y": pile', '"y": pil', ["figure_03", "panels.0", "'pile'"]),
        (E, "  405m/german: {label", "  405m/germann: {label", ["styles", "405m/german"]),
        (E, "paper: ibrahim2024", "paper: ibrahim", ["ibrahim2024"]),
        (E, "  figure_03:", "  table_03b:", ["table_03b"]),
        (E, "  figure_02:", "  table_15:", ["table_15", "figure_NN"]),
        (E, '  405m/pile: "300B Pile"', '  405m/pil: "300B Pile"', ["names", "'405m/pile'"]),
        (E, "published: [English eval avg]", "published: [English eval av]", ["table_03", "avg"]),
        (E, "published: 4a", "published: 4aa", ["figure_04", "4aa", "Did you mean"]),
        (E, "published: 4a, ", "", ["figure_04", "4a"]),
        (E, '"405M SP InvSqrt Inf"', '"405M SP InvSqrtInf"', ["figure_09", "InvSqrt Inf"]),
        (E, "Pile+SP(IID) Final loss", "Pile+SP Final loss", ["figure_05", "(IID)"]),
        (E, "published: compute", "published: computes", ["figure_01", "compute"]),
        (E, '"Tokens (B)", "Sampling %"', '"Tokens (B)"', ["table_01", "columns"]),
        (E, "published: 405M}", "published: 405MM}", ["table_13", "405M"]),
        (E, "zero: 405m/pile+german", "zero: 405m/pile+ger", ["anchors", "405m/pile+german"]),
        (E, "zero: 405m/pile+german", "zero: 405m/sp/infinite-cosine", ["table_02", "row"]),
        (E, "run: 405m/pile, new: german", "run: 405m/pile, new: latin", ["table_03", "latin"]),
        (E, "      - 405m/pile--sp/replay-0.5\n", "", ["table_02", "13", "14"]),
        (E, '"StackExchange 5% Replay"', "", ["figure_11", "7 runs", "6"]),
        (E, 'label: "Layers"', 'run: 405m/pil, label: "Layers"', ["table_13", "405m/pile"]),
        (P, "  table_11:", "  table_99:", ["table_11"]),
        (P, "2.70, 2.44, 33.95", "2.70, 33.95", ["table_03", "row 1", "5 cells"]),
        (P, "mark: printed", "mark: remembered", ["published.yaml", "mark"]),
        (D, "row: 6,", "row: 16,", ["german-loss-of-the-pile-model", "16"]),
        (D, '"D1 German/SP"', '"D1 German"', ["german-loss", "D1 German/SP"]),
        (D, "id: vocabulary", "id: non-embedding", ["discrepancies.yaml", "twice"]),
    ],
)
def test_faults_are_told_with_file_and_key(repository, tmp_path, file, old, new, said):
    study = at(repository, tmp_path, {file: (old, new)})
    with pytest.raises(UserError) as caught:
        load_exhibits(study)
    text = str(caught.value)
    assert [part for part in [*said, "ibrahim2024"] if part not in text] == [], text
    assert ".yaml" in text


def test_unknown_exhibits_and_papers_are_refused_with_a_hint(pocket):
    with pytest.raises(UserError, match="figure_04"):
        pocket().catalogue.find("gupta2023", "figure_4")
    with pytest.raises(UserError, match="gupta2023"):
        pocket().catalogue.find("gupta2032", "figure_04")


# -- a third paper beside the two


@pytest.fixture
def third(third_project, repository):
    """The third paper at pocket, with pocket's records: what it shares with the others was trained there."""
    project = third_project.with_(results=repository.results)
    scale = load_scale(project, "pocket").model_copy(update={"seeds": (0, 1, 2), "more_seeds": None})
    catalogue = Catalogue(Plan(project, scale, (*PAPERS, "third2026")))
    records = Some(catalogue.plan)
    view = partial(View, catalogue, records, "third2026")
    return SimpleNamespace(catalogue=catalogue, records=records, view=view)


def test_a_panel_shows_runs_of_two_papers(third, figure_of):
    view = third.view("figure_01")
    needs = third.catalogue.needs("third2026", "figure_01")
    assert "ibrahim2024/405m/pile--german/replay-0/seed-1" in needs.runs
    assert "third2026/continued/replay-0.02/seed-0" in needs.runs
    made = figure_of(view)
    assert legend(made) == ["0 %", "2 %: not run"]
    expected = third.records.receipt(view.plan.runs["ibrahim2024/405m/pile--german/replay-0/seed-0"])
    ends = made.axes[0].get_lines()[0].get_ydata()[-1]
    assert ends == pytest.approx(expected.losses["pile"].curve[-1][1], rel=0.02)
    assert third.catalogue.counterparts("third2026").loss("german-alone", ("german",)) is None


def test_a_table_of_runs_that_another_paper_trained_or_nobody_can(third):
    view = third.view("table_01")
    run, loss, score = view.exhibit.table(view).columns
    assert run.cells[:2] == ["ibrahim2024/405m/pile", "german-alone"] and run.cells[-1] == "merged"
    states = [cell.state for cell in loss.cells]
    # `german-alone` is Ibrahim's run under another name.
    assert states[:2] == ["reproduced at scale pocket with 3 seeds"] * 2
    assert states[2:] == [
        "not run",
        "reproduced at scale pocket with 3 seeds",
        "no counterpart",
        "not measured",
    ]
    assert "scale pocket has no corpus finnish" in " ".join(notes(view))
    assert score.cells[1].reproduced and score.cells[-1].state == "not run"


def test_papers_without_exhibits_and_kinds_for_other_scales_break_nothing(third_project):
    (third_project.papers / "third2026" / "exhibits.yaml").unlink()
    scale = load_scale(third_project, "pocket")
    catalogue = Catalogue(Plan(third_project, scale, ("third2026",)))
    assert catalogue.exhibits == {} and catalogue.models == () and catalogue.generating == {}
    small = scale.model_copy(update={"corpora": {k: v for k, v in scale.corpora.items() if k == "pile"}})
    catalogue = Catalogue(Plan(third_project, small, PAPERS))
    assert catalogue.needs("gupta2023", "table_01").corpora == () and catalogue.generating == {}
