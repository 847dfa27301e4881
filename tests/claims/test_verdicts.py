"""Every kind of test on values worked out by hand: held, failed, inconclusive, not run."""

import re

import pytest

from cpt_repro.claims.grammar import FAILED, HELD, INCONCLUSIVE, NOT_RUN, UNDECIDABLE
from cpt_repro.claims.verdicts import evaluate, settle, share

LOW, WEAK, HIGH = "405m/pile--sp/eta_max-1.5e-4", "405m/pile--sp/replay-0", "405m/pile--sp/eta_max-6e-4"
OLD, UNION = "405m/pile", "405m/pile+sp"
RATES = [f"{LOW} pile", f"{WEAK} pile", f"{HIGH} pile"]
WEAKLY = {"paper": 9.0, "share": 0.1, "of": f"{UNION} pile"}
QUARTER = {"paper": 0.02, "share": 0.25, "of": f"{UNION} pile"}
GAIN = {"of": f"{HIGH} pile - {WEAK} pile", "over": f"{HIGH} pile - {OLD} pile"}
TESTS = {
    "ordering": {"kind": "ordering", "rising": RATES},
    "falling": {"kind": "ordering", "falling": RATES[::-1]},
    "groups": {"kind": "ordering", "rising": [RATES[:2], RATES[2]]},
    "weakly": {"kind": "ordering", "rising": RATES, "weakly": WEAKLY},
    "monotone": {"kind": "monotone", "rising": RATES},
    "monotone, weakly": {"kind": "monotone", "rising": RATES, "weakly": WEAKLY},
    "within": {"kind": "within", "items": RATES[:2], "tolerance": QUARTER},
    "within, turned": {"kind": "within", "items": RATES[1::-1], "tolerance": QUARTER},
    "crossing": {"kind": "crossing", "a": RATES[0], "b": RATES[1], "before": [3, 95], "after": [200, 290]},
    "peak": {"kind": "peak_then_recover", "curve": RATES[1]},
    "recovers": {"kind": "peak_then_recover", "curve": RATES[1], "recovers": True},
    "stays up": {"kind": "peak_then_recover", "curve": RATES[1], "recovers": False},
    "ratio": {"kind": "ratio", **GAIN, "at_least": 0.5, "at_most": 0.9},
    "bound": {"kind": "ratio", "of": RATES[0], "at_most": 2.1},
}


def around(value, spread=0.001):
    """Values at three seeds around one: the t-interval of their mean is +- 2.48 spreads."""
    return [value, value + spread, value - spread]


def rates(low, mid, high, reference=1.0):
    """Final losses at three rates, each of which wanders by itself, and what a tolerance refers to."""
    last = {RATES[2]: [high + 0.001, high - 0.001, high], f"{UNION} pile": around(reference, 0.0001)}
    return {RATES[0]: around(low), RATES[1]: around(mid, -0.001)} | last


def crossing(before, after):
    a, b = ({window: f"{rate} mean{window}" for window in ("[3,95]", "[200,290]")} for rate in RATES[:2])
    first = {a["[3,95]"]: around(2.0), b["[3,95]"]: around(2.0 + before, -0.001)}
    return first | {a["[200,290]"]: around(2.0 + after), b["[200,290]"]: around(2.0, -0.001)}


def peak(highest, end):
    wander = -0.001 if end == highest else 0.002
    start = {f"{RATES[1]} start": around(2.0), f"{RATES[1]} peak": around(highest, -0.001)}
    return start | {RATES[1]: around(end, wander)}


def gain(share, rise):
    return rates(9, 3.0 - share * rise, 3.0) | {f"{OLD} pile": around(3.0 - rise, -0.002)}


@pytest.mark.parametrize(
    ("test", "values", "want"),
    [
        *((test, rates(2.0, 2.1, 2.2), HELD) for test in ("ordering", "falling")),
        *((test, rates(2.0, 2.2, 2.1), FAILED) for test in ("ordering", "falling")),
        *((test, rates(2.0, 2.1, 2.1005), INCONCLUSIVE) for test in ("ordering", "falling")),
        *((test, rates(2.2, 2.1, 2.0), FAILED) for test in ("ordering", "falling")),
        ("groups", rates(2.1, 2.0, 2.2), HELD),
        ("groups", rates(2.3, 2.0, 2.2), FAILED),
        ("weakly", rates(2.005, 2.0, 3.0, 0.1), HELD),  # 0.1 of 0.1
        ("weakly", rates(2.02, 2.0, 3.0, 0.1), FAILED),
        ("weakly", rates(2.0105, 2.0, 3.0, 0.1), INCONCLUSIVE),
        ("monotone", rates(2.0, 2.0005, 2.2), HELD),  # a step within noise, the ends apart
        ("monotone", rates(2.0, 2.3, 2.2), FAILED),  # a step clearly back
        ("monotone", rates(2.2, 2.1, 2.0), FAILED),
        ("monotone", rates(2.0, 2.0005, 2.001), INCONCLUSIVE),
        ("monotone, weakly", rates(2.005, 2.0, 3.0, 0.1), HELD),
        ("monotone, weakly", rates(2.02, 2.0, 3.0, 0.1), FAILED),
        *((test, rates(2.0, 2.01, 9, 0.1), HELD) for test in ("within", "within, turned")),
        *((test, rates(2.0, 2.0, 9, 0.1), HELD) for test in ("within", "within, turned")),
        *((test, rates(2.0, 2.05, 9, 0.1), FAILED) for test in ("within", "within, turned")),
        ("within", rates(2.0, 2.025, 9, 0.1), INCONCLUSIVE),
        ("within", rates(2.0, 2.01, 9, 0.0), INCONCLUSIVE),  # nothing to take a share of
        ("crossing", crossing(0.1, 0.1), HELD),
        ("crossing", crossing(0.1, -0.1), FAILED),
        ("crossing", crossing(-0.1, 0.1), FAILED),
        ("crossing", crossing(0.1, 0.0), INCONCLUSIVE),
        ("peak", peak(2.5, 2.3), HELD),
        ("peak", peak(1.8, 1.7), FAILED),  # never rises
        ("peak", peak(2.5, 2.5), FAILED),  # never falls: its highest point is its end
        ("peak", peak(2.0005, 1.9), INCONCLUSIVE),
        ("recovers", peak(2.5, 1.9), HELD),
        ("recovers", peak(2.5, 2.3), FAILED),
        ("stays up", peak(2.5, 2.3), HELD),
        ("stays up", peak(2.5, 1.9), FAILED),
        ("stays up", peak(2.5, 2.0), INCONCLUSIVE),
        ("ratio", gain(0.7, 1.0), HELD),
        ("ratio", gain(0.3, 1.0), FAILED),
        ("ratio", gain(0.95, 1.0), FAILED),
        ("ratio", gain(0.5, 1.0), INCONCLUSIVE),
        ("ratio", gain(0.7, -0.1), INCONCLUSIVE),  # nothing to take a share of
        ("bound", rates(2.0, 9, 9), HELD),
        ("bound", rates(2.2, 9, 9), FAILED),
        ("bound", rates(2.1, 9, 9), INCONCLUSIVE),
    ],
)
def test_a_verdict(declared, made_up, test, values, want):
    assert evaluate(declared.tests(TESTS[test])[0], made_up(values)).verdict == want


