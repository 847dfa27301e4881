"""What a paper claims, as predicates over its runs: `configs/papers/<paper>/claims.yaml`.

A quantity is a text, `<run> <what> [<when>]`, or several joined by lone `+` and `-`; a run or merge of
another paper is called `<paper>/<run>`.

    big/old--new/replay-0 new - big/old new    what: a corpus (its validation loss), average (of the old and
    big/old+new suite:common                   the new corpus that the run is validated on), suite:<suite>,
    big/old--new/eta_max-3e-4 new @50          task:<suite>/<printed name>|<stand-in>, compute (in the paper's
    big/old--new/replay-0 old peak[0,20]       unit), slope (of PPL on the old corpus against PPL on the new)
    big/old--new/replay-0 slope [0,50]         when: nothing (the end), @<billions>, start, peak, mean;
                                               the last two, slope: a window in billions

Points of a curve are read only where all runs that a test compares were evaluated. `points` of the file names
those that are asked for with @: every run of the paper is evaluated there.

`{a,b}` in a list of quantities stands for one quantity each. `names` gives runs short names; a name for
several runs is the first that has a counterpart at the scale. A test with `each` is one per combination.
What the papers' own numbers say of a test, where that is not "held", stands in its `published`; what a scale
must have so that it can be decided there, in `needs`.
"""

from __future__ import annotations

import itertools
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from cpt_repro.declarations.runs import combinations, fill
from cpt_repro.declarations.strict import Count, Strict, load, nearest, parse
from cpt_repro.declarations.study import Items, Study, WantedPoints
from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.records.uncertainty import Effect

if TYPE_CHECKING:
    from cpt_repro.claims.verdicts import Bench

Verdict = Literal["held", "failed", "inconclusive", "undecidable here", "not run"]
HELD, FAILED, INCONCLUSIVE, UNDECIDABLE, NOT_RUN = VERDICTS = get_args(Verdict)
#: Billions of the paper's tokens since a run began.
Window = tuple[float, float]
AVERAGE = ("average",)
_NUMBER = r"\d+(?:\.\d+)?"
_WINDOW = rf"\[{_NUMBER},{_NUMBER}\]"
#: How readings are written: (what, when).
_WRITTEN = {
    "suite": (r"suite:([^/]+)", ""),
    "task": (r"task:([^/]+)/(.+)", ""),
    "compute": ("compute", ""),
    "slope": ("slope", rf"({_WINDOW})?"),
    "loss": (r"([\w.-]+)", rf"(@{_NUMBER}|start|(peak|mean)({_WINDOW})?)?"),
}


class Reading(Strict):
    """One number to be read from a run's (or merge's) records, per seed."""

    #: The first that has a counterpart.
    runs: tuple[str, ...]
    what: Literal["loss", "suite", "task", "compute", "slope"]
    #: Corpus of a loss, or `average`; suite; suite and names of the task, the printed one first.
    of: tuple[str, ...] = ()
    when: Literal["final", "at", "start", "peak", "mean"] = "final"
    #: Of one point twice the same.
    window: Window | None = None

    @property
    def along(self) -> bool:
        """Whether it is made of several points of a curve."""
        return self.what == "slope" or self.when in ("peak", "mean")

    @classmethod
    def of_text(cls, text: str) -> Reading:
        """A reading from `<run> <what> [<when>]`."""
        run, written, when, *more = [*text.split(), "", "", ""]
        matches = {kind: re.fullmatch(what, written) for kind, (what, _) in _WRITTEN.items()}
        kind = next((kind for kind, match in matches.items() if match), None)
        if not kind or any(more) or not re.fullmatch(_WRITTEN[kind][1], when, re.ASCII):
            times = "of a loss <when> is @50, start, peak, mean, peak[0,20], of slope [0,50]"
            raise ValueError(f"'{text}' is not '<run> <what> [<when>]'; {times}")
        points = [float(number) for number in re.findall(_NUMBER, when)]
        if len(points) == 2 and points[0] >= points[1]:
            raise ValueError(f"the window of '{text}' is empty")
        return cls(
            runs=run.split("|"),
            what=kind,
            of=[name for group in matches[kind].groups() for name in group.split("|")],
            when="at" if when.startswith("@") else re.match("[a-z]*", when)[0] or "final",
            window=(points[0], points[-1]) if points else None,
        )


