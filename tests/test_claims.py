"""The ledger of claims: declarations, noise, verdicts, and what is written."""

import json
import math

import pytest
from exhibit_receipts import make_results
from typer.testing import CliRunner

from cpt_repro.claims import ledger as ledgers
from cpt_repro.declarations.claims import Quantity, load_claims, parse_claims
from cpt_repro.claims.quantities import AsPublished, Measured, linear
from cpt_repro.claims.verdicts import FAILED, HELD, INCONCLUSIVE, NOT_RUN, evaluate, settle
from cpt_repro.cli import app
from cpt_repro.project import ROOT
from cpt_repro.declarations.scale import MoreSeeds, load_scale
from cpt_repro.errors import UserError
from cpt_repro.records.lookup import Records
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import read_receipt, receipt_path, write

WEAK, HIGH = "405m/pile--sp/replay-0", "405m/pile--sp/eta_max-6e-4"
LOW, OLD, UNION = "405m/pile--sp/eta_max-1.5e-4", "405m/pile", "405m/pile+sp"


class Told(Measured):
    """Readings that a test makes up: {"<run> <corpus> [<when>]": values by seed}, none else."""

    def __init__(self, told, scale="pocket"):
        self.scale, self.told = scale, {reading(text): values for text, values in told.items()}

    def run(self, reading):
        return reading.runs[0]

    def _read(self, reading):
        return dict(enumerate(self.told.get(reading, ())))

    def values(self, reading):
        self._values = {}
        return super().values(reading)


def claims_of(*tests, **more):
    """One claim of Ibrahim with these tests, parsed."""
    told = {"id": "x", "statement": "s", "source": "p", "tests": [{"says": "it", **test} for test in tests]}
    return parse_claims({"paper": "ibrahim2024", "claims": [told], **more}, "ibrahim2024", "claims.yaml")[0]


def reading(text):
    return claims_of({"kind": "ratio", "of": text, "at_most": 1}).tests[0].of.terms[0][1]


def around(value, spread=0.001):
    """Values at three seeds around one: the t-interval of their mean is +- 2.48 spreads."""
    return [value, value + spread, value - spread]


def verdict(test, told, scale="pocket"):
    return evaluate(claims_of(test).tests[0], Told(told, scale)).verdict


ORDER = {"kind": "ordering", "rising": [f"{LOW} pile", f"{WEAK} pile", f"{HIGH} pile"]}
WITHIN = {
    "kind": "within",
    "items": [f"{LOW} pile", f"{WEAK} pile"],
    "tolerance": {"paper": 0.02, "share": 0.25, "of": f"{UNION} pile"},
}
CROSS = {"kind": "crossing", "a": f"{LOW} sp", "b": f"{WEAK} sp", "before": [3, 95], "after": [200, 290]}
RATIO = {
    "kind": "ratio",
    "of": f"{HIGH} pile - {WEAK} pile",
    "over": f"{HIGH} pile - {OLD} pile",
    "at_least": 0.5,
    "at_most": 0.9,
}


def losses(low, mid, high, spread=0.001):
    """Final losses of the three rates; each wanders by itself."""
    return {
        f"{LOW} pile": around(low, spread),
        f"{WEAK} pile": around(mid, -spread),
        f"{HIGH} pile": [high + spread, high - spread, high],
    }


@pytest.mark.parametrize(
    ("low", "mid", "high", "want"),
    [
        (2.0, 2.1, 2.2, HELD),
        (2.0, 2.2, 2.1, FAILED),
        (2.0, 2.1, 2.1005, INCONCLUSIVE),
        (2.2, 2.1, 2.0, FAILED),
    ],
)
def test_ordering(low, mid, high, want):
    assert verdict(ORDER, losses(low, mid, high)) == want
    falling = {"kind": "ordering", "falling": ORDER["rising"][::-1]}
    assert verdict(falling, losses(low, mid, high)) == want


def test_ordering_of_groups_leaves_their_members_in_any_order():
    grouped = {"kind": "ordering", "rising": [[f"{LOW} pile", f"{WEAK} pile"], f"{HIGH} pile"]}
    assert verdict(grouped, losses(2.1, 2.0, 2.2)) == HELD
    assert verdict(grouped, losses(2.3, 2.0, 2.2)) == FAILED


