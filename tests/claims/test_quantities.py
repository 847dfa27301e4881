"""Values and their noise: by seed, by sequence, by document; and what was published."""

import json
import math
import re
import sys

import numpy as np
import pytest

from cpt_repro import cli
from cpt_repro.claims.grammar import FAILED, HELD, INCONCLUSIVE, NOT_RUN, Quantity, Reading, load_claims
from cpt_repro.claims.quantities import AsPublished, Measured, Missing
from cpt_repro.claims.verdicts import check_published, evaluate, told
from cpt_repro.declarations.scale import load_scale
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Evidence, Records

WEAK, UNION, OLD = "405m/pile--sp/replay-0", "405m/pile+sp", "405m/pile"
LOW, HIGH = "405m/pile--sp/eta_max-1.5e-4", "405m/pile--sp/eta_max-6e-4"
T = 4.302653  # t(0.975, 2) from a table


def effect_of(measured, text):
    quantity = Quantity.model_validate(text)
    return measured.effect([reading for _, reading in quantity.terms], (1, quantity))


def noise_of(*errors):
    """The noise of one seed, of independent standard errors."""
    return pytest.approx(1.96 * math.hypot(*errors), rel=1e-6, abs=1e-12)


def test_differences_are_paired_by_seed(declared, made_up):
    """A seed that moves both arms alike is no noise; the same values in other pairs are."""
    lower, upper = [2.0, 2.5, 3.0], [2.1, 2.601, 3.102]
    test = declared.tests({"kind": "ordering", "rising": [f"{LOW} pile", f"{WEAK} pile"]})[0]
    assert evaluate(test, made_up({f"{LOW} pile": lower, f"{WEAK} pile": upper})).verdict == HELD
    assert evaluate(test, made_up({f"{LOW} pile": lower, f"{WEAK} pile": upper[::-1]})).verdict != HELD


def test_seeds_decide_where_all_runs_have_three(pocket):
    pocket.bring(WEAK, UNION, f"{LOW}/seed-0")
    for seed in range(3):
        pocket.change(WEAK, seed, loss=2.4 + seed, of_sequences=(1.0, 3.0, 5.0))
        pocket.change(UNION, seed, loss=2.2 + seed + 0.01 * seed, of_sequences=(1.0, 3.0, 5.0))
    measured = pocket.measured()
    effect = effect_of(measured, f"{WEAK} pile - {UNION} pile")
    assert effect.by == "3 seeds and the documents" and effect.value == pytest.approx(0.19)
    assert effect.noise == pytest.approx(T * 0.01 / math.sqrt(3), rel=1e-6)
    # The documents, which are the same for every seed, count beside the seeds: here differences 0.3, 0, 0.3.
    for seed in range(3):
        pocket.change(WEAK, seed, of_sequences=(1.3, 3.0, 5.3))
    effect = effect_of(pocket.measured(), f"{WEAK} pile - {UNION} pile")
    both = (T * 0.01 / math.sqrt(3), 1.96 * 0.1)
    assert effect.noise == pytest.approx(math.hypot(*both), rel=1e-6)
    # A run with one seed takes the others down to it.
    effect = effect_of(measured, f"{WEAK} pile - {LOW} pile")
    assert effect.by == "the documents alone, n = 1"
    assert effect.value == pytest.approx(2.4 - measured.evidence.runs(LOW)[0].final["pile"].loss)


def test_evaluation_noise_is_paired_by_sequence(pocket):
    pocket.bring(f"{LOW}/seed-0", f"{HIGH}/seed-0")
    hard = [1.0 + k for k in range(8)]  # sequences differ much, models little
    harder = [value + 0.1 + 0.01 * (-1) ** k for k, value in enumerate(hard)]
    for run, sequences in {LOW: hard, HIGH: harder}.items():
        pocket.change(run, of_sequences=tuple(sequences), noise=0.9, stderr=0.003)
    spread = 0.01 * math.sqrt(8 / 7) / math.sqrt(8)  # standard error of the eight differences
    # A single point of a curve jitters as one of the two closing evaluations, a mean over three by less.
    single, three = 0.003 * math.sqrt(2), 0.003 * math.sqrt(2 / 3)
    for when, jitter in (("", 0.003), (" @50", single), (" peak", single), (" mean[9,40]", three)):
        effect = effect_of(pocket.measured(), f"{HIGH} pile{when} - {LOW} pile{when}")
        assert effect.noise == noise_of(spread, jitter, jitter), when
    # Where the losses of sequences are not known, each loss has the noise of the validation set.
    pocket.change(HIGH, of_sequences=())
    effect = effect_of(pocket.measured(), f"{HIGH} pile - {LOW} pile")
    assert effect.noise == noise_of(0.9, 0.9, 0.003, 0.003)


