"""Schedules against numbers worked out from the papers' formulas, and what must hold for any setting."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cpt_repro.declarations.schedules import Anneal, Constant, Cosine, Infinite, Schedule
from cpt_repro.declarations.strict import Strict, parse
from cpt_repro.errors import UserError

MAX, CONST, MIN = 3e-4, 1.65e-4, 3e-5
N = 132366  # Ibrahim et al.: iterations of 300B tokens
GUPTA_N, GUPTA_TOKENS = 131296, 2260992  # Gupta et al.: iterations, tokens in one

ibrahim = Cosine(eta_max=MAX, eta_min=MIN, warmup_frac=0.01)
infinite_cosine = Infinite(cooldown="cosine", eta_max=MAX, eta_const=CONST, eta_min=MIN)
infinite_sqrt = Infinite(cooldown="inverse_sqrt", eta_max=MAX, eta_const=CONST, eta_min=MIN)


class Holder(Strict):
    """A file with one schedule in it."""

    schedule: Schedule


# -- Ibrahim et al. 2024, Eq. 1 and 2


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 0.0),  # the first update of a warm-up has rate 0
        (250, 3e-4 * 250 / 1000),
        (500, 1.5e-4),  # half of the 1,000 iterations that 1 % of 100,000 are
        (1000, 3e-4),  # the peak
        (25750, 3e-5 + 2.7e-4 * 0.8535533905932737),  # a quarter of the decay: (1 + cos 45 deg)/2 = 0.85355
        (50500, 1.65e-4),  # the middle of the decay: (3e-4 + 3e-5)/2
        (75250, 3e-5 + 2.7e-4 * 0.1464466094067263),  # three quarters: (1 - cos 45 deg)/2
        (100000, 3e-5),
        (100001, 3e-5),  # past the end it stays
    ],
)
def test_cosine_of_ibrahim(iteration, rate):
    assert ibrahim(iteration, 100000) == pytest.approx(rate, rel=1e-12, abs=0)


def test_cosine_of_ibrahim_has_real_breakpoints():
    # 1 % of 132,366 is 1,323.66: at 1,323 still warming, at 1,324 past the peak.
    assert ibrahim(1323, N) == pytest.approx(3e-4 * 1323 / 1323.66, rel=1e-12)
    assert 0.99999 * MAX < ibrahim(1324, N) < MAX
    # 10B model (Table 14): 1.2e-4 -> 1.2e-5, the middle of the decay is 6.6e-5.
    ten = Cosine(eta_max=1.2e-4, eta_min=1.2e-5, warmup_frac=0.01)
    assert ten(1323.66 + (N - 1323.66) / 2, N) == pytest.approx(6.6e-5, rel=1e-12)


def test_cosine_without_warm_up_starts_at_the_peak():
    assert Cosine(eta_max=MAX, eta_min=MIN, warmup_frac=0)(0, N) == MAX


# -- Gupta et al. 2023: version 1 of the cosine


gupta = Cosine(version=1, eta_max=MAX, eta_min=MIN, warmup_frac=0.01)


@pytest.mark.parametrize(
    ("billions", "share"),
    [
        (2.97, 1.0),
        (10, 0.9986),
        (25, 0.9865),
        (50, 0.9394),
        (75, 0.8618),
        (100, 0.7590),
        (150, 0.5078),
        (200, 0.2545),
        (225, 0.1491),
        (240, 0.1),
        (270, 0.1),
        (297, 0.1),
    ],
)
def test_cosine_of_gupta(billions, share):
    """lr / MaxLR at 1 % of warm-up: the fact sheet's table, whose digits are those of a phase of 297B tokens.

    By hand for 225B: x = (225 - 2.97)/297 = 0.747576, cos(pi x) = -0.70170, 0.5 (1 - 0.70170) = 0.14915.
    """
    assert gupta(billions, 297) / MAX == pytest.approx(share, abs=6e-5)
    # The committed configuration has 131,296 iterations, 296.859B tokens: 0.0004 lower at most.
    assert gupta(billions * 1e9 / GUPTA_TOKENS, GUPTA_N) / MAX == pytest.approx(share, abs=5e-4)


def test_cosine_of_gupta_meets_its_floor_where_the_paper_says():
    # 0.5 (1 + cos(pi x)) = 0.1 at x = acos(-0.8)/pi = 0.795167; + 0.01 for the warm-up: iteration 105,715 of
    # 131,296.
    assert math.acos(-0.8) / math.pi == pytest.approx(0.795167, abs=1e-6)
    first = next(t for t in range(100000, GUPTA_N) if gupta(t, GUPTA_N) == MIN)
    assert first in (105715, 105716)
    assert gupta(105714, GUPTA_N) > MIN
    assert first * GUPTA_TOKENS / 1e9 == pytest.approx(239.0, abs=0.05)
    assert all(gupta(t, GUPTA_N) == MIN for t in range(first, GUPTA_N + 1, 97))


@pytest.mark.parametrize(("warmup", "billions"), [(0, 236.1), (0.005, 237.5), (0.01, 239.0), (0.02, 242.0)])
def test_floor_of_gupta_moves_with_the_warm_up(warmup, billions):
    schedule = gupta.model_copy(update={"warmup_frac": warmup})
    at = billions * 1e9 / GUPTA_TOKENS
    assert schedule(at - 60, GUPTA_N) > MIN  # 0.14B before
    assert schedule(at + 60, GUPTA_N) == MIN


def test_upstream_rates_of_gupta():
    # Pythia-410M, 143,000 iterations: 2.97e-4 at 10,000 and 2.77e-4 at 27,000 (fact sheet, section 4).
    assert gupta(10000, 143000) == pytest.approx(2.97e-4, abs=5e-7)
    assert gupta(27000, 143000) == pytest.approx(2.77e-4, abs=5e-7)
    assert gupta(115140, 143000) == MIN and gupta(115120, 143000) > MIN


def test_versions_of_the_cosine_differ():
    # At 150B of 296.86B version 1 is at 0.5078; version 2 decays to the very end: x = (150 - 2.969)/293.89 =
    # 0.50029, 0.1 + 0.45 (1 + cos(pi 0.50029)) = 0.5496.
    at = 150e9 / GUPTA_TOKENS
    assert ibrahim(at, GUPTA_N) / MAX == pytest.approx(0.5496, abs=1e-4)
    assert gupta(at, GUPTA_N) < ibrahim(at, GUPTA_N)


# -- Ibrahim et al. 2024, section 7.2


@pytest.mark.parametrize("schedule", [infinite_cosine, infinite_sqrt])
@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 0.0),
        (50, 1.5e-4),  # half of the warm-up
        (100, 3e-4),  # 1 % of 10,000: the peak
        (6100, 1.65e-4),  # + 60 %: the constant is reached
        (7000, 1.65e-4),
        (8600, 1.65e-4),  # + 25 %: annealing starts
        (9300, 1.65e-4 * math.sqrt(3e-5 / 1.65e-4)),  # its middle: the geometric mean, 7.0356e-5
        (10000, 3e-5),
    ],
)
def test_infinite(schedule, iteration, rate):
    assert schedule(iteration, 10000) == pytest.approx(rate, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("schedule", "iteration", "rate"),
    [
        # Eq. 3, half-way and a quarter of the way through the cool-down
        (infinite_cosine, 3100, 2.325e-4),
        (infinite_cosine, 1600, 1.65e-4 + 1.35e-4 * 0.8535533905932737),
        # Eq. 4, alpha 10: h(1) = 1/sqrt(11) - 1 = -0.698489, h(1/2) = 1/sqrt(6) - 1 = -0.591752;
        # 3e-4 - 1.35e-4 * 0.591752/0.698489 = 1.856295e-4
        (infinite_sqrt, 3100, 1.856295e-4),
        # h(1/4) = 1/sqrt(3.5) - 1 = -0.465478; 3e-4 - 1.35e-4 * 0.465478/0.698489 = 2.100351e-4
        (infinite_sqrt, 1600, 2.100351e-4),
    ],
)
def test_cool_down(schedule, iteration, rate):
    assert schedule(iteration, 10000) == pytest.approx(rate, rel=1e-6)


def test_infinite_on_the_papers_axis():
    # Fig. 9b: peak at 3.06B of 299.3B (the first plotted point after 2.99B), constant from 183B, annealing
    # from 257.7B.
    def at(billions):
        return infinite_cosine(billions / 299.28 * N, N)

    assert at(2.9928) == pytest.approx(MAX, rel=1e-9)
    assert at(180) > CONST and at(183) == CONST and at(257) == CONST and at(258) < CONST
    # the last plotted value is 0.304e-4, shortly before the end
    assert at(298.8) == pytest.approx(3.04e-5, abs=5e-7)


def test_anneal_is_the_tail_of_infinite():
    anneal = Anneal(eta_const=CONST, eta_min=MIN)
    for t in range(0, 1401, 7):
        assert anneal(t, 1400) == pytest.approx(infinite_cosine(8600 + t, 10000), rel=1e-9)
    assert anneal(0, 1400) == CONST
    assert anneal(1400, 1400) == pytest.approx(MIN, rel=1e-12)


def test_trunk_is_infinite_without_its_annealing():
    trunk = Infinite(
        cooldown="inverse_sqrt", eta_max=MAX, eta_const=CONST, eta_min=MIN, constant_frac=0.39, anneal_frac=0
    )
    assert all(trunk(t, 10000) == infinite_sqrt(t, 10000) for t in range(0, 8601, 43))
    assert trunk(8601, 10000) == trunk(10000, 10000) == CONST


def test_constant():
    plain = Constant(eta_const=3e-5)
    assert [plain(t, 1000) for t in (0, 1, 500, 1000)] == [3e-5] * 4
    warmed = Constant(eta_const=3e-4, warmup_frac=0.01)
    assert [warmed(t, 1000) for t in (0, 5, 10, 11, 1000)] == pytest.approx(
        [0, 1.5e-4, 3e-4, 3e-4, 3e-4], rel=1e-12
    )


# -- refusals


@pytest.mark.parametrize(
    ("schedule", "names"),
    [
        ({"kind": "cosine", "eta_max": 3e-5, "eta_min": 3e-4}, "exceeds"),
        ({"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5, "warmup_frac": 1.01}, "warmup_frac"),
        ({"kind": "cosine", "eta_max": -3e-4, "eta_min": 3e-5}, "eta_max"),
        ({"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5, "version": 3}, "version"),
        ({"kind": "cosine", "eta_max": 3e-4}, "eta_min"),
        ({"kind": "constant", "eta_const": 0}, "eta_const"),
        ({"kind": "anneal", "eta_const": 3e-5, "eta_min": 3e-4}, "exceeds"),
        ({"kind": "linear", "eta_max": 3e-4}, "linear"),
        ({"eta_max": 3e-4, "eta_min": 3e-5}, "kind"),
        (
            {"kind": "infinite", "cooldown": "cosine", "eta_max": 3e-4, "eta_const": 4e-4, "eta_min": 3e-5},
            "eta_min <= eta_const <= eta_max",
        ),
        (
            {"kind": "infinite", "cooldown": "linear", "eta_max": 3e-4, "eta_const": 1e-4, "eta_min": 3e-5},
            "cooldown",
        ),
    ],
)
def test_refused_with_file_and_key(schedule, names):
    with pytest.raises(UserError) as caught:
        parse(Holder, {"schedule": schedule}, "runs.yaml")
    assert "runs.yaml" in str(caught.value) and "schedule" in str(caught.value) and names in str(caught.value)


FRACTIONS = ("warmup_frac", "cooldown_frac", "constant_frac", "anneal_frac")


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_fractions_that_do_not_sum_to_one_are_refused(fractions):
    assume(abs(sum(fractions) - 1) > 1e-6)
    given_ = {"kind": "infinite", "cooldown": "cosine", "eta_max": MAX, "eta_const": CONST, "eta_min": MIN}
    with pytest.raises(UserError, match="runs.yaml: the key 'schedule.infinite' is wrong: .*not 1"):
        parse(Holder, {"schedule": given_ | dict(zip(FRACTIONS, fractions, strict=True))}, "runs.yaml")


# -- properties

rates = st.floats(1e-7, 0.1)
totals = st.integers(1, 10**6)


@st.composite
def cosines(draw, versions=(1, 2)):
    high = draw(rates)
    version = draw(st.sampled_from(versions))
    # Version 1 holds its value for the last `warmup_frac`, so it meets a floor of 0.1 only for warm-ups below
    # 10 %.
    low = high * (draw(st.floats(1e-3, 1)) if version == 2 else 0.1)
    warmup = draw(st.floats(0, 0.99 if version == 2 else 0.1))
    return Cosine(version=version, eta_max=high, eta_min=low, warmup_frac=warmup)


@st.composite
def infinites(draw):
    """The fractions are multiples of 1/1000, the annealing's at least 1 %."""
    high = draw(rates)
    const = high * draw(st.floats(0.01, 1))
    cuts = sorted(draw(st.lists(st.integers(0, 990), min_size=3, max_size=3)))
    parts = [cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1], 1000 - cuts[2]]
    return Infinite(
        cooldown=draw(st.sampled_from(["cosine", "inverse_sqrt"])),
        eta_max=high,
        eta_const=const,
        eta_min=const * draw(st.floats(0.01, 1)),
        alpha=draw(st.floats(0.1, 100)),
        **{name: part / 1000 for name, part in zip(FRACTIONS, parts, strict=True)},
    )