def corpora(study: Study, run: str, reading: Reading) -> tuple[str, ...]:
    """The corpora whose losses are read of a run, named as in `study`: of `average`, `slope` the old one
    and the first new one that it is validated on."""
    if reading.what == "loss" and reading.of != AVERAGE:
        return reading.of
    paper, name = study.resolve(run)
    declared = study.studies[paper].paper
    validated = declared.runs[name].validate_on
    new = [corpus for corpus in validated if declared.corpora[corpus].role == "new"]
    return (*(corpus for corpus in validated if corpus == declared.old), *new[:1])


def _short(word: str) -> str:
    """A choice of runs, a/7|a/6|a/5, as a/7..5."""
    if "/" not in word or ":" in word or "|" not in word:
        return word
    runs = word.split("|")
    return f"{runs[0]}..{runs[-1].removeprefix(os.path.commonprefix(runs))}"


class Quantity(Strict):
    """A sum of readings with weights (+1 and -1 as declared), from its text."""

    text: str
    terms: tuple[tuple[float, Reading], ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        first, *others = re.split(r"\s+([+-])\s+", value.strip())
        signs = [1.0, *(-1.0 if sign == "-" else 1.0 for sign in others[::2])]
        terms = zip(signs, map(Reading.of_text, [first, *others[1::2]]), strict=True)
        return {"text": " ".join(map(_short, value.split())), "terms": tuple(terms)}

    def unit(self, study: Study) -> str:
        """What it is in: the unit of its readings."""
        units = {"loss": "nats", "suite": "%", "task": "%", "compute": f"x {study.paper.unit.name}"}
        return units.get(self.terms[0][1].what, "")

    def read(self, when: str, window: Window | None = None) -> Quantity:
        """A declared curve, `<run> <corpus>`, read at another time."""
        text = f"{self.text} {when}" + (f"[{window[0]:g},{window[1]:g}]" if window else "")
        changed = {"when": when, "window": window}
        return Quantity(text=text, terms=tuple((w, r.model_copy(update=changed)) for w, r in self.terms))


def _quantities_in(declared: Any) -> list[Quantity]:
    if isinstance(declared, tuple):
        return [quantity for part in declared for quantity in _quantities_in(part)]
    return [declared] if isinstance(declared, Quantity) else []


class Tolerance(Strict):
    """How much counts as nothing: absolute at scale paper, elsewhere a share of a reference quantity."""

    paper: float = Field(ge=0)
    share: float = Field(gt=0)
    of: Quantity


class Mark(Strict):
    """What the paper's own numbers say of a test that they do not show to hold, and why that is."""

    #: They contradict it, or are too coarse or too noisy for it.
    verdict: Literal["failed", "inconclusive"]
    why: str = Field(min_length=1)


class Needs(Strict):
    """What a scale must have so that a test can be decided there, of every run that it reads.

    So many iterations up to its end, from the start of its first ancestor; so many of warm-up, if it has any.
    """

    iterations: Count | None = None
    warmup_iterations: Count | None = None
    why: str = Field(min_length=1)


class _Test(Strict):
    """Effects that should be above zero; `at` gives their values.

    Held: all are above zero by more than their noise. Failed: one is so below. Else inconclusive.
    """

    #: What is tested, in words.
    says: str
    #: The scale that alone has what it needs; elsewhere it is named as missing and does not count.
    only_at: str | None = None
    published: Mark | None = None
    needs: Needs | None = None

    def verdict(self, effects: list[Effect]) -> tuple[Verdict, str]:
        """(verdict, why, where the effects alone do not say it)."""
        signs = [effect.sign for effect in effects]
        return FAILED if -1 in signs else HELD if min(signs) > 0 else INCONCLUSIVE, ""

    def compared(self) -> list[Quantity]:
        """The quantities that it is about, in the order of its declaration."""
        return [quantity for _, declared in self for quantity in _quantities_in(declared)]

    def readings(self, references: bool = True) -> list[Reading]:
        """Every reading, each once; last, unless left out, those that a tolerance is a share of."""
        tolerance = getattr(self, "tolerance", None) if references else None
        quantities = [*self.compared(), *([tolerance.of] if tolerance else [])]
        return list(dict.fromkeys(reading for quantity in quantities for _, reading in quantity.terms))


#: Items in order; the members of a group stand side by side.
Chain = Annotated[tuple[Quantity | tuple[Quantity, ...], ...], Field(min_length=2)]


class Ordering(_Test):
    """Items in strict order, each member of a group before each member of the next.

    Every step from one group to the next is an effect, which may go the other way by as much as `weakly`.
    """

    kind: Literal["ordering"] = "ordering"
    rising: Chain | None = None
    falling: Chain | None = None
    tolerance: Tolerance | None = Field(None, alias="weakly")

    @model_validator(mode="after")
    def _one(self):
        if (self.rising is None) == (self.falling is None):
            raise ValueError("give 'rising' or 'falling', and not both")
        return self

    def groups(self) -> list[tuple[Quantity, ...]]:
        """The items in rising order, each as a group."""
        groups = [item if isinstance(item, tuple) else (item,) for item in self.rising or self.falling]
        return groups if self.rising else groups[::-1]

    def effects(self, at: Bench) -> list[Effect]:
        steps = (pair for groups in itertools.pairwise(self.groups()) for pair in itertools.product(*groups))
        return [at.step(high, low, *at.slack) for low, high in steps]


class Monotone(Ordering):
    """A tendency: the last item is beyond the first, and no step from one item to the next goes back.

    Held: the ends are clearly apart, no step is clearly against (by more than `weakly`). Failed: the ends
    clearly have the other order, or some step clearly goes back. Else inconclusive.
    """

    kind: Literal["monotone"] = "monotone"

    def effects(self, at: Bench) -> list[Effect]:
        chain = _quantities_in(tuple(self.groups()))
        steps = [at.step(high, low, *at.slack) for low, high in itertools.pairwise(chain)]
        back = [step for step in steps if step.sign < 0]
        return [at.step(chain[-1], chain[0]), *(back or steps if len(steps) > 1 else [])]

    def verdict(self, effects: list[Effect]) -> tuple[Verdict, str]:
        against = any(effect.sign < 0 for effect in effects)
        return (FAILED, "") if against else super().verdict(effects[:1])


class Within(_Test):
    """The spread of the items, highest minus lowest, is at most a tolerance."""

    kind: Literal["within"] = "within"
    items: Annotated[tuple[Quantity, ...], Field(min_length=2)]
    tolerance: Tolerance

    def effects(self, at: Bench) -> list[Effect]:
        # Ties go to the later item, so that two equal items still make a pair.
        lowest, *_, highest = sorted(self.items, key=lambda item: at.effect(item.text, (1, item)).value)
        return [at.step(lowest, highest, *at.slack, says="tolerance over spread")]


class Crossing(_Test):
    """Curve `a` is on average below curve `b` in the window `before`, and above it in the window `after`."""

    kind: Literal["crossing"] = "crossing"
    #: `<run> <corpus>`
    a: Quantity
    b: Quantity
    before: Window
    after: Window

    def compared(self) -> list[Quantity]:
        windows = (self.before, self.after)
        return [curve.read("mean", window) for window in windows for curve in (self.a, self.b)]

    def effects(self, at: Bench) -> list[Effect]:
        a_before, b_before, a_after, b_after = self.compared()
        return [at.step(b_before, a_before), at.step(a_after, b_after)]


class PeakThenRecover(_Test):
    """A curve rises clearly above its start, and falls; `recovers`: it is back there by the end, or not.

    Failed also where it clearly rises, and its highest point is its last.
    """

    kind: Literal["peak_then_recover"] = "peak_then_recover"
    #: `<run> <corpus>`
    curve: Quantity
    recovers: bool | None = None

    def compared(self) -> list[Quantity]:
        return [self.curve.read("start"), self.curve.read("peak"), self.curve]

    def effects(self, at: Bench) -> list[Effect]:
        start, peak, end = self.compared()
        steps = {"peak over start": (peak, start), "peak over end": (peak, end)}
        if self.recovers is not None:
            steps |= {"start over end": (start, end)} if self.recovers else {"end over start": (end, start)}
        return [at.step(*pair, says=says) for says, pair in steps.items()]

    def verdict(self, effects: list[Effect]) -> tuple[Verdict, str]:
        rise, fall, *_ = effects
        verdict = super().verdict(effects)
        if verdict[0] == INCONCLUSIVE and rise.sign > 0 and fall.value <= 0:
            return FAILED, "its highest point is its end"
        return verdict


class Ratio(_Test):
    """A quantity, or a quantity over another, lies between bounds.

    Inconclusive also where the denominator is not clearly above zero: there is nothing to take a share of.
    """

    kind: Literal["ratio"] = "ratio"
    of: Quantity
    over: Quantity | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounded(self):
        if self.at_least is None and self.at_most is None:
            raise ValueError("give 'at_least' or 'at_most'")
        return self

    def effects(self, at: Bench) -> list[Effect]:
        if self.over:
            at.check_positive("what it is a share of", self.over)
        # of / over >= bound  <=>  of - bound * over >= 0, which is linear
        return [
            at.effect(f"{word} {bound:g}", (sign, self.of), (-sign * bound, self.over))
            for bound, sign, word in ((self.at_least, 1, "at least"), (self.at_most, -1, "at most"))
            if bound is not None
        ]


Test = Ordering | Monotone | Within | Crossing | PeakThenRecover | Ratio


class Finding(_Test):
    """A main effect of a paper as a share, so that scales compare; it has no verdict of its own."""

    kind: Literal["finding"] = "finding"
    of: Quantity
    over: Quantity
    #: ids of the claims that say what was found
    claims: tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...] = Field(min_length=1)