def test_the_start_of_a_child_has_its_parents_sequences(pocket):
    pocket.bring(f"{OLD}/seed-0", f"{LOW}/seed-0")
    rise = f"{LOW} pile - {LOW} pile start"
    pocket.change(LOW, of_sequences=(2.0, 3.0, 4.0, 5.0), stderr=0.0)
    pocket.change(OLD, of_sequences=(1.0, 2.0, 3.0, 4.0), stderr=0.0)
    assert effect_of(pocket.measured(), rise).noise == noise_of(0)
    pocket.change(OLD, of_sequences=(4.0, 3.0, 2.0, 1.0), stderr=0.0)
    assert effect_of(pocket.measured(), rise).noise > 1


def test_an_average_is_of_two_corpora(pocket):
    pocket.bring(f"{LOW}/seed-0")
    for corpus, loss, sequences in (("pile", 3.0, (1.0, 2.0, 3.0)), ("sp", 2.0, (1.0, 1.0, 1.0))):
        pocket.change(LOW, corpus=corpus, loss=loss, stderr=0.004, of_sequences=sequences)
    effect = effect_of(pocket.measured(), f"{LOW} average")
    assert effect.value == pytest.approx(2.5)
    assert effect.noise == noise_of(0.002, 0.002, 0.5 / math.sqrt(3))  # the sequences of sp do not differ


def test_the_noise_of_a_suite_is_that_of_seeds_and_documents(pocket):
    pocket.bring(OLD)
    measured = pocket.measured()
    suites = [evaluation.suites["english"] for evaluation in measured.evidence.evaluations(OLD)]
    tasks = [suite.tasks["last_word"] for suite in suites]
    for what, scores, each in (
        ("suite:english", suites, [100 * suite.average for suite in suites]),
        ("task:english/LAMBADA|Last-Word", tasks, [100 * task.value for task in tasks]),
    ):
        effect, seeds = effect_of(measured, f"{OLD} {what}"), T * np.std(each, ddof=1) / math.sqrt(3)
        assert effect.by == "3 seeds and the documents"
        assert effect.value == pytest.approx(np.mean(each))
        # The same documents for every seed: answers are averaged over the seeds before they scatter.
        own = [[one.answers for one in getattr(of, "tasks", {"": of}).values()] for of in scores]
        errors = [np.std(np.mean(of, axis=0), ddof=1) / math.sqrt(2000) for of in zip(*own, strict=True)]
        documents = 196 * math.hypot(*errors) / len(errors)
        assert effect.noise == pytest.approx(math.hypot(seeds, documents), rel=1e-6)


def test_the_slope_of_two_perplexities(pocket):
    pocket.bring(f"{LOW}/seed-0")
    # perplexities (new, old): (1, 1), (3, 2), (2, 3): a slope of 0.5, whose standard error is 0.5 * sqrt(3)
    for corpus, perplexities in (("pile", (1, 2, 3, 9)), ("sp", (1, 3, 2, 1))):
        curve = tuple((40 * k, math.log(value)) for k, value in enumerate(perplexities))
        pocket.change(LOW, corpus=corpus, curve=curve)
    measured = pocket.measured()
    points = [x for x, _ in measured.evidence.runs(LOW)[0].curve("pile")]
    effect = effect_of(measured, f"{LOW} slope [0,{points[2] + 0.1:.2f}]")
    assert effect.value == pytest.approx(0.5)
    assert effect.noise == pytest.approx(1.96 * 0.5 * math.sqrt(3), rel=1e-6)
    with pytest.raises(Missing, match="fewer than three"):
        effect_of(measured, f"{LOW} slope [0,{points[1] + 0.1:.2f}]")
    pocket.change(LOW, corpus="sp", curve=tuple((40 * k, 3.0) for k in range(4)))
    with pytest.raises(Missing, match="does not vary"):
        effect_of(pocket.measured(), f"{LOW} slope [0,100]")


