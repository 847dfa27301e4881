"""Published values, their mapping to exhibits and runs, discrepancies and the switches to other readings."""

import re
from statistics import fmean

import pytest
import yaml

from cpt_repro import papers, published
from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.exhibits import declarations
from cpt_repro.records.counterparts import counterparts
from cpt_repro.declarations.exhibits import Domains, Rows, Settings, load_declarations
from cpt_repro.declarations.runs import known_variants, load_paper, paper_names
from cpt_repro.planning.plan import Plan
from cpt_repro.declarations.published import load_digitised, load_discrepancies, load_published

SMOKE = load_scale("smoke")
#: Its steps are short enough that 250 iterations of the paper are some.
POCKET = load_scale("pocket").model_copy(update={"more_seeds": None})
TABLES = load_published("ibrahim2024").tables
LITERAL, JOBS = "gupta2023/cosine-floor/literal", "gupta2023/pile-horizon/jobs"
WARMER, LONGER = "ibrahim2024/eta-max-10b/3e-4", "ibrahim2024/german-iterations/as-drawn"


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


# -- the numbers themselves


def test_every_numeric_table_is_there():
    numeric = [f"table_{n:02d}" for n in range(1, 15) if n not in (8, 9)]
    assert list(TABLES) == ["figure_01", *numeric]
    assert list(load_published("gupta2023").tables) == ["table_01"]
    assert list(load_digitised("ibrahim2024").panels) == [
        *(f"{figure}{letter}" for figure in range(3, 8) for letter in "abcd"),
        *(f"{figure}{letter}" for figure in range(8, 14) for letter in "ab"),
    ]
    assert load_digitised("gupta2023").panels == {}  # its curves could not be read


@pytest.mark.parametrize("key", ["table_02", "table_03", "table_04", "table_12"])
def test_average_losses_are_means(key):
    table = TABLES[key]
    first = table.columns.index("D0 Pile")
    for row in table.rows:
        assert row[first + 2] == pytest.approx((row[first] + row[first + 1]) / 2, abs=0.011), row


@pytest.mark.parametrize(
    ("key", "tasks"), [("table_05", 13), ("table_06", 13), ("table_10", 13), ("table_07", 4), ("table_11", 4)]
)
def test_suite_averages_are_plain_means(key, tasks):
    for row in TABLES[key].rows:
        assert row[-1] == pytest.approx(fmean(row[-1 - tasks : -1]), abs=0.011), row


def test_sums_of_the_tables_of_domains():
    for name in ("Tokens (B)", "Sampling %"):
        *parts, total = column(TABLES["table_01"], name)
        assert sum(parts) == pytest.approx(total, abs=0.011)
    table = load_published("gupta2023").tables["table_01"]
    for name in ("Sampling %", "Train tokens (B)", "Val tokens (M)"):
        *parts, total = column(table, name)
        assert sum(parts) == pytest.approx(total, abs=0.011)


def test_bars_of_figure_1_are_the_tables_numbers_rounded():
    """Bars (b) and (c) repeat Tables 2-5 and 10: losses to 0.01, suites to 0.1."""
    figure, found = load_declarations("ibrahim2024").exhibits["figure_01"], counterparts("ibrahim2024")
    rows = iter(range(9))
    for group in figure.groups:
        for run, at in zip(group.runs, rows, strict=False):
            cell = {
                name: found.published.tables["figure_01"].cell("figure_01", at, name)
                for name in ("loss", "suite", "compute")
            }
            assert cell["loss"].value == found.loss(run, ("pile", group.new)).value
            assert cell["suite"].value == pytest.approx(found.score(run, "english").value, abs=0.051)
            assert (cell["loss"].mark, cell["compute"].mark) == ("printed", "digitised")


def test_facts_agree_with_the_declared_runs():
    for paper, names in (
        ("gupta2023", {"iterations of the schedule": "410m/sp", "upstream iterations": "410m/pile"}),
        ("ibrahim2024", {
            "iterations of a 300B phase": "405m/pile", "iterations on German": "405m/german",
            "iterations of Pile ∪ SP": "405m/pile+sp", "iterations of 200B of SP": "405m/pile--sp-200b/replay-0",
            "iterations of a 100B split of SP": "405m/sp-3x100/cosine/split-1",
        }),
    ):  # fmt: skip
        facts = {fact.name: fact for fact in load_published(paper).facts}
        assert len(facts) == len(load_published(paper).facts)  # no name twice
        for name, run in names.items():
            assert facts[name].value == load_paper(paper).runs[run].iterations
        assert facts["tokens per iteration"].value == load_paper(paper).batch.tokens
    stages = [
        f.value for f in load_published("ibrahim2024").facts if re.match(r"iterations of stage \d", f.name)
    ]
    runs = load_paper("ibrahim2024").runs
    assert stages == [runs[f"405m/pile--sp-domains/stage-{k}"].iterations for k in range(1, 8)]