@pytest.mark.parametrize("test", TESTS)
def test_nothing_measured_is_not_run_and_says_what(declared, made_up, test):
    outcome = evaluate(declared.tests(TESTS[test])[0], made_up({}))
    assert outcome.verdict == NOT_RUN and not outcome.effects
    assert re.search("(was|were) not run", outcome.reason)


def test_a_tolerance_is_absolute_at_scale_paper_alone(declared, made_up):
    test, values = declared.tests(TESTS["within"])[0], rates(2.0, 2.04, 9)
    assert evaluate(test, made_up(values)).verdict == HELD  # 0.04 of 0.25
    assert evaluate(test, made_up(values, "paper")).verdict == FAILED  # 0.04 of 0.02
    del values[f"{UNION} pile"]  # at scale paper the reference need not be there
    assert evaluate(test, made_up(values, "paper")).tolerance == 0.02
    assert evaluate(test, made_up(values)).verdict == NOT_RUN


def test_the_noise_of_a_quotient(declared, made_up):
    """0.6 over 1.0 by the delta method: the t-interval of 0.5, 0.6, 0.7."""
    test = declared.tests({"kind": "ratio", "of": RATES[0], "over": RATES[1], "at_most": 1})[0]
    values = {RATES[0]: [0.5, 0.6, 0.7], RATES[1]: [1.0, 1.0, 1.0]}
    effect = share(test, made_up(values))
    assert effect.value == pytest.approx(0.6) and effect.noise == pytest.approx(0.2484138, rel=1e-6)
    assert share(test, made_up(values | {RATES[1]: [-1, 1, 0]})) is None
    assert share(test, made_up({})) is None


def test_what_another_scale_alone_has_is_not_run(declared, made_up):
    test, values = declared.tests({**TESTS["ordering"], "only_at": "paper"})[0], rates(2.0, 2.1, 2.2)
    assert evaluate(test, made_up(values)).reason == "only at scale paper"
    assert evaluate(test, made_up(values, "paper")).verdict == HELD


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        ({"warmup_iterations": 39}, None),  # 1 % of 3,897 iterations
        ({"warmup_iterations": 40}, f"{LOW} has 39 iterations of warm-up, 40 are needed: too few"),
        ({"iterations": 3897 + 3897}, None),  # it starts from a run of as many
        ({"iterations": 3897 + 3898}, f"{LOW} has 7794 iterations with what it starts from, 7795 are needed"),
    ],
)
def test_what_a_scale_cannot_decide_says_why(declared, pocket, needs, why):
    test = {
        "kind": "ordering",
        "rising": [f"{LOW} pile", f"{HIGH} pile"],
        "needs": needs | {"why": "too few"},
    }
    outcome = evaluate(declared.tests(test)[0], pocket.measured())
    assert outcome.verdict == (UNDECIDABLE if why else NOT_RUN) and (why or "were not run") in outcome.reason


def test_a_run_without_warmup_is_not_asked_for_one(declared, pocket):
    constant = "405m/pile--sp/constant-3e-5 pile"
    needs = {"warmup_iterations": 4000, "why": "too few"}
    test = {"kind": "ordering", "rising": [constant, f"{constant} start"], "needs": needs}
    assert evaluate(declared.tests(test)[0], pocket.measured()).verdict == NOT_RUN


def test_a_claim_needs_all_its_tests():
    assert settle([HELD, HELD]) == HELD
    assert settle([HELD, NOT_RUN]) == NOT_RUN
    assert settle([UNDECIDABLE, UNDECIDABLE]) == UNDECIDABLE
    assert settle([NOT_RUN, INCONCLUSIVE]) == INCONCLUSIVE
    assert settle([INCONCLUSIVE, FAILED, HELD]) == FAILED