def test_compute_is_in_the_papers_unit(pocket):
    for paper, run, unit in (("third2026", "german-alone", 200), ("ibrahim2024", "405m/german", 300)):
        measured = pocket.measured(paper)
        effect = effect_of(measured, f"{run} compute")
        assert effect.value == pytest.approx(86000 * 1104 * 2048 / 1e9 / unit, rel=1e-3)
        assert (effect.noise, effect.by) == (0, "exact")
        assert Quantity.model_validate(f"{run} compute").unit(measured.study) == f"x {unit}B tokens"


# -- what is missing


def test_what_is_missing_says_why(pocket):
    pocket.bring(f"{LOW}/seed-0", f"{WEAK}/seed-1")
    curve = pocket.measured().evidence.runs(LOW)[0].receipt.losses["pile"].curve
    pocket.change(LOW, corpus="sp", curve=curve[7:-5], start=None)
    measured = pocket.measured()
    for text, why in (
        (f"{UNION} pile", f"{UNION} was not run"),
        (f"{LOW} suite:english", f"{LOW} was not evaluated"),
        (f"{LOW} suite:french", "the scale pocket has no french suite"),
        (f"{LOW} task:english/MMLU", "the english suite of pocket has no MMLU"),
        (f"{LOW} pile - {WEAK} pile", "its runs have no seed in common"),
        (f"{LOW} pile peak[1.6,1.7]", "no evaluation that the compared runs share between 1.6B and 1.7B"),
        # No point is made up where none was measured, or between two.
        (f"{LOW} sp start", f"{LOW} has no point at 0B"),
        (f"{LOW} sp @1", f"{LOW} has no point at 1B"),
        (f"{LOW} sp @299", f"{LOW} has no point at 299B"),
        (f"{LOW} sp @51", f"{LOW} has no point at 51B"),
        (f"{LOW} sp @51 - {UNION} sp @51", f"{LOW} has no point at 51B; {UNION} was not run"),
        (f"{LOW} sp @51 - {WEAK} sp @51 + {UNION} sp", f"{LOW}, {WEAK} have no point at 51B; {UNION} was"),
        (
            " + ".join(f"405m/{r} pile" for r in ("sp", "german", "pile+sp", "pile+german")),
            "and 1 more were not run",
        ),
    ):
        with pytest.raises(Missing, match=re.escape(why)):
            effect_of(measured, text)
    assert effect_of(measured, f"{LOW} sp @50").value > 0 < effect_of(measured, f"{LOW} sp").value


def test_points_of_curves_compare_with_ends_on_the_same_sequences(pocket):
    """A curve of the first two sequences of four: beside its points, start and end are of those too."""
    pocket.bring(f"{LOW}/seed-0", f"{HIGH}/seed-0")
    end = pocket.measured().evidence.runs(LOW)[0].run.validation.closing
    curve = ((0, 2.0), (40, 2.5), *((iteration, 2.1) for iteration in end))
    for run, sequences in {LOW: (1.0, 2.0, 3.0, 3.0), HIGH: (1.0, 2.5, 3.0, 9.0)}.items():
        losses = {"along": 2, "curve": curve, "start": 3.0, "of_sequences": sequences}
        pocket.change(run, loss=3.2, stderr=0.0, **losses)
    measured = pocket.measured()
    for text, value in (
        (f"{LOW} pile - {LOW} pile start", 3.2 - 3.0),
        (f"{LOW} pile peak - {LOW} pile start", 2.5 - 2.0),
        (f"{LOW} pile peak - {LOW} pile", 2.5 - 2.1),
        (f"{LOW} pile mean[1,4]", 2.5),
    ):
        assert effect_of(measured, text).value == pytest.approx(value), text
    peaks = f"{HIGH} pile peak - {LOW} pile peak"
    assert effect_of(measured, peaks).noise == noise_of(0.25)  # 0 and 0.5; the last two are not of the curve
    assert effect_of(measured, peaks.replace(" peak", "")).noise == noise_of(
        np.std([0, 0.5, 0, 6], ddof=1) / 2
    )


def test_curves_are_compared_at_points_that_all_have(pocket):
    """A peak that one run alone was measured at, or a mean over other points, compares with nothing."""
    pocket.bring(f"{LOW}/seed-0", f"{HIGH}/seed-0")
    pocket.change(LOW, curve=((0, 2.0), (40, 2.5), (80, 9.0), (120, 2.1), (3906, 2.0)))
    pocket.change(HIGH, curve=((0, 2.0), (40, 2.6), (121, 2.3), (3906, 2.0)))
    measured = pocket.measured()
    assert effect_of(measured, f"{LOW} pile peak[1,20]").value == pytest.approx(9.0)
    both = f"{LOW} pile peak[1,20] - {HIGH} pile peak[1,20]"
    assert effect_of(measured, both).value == pytest.approx(2.5 - 2.6)
    assert effect_of(measured, both.replace("peak", "mean")).value == pytest.approx(2.5 - 2.6)
    with pytest.raises(Missing, match=r"share between 5B and 20B"):
        effect_of(measured, both.replace("[1,", "[5,"))


