"""Published counterparts of runs, and the mapping of the exhibits' rows and curves to what was published."""

import re

import pytest

from cpt_repro.exhibits.rows import Rows


@pytest.fixture(scope="module")
def declared(pocket):
    return pocket().catalogue.declared


@pytest.fixture(scope="module")
def counterparts(pocket):
    return pocket().catalogue.counterparts("ibrahim2024")


@pytest.fixture(scope="module")
def tables(counterparts):
    return counterparts.study.published.tables


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def test_bars_of_figure_1_are_the_tables_numbers_rounded(counterparts, declared, tables):
    """Bars (b) and (c) repeat Tables 2-5 and 10: losses to 0.01, suites to 0.1."""
    figure = declared("ibrahim2024").exhibits["figure_01"]
    bars = [(group, run) for group in figure.groups for run in group.runs]
    for at, (group, run) in enumerate(bars):
        names = ("loss", "suite", "compute")
        loss, suite, compute = (tables["figure_01"].cell("figure_01", at, name) for name in names)
        assert loss.value == counterparts.loss(run, ("pile", group.new)).value
        assert suite.value == pytest.approx(counterparts.score(run, "english").value, abs=0.051)
        assert (loss.mark, compute.mark) == ("printed", "digitised") and counterparts.compute(run) == compute
    assert counterparts.compute("405m/sp") is None and counterparts.suites == {"english", "german"}


def test_digitised_curves_end_near_what_is_printed(counterparts, declared):
    compared, figure = 0, declared("ibrahim2024").exhibits["figure_04"]
    for run in counterparts.study.paper.runs:
        for corpus in counterparts.study.paper.corpora:
            loss, curve = counterparts.loss(run, (corpus,)), counterparts.curve(run, corpus)
            whole = curve and curve[0][-1][0] > 0.99 * counterparts.span(figure, run)[1]
            if loss and loss.mark == "printed" and whole and "3x100" not in run:
                compared += 1
                assert curve[0][-1][1] == pytest.approx(loss.value, abs=0.012), (run, corpus)
    assert compared > 40


def test_every_digitised_curve_and_line_is_shown(counterparts, declared):
    """But the SlimPajama curve that Figure 6d repeats under the name of the Pile model."""
    used = {}
    for exhibit in declared("ibrahim2024").exhibits.values():
        for panel in exhibit.panels if exhibit.kind == "curves" else ():
            labels = [label for curve in panel.curves for label in curve.published]
            used[panel.published] = labels + [panel.line] * bool(panel.line)
    for key, panel in counterparts.study.digitised.panels.items():
        left_out = {*panel.curves, *panel.lines} - set(used[key])
        assert left_out == ({"405M Pile"} if key == "6d" else set()), key
        assert len(set(used[key])) == len(used[key])


def test_rows_of_the_exhibits_are_those_of_the_tables(declared, tables, pocket):
    """Names, sizes and printed texts of each declared row stand in the published row of its number."""
    texts = 0

    def name_of(text):
        text = re.sub(r"Ger(man|\.)?(?= |$)", "Ger.", text)
        return text.replace("600B Pile ∪ Ger.", "500B Pile ∪ Ger.")  # a misprint of Table 10

    heads = (("task", "Task model"), ("top", "TopK%"), ("lr", "Max LR"), ("schedule", "Schedule"))
    for key, exhibit in declared("ibrahim2024").exhibits.items():
        view = pocket().view(f"ibrahim2024/{key}")
        rows = zip(exhibit.rows, tables[key].rows, strict=True) if isinstance(exhibit, Rows) else ()
        for row, printed in rows:
            cells = dict(zip(tables[key].columns, printed, strict=True))
            if "Size" in cells:
                assert view.size(row.model).endswith(f"(for {cells['Size']})"), (key, row)
            if "Training tokens" in cells:
                assert name_of(view.called(row)) == name_of(cells["Training tokens"]), (key, row)
            for text, head in heads:
                if text in row.cells:
                    texts += 1
                    assert row.cells[text].split(" (InvSqrt")[0] == cells[head], (key, row)
    assert texts > 100


def test_settings_and_domains_have_their_rows_in_order(declared, pocket, tables):
    plain = lambda text: re.sub("[^a-z]", "", text.lower())  # noqa: E731
    for paper in ("gupta2023", "ibrahim2024"):
        exhibit = declared(paper).exhibits["table_01"]
        table = pocket().catalogue.plan.studies[paper].published.tables["table_01"]
        printed = column(table, exhibit.published[0])[:-1]
        assert [plain(name) for name in printed] == [plain(name) for name in exhibit.order]
    exhibits = declared("ibrahim2024").exhibits
    for at, word in {2: "Layers", 3: "Hidden", 8: "length", 10: "decay", 15: "tying"}.items():
        assert word in exhibits["table_13"].rows[at].label and word in tables["table_13"].rows[at][0]
    for row, printed in zip(exhibits["table_14"].rows, tables["table_14"].rows, strict=True):
        assert row.group.split()[:2] == printed[0].split()[:2]


