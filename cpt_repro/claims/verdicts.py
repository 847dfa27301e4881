"""Verdicts: tests over measured (or published) quantities, three outcomes each."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpt_repro.claims.quantities import AsPublished, Effect, Linear, Measured, Missing, linear
from cpt_repro.declarations.claims import (
    Crossing,
    Monotone,
    Ordering,
    PeakThenRecover,
    Quantity,
    Ratio,
    Tolerance,
    Within,
)

HELD, FAILED, INCONCLUSIVE, NOT_RUN = "held", "failed", "inconclusive", "not run"
VERDICTS = (HELD, FAILED, INCONCLUSIVE, NOT_RUN)
Source = Measured | AsPublished


@dataclass
class Outcome:
    """What one test gave."""

    verdict: str
    #: (what should be above zero, the effect)
    effects: list[tuple[str, Effect]] = field(default_factory=list)
    #: why, where the effects alone do not say it
    reason: str = ""
    #: the tolerance used, in the unit of the items
    tolerance: float | None = None


class _Bench:
    """One test at one source: effects over the seeds that all its readings have in common."""

    def __init__(self, test, source: Source):
        self.test, self.source = test, source
        # The reference of a tolerance is read below scale paper only.
        told = _items(test) + (
            [] if source.scale == "paper" else [tolerance.of for tolerance in _tolerances(test)]
        )
        self.pool = list(dict.fromkeys(reading for quantity in told for _, reading in quantity.terms))

    def effect(self, weights: Linear, constant: float = 0.0) -> Effect:
        return self.source.effect(weights, self.pool, constant)

    def value(self, quantity: Quantity) -> float:
        return _plain(self.source, linear((1, quantity)), self.pool)

    def allowed(self, tolerance: Tolerance | None) -> tuple[Linear, float, float | None]:
        """A tolerance as (weights, constant, its size); `_Unclear` where its reference is not there."""
        if tolerance is None:
            return {}, 0.0, None
        if self.source.scale == "paper":
            return {}, tolerance.paper, tolerance.paper
        reference = self.effect(linear((1, tolerance.of)))
        if reference.sign <= 0:
            raise _Unclear("the reference of its tolerance", tolerance.of, reference)
        return linear((tolerance.share, tolerance.of)), 0.0, tolerance.share * reference.value


class _Unclear(Exception):
    """What a share would be taken of is not clearly above zero."""

    def __init__(self, what: str, quantity: Quantity, effect: Effect):
        self.effects = [(f"{quantity.text} over 0", effect)]
        super().__init__(
            f"{what}, {quantity.text}, is not clearly above zero: {effect.value:+.3f} ± {effect.noise:.3f}"
        )


def _plain(source: Source, weights: Linear, pool: list) -> float:
    seeds = source.seeds(pool)
    return sum(w * sum(source.values(r)[s] for s in seeds) / len(seeds) for r, w in weights.items())


def _tolerances(test) -> list[Tolerance]:
    return [v for name in type(test).model_fields if isinstance(v := getattr(test, name), Tolerance)]


def _items(test) -> list[Quantity]:
    """The quantities that a test compares, without the references of tolerances."""
    if isinstance(test, Ordering | Monotone):
        return [q for group in (test.groups if test.rising else test.groups[::-1]) for q in group]
    if isinstance(test, Within):
        return list(test.items)
    if isinstance(test, Crossing):
        return [
            _over(curve, "mean", window) for window in (test.before, test.after) for curve in (test.a, test.b)
        ]
    if isinstance(test, PeakThenRecover):
        return [_over(test.curve, "start"), _over(test.curve, "peak", test.window), test.curve]
    return [test.of, test.over] if test.over else [test.of]


def _over(curve: Quantity, when: str, window: tuple[float, float] | None = None) -> Quantity:
    """A declared curve, `<run> <corpus>`, read in another way."""
    told = when + (f"[{window[0]:g},{window[1]:g}]" if window else "")
    terms = tuple((w, r.model_copy(update={"when": when, "window": window})) for w, r in curve.terms)
    return Quantity(text=f"{curve.text} {told}", terms=terms)


def _minus(high: Quantity, low: Quantity) -> Linear:
    return linear((1, high), (-1, low))


def _plus(*parts: Linear) -> Linear:
    out: Linear = {}
    for part in parts:
        for reading, weight in part.items():
            out[reading] = out.get(reading, 0.0) + weight
    return {reading: weight for reading, weight in out.items() if weight}


def _settle(effects: list[tuple[str, Effect]]) -> str:
    signs = [effect.sign for _, effect in effects]
    return FAILED if -1 in signs else HELD if min(signs) > 0 else INCONCLUSIVE


def _ordering(test: Ordering, bench: _Bench) -> Outcome:
    slack, constant, size = bench.allowed(test.weakly)
    effects = [
        (f"{high.text} over {low.text}", bench.effect(_plus(_minus(high, low), slack), constant))
        for lower, upper in zip(test.groups, test.groups[1:], strict=False)
        for low in lower
        for high in upper
    ]
    return Outcome(_settle(effects), effects, tolerance=size)


def _monotone(test: Monotone, bench: _Bench) -> Outcome:
    slack, constant, size = bench.allowed(test.weakly)
    chain = [q for group in test.groups for q in group]
    ends = (f"{chain[-1].text} over {chain[0].text}", bench.effect(_minus(chain[-1], chain[0])))
    steps = [
        (f"{high.text} over {low.text}", bench.effect(_plus(_minus(high, low), slack), constant))
        for low, high in zip(chain, chain[1:], strict=False)
    ]
    back = [step for step in steps if step[1].sign < 0]
    verdict = FAILED if back or ends[1].sign < 0 else HELD if ends[1].sign > 0 else INCONCLUSIVE
    return Outcome(verdict, [ends, *(back or steps if len(steps) > 1 else [])], tolerance=size)


def _within(test: Within, bench: _Bench) -> Outcome:
    slack, constant, size = bench.allowed(test.tolerance)
    # Ties go to the later item, so that two equal items still make a pair.
    ordered = sorted(test.items, key=bench.value)
    spread = _minus(ordered[0], ordered[-1])
    effects = [("tolerance over spread", bench.effect(_plus(slack, spread), constant))]
    return Outcome(_settle(effects), effects, tolerance=size)


def _crossing(test: Crossing, bench: _Bench) -> Outcome:
    a0, b0, a1, b1 = _items(test)
    effects = [
        (f"{b0.text} over {a0.text}", bench.effect(_minus(b0, a0))),
        (f"{a1.text} over {b1.text}", bench.effect(_minus(a1, b1))),
    ]
    return Outcome(_settle(effects), effects)


def _peak(test: PeakThenRecover, bench: _Bench) -> Outcome:
    start, peak, end = _items(test)
    rise = ("peak over start", bench.effect(_minus(peak, start)))
    fall = ("peak over end", bench.effect(_minus(peak, end)))
    effects = [rise, fall]
    if test.recovers is not None:
        high, low = (start, end) if test.recovers else (end, start)
        effects.append(
            ("start over end" if test.recovers else "end over start", bench.effect(_minus(high, low)))
        )
    verdict = _settle(effects)
    if verdict == INCONCLUSIVE and rise[1].sign > 0 and test.window is None and fall[1].value <= 0:
        return Outcome(FAILED, effects, "its highest point is its end")
    return Outcome(verdict, effects)


def _ratio(test: Ratio, bench: _Bench) -> Outcome:
    effects = []
    if test.over:
        whole = bench.effect(linear((1, test.over)))
        if whole.sign <= 0:
            raise _Unclear("what it is a share of", test.over, whole)
    for bound, sign, word in ((test.at_least, 1, "at least"), (test.at_most, -1, "at most")):
        if bound is not None:
            # of / over >= bound  <=>  of - bound * over >= 0, which is linear
            parts = [(sign, test.of), *([(-sign * bound, test.over)] if test.over else [])]
            effects.append(
                (f"{word} {bound:g}", bench.effect(linear(*parts), 0.0 if test.over else -sign * bound))
            )
    return Outcome(_settle(effects), effects)


_CHECKS = {
    "ordering": _ordering,
    "monotone": _monotone,
    "within": _within,
    "crossing": _crossing,
    "peak_then_recover": _peak,
    "ratio": _ratio,
}


def evaluate(test, source: Source) -> Outcome:
    """The outcome of one test at a source; what is missing gives "not run" with the reason."""
    if test.only_at and source.scale != test.only_at:
        return Outcome(NOT_RUN, reason=f"only at scale {test.only_at}")
    bench = _Bench(test, source)
    try:
        source.seeds(bench.pool)
        return _CHECKS[test.kind](test, bench)
    except Missing as why:
        return Outcome(NOT_RUN, reason=str(why))
    except _Unclear as why:
        return Outcome(INCONCLUSIVE, why.effects, str(why))


def settle(verdicts: list[str]) -> str:
    """The verdict of a claim from those of its tests, which must all hold."""
    for verdict in (FAILED, INCONCLUSIVE, NOT_RUN):
        if verdict in verdicts:
            return verdict
    return HELD


def items(test, source: Source) -> list[tuple[Quantity, Effect | None]]:
    """The quantities that a test compares with their own values and noise; None where missing."""
    out = []
    told = _items(test)
    pool = [r for q in told for _, r in q.terms]
    for quantity in told:
        value = None
        for shared in (pool, [r for _, r in quantity.terms]):
            try:
                value = source.effect(linear((1, quantity)), list(shared))
                break
            except Missing:
                continue
        out.append((quantity, value))
    return out


def quotient(test: Ratio, source: Source) -> Effect | None:
    """The quotient of a ratio with its noise (delta method); None where the denominator is not clearly above zero."""
    bench = _Bench(test, source)
    try:
        whole = bench.effect(linear((1, test.over)))
        if whole.sign <= 0:
            return None
        value = bench.value(test.of) / whole.value
        rest = bench.effect(linear((1, test.of), (-value, test.over)))
    except Missing:
        return None
    return Effect(value, rest.noise / whole.value, rest.by)