def test_a_corpus_that_the_scale_lacks_is_missing(pocket):
    pocket.bring(f"{OLD}/seed-0")
    scale = load_scale(pocket.project, "pocket")
    corpora = {corpus: name for corpus, name in scale.corpora.items() if corpus != "german"}
    plan = Plan(pocket.project, scale.model_copy(update={"corpora": corpora, "suites": {}}), ("ibrahim2024",))
    measured = Measured(Evidence(Records(plan), "ibrahim2024"))
    assert effect_of(measured, f"{OLD} sp").value > 0
    with pytest.raises(Missing, match="the scale pocket has no corpus german"):
        effect_of(measured, f"{OLD} german")


# -- published


@pytest.fixture(scope="module")
def catalogue(plan_of):
    return Catalogue(plan_of("pocket"))


def runs_of(test):
    return [run for reading in test.readings() for run in reading.runs]


@pytest.mark.parametrize(("paper", "silent"), [("gupta2023", None), ("ibrahim2024", 2)])
def test_every_claim_holds_on_the_published_values_or_says_why_not(catalogue, paper, silent):
    """And what does hold there has no mark. What was not published says nothing, and is counted."""
    checks = [check for check in check_published(catalogue) if check.paper == paper]
    assert [check.line for check in checks if not check.right] == []
    # Gupta prints no losses; the y-axis of Ibrahim's Fig. 3d cuts the first billions off, and no table has
    # the old model's loss on German.
    there = [check for check in checks if check.word == "not published"]
    assert len(there) == (len(checks) if silent is None else silent) and len(checks) > 50
    assert all(check.why for check in checks if check.word not in (HELD, "not published"))
    *_, counts = told(tuple(checks))
    assert f"{len(checks)} tests" in counts and f"{len(there)} not published; 0 not as declared" in counts


RISE = {"kind": "ordering", "rising": [f"{UNION} pile", f"{WEAK} pile"]}  # 2.17, 2.44
LEVEL = {"kind": "ordering", "rising": [f"{UNION} average", "405m/pile--sp/replay-0.5 average"]}  # 2.35, 2.35
PLOT = {"kind": "ratio", "of": "405m/pile--pile/eta_max-3e-4 pile @50", "at_least": 0}
NEVER = {"kind": "ratio", "of": "gupta2023/410m/sp pile", "at_least": 0}


@pytest.mark.parametrize(
    ("test", "verdict", "mark", "right"),
    [
        (RISE, HELD, None, True),
        (RISE, HELD, "failed", False),
        (RISE, HELD, "inconclusive", False),
        ({**RISE, "rising": RISE["rising"][::-1]}, FAILED, None, False),
        ({**RISE, "rising": RISE["rising"][::-1]}, FAILED, "inconclusive", False),
        ({**RISE, "rising": RISE["rising"][::-1]}, FAILED, "failed", True),
        (LEVEL, INCONCLUSIVE, None, False),
        (LEVEL, INCONCLUSIVE, "inconclusive", True),
        (NEVER, NOT_RUN, None, True),
        (NEVER, NOT_RUN, "inconclusive", False),
    ],
)
def test_a_mark_must_say_what_the_published_values_say(declared, test, verdict, mark, right):
    declared.tests({**test, **({"published": {"verdict": mark, "why": "so"}} if mark else {})})
    (check,) = (one for one in check_published(declared.catalogue) if one.paper == "ibrahim2024")
    assert (check.outcome.verdict, check.right) == (verdict, right)
    assert ("declared" in check.line) == (not right)