@pytest.mark.parametrize(("back", "want"), [(0.005, HELD), (0.02, FAILED), (0.0105, INCONCLUSIVE)])
def test_weak_ordering_allows_its_tolerance_and_no_more(back, want):
    weakly = {"paper": 9.0, "share": 0.1, "of": f"{UNION} pile"}  # 0.1 x 0.1 below scale paper
    test = {"kind": "ordering", "rising": [f"{LOW} pile", f"{WEAK} pile"], "weakly": weakly}
    told = losses(2.0 + back, 2.0, 3.0) | {f"{UNION} pile": around(0.1, 0.0001)}
    assert verdict(test, told) == want


@pytest.mark.parametrize(
    ("apart", "reference", "want"),
    [(0.01, 0.1, HELD), (0.05, 0.1, FAILED), (0.025, 0.1, INCONCLUSIVE), (0.01, 0.0, INCONCLUSIVE)],
)
def test_within(apart, reference, want):
    told = losses(2.0, 2.0 + apart, 9.0) | {f"{UNION} pile": around(reference, 0.0001)}
    assert verdict(WITHIN, told) == want


def test_tolerance_is_absolute_at_paper_scale_alone():
    told = losses(2.0, 2.04, 9.0) | {f"{UNION} pile": around(1.0)}
    assert verdict(WITHIN, told) == HELD  # 0.04 of 0.25
    assert verdict(WITHIN, told, "paper") == FAILED  # 0.04 of 0.02
    del told[f"{UNION} pile"]  # at paper scale the reference need not be there
    assert verdict(WITHIN, told, "paper") == FAILED
    assert verdict(WITHIN, told) == NOT_RUN


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ((2.0, 2.0005, 2.2), HELD),  # a step within noise, the ends apart
        ((2.0, 2.3, 2.2), FAILED),  # a step clearly back
        ((2.2, 2.1, 2.0), FAILED),
        ((2.0, 2.0005, 2.001), INCONCLUSIVE),
    ],
)
def test_monotone(values, want):
    assert verdict({**ORDER, "kind": "monotone"}, losses(*values)) == want


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [(0.1, 0.1, HELD), (0.1, -0.1, FAILED), (-0.1, 0.1, FAILED), (0.1, 0.0, INCONCLUSIVE)],
)
def test_crossing(before, after, want):
    told = {
        f"{LOW} sp mean[3,95]": around(2.0),
        f"{WEAK} sp mean[3,95]": around(2.0 + before, -0.001),
        f"{LOW} sp mean[200,290]": around(2.0 + after),
        f"{WEAK} sp mean[200,290]": around(2.0, -0.001),
    }
    assert verdict(CROSS, told) == want


@pytest.mark.parametrize(
    ("peak", "end", "recovers", "want"),
    [
        (2.5, 2.3, None, HELD),
        (2.5, 2.3, False, HELD),
        (2.5, 2.3, True, FAILED),
        (2.5, 1.9, True, HELD),
        (2.5, 1.9, False, FAILED),
        (2.5, 2.0, False, INCONCLUSIVE),
        (1.8, 1.7, None, FAILED),  # never rises
        (2.0005, 1.9, None, INCONCLUSIVE),
        (2.5, 2.5, None, FAILED),  # never falls: its highest point is its end
    ],
)
def test_peak_then_recover(peak, end, recovers, want):
    test = {"kind": "peak_then_recover", "curve": f"{WEAK} pile", "recovers": recovers}
    told = {
        f"{WEAK} pile start": around(2.0),
        f"{WEAK} pile peak": around(peak, -0.001),
        f"{WEAK} pile": around(end, -0.001 if end == peak else 0.002),
    }
    assert verdict(test, told) == want


@pytest.mark.parametrize(
    ("share", "rise", "want"),
    [
        (0.7, 1.0, HELD),
        (0.3, 1.0, FAILED),
        (0.95, 1.0, FAILED),
        (0.5, 1.0, INCONCLUSIVE),
        (0.7, -0.1, INCONCLUSIVE),
    ],
)
def test_ratio(share, rise, want):
    told = losses(9, 3.0 - share * rise, 3.0) | {f"{OLD} pile": around(3.0 - rise, -0.002)}
    assert verdict(RATIO, told) == want