def test_the_same_cell_of_two_tables_agrees(counterparts):
    paper, seen = counterparts.study.paper, 0
    for name in [*paper.runs, *paper.merges]:
        values = {}
        for show in ("loss", "average_loss", "tasks", "task", "average"):
            for head, shown, row, value in counterparts.cells(name, show):
                new = row.new_corpus(counterparts.study) if "loss" in show else ""
                what = head if show in ("tasks", "task") else (show, shown.corpus, shown.suite, new)
                values.setdefault(what, []).append(value.value)
        seen += sum(len(group) > 1 for group in values.values())
        assert all(len(set(group)) == 1 for group in values.values()), (name, values)
    assert seen > 150


@pytest.mark.parametrize(
    ("run", "corpora", "value", "mark"),
    [
        ("405m/pile--sp/replay-0.05", ("pile",), 2.23, "printed"),
        ("405m/pile--sp/replay-0.05", ("sp",), 2.51, "printed"),
        ("405m/pile--sp/replay-0.05", ("pile", "sp"), 2.37, "printed"),
        ("405m/pile+german", ("german",), 1.25, "printed"),
        ("405m/pile+german", ("pile", "german"), 1.75, "printed"),
        ("10b/pile--sp/replay-0", ("pile",), 1.98, "printed"),
        ("405m/pile", ("sp",), 2.70, "printed"),
        ("405m/pile", ("pile", "sp"), 2.44, "printed"),
        ("405m/pile--sp/constant-3e-4", ("sp",), 2.584, "digitised"),
        ("405m/pile--german/constant-3e-4", ("pile",), 3.7072, "digitised"),
        ("405m/pile--sp-domains/stage-3", ("pile",), 2.4379, "digitised"),
        ("405m/sp-3x100/infinite-cosine/split-1-annealed", ("sp",), 2.6114, "digitised"),
        ("405m/sp-3x100/infinite-inverse_sqrt/split-2-annealed", ("sp",), 2.5731, "digitised"),
        ("405m/sp-3x100/infinite-cosine/split-3-annealed", ("sp",), 2.5486, "digitised"),
        ("405m/sp-3x100/infinite-cosine/split-3", ("sp",), 2.61, "printed"),
    ],
)
def test_losses_of_runs(counterparts, run, corpora, value, mark):
    found = counterparts.loss(run, corpora)
    assert (found.value, found.mark) == (value, mark)
    assert found.place.startswith("Table 12 (p. 43), row" if mark == "printed" else "Figure ")


def test_what_has_no_counterpart(counterparts, pocket):
    # Table 3 and Fig. 6d repeat the SlimPajama loss of the Pile model.
    assert counterparts.loss("405m/pile", ("german",)) is None
    assert counterparts.loss("405m/pile", ("pile", "german")) is None
    assert counterparts.loss("405m/sp", ("german",)) is None
    assert counterparts.score("10b/pile", "german") is None
    gupta = pocket().catalogue.counterparts("gupta2023")
    runs = gupta.study.paper.runs
    assert all(gupta.loss(run, ("sp",)) is None and gupta.curve(run, "sp") is None for run in runs)


@pytest.mark.parametrize(
    ("model", "suite", "task", "value"),
    [
        ("405m/pile--german/replay-0.25", "english", None, 32.48),
        ("405m/pile--german/replay-0.25", "german", "HellaSwag-DE", 31.04),
        ("10b/pile+sp", "english", "mmlu", 37.78),
        ("405m/ties/german-0.75", "english", None, 27.57),
        ("405m/ties/german-0.75", "german", None, 24.60),
    ],
)
def test_scores_of_runs_and_merges(counterparts, model, suite, task, value):
    assert counterparts.score(model, suite, task).value == value
    assert counterparts.score("405m/pile", "english", "HellaSwag-DE") is None


def test_curves_of_one_axis_are_cut_at_the_joints(counterparts):
    curve = counterparts.curve
    points, place = curve("405m/sp-3x100/infinite-cosine/split-2", "sp")
    assert place == "Figure 10a, 405M SP 100B x 3 Cosine Inf [segment 3]"
    assert 0 < points[0][0] < 1 and 98 < points[-1][0] < 100
    # The spike after the boundary belongs to this split, and the next one does not.
    assert (points[0][1], points[-1][1]) == pytest.approx((2.703, 2.616), abs=0.005)
    points, _ = curve("405m/sp-3x100/infinite-cosine/split-2-annealed", "sp")
    assert points[0][0] < 4 and points[-1] == (pytest.approx(14.0, abs=0.01), 2.5684)
    points, place = curve("405m/pile--sp-domains/stage-4", "pile")
    assert place == "Figure 11a, ArXiv 5% Replay"
    assert (points[0][0], points[-1][0]) == pytest.approx((0, 13.25), abs=0.02)
    assert curve("405m/pile+sp", "pile")[0][-1][0] == pytest.approx(598.6, abs=0.1)
    # Figure 4 shows more of it than Figure 3, unless a run of Figure 3 alone is asked for beside it.
    assert curve("405m/pile--sp/replay-0", "sp")[1].startswith("Figure 4b")
    assert curve("405m/pile--sp/replay-0", "sp", ("405m/pile--sp/warmup-0",))[1].startswith("Figure 3b")