def test_digitised_curves_run_forward_and_end_near_what_is_printed():
    digitised, found = load_digitised("ibrahim2024"), counterparts("ibrahim2024")
    for panel in digitised.panels.values():
        for curve in panel.curves.values():
            xs = [x for x, _ in curve.points]
            assert xs == sorted(set(xs)) and xs[0] >= -0.02
    compared = 0
    for run in found.runs.runs:
        for corpus in ("pile", "sp", "german"):
            loss, curve = found.loss(run, (corpus,)), found.curve(run, corpus)
            whole = (
                curve and curve[0][-1][0] > 0.99 * found.span(found.declared.exhibits["figure_04"], run)[1]
            )
            if loss and loss.mark == "printed" and whole and "3x100" not in run:
                compared += 1
                assert curve[0][-1][1] == pytest.approx(loss.value, abs=0.012), (run, corpus)
    assert compared > 40


# -- rows and columns of the exhibits


def test_every_digitised_curve_and_line_is_shown():
    """But the SlimPajama curve that Figure 6d repeats under the name of the Pile model."""
    used = {}
    for exhibit in load_declarations("ibrahim2024").exhibits.values():
        for panel in exhibit.panels if exhibit.kind == "curves" else ():
            line = [panel.reference.published] if panel.reference else []
            used[panel.published] = [label for curve in panel.curves for label in curve.published] + line
    for key, panel in load_digitised("ibrahim2024").panels.items():
        left_out = {*panel.curves, *panel.lines} - set(used[key])
        assert left_out == ({"405M Pile"} if key == "6d" else set()), key
        assert len(set(used[key])) == len(used[key])


def test_rows_of_the_exhibits_are_those_of_the_tables():
    """Names, sizes and the printed texts of each declared row stand in the published row of the same number."""
    declared, texts = load_declarations("ibrahim2024"), 0

    def name_of(text):
        text = re.sub(r"Ger(man|\.)?(?= |$)", "Ger.", text)
        return text.replace("600B Pile ∪ Ger.", "500B Pile ∪ Ger.")  # a misprint of Table 10

    for key, exhibit in declared.exhibits.items():
        for row, printed in (
            zip(exhibit.rows, TABLES[key].rows, strict=True) if isinstance(exhibit, Rows) else ()
        ):
            cells = dict(zip(TABLES[key].columns, printed, strict=True))
            if "Size" in cells:
                assert cells["Size"] == declared.sizes[(row.run or row.merge).split("/")[0]], (key, row)
            if "Training tokens" in cells:
                name = row.name or declared.names[row.run]
                assert name_of(name) == name_of(cells["Training tokens"]), (key, row)
            for text, head in (
                ("task", "Task model"),
                ("top", "TopK%"),
                ("lr", "Max LR"),
                ("schedule", "Schedule"),
            ):
                if text in row.cells:
                    texts += 1
                    assert row.cells[text].split(" (InvSqrt")[0] == cells[head], (key, row)
    assert texts > 100


def test_settings_and_domains_have_their_rows_in_order():
    declared = load_declarations("ibrahim2024").exhibits
    plain = lambda text: re.sub("[^a-z]", "", text.lower())  # noqa: E731
    for paper in paper_names():
        exhibit = load_declarations(paper).exhibits["table_01"]
        assert isinstance(exhibit, Domains)
        table = load_published(paper).tables["table_01"]
        assert [plain(name) for name in column(table, exhibit.published[0])[:-1]] == [
            plain(n) for n in exhibit.order
        ]
    assert isinstance(declared["table_13"], Settings)
    for key, words in (
        ("table_13", {2: "Layers", 3: "Hidden", 8: "length", 10: "decay", 15: "tying"}),
        ("table_14", {}),
    ):
        for at, word in words.items():
            assert word in declared[key].rows[at].label and word in TABLES[key].rows[at][0]
    for row, printed in zip(declared["table_14"].rows, TABLES["table_14"].rows, strict=True):
        assert row.group.split()[:2] == printed[0].split()[:2]


