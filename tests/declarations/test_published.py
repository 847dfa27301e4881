"""The published numbers themselves: complete, and true to the arithmetic that the papers say."""

import re
from statistics import fmean

import pytest

from cpt_repro.declarations.study import Studies


@pytest.fixture(scope="module")
def studies(repository):
    return Studies(repository)


@pytest.fixture(scope="module")
def tables(studies):
    return studies["ibrahim2024"].published.tables


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def test_every_numeric_table_and_panel_is_there(studies, tables):
    assert list(tables) == ["figure_01", *(f"table_{n:02d}" for n in range(1, 15))]
    assert list(studies["gupta2023"].published.tables) == ["table_01"]
    panels = [f"{figure}{letter}" for figure in range(3, 8) for letter in "abcd"]
    panels += [f"{figure}{letter}" for figure in range(8, 14) for letter in "ab"]
    assert list(studies["ibrahim2024"].digitised.panels) == panels
    assert studies["gupta2023"].digitised.panels == {}  # its curves could not be read
    for panel in studies["ibrahim2024"].digitised.panels.values():
        for curve in panel.curves.values():
            xs = [x for x, _ in curve.points]
            assert xs == sorted(set(xs)) and xs[0] >= -0.02


@pytest.mark.parametrize("key", ["table_02", "table_03", "table_04", "table_12"])
def test_average_losses_are_means(tables, key):
    first = tables[key].columns.index("D0 Pile")
    for row in tables[key].rows:
        assert row[first + 2] == pytest.approx((row[first] + row[first + 1]) / 2, abs=0.011), row


@pytest.mark.parametrize(
    ("key", "tasks"), [("table_05", 13), ("table_06", 13), ("table_10", 13), ("table_07", 4), ("table_11", 4)]
)
def test_suite_averages_are_plain_means(tables, key, tasks):
    for row in tables[key].rows:
        assert row[-1] == pytest.approx(fmean(row[-1 - tasks : -1]), abs=0.011), row


def test_domains_sum_to_their_totals(studies):
    for paper, names in (
        ("ibrahim2024", ("Tokens (B)", "Sampling %")),
        ("gupta2023", ("Sampling %", "Train tokens (B)", "Val tokens (M)")),
    ):
        for name in names:
            *parts, total = column(studies[paper].published.tables["table_01"], name)
            assert sum(parts) == pytest.approx(total, abs=0.011)


def test_facts_agree_with_the_declared_runs(studies):
    for paper, names in (
        ("gupta2023", {"iterations of the schedule": "410m/sp", "upstream iterations": "410m/pile"}),
        ("ibrahim2024", {
            "iterations of a 300B phase": "405m/pile", "iterations on German": "405m/german",
            "iterations of Pile ∪ SP": "405m/pile+sp",
            "iterations of 200B of SP": "405m/pile--sp-200b/replay-0",
            "iterations of a 100B split of SP": "405m/sp-3x100/cosine/split-1",
        }),
    ):  # fmt: skip
        study = studies[paper]
        facts = {fact.name: fact.value for fact in study.published.facts}
        assert len(facts) == len(study.published.facts)  # no name twice
        assert {name: facts[name] for name in names} == {
            name: study.paper.runs[run].iterations for name, run in names.items()
        }
        assert facts["tokens per iteration"] == study.paper.batch.tokens
    stages = [value for name, value in facts.items() if re.match(r"iterations of stage \d", name)]
    runs = studies["ibrahim2024"].paper.runs
    assert stages == [runs[f"405m/pile--sp-domains/stage-{k}"].iterations for k in range(1, 8)]


def test_discrepancies_have_two_sides_and_a_default(studies):
    assert len(studies["gupta2023"].discrepancies) >= 8 and len(studies["ibrahim2024"].discrepancies) >= 18
    for paper in ("gupta2023", "ibrahim2024"):
        for one in studies[paper].discrepancies:
            assert len({source.says for source in one.sources}) == len(one.sources) >= 2, one.id
            assert one.what.endswith(".") and one.default.strip()


def runs_of(repository, variant):
    return Studies(repository, (variant,) if variant else ())[
        (variant or "gupta2023").split("/")[0]
    ].paper.runs


def test_the_literal_cosine_is_the_texts(repository):
    """Rates over the maximum at given tokens: the decay ends at 240B and warm-ups stay shares of 296.86B."""
    literal, default = runs_of(repository, "gupta2023/cosine-floor/literal"), runs_of(repository, None)
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
    for runs, expected in ((literal, texts), (default, codes)):
        run = runs["410m/pile--sp/eta_max-3e-4"]
        for billions, ratio in expected.items():
            rate = run.schedule(billions * 1e9 / 2260992, run.iterations)
            assert rate / 3e-4 == pytest.approx(ratio, abs=5e-4)
    for name, run in literal.items():
        if run.schedule.kind == "cosine" and name != "410m/pile":
            warmup = run.schedule.warmup_frac * run.iterations
            assert warmup == pytest.approx(default[name].schedule.warmup_frac * 131296, rel=1e-4), name
            assert run.schedule.version == 2 and run.iterations * 2260992e-9 == pytest.approx(240, abs=0.01)
            assert run.until < 240
    assert literal["410m/pile"] == default["410m/pile"]


def test_other_variants_say_what_the_sources_say(repository):
    jobs = runs_of(repository, "gupta2023/pile-horizon/jobs")
    assert jobs["410m/pile--pile/eta_max-6e-4"].iterations == 181793
    warmer = runs_of(repository, "ibrahim2024/eta-max-10b/3e-4")
    assert warmer["10b/pile--sp/replay-0.05"].schedule.eta_max == 3e-4
    assert warmer["10b/pile"].schedule.eta_max == 1.2e-4
    longer = runs_of(repository, "ibrahim2024/german-iterations/as-drawn")
    assert longer["405m/pile--german/replay-0.25"].iterations == 86250
    union = longer["405m/pile+german"]
    assert union.iterations == 132366 + 86250
    assert union.data["pile"] * union.iterations == pytest.approx(132366, abs=1)