@pytest.mark.parametrize(
    "test",
    [
        ORDER,
        WITHIN,
        {**ORDER, "kind": "monotone"},
        CROSS,
        {"kind": "peak_then_recover", "curve": f"{WEAK} pile"},
        RATIO,
    ],
    ids=lambda test: test["kind"],
)
def test_nothing_measured_is_not_run_and_says_what(test):
    outcome = evaluate(claims_of(test).tests[0], Told({}))
    assert outcome.verdict == NOT_RUN and "was not run" in outcome.reason


def test_a_claim_needs_all_its_tests():
    assert settle([HELD, HELD]) == HELD
    assert settle([HELD, NOT_RUN]) == NOT_RUN
    assert settle([NOT_RUN, INCONCLUSIVE]) == INCONCLUSIVE
    assert settle([INCONCLUSIVE, FAILED, HELD]) == FAILED


# -- noise


def test_differences_are_paired_by_seed():
    """A seed that moves both arms alike is no noise; the same values in other pairs are."""
    wandering = [2.0, 2.5, 3.0]
    lower, upper = wandering, [value + 0.1 + 0.001 * k for k, value in enumerate(wandering)]
    test = {"kind": "ordering", "rising": [f"{LOW} pile", f"{WEAK} pile"]}
    assert verdict(test, {f"{LOW} pile": lower, f"{WEAK} pile": upper}) == HELD
    assert verdict(test, {f"{LOW} pile": lower, f"{WEAK} pile": upper[::-1]}) == INCONCLUSIVE


def test_noise_of_three_seeds_is_the_t_interval():
    source = Told({f"{LOW} pile": [2.0, 2.1, 2.2]})
    quantity = claims_of({"kind": "ratio", "of": f"{LOW} pile", "at_most": 1}).tests[0].of
    effect = source.effect(linear((1, quantity)), [quantity.terms[0][1]])
    assert effect.value == pytest.approx(2.1) and effect.by == "3 seeds"
    assert effect.noise == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)  # t(0.975, 2) from a table


@pytest.fixture(scope="module")
def seeded():
    """The plan of smoke with three seeds of two runs."""
    more = MoreSeeds(seeds=(1, 2), runs=(f"ibrahim2024/{WEAK}", f"ibrahim2024/{UNION}"))
    return Plan(load_scale("smoke").model_copy(update={"more_seeds": more}))


def change(plan, results, run, seed=0, corpus="pile", **final):
    """Rewrites a made-up receipt: keys of its final loss, or `sequences`."""
    path = receipt_path(results, plan.scale.name, f"ibrahim2024/{run}/seed-{seed}")
    receipt = read_receipt(path)
    update = {}
    if "sequences" in final:
        update["sequence_losses"] = {**receipt.sequence_losses, corpus: final.pop("sequences")}
    update["final"] = {**receipt.final, corpus: receipt.final[corpus].model_copy(update=final)}
    write(path, receipt.model_copy(update=update))


def effect_of(plan, results, text):
    source = Measured(Records(plan, "ibrahim2024", results))
    quantity = claims_of({"kind": "ratio", "of": text, "at_most": 1}).tests[0].of
    return source.effect(linear((1, quantity)), [r for _, r in quantity.terms])


def test_seeds_decide_where_all_runs_have_three(seeded, tmp_path):
    make_results(seeded, tmp_path)
    for seed in range(3):
        change(seeded, tmp_path, WEAK, seed, loss=2.4 + seed)
        change(seeded, tmp_path, UNION, seed, loss=2.2 + seed + 0.01 * seed)
    effect = effect_of(seeded, tmp_path, f"{WEAK} pile - {UNION} pile")
    assert effect.by == "3 seeds"
    assert (effect.value, effect.noise) == (
        pytest.approx(0.19),
        pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6),
    )
    # a run with one seed takes the others down to it
    effect = effect_of(seeded, tmp_path, f"{WEAK} pile - 405m/pile--sp/constant-3e-5 pile")
    assert effect.by == "evaluation noise, 1 seed"