def test_the_same_cell_of_two_tables_agrees():
    found, seen = counterparts("ibrahim2024"), 0
    for name in [*found.runs.runs, *found.runs.merges]:
        values = {}
        for show in ("loss", "average_loss", "tasks", "task", "average"):
            for head, shown, row, value in found._cells(name, show):
                new = row.run and (row.new or found.runs.runs[row.run].validate_on[1])
                what = (
                    head
                    if show in ("tasks", "task")
                    else (show, shown.corpus, shown.suite, new if show in ("loss", "average_loss") else "")
                )
                values.setdefault(what, []).append(value.value)
        seen += sum(len(group) > 1 for group in values.values())
        assert all(len(set(group)) == 1 for group in values.values()), (name, values)
    assert seen > 150


# -- counterparts of runs


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
)  # fmt: skip
def test_losses_of_runs(run, corpora, value, mark):
    found = counterparts("ibrahim2024").loss(run, corpora)
    assert (found.value, found.mark) == (value, mark)
    assert found.place.startswith("Table 12 (p. 43), row" if mark == "printed" else "Figure ")


def test_what_has_no_counterpart():
    found = counterparts("ibrahim2024")
    assert found.loss("405m/pile", ("german",)) is None  # Table 3 and Fig. 6d repeat the SlimPajama loss
    assert found.loss("405m/pile", ("pile", "german")) is None
    assert found.loss("405m/sp", ("german",)) is None
    assert found.score("10b/pile", "german") is None
    gupta = counterparts("gupta2023")
    assert all(gupta.loss(run, ("sp",)) is None and gupta.curve(run, "sp") is None for run in gupta.runs.runs)


def test_scores_of_runs_and_merges():
    found = counterparts("ibrahim2024")
    assert found.score("405m/pile--german/replay-0.25", "english").value == 32.48
    assert found.score("405m/pile--german/replay-0.25", "german", "HellaSwag-DE").value == 31.04
    assert found.score("10b/pile+sp", "english", "MMLU").value == 37.78
    assert found.score("405m/ties/german-0.75", "english").value == 27.57
    assert found.score("405m/ties/german-0.75", "german").value == 24.60
    assert found.score("405m/pile", "english", "HellaSwag-DE") is None


def test_curves_of_one_axis_are_cut_at_the_joints():
    found = counterparts("ibrahim2024")
    trunk = "405m/sp-3x100/infinite-cosine/split-2"
    points, place = found.curve(trunk, "sp")
    assert place == "Figure 10a, 405M SP 100B x 3 Cosine Inf [segment 3]"
    assert 0 < points[0][0] < 1 and 98 < points[-1][0] < 100
    assert points[0][1] == pytest.approx(
        2.703, abs=0.005
    )  # the spike after the boundary belongs to this split
    assert points[-1][1] == pytest.approx(2.616, abs=0.005)  # and the next one does not
    points, _ = found.curve("405m/sp-3x100/infinite-cosine/split-2-annealed", "sp")
    assert points[0][0] < 4 and points[-1] == (pytest.approx(14.0, abs=0.01), 2.5684)
    points, place = found.curve("405m/pile--sp-domains/stage-4", "pile")
    assert place == "Figure 11a, ArXiv 5% Replay" and (points[0][0], points[-1][0]) == pytest.approx(
        (0, 13.25), abs=0.02
    )
    whole, _ = found.curve("405m/pile+sp", "pile")
    assert whole[-1][0] == pytest.approx(598.6, abs=0.1)
    # Figure 4 shows more of it than Figure 3, whose SlimPajama row is of other runs.
    assert found.curve("405m/pile--sp/replay-0", "sp")[1].startswith("Figure 4b")


# -- faults


def _fault(monkeypatch, tmp_path, file, change):
    """The message on loading the declarations of Ibrahim et al. with one file changed."""
    for name in ("exhibits.yaml", "published.yaml", "digitised.json", "discrepancies.yaml"):
        text = (declarations.PAPERS / "ibrahim2024" / name).read_text(encoding="utf-8")
        if name == file:
            before, text = text, change(text)
            assert text != before
        (tmp_path / "ibrahim2024").mkdir(exist_ok=True)
        (tmp_path / "ibrahim2024" / name).write_text(text, encoding="utf-8")
    for module in (declarations, published):
        monkeypatch.setattr(module, "PAPERS", tmp_path)
    for name in ("load_published", "load_digitised", "load_discrepancies"):
        monkeypatch.setattr(declarations, name, getattr(published, name).__wrapped__)
    with pytest.raises(UserError) as caught:
        load_declarations.__wrapped__("ibrahim2024")
    return str(caught.value)


