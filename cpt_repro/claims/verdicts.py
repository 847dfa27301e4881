"""Verdicts: declared tests evaluated on measured (or published) quantities."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from cpt_repro.claims.grammar import (
    FAILED,
    HELD,
    INCONCLUSIVE,
    NOT_RUN,
    UNDECIDABLE,
    Finding,
    Quantity,
    Ratio,
    Reading,
    Test,
    Verdict,
)
from cpt_repro.claims.quantities import AsPublished, Measured, Missing, Part, signed
from cpt_repro.declarations.strict import Strict
from cpt_repro.records.uncertainty import Effect, Number

Source = Measured | AsPublished


class Outcome(Strict):
    """What one test gave."""

    verdict: Verdict
    #: What it wants to be above zero.
    effects: tuple[Effect, ...] = ()
    #: Why, where the effects alone do not say it.
    reason: str = ""
    #: The tolerance used, in the unit of the items.
    tolerance: Number | None = None


class _Unclear(Exception):
    """What a share would be taken of is not clearly above zero."""

    def __init__(self, what: str, quantity: Quantity, effect: Effect):
        self.effect = effect
        super().__init__(f"{what}, {quantity.text}, is not clearly above zero: {signed(effect)}")


class Bench:
    """One test at one source: effects over the seeds that all its readings have in common."""

    def __init__(self, test: Test, source: Source):
        self.source, self.tolerance = source, getattr(test, "tolerance", None)
        self.pool = test.readings(references=source.scale != "paper")

    def effect(self, says: str, *parts: Part) -> Effect:
        """The effect of weighted quantities."""
        return self.source.effect(self.pool, *parts).model_copy(update={"says": says})

    def step(self, high: Quantity, low: Quantity, *slack: Part, says: str | None = None) -> Effect:
        """One quantity over another."""
        return self.effect(says or f"{high.text} over {low.text}", (1, high), (-1, low), *slack)

    def positive(self, what: str, quantity: Quantity) -> Effect:
        """A quantity that a share is taken of; `_Unclear` if it is not clearly above zero."""
        effect = self.effect(f"{quantity.text} over 0", (1, quantity))
        if effect.sign <= 0:
            raise _Unclear(what, quantity, effect)
        return effect

    @cached_property
    def slack(self) -> list[Part]:
        """How much counts as nothing, as parts of an effect."""
        if self.tolerance is None:
            return []
        if self.source.scale == "paper":
            return [(self.tolerance.paper, None)]
        self.positive("the reference of its tolerance", self.tolerance.of)
        return [(self.tolerance.share, self.tolerance.of)]


def evaluate(test: Test, source: Source) -> Outcome:
    """The outcome of one test at a source; what is missing gives "not run" with the reason."""
    if test.only_at and source.scale != test.only_at:
        return Outcome(verdict=NOT_RUN, reason=f"only at scale {test.only_at}")
    if why := source.lacks(test):
        return Outcome(verdict=UNDECIDABLE, reason=why)
    at = Bench(test, source)
    try:
        source.seeds(at.pool)
        effects = test.effects(at)
    except Missing as why:
        return Outcome(verdict=NOT_RUN, reason=str(why))
    except _Unclear as why:
        return Outcome(verdict=INCONCLUSIVE, effects=(why.effect,), reason=str(why))
    verdict, reason = test.verdict(effects)
    tolerance = at.effect("", *at.slack).value if at.slack else None
    return Outcome(verdict=verdict, effects=effects, reason=reason, tolerance=tolerance)


def settle(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a claim from those of its tests, which must all hold."""
    verdicts = set(verdicts)
    return next((v for v in (FAILED, INCONCLUSIVE, NOT_RUN, UNDECIDABLE) if v in verdicts), HELD)


def values(test: Test, source: Source) -> list[tuple[Quantity, Effect | None]]:
    """What a test compares, over the seeds common to all, else over its own; None where missing."""

    def effect(pool: Iterable[Reading], quantity: Quantity) -> Effect | None:
        try:
            return source.effect(pool, (1, quantity))
        except Missing:
            return None

    shared = test.readings(references=False)
    return [(q, effect(shared, q) or effect([r for _, r in q.terms], q)) for q in test.compared()]


def share(test: Ratio | Finding, measured: Measured) -> Effect | None:
    """What a test takes a share of another of; None where that cannot be had."""
    try:
        return measured.quotient(test.readings(), test.of, test.over)
    except Missing:
        return None