def test_evaluation_noise_is_paired_by_sequence(seeded, tmp_path):
    make_results(seeded, tmp_path)
    hard = [1.0 + k for k in range(8)]  # sequences differ much, models little
    runs = {LOW: hard, HIGH: [value + 0.1 + 0.01 * (-1) ** k for k, value in enumerate(hard)]}
    for run, sequences in runs.items():
        change(seeded, tmp_path, run, sequences=sequences, noise=0.9, stderr=0.003)
    effect = effect_of(seeded, tmp_path, f"{HIGH} pile - {LOW} pile")
    spread = 0.01 * math.sqrt(8 / 7) / math.sqrt(8)  # standard error of the eight differences
    assert effect.noise == pytest.approx(1.96 * math.hypot(spread, 0.003, 0.003), rel=1e-6)
    # a single point of a curve jitters more than the mean of five evaluations
    effect = effect_of(seeded, tmp_path, f"{HIGH} pile @50 - {LOW} pile @50")
    assert effect.noise == pytest.approx(1.96 * math.hypot(spread, *[0.003 * math.sqrt(5)] * 2), rel=1e-6)
    # old receipts: each loss has the noise of the validation set
    change(seeded, tmp_path, HIGH, sequences=())
    effect = effect_of(seeded, tmp_path, f"{HIGH} pile - {LOW} pile")
    assert effect.noise == pytest.approx(1.96 * math.hypot(0.9, 0.9, 0.003, 0.003), rel=1e-6)


def test_the_start_of_a_child_has_its_parents_sequences(seeded, tmp_path):
    make_results(seeded, tmp_path)
    change(seeded, tmp_path, OLD, sequences=[1.0, 2.0, 3.0, 4.0], stderr=0.0)
    change(seeded, tmp_path, LOW, sequences=[2.0, 3.0, 4.0, 5.0], stderr=0.0)
    assert effect_of(seeded, tmp_path, f"{LOW} pile - {LOW} pile start").noise == pytest.approx(0, abs=1e-12)
    change(seeded, tmp_path, OLD, sequences=[4.0, 3.0, 2.0, 1.0], stderr=0.0)
    assert effect_of(seeded, tmp_path, f"{LOW} pile - {LOW} pile start").noise > 1


# -- the declared claims

IDS = [("gupta2023", f"C{k}") for k in range(1, 17)] + [("ibrahim2024", str(k)) for k in range(1, 33)]


@pytest.mark.parametrize("scale", ["smoke", "pocket"])
def test_all_48_claims_have_a_verdict(scale, tmp_path):
    plan = Plan(load_scale(scale))
    make_results(plan, tmp_path)
    ledger = ledgers.build_ledger(plan, tmp_path)
    assert [(claim.paper, claim.id) for claim in ledger.claims] == IDS
    assert sum(ledger.counts.values()) == 48 and ledger.counts[NOT_RUN] == 1
    for claim in ledger.claims:
        # only MMLU has no counterpart at the small scales
        assert (claim.verdict == NOT_RUN) == (claim.id == "23"), claim.reason
        assert claim.runs and claim.decided_by and claim.statement.endswith(".")
        for test in claim.tests:
            assert test.effects or test.reason
            assert test.verdict != NOT_RUN or test.missing
    last = {"smoke": 7, "pocket": 3}[scale]  # domains of the new corpus
    assert f"405m/pile--sp-domains/stage-{last}" in claim_in(ledger, "ibrahim2024", "31").runs
    assert not ledger.stale and len(ledger.sha256) > 90


def test_published_values_satisfy_ibrahims_claims():
    """Without noise, up to half a printed digit. What was not published says nothing."""
    silent = []
    for claim in load_claims("ibrahim2024"):
        for test in claim.tests:
            runs = tuple(run for reading in ledgers.readings(test) for run in reading.runs)
            outcome = evaluate(test, AsPublished("ibrahim2024", runs))
            assert outcome.verdict in (HELD, NOT_RUN), (claim.id, test.says, outcome.effects)
            silent += [(claim.id, test.says)] * (outcome.verdict == NOT_RUN)
    # the y-axis of Fig. 3d cuts the first billions off
    assert silent == [("4", "new loss at 2B, strong shift: warm-up 0.5, 1, 2 %")]


def test_published_values_can_fail_a_test():
    """The same check refuses what the paper contradicts."""
    test = claims_of({"kind": "ordering", "rising": [f"{WEAK} pile", f"{UNION} pile"]}).tests[
        0
    ]  # 2.44 and 2.17
    assert evaluate(test, AsPublished("ibrahim2024")).verdict == FAILED