def _swap(old, new):
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("exhibits.yaml", _swap("published: [English eval avg]", "published: [English eval av]"), ["table_03", "avg"]),
        ("exhibits.yaml", _swap("published: 4a", "published: 4aa"), ["figure_04", "4aa", "Did you mean"]),
        ("exhibits.yaml", _swap("published: 4a, ", ""), ["figure_04", "4a"]),
        ("exhibits.yaml", _swap('"405M SP InvSqrt Inf"', '"405M SP InvSqrtInf"'), ["figure_09", "9a", "InvSqrt Inf"]),
        ("exhibits.yaml", _swap("Pile+SP(IID) Final loss", "Pile+SP Final loss"), ["figure_05", "5a", "(IID)"]),
        ("exhibits.yaml", _swap("published: compute", "published: computes"), ["figure_01", "compute"]),
        ("exhibits.yaml", _swap('"Tokens (B)", "Sampling %"', '"Tokens (B)"'), ["table_01", "columns"]),
        ("exhibits.yaml", _swap("published: 405M}", "published: 405MM}"), ["table_13", "405M"]),
        ("exhibits.yaml", _swap("zero: 405m/pile+german", "zero: 405m/pile+ger"), ["anchors", "405m/pile+german"]),
        ("exhibits.yaml", _swap("      - 405m/pile--sp/replay-0.5\n", ""), ["table_02", "13", "14"]),
        ("exhibits.yaml", _swap('"StackExchange 5% Replay"', ""), ["figure_11", "7 runs", "6"]),
        ("published.yaml", _swap("  table_11:", "  table_99:"), ["table_11"]),
        ("discrepancies.yaml", _swap("row: 6,", "row: 16,"), ["german-loss-of-the-pile-model", "16"]),
        ("discrepancies.yaml", _swap('"D1 German/SP"', '"D1 German"'), ["german-loss", "D1 German/SP"]),
        ("discrepancies.yaml", _swap("id: vocabulary", "id: non-embedding"), ["discrepancies.yaml", "twice"]),
        ("published.yaml", _swap("2.70, 2.44, 33.95", "2.70, 33.95"), ["table_03", "row 1", "5 cells"]),
        ("published.yaml", _swap("mark: printed", "mark: remembered"), ["published.yaml", "mark"]),
    ],
)  # fmt: skip
def test_faults_are_told_with_file_and_key(monkeypatch, tmp_path, file, change, said):
    text = _fault(monkeypatch, tmp_path, file, change)
    assert [part for part in said if part not in text] == [], text
    assert ".yaml" in text


# -- discrepancies


def test_discrepancies_are_complete():
    """Two sides each, ids of their own, marks on every side; those of the sheet are all there."""
    assert len(load_discrepancies("gupta2023")) >= 8 and len(load_discrepancies("ibrahim2024")) >= 18
    for paper in paper_names():
        for found in load_discrepancies(paper):
            assert len({source.says for source in found.sources}) == len(found.sources) >= 2, found.id
            assert found.what.endswith(".") and found.default.strip()
    assert {LITERAL, JOBS} <= set(known_variants("gupta2023"))
    assert {WARMER, LONGER} <= set(known_variants("ibrahim2024"))


@pytest.fixture(scope="module")
def plain():
    return Plan(POCKET)


def _changed(plain, *variants):
    """Names of the segments whose identity is another under the variants."""
    plan = Plan(POCKET.model_copy(update={"variants": variants}))
    assert list(plan.segments) == list(plain.segments)
    return {s.name for key, s in plan.segments.items() if s.identity != plain.segments[key].identity}


def test_no_variant_is_the_default(plain):
    assert "variants" not in yaml.safe_load((papers.PAPERS.parent / "scales" / "smoke.yaml").read_text())
    assert _changed(plain) == set()
    assert load_paper("gupta2023") == load_paper("gupta2023", ())


@pytest.mark.parametrize("variant", [LITERAL, JOBS, WARMER, LONGER])
def test_a_variant_changes_its_runs_and_their_descendants_alone(plain, variant):
    paper = variant.partition("/")[0]
    before, after = load_paper(paper).runs, load_paper(paper, (variant,)).runs
    changed = {name for name in before if before[name] != after[name]}
    families = set(changed)
    for name, run in before.items():  # parents are declared first
        if run.init_from and run.init_from.run in families:
            families.add(name)
    there = {segment.name for segment in plain.segments.values()}  # pocket has three of the seven domains
    assert changed and _changed(plain, variant) == families & there