class Statement(Strict):
    """One statement of a paper."""

    id: str = Field(min_length=1, coerce_numbers_to_str=True)
    statement: str
    source: str
    #: How it is read below the paper's scale, and where bounds and shares come from.
    note: str = ""
    #: No claim: what a scale must share with the paper so that the claims can be asked of it.
    precondition: bool = False


class Claim(Statement):
    """A statement with its tests, which must all hold."""

    tests: tuple[Annotated[Test, Field(discriminator="kind")], ...] = Field(min_length=1)


#: One run, or several, of which the first that has a counterpart is meant; as it is written out.
_Choice = Annotated[str | list[str], AfterValidator(lambda of: of if isinstance(of, str) else "|".join(of))]


class _File(Strict):
    paper: str
    names: dict[str, _Choice] = {}
    points: WantedPoints = ()
    documents: Items = {}
    #: Anchors only.
    lists: Any = None
    preconditions: list[Any] = []
    findings: list[Any] = []
    claims: list[Any]


def _spelled(value: Any, names: dict[str, str], key: str = "") -> Any:
    """A test with braces in its lists written out, and short names replaced where a run stands."""
    if isinstance(value, dict):
        return {inner: _spelled(part, names, inner) for inner, part in value.items()}
    if isinstance(value, list):
        items = [_without_braces(item) if isinstance(item, str) else [item] for item in value]
        return [_spelled(item, names) for item in itertools.chain(*items)]
    if not isinstance(value, str) or key in ("kind", "says", "only_at", "why"):
        return value
    run = r"(?:^|(?<=\s[+-]\s))\S+"
    return re.sub(run, lambda match: names.get(match[0], match[0]), " ".join(value.split()))