def test_published_curves_of_one_test_come_from_one_figure():
    """Fig. 3 and Fig. 4 show different runs at the same setting."""
    ledger_test = next(claim for claim in load_claims("ibrahim2024") if claim.id == "4").tests[0]
    runs = tuple(run for reading in ledgers.readings(ledger_test) for run in reading.runs)
    read = reading(f"{WEAK} pile @50")
    assert AsPublished("ibrahim2024", runs).find(read)[2].startswith("Figure 3a")
    assert AsPublished("ibrahim2024").find(read)[2].startswith("Figure 4a")


# -- the ledger


def claim_in(ledger, paper, name):
    return next(claim for claim in ledger.claims if (claim.paper, claim.id) == (paper, name))


def test_two_swapped_receipts_turn_held_into_failed(tmp_path):
    plan = Plan(load_scale("smoke"))
    make_results(plan, tmp_path)
    for loss, (run, noise) in zip((2.3, 2.4, 2.6), ((LOW, 0.001), (WEAK, 0.001), (HIGH, 0.001)), strict=True):
        change(plan, tmp_path, run, loss=loss, noise=noise)
    weak = lambda: claim_in(ledgers.build_ledger(plan, tmp_path), "ibrahim2024", "8").tests[0]  # noqa: E731
    test = weak()
    assert (test.verdict, [item.value for item in test.measured]) == (HELD, [2.3, 2.4, 2.6])
    assert [(item.published, item.mark) for item in test.measured] == [
        (p, "printed") for p in (2.43, 2.44, 2.48)
    ]
    change(plan, tmp_path, LOW, loss=2.6)
    change(plan, tmp_path, HIGH, loss=2.3)
    ledger = ledgers.build_ledger(plan, tmp_path)
    assert weak().verdict == FAILED
    failed = claim_in(ledger, "ibrahim2024", "8")
    assert failed.verdict == FAILED and "at smoke" in failed.reason
    assert failed.decided_by == "evaluation noise, 1 seed"


def test_missing_receipts_are_not_run_with_the_reason(tmp_path):
    plan = Plan(load_scale("smoke"))
    make_results(plan, tmp_path, leave_out=("405m/pile--sp-200b/replay-0", "405m/pile--german/replay-0.25"))
    claim = claim_in(ledgers.build_ledger(plan, tmp_path), "ibrahim2024", "31")
    assert claim.verdict != NOT_RUN
    test = claim_in(ledgers.build_ledger(plan, tmp_path), "ibrahim2024", "30").tests[0]
    assert test.verdict == NOT_RUN and test.missing == ("405m/pile--sp-200b/replay-0 was not run",)
    assert [item.value is None for item in test.measured] == [False, True, False]
    empty = ledgers.build_ledger(plan, tmp_path / "nothing")
    # compute is known from the plan
    assert {claim.id for claim in empty.claims if claim.verdict != NOT_RUN} == {"3"}


def test_a_part_for_another_scale_is_named_and_does_not_count(tmp_path):
    plan = Plan(load_scale("smoke"))
    make_results(plan, tmp_path)
    claim = claim_in(ledgers.build_ledger(plan, tmp_path), "ibrahim2024", "19")
    away = [test for test in claim.tests if test.only_at]
    assert {test.verdict for test in away} == {NOT_RUN} and claim.verdict != NOT_RUN
    assert "not at this scale: MMLU-DE" in claim.reason


def test_ledger_files_are_the_same_twice_and_name_the_scale(tmp_path):
    plan = Plan(load_scale("smoke"))
    make_results(plan, tmp_path / "results")
    texts = []
    for place in ("a", "b"):
        ledger = ledgers.build_ledger(Plan(load_scale("smoke")), tmp_path / "results")
        paths = ledgers.write_ledger(ledger, tmp_path / place)
        assert [str(p.relative_to(tmp_path / place)) for p in paths] == [
            "smoke/claims.json",
            "smoke/claims.md",
        ]
        texts.append([path.read_bytes() for path in paths])
    assert texts[0] == texts[1]
    told = json.loads(texts[0][0])
    assert (told["scale"], len(told["claims"])) == ("smoke", 48)
    record = "receipt ibrahim2024/405m/pile/seed-0"
    records = Records(plan, "ibrahim2024", tmp_path / "results")
    records.receipts("405m/pile")
    assert told["sha256"][record] == records.digests[record]
    lines = texts[0][1].decode().splitlines()
    assert "48 claims at scale smoke" in lines[2]
    assert sum("measured (scale smoke) | published (scale paper)" in line for line in lines) == 2
    assert all(line.count(" | ") - line.count("\\|") >= 4 for line in lines if line.startswith("| "))


