"""The claims tested on what the papers themselves published: each holds there, or says why it does not."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cpt_repro.claims.grammar import HELD, NOT_RUN, Test, Verdict, load_claims
from cpt_repro.claims.quantities import AsPublished, signed
from cpt_repro.claims.verdicts import Outcome, evaluate
from cpt_repro.declarations.strict import Strict

if TYPE_CHECKING:
    from cpt_repro.exhibits.catalogue import Catalogue

#: Where a quantity was not published, nothing can be said.
NOT_PUBLISHED = "not published"


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
        return self.outcome.verdict == self.declared or (
            self.outcome.verdict == NOT_RUN and self.declared == HELD
        )

    @property
    def word(self) -> str:
        """The verdict in words."""
        return NOT_PUBLISHED if self.outcome.verdict == NOT_RUN else self.outcome.verdict

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
        for claim in load_claims(catalogue, paper)
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