def test_every_declared_variant_makes_a_plan(plain):
    for paper in paper_names():
        for variant in known_variants(paper):
            if "/pythia" not in variant:  # which fit the scale paper alone: see test_outside
                assert _changed(plain, variant)


def test_variants_of_both_papers_at_once(plain):
    both = _changed(plain, WARMER, JOBS)
    assert both == _changed(plain, WARMER) | _changed(plain, JOBS) == _changed(plain, JOBS, WARMER)


def test_the_literal_cosine_is_the_texts():
    """Rates over the maximum at given tokens: the decay ends at 240B and warm-ups stay shares of 296.86B."""
    runs = load_paper("gupta2023", (LITERAL,)).runs
    default = load_paper("gupta2023").runs
    texts = {
        2.97: 1.0,
        10: 0.9980,
        25: 0.9810,
        50: 0.9154,
        100: 0.6764,
        150: 0.3839,
        200: 0.1618,
        225: 0.1089,
    }
    codes = {10: 0.9986, 50: 0.9394, 100: 0.7590, 150: 0.5078, 200: 0.2545, 225: 0.1491}
    for of, expected in ((runs, texts), (default, codes)):
        run = of["410m/pile--sp/eta_max-3e-4"]
        for billions, ratio in expected.items():
            assert run.schedule(billions * 1e9 / 2260992, run.iterations) / 3e-4 == pytest.approx(
                ratio, abs=5e-4
            )
    for name, run in runs.items():
        if run.schedule.kind == "cosine" and name != "410m/pile":
            warmup = run.schedule.warmup_frac * run.iterations
            assert warmup == pytest.approx(default[name].schedule.warmup_frac * 131296, rel=1e-4), name
            assert run.schedule.version == 2 and run.iterations * 2260992e-9 == pytest.approx(240, abs=0.01)
            assert run.until < 240
    assert runs["410m/pile"] == default["410m/pile"]


def test_other_variants_say_what_the_sources_say():
    assert load_paper("gupta2023", (JOBS,)).runs["410m/pile--pile/eta_max-6e-4"].iterations == 181793
    assert load_paper("ibrahim2024", (WARMER,)).runs["10b/pile--sp/replay-0.05"].schedule.eta_max == 3e-4
    assert load_paper("ibrahim2024", (WARMER,)).runs["10b/pile"].schedule.eta_max == 1.2e-4
    runs = load_paper("ibrahim2024", (LONGER,)).runs
    union = runs["405m/pile+german"]
    assert runs["405m/pile--german/replay-0.25"].iterations == 86250
    assert union.iterations == 132366 + 86250
    assert union.data["pile"] * union.iterations == pytest.approx(132366, abs=1)
    default = load_paper("ibrahim2024").runs["405m/pile+german"]
    assert default.data["pile"] * default.iterations == pytest.approx(132366, abs=1)


def test_unknown_and_clashing_variants_are_refused(plain):
    with pytest.raises(UserError, match="eta-max-10b/3e-4") as caught:
        Plan(SMOKE.model_copy(update={"variants": ("ibrahim2024/eta-max-10/3e-4",)}))
    assert "configs/scales/smoke.yaml" in str(caught.value) and "Did you mean" in str(caught.value)
    with pytest.raises(UserError, match="both set 'iterations'"):
        Plan(SMOKE.model_copy(update={"variants": (LITERAL, JOBS)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": ["410m/nothing*"], "set": {"iterations": 5}}, "no run fits '410m/nothing\\*'"),
        ({"runs": ["410m/sp"], "set": {"schedule.eta_maxx": 5}}, "schedule"),
        ({"runs": ["410m/sp"], "set": {"iteration": 5}}, "iterations"),
        ({"runs": ["410m/sp"], "set": {"model.size": 5}}, "leads nowhere"),
    ],
)
def test_variants_that_fit_nothing_are_refused(monkeypatch, change, said):
    made_up = published.Variant.model_validate({"says": "made up", "changes": [change]})
    monkeypatch.setattr(papers, "known_variants", lambda paper: {"gupta2023/made/up": made_up})
    with pytest.raises(UserError, match=said):
        load_paper.__wrapped__("gupta2023", ("gupta2023/made/up",))