def test_readme_table_has_a_row_per_claim_and_the_analyses(tmp_path):
    plan = Plan(load_scale("smoke"))
    make_results(plan, tmp_path)
    change(plan, tmp_path, LOW, loss=9.0, noise=0.001)
    change(plan, tmp_path, WEAK, loss=2.0, noise=0.001)
    (tmp_path / "smoke" / "analysis.yaml").write_text("ibrahim2024/8: It is the regime.\n")
    ledger = ledgers.build_ledger(plan, tmp_path)
    assert claim_in(ledger, "ibrahim2024", "8").analysis == "It is the regime."
    text = ledgers.readme_table(ledger)
    assert sum(line.startswith(("| Gupta C", "| Ibrahim ")) for line in text.splitlines()) == 48
    assert "\n- Ibrahim 8: It is the regime.\n" in text
    assert text.count("scale smoke") >= 2


def test_an_analysis_of_an_unknown_claim_is_refused(tmp_path):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "analysis.yaml").write_text("ibrahim2024/99: It is the regime.\n")
    with pytest.raises(UserError, match="ibrahim2024/99"):
        ledgers.build_ledger(Plan(load_scale("smoke")), tmp_path)


def test_command_line(tmp_path, monkeypatch):
    plan = Plan(load_scale("smoke"))
    make_results(plan, tmp_path / "results")
    call = lambda *more: CliRunner().invoke(app, ["claims", "--results", str(tmp_path / "results"), *more])  # noqa: E731
    told = json.loads(call("--json", "--paper", "gupta2023").stdout)
    assert {claim["paper"] for claim in told["claims"]} == {"gupta2023"}
    monkeypatch.setenv("COLUMNS", "200")
    assert "48 claims at scale smoke" in call().stdout
    one = call("--claim", "ibrahim2024/12")
    assert one.exit_code == 0 and "share of the rise" in one.stdout
    assert isinstance(call("--claim", "99").exception, UserError)
    assert call("--write", "--out", str(tmp_path / "figures")).exit_code == 0
    assert (tmp_path / "figures" / "smoke" / "claims.md").exists()


# -- what is refused

GOOD = {"kind": "ordering", "rising": [f"{LOW} pile", f"{WEAK} pile"]}


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ({**GOOD, "kind": "orderin"}, "orderin"),
        ({**GOOD, "risin": []}, "Did you mean 'rising'"),
        ({**GOOD, "falling": GOOD["rising"]}, "not both"),
        ({**GOOD, "rising": [f"{LOW} pile"]}, "at least 2"),
        (
            {**GOOD, "rising": ["405m/pile--sp/replay-00 pile", f"{LOW} pile"]},
            "Did you mean '405m/pile--sp/replay-0'",
        ),
        ({**GOOD, "rising": [f"{LOW} pil", f"{WEAK} pile"]}, "Did you mean 'pile'"),
        ({**GOOD, "rising": [f"{LOW} german", f"{WEAK} pile"]}, "corpus"),
        ({**GOOD, "rising": [f"{LOW} pile @500", f"{WEAK} pile"]}, "299B tokens long"),
        ({**GOOD, "rising": [f"{LOW} pile pek", f"{WEAK} pile"]}, "does not say when"),
        ({**GOOD, "rising": [f"{LOW} pile peak[9,3]", f"{WEAK} pile"]}, "empty"),
        ({**GOOD, "rising": [f"{LOW} pile -", f"{WEAK} pile"]}, "ends before its last term"),
        ({**GOOD, "rising": [f"{LOW} pile - + {LOW} pile", f"{WEAK} pile"]}, "between two terms"),
        ({**GOOD, "rising": [f"{LOW}", f"{WEAK} pile"]}, "a term is"),
        ({**GOOD, "rising": [f"{LOW} compute @50", f"{WEAK} pile"]}, "does not say when"),
        ({**GOOD, "rising": [f"{OLD} average", f"{WEAK} pile"]}, "not clear"),
        ({**GOOD, "rising": ["405m/ties/sp-0.25 pile", f"{WEAK} pile"]}, "is a merge"),
        ({**GOOD, "rising": [f"{LOW} suite:englich", f"{WEAK} pile"]}, "Did you mean 'english'"),
        ({**GOOD, "only_at": "papers"}, "Did you mean 'paper'"),
        ({**GOOD, "each": {"x": 1}}, "each"),
        ({**WITHIN, "tolerance": {"paper": 0.1}}, "share"),
        ({"kind": "ratio", "of": f"{LOW} pile"}, "at_least"),
    ],
)
def test_bad_declarations_are_refused_with_file_and_claim(test, says):
    with pytest.raises(UserError) as caught:
        claims_of(test)
    assert says in str(caught.value) and "claims.yaml, claim x" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([], "list 'claims'"),
        ({"paper": "gupta2023", "claims": []}, "gupta2023"),
        ({"paper": "ibrahim2024", "claim": [], "claims": []}, "Did you mean 'claims'"),
        (
            {"paper": "ibrahim2024", "claims": [{"id": "1", "statement": "s", "source": "p", "tests": []}]},
            "tests",
        ),
        (
            {"paper": "ibrahim2024", "claims": [{"id": "1", "source": "p", "tests": [{**GOOD, "says": ""}]}]},
            "statement",
        ),
    ],
)
def test_bad_files_are_refused(raw, says):
    with pytest.raises(UserError) as caught:
        parse_claims(raw, "ibrahim2024", "claims.yaml")
    assert says in str(caught.value) and str(caught.value).startswith("claims.yaml")