constants = st.builds(Constant, eta_const=rates, warmup_frac=st.floats(0, 1))
anneals = rates.flatmap(
    lambda rate: st.builds(
        Anneal, eta_const=st.just(rate), eta_min=st.floats(0.01, 1).map(lambda x: x * rate)
    )
)
schedules = st.one_of(cosines(), infinites(), constants, anneals)


def highest(schedule):
    return schedule.eta_max if "eta_max" in type(schedule).model_fields else schedule.eta_const


@given(schedules, totals, st.floats(-0.5, 1.5))
def test_rates_stay_within_zero_and_the_maximum(schedule, total, part):
    assert 0 <= schedule(part * total, total) <= highest(schedule) * (1 + 1e-12)


@given(st.one_of(cosines(), infinites(), anneals), totals)
def test_the_very_end_is_the_minimum(schedule, total):
    assert schedule(total, total) == pytest.approx(schedule.eta_min, rel=1e-6)
    assert schedule(total + 1, total) == schedule(total, total)


@given(cosines((2,)))
def test_a_warm_up_of_the_whole_phase_still_ends_at_the_minimum(schedule):
    whole = schedule.model_copy(update={"warmup_frac": 1.0})
    assert whole(100, 100) == pytest.approx(schedule.eta_min, rel=1e-9)