def test_the_command_tests_the_published_values(third_project, monkeypatch, capsys):
    """Status 1 and the line of the test where a declaration does not say what the values say."""
    monkeypatch.chdir(third_project.root)

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["cpt-repro", "claims", "--published", "--scale", "pocket", *more])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, capsys.readouterr().out
        return 0, capsys.readouterr().out

    status, out = call()
    assert status == 0 and "0 not as declared" in out and "gupta2023: 51 tests" in out
    assert json.loads(call("--json", "--papers", "gupta2023")[1])[0]["outcome"]["verdict"] == NOT_RUN
    path = third_project.papers / "ibrahim2024" / "claims.yaml"
    says = 'says: "rise of the old loss without replay: weak shift, strong shift"'
    assert path.read_text().count(says) == 1
    path.write_text(path.read_text().replace(says, f"published: *plot, {says}"))
    status, out = call("--papers", "ibrahim2024")
    assert status == 1 and "; 1 not as declared" in out
    (line,) = (line for line in out.splitlines() if "declared inconclusive" in line)
    assert line.startswith("ibrahim2024 11, rise of the old loss") and ": held (" in line


@pytest.mark.parametrize(
    ("text", "value", "noise"),
    [
        (f"{WEAK} pile - {UNION} pile", 0.27, math.hypot(0.005, 0.005)),  # two printed values
        ("405m/pile--sp/constant-3e-4 sp", 2.5844, 0.01),  # the end of a curve
        (f"{WEAK} pile - 405m/pile--sp/constant-3e-4 pile", 2.44 - 2.5422, math.hypot(0.005, 0.01)),
        # 44.22 % of 10,042 questions of HellaSwag
        (
            "405m/sp task:english/HellaSwag",
            44.22,
            math.hypot(0.005, 196 * math.sqrt(0.4422 * 0.5578 / 10042)),
        ),
    ],
)
def test_what_published_digits_leave_open(catalogue, text, value, noise):
    effect = effect_of(AsPublished(catalogue, "ibrahim2024"), text)
    assert effect.value == pytest.approx(value, abs=1e-3) and effect.noise == pytest.approx(noise, rel=1e-4)


def test_items_of_published_tasks_fit_the_printed_scores(catalogue):
    """Every printed score is a whole count of the declared items; an average is of all tasks."""
    study, english = catalogue.plan.studies["ibrahim2024"], ("table_05", "table_06", "table_10")
    for table in (*english, "table_07", "table_11"):
        suite, published = "english" if table in english else "german", study.published.tables[table]
        assert list(study.documents[suite]) == list(published.columns[-len(study.documents[suite]) - 1 : -1])
        for task, items in study.documents[suite].items():
            for row in published.rows if task != "TfQA2" else ():  # shares of probability, and no counts
                score = row[published.columns.index(task)]
                assert abs(round(score * items / 100) * 100 / items - score) < 0.0051, (table, task, score)


def test_published_curves_of_one_test_come_from_one_figure(catalogue):
    """Fig. 3 and Fig. 4 show different runs at the same setting."""
    test = next(claim for claim in load_claims(catalogue, "ibrahim2024") if claim.id == "4").tests[0]
    reading = Reading.of_text(f"{WEAK} pile @50")
    assert AsPublished(catalogue, "ibrahim2024", runs_of(test)).value(reading).place.startswith("Figure 3a")
    assert AsPublished(catalogue, "ibrahim2024").value(reading).place.startswith("Figure 4a")


@pytest.mark.parametrize(
    ("of", "over", "value", "mark"),
    [
        (f"{WEAK} pile", None, 2.44, "printed"),
        (f"{WEAK} pile - {UNION} pile", None, 0.27, "derived"),
        (f"{WEAK} pile", f"{UNION} pile", 2.44 / 2.17, "derived"),
        (f"{WEAK} pile - {WEAK} pile @50", None, None, "digitised"),
        (f"{UNION} compute", None, 2.0, "digitised"),
        ("405m/pile--sp/constant-3e-5 pile start", None, 2.17, "printed"),  # the end of its parent
        (f"{LOW} pile start", None, 2.17, "digitised"),
    ],
)
def test_what_was_published_has_its_mark(catalogue, of, over, value, mark):
    quantities = [text and Quantity.model_validate(text) for text in (of, over)]
    published = AsPublished(catalogue, "ibrahim2024").about(*quantities)
    assert published.mark == mark and published.place
    assert value is None or published.value == pytest.approx(value, abs=0.006)


def test_what_another_paper_published_counts(pocket):
    published = AsPublished(pocket.read()[0], "third2026")
    other = published.value(Reading.of_text("ibrahim2024/405m/pile--german/replay-0 pile"))
    assert (other.value, other.mark) == (3.56, "printed")
    with pytest.raises(Missing, match="not published"):
        published.value(Reading.of_text("german-alone pile"))