def test_an_id_stands_once():
    told = {"id": 1, "statement": "s", "source": "p", "tests": [{**GOOD, "says": ""}]}
    with pytest.raises(UserError, match="stands twice"):
        parse_claims({"paper": "ibrahim2024", "claims": [told, told]}, "ibrahim2024", "claims.yaml")


def test_short_forms_are_spelled_out():
    each = {
        "kind": "ordering",
        "each": {"d": ["pile", "sp"]},
        "rising": ["405m/pile--sp/replay-{0.5,0} {d}", "w {d}"],
    }
    claim = claims_of(each, names={"w": HIGH})
    assert [[q.text for q in test.rising] for test in claim.tests] == [
        [f"405m/pile--sp/replay-0.5 {d}", f"405m/pile--sp/replay-0 {d}", f"{HIGH} {d}"]
        for d in ("pile", "sp")
    ]
    text = f"{WEAK} average - {UNION} average"
    quantity = claims_of({"kind": "ratio", "of": text, "at_most": 1}).tests[0].of
    assert [(weight, r.runs, r.of) for weight, r in quantity.terms] == [
        (1.0, (WEAK,), ("pile", "sp")),
        (-1.0, (UNION,), ("pile", "sp")),
    ]
    last = next(claim for claim in load_claims("ibrahim2024") if claim.id == "31").tests[0].rising[1]
    assert (last.text, len(last.terms[0][1].runs)) == ("405m/pile--sp-domains/stage-7..2 pile", 6)
    assert Quantity.model_validate(f"{WEAK} sp @50").terms[0][1].window == (50, 50)


def test_a_paper_without_claims_has_none(monkeypatch, tmp_path):
    from cpt_repro.claims import declarations

    monkeypatch.setattr(declarations, "PAPERS", tmp_path)
    assert declarations.load_claims.__wrapped__("third2025") == ()


def test_the_readme_is_current():
    """What the README says of pocket is what the committed receipts say; `cpt-repro claims --readme` renews it."""
    readme = ROOT / "README.md"
    told = ledgers.build_ledger(Plan(load_scale("pocket")), ROOT / "results")
    text = readme.read_text(encoding="utf-8")
    assert ledgers.in_readme(told, text, "README.md") == text


def test_failed_claims_of_pocket_are_analysed():
    told = ledgers.build_ledger(Plan(load_scale("pocket")), ROOT / "results")
    assert [claim.id for claim in told.claims if claim.verdict == "failed" and not claim.analysis] == []
    assert [claim.id for claim in told.claims if claim.analysis and claim.verdict != "failed"] == []


def test_a_readme_without_marks_is_refused():
    told = ledgers.build_ledger(Plan(load_scale("pocket")), ROOT / "results")
    with pytest.raises(UserError, match="marks"):
        ledgers.in_readme(told, "no marks", "README.md")
