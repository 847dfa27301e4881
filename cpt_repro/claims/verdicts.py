"""Verdicts: declared tests evaluated on measured quantities, and on what the papers themselves published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from cpt_repro.claims import grammar
from cpt_repro.claims.grammar import FAILED, HELD, INCONCLUSIVE, NOT_RUN, UNDECIDABLE, Quantity, Test, Verdict
from cpt_repro.claims.quantities import AsPublished, Measured, Missing, Part, signed
from cpt_repro.declarations.strict import Strict
from cpt_repro.exhibits.catalogue import Catalogue
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
    """What a share would be taken of is not clearly above zero: (why, its effect)."""


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

    def check_positive(self, what: str, quantity: Quantity) -> None:
        """`_Unclear` if a quantity that a share is taken of is not clearly above zero."""
        effect = self.effect(f"{quantity.text} over 0", (1, quantity))
        if effect.sign <= 0:
            raise _Unclear(f"{what}, {quantity.text}, is not clearly above zero: {signed(effect)}", effect)

    @cached_property
    def slack(self) -> list[Part]:
        """How much counts as nothing, as parts of an effect."""
        if self.tolerance is None:
            return []
        if self.source.scale == "paper":
            return [(self.tolerance.paper, None)]
        self.check_positive("the reference of its tolerance", self.tolerance.of)
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
        return Outcome(verdict=INCONCLUSIVE, effects=why.args[1:], reason=why.args[0])
    verdict, reason = test.verdict(effects)
    tolerance = at.effect("", *at.slack).value if at.slack else None
    return Outcome(verdict=verdict, effects=effects, reason=reason, tolerance=tolerance)


def settle(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a claim from those of its tests, which must all hold."""
    verdicts = set(verdicts)
    return next((v for v in (FAILED, INCONCLUSIVE, NOT_RUN, UNDECIDABLE) if v in verdicts), HELD)


def values(test: Test, source: Source) -> list[tuple[Quantity, Effect | None]]:
    """What a test compares, over the seeds common to all, else over its own; None where missing."""

    def effect(pool: Iterable[grammar.Reading], quantity: Quantity) -> Effect | None:
        try:
            return source.effect(pool, (1, quantity))
        except Missing:
            return None

    shared = test.readings(references=False)
    return [(q, effect(shared, q) or effect([r for _, r in q.terms], q)) for q in test.compared()]


def share(test: grammar.Ratio | grammar.Finding, measured: Measured) -> Effect | None:
    """What a test takes a share of another of; None where that cannot be had."""
    try:
        return measured.quotient(test.readings(), test.of, test.over)
    except Missing:
        return None


# -- the papers' own values


class Check(Strict):
    """One test on the published values."""

    paper: str
    claim: str
    says: str
    #: "not run": a quantity was not published.
    outcome: Outcome
    #: What its declaration says of the published values: "held" where it is silent.
    declared: Verdict
    why: str

    @property
    def right(self) -> bool:
        """Whether the declaration says what the published values say; of what was not published, nothing."""
        verdict = self.outcome.verdict
        return self.declared == (HELD if verdict == NOT_RUN else verdict)

    @property
    def word(self) -> str:
        """The verdict in words."""
        return "not published" if self.outcome.verdict == NOT_RUN else self.outcome.verdict

    @property
    def line(self) -> str:
        """What is to be told of it."""
        effects = ", ".join(f"{effect.says}: {signed(effect)}" for effect in self.outcome.effects)
        told = [self.outcome.reason or effects, self.why, "" if self.right else f"declared {self.declared}"]
        return f"{self.paper} {self.claim}, {self.says}: {self.word} ({'; '.join(filter(None, told))})"


def as_published(test: Test, catalogue: Catalogue, paper: str) -> AsPublished:
    """The published quantities as one test reads them: its curves from one figure where one shows them."""
    return AsPublished(catalogue, paper, {run for reading in test.readings() for run in reading.runs})


def check_published(catalogue: Catalogue) -> tuple[Check, ...]:
    """Every test of the plan's papers on the values that were published, in the order of the declarations."""
    return tuple(
        Check(
            paper=paper,
            claim=claim.id,
            says=test.says,
            outcome=evaluate(test, as_published(test, catalogue, paper)),
            declared=test.published.verdict if test.published else HELD,
            why=test.published.why if test.published else "",
        )
        for paper in catalogue.plan.papers
        for claim in grammar.load_claims(catalogue, paper)
        for test in claim.tests
    )


def told(checks: tuple[Check, ...]) -> list[str]:
    """In lines: every test that does not hold on the published values, then the counts by paper."""
    lines = [check.line for check in checks if check.word != HELD or not check.right]
    for paper in dict.fromkeys(check.paper for check in checks):
        own = [check for check in checks if check.paper == paper]
        counts = Counter(check.word for check in own)
        wrong = sum(not check.right for check in own)
        each = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        lines.append(f"{paper}: {len(own)} tests on its published values: {each}; {wrong} not as declared")
    return lines