def _without_braces(text: str) -> list[str]:
    """`a{b,c}` as ab and ac."""
    parts = re.split(r"\{([^{}]*,[^{}]*)\}", text)
    choices = [re.split(r"\s*,\s*", part.strip()) if k % 2 else [part] for k, part in enumerate(parts)]
    return ["".join(combination) for combination in itertools.product(*choices)]


def _check(test: _Test, catalogue: Catalogue, study: Study, where: str) -> None:
    """Refuses a scale that is not declared, and readings that no record of their runs can have.

    A suite is known if exhibits of the paper show it.
    """
    wrong = partial(UserError, where=where)
    scales = {"paper", *(scale.stem for scale in study.project.scales.glob("*.yaml"))} if test.only_at else ()
    if test.only_at and test.only_at not in scales:
        raise wrong(f"the scale '{test.only_at}' is unknown.", do=nearest(test.only_at, sorted(scales)))
    for reading, run in [(one, run) for one in test.readings() for run in one.runs]:
        study.check_run(run, where, merges=True)
        paper, name = study.resolve(run)
        declared = study.studies[paper].paper
        if reading.what in ("suite", "task"):
            suite, suites = reading.of[0], catalogue.counterparts(study.name).suites
            if suite not in suites:
                raise wrong(f"the suite '{suite}' is unknown.", do=nearest(suite, sorted(suites)))
            continue
        if name in declared.merges:
            raise wrong(f"'{run}' is a merge: no curve, no length.", do="Ask it for a suite or a task.")
        validated, read = declared.runs[name].validate_on, corpora(study, run, reading)
        one_of_each = len(read) == 2 and (reading.what == "slope" or len(validated) == 2)
        if not one_of_each and (reading.what == "slope" or reading.of == AVERAGE):
            do = "Use a run that is validated on the old corpus and on one new corpus."
            raise wrong(f"'{' '.join(reading.of) or reading.what}' of '{run}' is not clear.", do=do)
        for corpus in read if reading.what == "loss" else ():
            if corpus not in validated:
                raise wrong(f"'{run}' is not validated on '{corpus}'.", do=nearest(corpus, validated))
        length, begin = declared.billions(name), reading.window[0] if reading.window else 0
        if begin > 1.01 * length:
            what = f"'{run}' is {length:.0f}B tokens long; {begin:g}B is asked for."
            raise wrong(what, do="Ask for an earlier point.")
        if reading.when == "at" and begin not in study.studies[paper].points:
            what = f"'{run}' is not evaluated at {begin:g}B, which is not among the points of {paper}."
            raise wrong(what, do="Add it to 'points' of the claims of that paper.")