def joins(schedule):
    """Positions in [0, 1] where one formula hands over to the next."""
    out, at = [], 0.0
    for name in FRACTIONS:
        if name in type(schedule).model_fields:
            at += getattr(schedule, name)
            out.append(at)
    return [join for join in out if 1e-4 < join < 1 - 1e-4]


@given(schedules)
def test_continuous_at_the_joins(schedule):
    assume(
        getattr(schedule, "cooldown_frac", 1) > 0
    )  # without a cool-down the drop to eta_const is what was asked for
    total, step = 1e6, 1e-3
    for join in joins(schedule):
        before, after = (schedule(join * total + side * step, total) for side in (-1, 1))
        # The steepest piece here is a decay over 0.1 % of the phase: 2e-3 iterations of 1,000 move little.
        assert abs(after - before) <= 2e-3 * highest(schedule)


@given(schedules)
def test_rises_in_the_warm_up_and_never_after(schedule):
    total = 4000
    warm = getattr(schedule, "warmup_frac", 0.0) * total
    values = [(t, schedule(t, total)) for t in range(0, total + 1, 8)]
    for (t, rate), (later, next_rate) in pairwise(values):
        if later < warm:
            assert next_rate > rate
        elif t >= warm:
            assert next_rate <= rate * (1 + 1e-12)


@given(schedules, st.floats(0.01, 50), st.integers(0, 1000))
@settings(max_examples=200)
def test_scaled_multiplies_every_rate(schedule, factor, iteration):
    scaled = schedule.scaled(factor)
    assert scaled(iteration, 1000) == pytest.approx(factor * schedule(iteration, 1000), rel=1e-9, abs=1e-300)
    assert type(scaled) is type(schedule)
    unchanged = set(type(schedule).model_fields) - {"eta_max", "eta_min", "eta_const"}
    assert all(getattr(scaled, name) == getattr(schedule, name) for name in unchanged)


@given(cosines((2,)), st.integers(1, 500))
def test_the_same_share_of_a_longer_phase_has_the_same_rate(schedule, iteration):
    assert schedule(iteration, 500) == pytest.approx(schedule(10 * iteration, 5000), rel=1e-9)