def _file(study: Study) -> tuple[str, _File]:
    """Where one paper's `claims.yaml` lies, and what it says: nothing where there is none."""
    path = study.path("claims.yaml")
    file = load(_File, path) if path.exists() else _File(paper=study.name, claims=[])
    if file.paper != study.name:
        what, do = f"the key 'paper' says '{file.paper}'.", f"Make it '{study.name}'."
        raise UserError(what, where=str(path), do=do)
    return str(path), file


def load_claims(catalogue: Catalogue, paper: str) -> tuple[Claim, ...]:
    """Reads one paper's `claims.yaml` and checks it against what is declared; () where it has none.

    Its preconditions come first. Every fault is a `UserError` naming file and claim.
    """
    study = catalogue.plan.studies[paper]
    path, file = _file(study)
    claims: dict[str, Claim] = {}
    entries = [{**one, "precondition": True} if isinstance(one, dict) else one for one in file.preconditions]
    for position, entry in enumerate(entries + file.claims, 1 - len(entries)):
        where = f"{path}, claim {entry.get('id', position) if isinstance(entry, dict) else position}"
        if isinstance(entry, dict) and isinstance(entry.get("tests"), list):
            tests = [one for test in entry["tests"] for one in combinations(test, where)]
            needs = {key: entry[key] for key in entry if key == "needs"}
            tests = [_spelled(fill(test, values), file.names) for test, values in tests]
            tests = [needs | test if isinstance(test, dict) else test for test in tests]
            entry = {key: entry[key] for key in entry if key != "needs"} | {"tests": tests}
        claim = parse(Claim, entry, where)
        if claim.id in claims:
            raise UserError("its id stands twice.", where=where, do="Give every claim its own.")
        for test in claim.tests:
            _check(test, catalogue, study, where)
        claims[claim.id] = claim
    return tuple(claims.values())


def load_findings(catalogue: Catalogue, paper: str) -> tuple[Finding, ...]:
    """Reads the main effects that one paper's `claims.yaml` declares, and checks them as claims are."""
    study = catalogue.plan.studies[paper]
    path, file = _file(study)
    ids = [one.id for one in load_claims(catalogue, paper)]
    findings = []
    for number, entry in enumerate(file.findings, 1):
        where = f"{path}, finding {number}"
        finding = parse(Finding, _spelled(entry, file.names), where)
        _check(finding, catalogue, study, where)
        for claim in finding.claims:
            if claim not in ids:
                raise UserError(f"the claim '{claim}' is unknown.", where=where, do=nearest(claim, ids))
        findings.append(finding)
    return tuple(findings)
