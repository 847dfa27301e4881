"""What a paper claims, as predicates over its runs: `configs/papers/<paper>/claims.yaml`.

A quantity is a text, `<run> <what> [<when>]`, or several joined by lone `+` and `-`:

    405m/pile--sp/replay-0 pile - 405m/pile pile     what: a corpus (its validation loss), average (of the two corpora),
    405m/pile+sp suite:english                       suite:<suite>, task:<suite>/<printed name>|<stand-in>, compute
    410m/pile--sp/eta_max-3e-4 sp @50                (units of 300B tokens), r_squared (PPL(sp) against PPL(pile))
    405m/pile--pile/eta_max-6e-4 pile peak[0,20]     when: nothing (the end), @<billions>, start, peak, trough, mean;
                                                     the last three and r_squared may have a window in billions

`{a,b}` in a list of quantities stands for one quantity each. `names` gives runs short names; a name for several runs is
the first of them that has a counterpart at the scale. A test with `each` stands for one test per combination.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cpt_repro.declarations.exhibits import Rows, load_declarations
from cpt_repro.declarations.runs import Paper, fill, load_paper
from cpt_repro.declarations.strict import Strict, parse, read_yaml
from cpt_repro.errors import UserError
from cpt_repro.project import PAPERS, SCALES

_WHEN = re.compile(
    r"(?P<word>start|peak|trough|mean)?(?:\[(?P<from>[\d.]+),(?P<to>[\d.]+)\])?|@(?P<at>\d+(?:\.\d+)?)",
    re.ASCII,
)
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


class Reading(Strict):
    """One number to be read from a run's (or merge's) records, per seed."""

    #: the first that has a counterpart at the scale
    runs: tuple[str, ...]
    what: Literal["loss", "suite", "task", "compute", "r_squared"]
    #: corpora of a loss (two: their mean); suite; suite and names of the task, the printed one first
    of: tuple[str, ...] = ()
    when: Literal["final", "at", "start", "peak", "trough", "mean"] = "final"
    #: billions of the paper's tokens since the run began
    window: tuple[float, float] | None = None

    @property
    def unit(self) -> str:
        """What the number is in."""
        return {"loss": "nats", "suite": "%", "task": "%", "compute": "x 300B tokens", "r_squared": ""}[
            self.what
        ]


class Quantity(Strict):
    """A sum of readings with weights (+1 and -1 as declared), from its text."""

    text: str
    terms: tuple[tuple[float, Reading], ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        words, terms, sign = value.split(), [], 1.0
        for joined, group in itertools.groupby(words, lambda word: word in ("+", "-")):
            group = list(group)
            if joined:
                sign = -1.0 if group == ["-"] else 1.0
                if len(group) > 1 or not terms:
                    raise ValueError(f"'{value}': '+' and '-' stand between two terms")
            else:
                terms.append((sign, _reading(group, value)))
        if not words or words[-1] in ("+", "-"):
            raise ValueError(f"'{value}' ends before its last term")
        return {"text": " ".join(_short(word) for word in words), "terms": terms}

    @property
    def unit(self) -> str:
        """What it is in: the unit of its readings."""
        return self.terms[0][1].unit


def _short(word: str) -> str:
    """A choice of runs, a/7|a/6|a/5, as a/7..5."""
    if "/" not in word or ":" in word or "|" not in word:
        return word
    runs = word.split("|")
    return f"{runs[0]}..{runs[-1].removeprefix(os.path.commonprefix(runs))}"


def _reading(words: list[str], text: str) -> dict[str, Any]:
    if len(words) not in (2, 3):
        raise ValueError(f"'{text}': a term is '<run> <what> [<when>]', not '{' '.join(words)}'")
    run, what, when = [*words, ""][:3]
    out: dict[str, Any] = {"runs": tuple(run.split("|"))}
    if found := re.fullmatch(r"suite:([^/]+)", what):
        out |= {"what": "suite", "of": (found[1],)}
    elif found := re.fullmatch(r"task:([^/]+)/(.+)", what):
        out |= {"what": "task", "of": (found[1], *found[2].split("|"))}
    elif what in ("compute", "r_squared"):
        out |= {"what": what}
    else:
        out |= {"what": "loss", "of": (what,)}
    told = _WHEN.fullmatch(when)
    timed = out["what"] == "loss" or (
        out["what"] == "r_squared" and told and not told["at"] and not told["word"]
    )
    if told is None or (when and not timed) or (told["from"] and out["what"] == "loss" and not told["word"]):
        known = "@50, start, peak, trough, mean, peak[0,20]; of r_squared a window, [0,50]"
        raise ValueError(f"'{text}': '{when}' does not say when; known: {known}")
    if told["at"]:
        out |= {"when": "at", "window": (float(told["at"]),) * 2}
    else:
        out |= {"when": told["word"] or "final"}
        if told["from"]:
            out |= {"window": (float(told["from"]), float(told["to"]))}
            if out["window"][0] >= out["window"][1]:
                raise ValueError(f"'{text}': the window '{when}' is empty")
    return out


class Tolerance(Strict):
    """How much counts as nothing: absolute at scale paper, elsewhere a share of a reference quantity."""

    paper: float = Field(ge=0)
    share: float = Field(gt=0)
    of: Quantity


#: Items in order; the members of a group stand side by side.
Chain = Annotated[tuple[Quantity | tuple[Quantity, ...], ...], Field(min_length=2)]


class _Test(Strict):
    #: what is tested, in words
    says: str
    #: the scale that alone has what it needs; elsewhere it is named as missing and does not count
    only_at: str | None = None


class _Directed(_Test):
    rising: Chain | None = None
    falling: Chain | None = None
    #: a step may go against the direction by this much
    weakly: Tolerance | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.rising is None) == (self.falling is None):
            raise ValueError("give 'rising' or 'falling', and not both")
        return self

    @property
    def groups(self) -> list[tuple[Quantity, ...]]:
        """The items in rising order, each as a group."""
        chain = [item if isinstance(item, tuple) else (item,) for item in self.rising or self.falling]
        return chain if self.rising else chain[::-1]


class Ordering(_Directed):
    """Items in strict order, each member of a group before each member of the next; or `weakly`.

    Every step from one group to the next is an effect (plus the tolerance of `weakly`). Held: all are clearly above
    zero, that is by more than their noise. Failed: one is clearly below zero. Else inconclusive.
    """

    kind: Literal["ordering"]


class Monotone(_Directed):
    """A tendency: its ends are clearly apart, and no step clearly goes back (by more than `weakly`, where given).

    Held: the last item is clearly beyond the first and no step is clearly against. Failed: the ends clearly have the
    other order, or some step clearly goes back. Else inconclusive.
    """

    kind: Literal["monotone"]


class Within(_Test):
    """The spread of the items, highest minus lowest, is at most a tolerance.

    Held: spread + noise is below the tolerance. Failed: spread - noise is above it. Else inconclusive.
    """

    kind: Literal["within"]
    items: Annotated[tuple[Quantity, ...], Field(min_length=2)]
    tolerance: Tolerance


class Crossing(_Test):
    """Curve `a` is below curve `b` in the window `before` and above it in the window `after` (means over the windows).

    Held: both differences clearly have their sign. Failed: one clearly has the other. Else inconclusive.
    """

    kind: Literal["crossing"]
    #: `<run> <corpus>`
    a: Quantity
    b: Quantity
    before: tuple[float, float]
    after: tuple[float, float]


class PeakThenRecover(_Test):
    """A curve rises clearly above its start and falls again; `recovers`: it is back at its start by the end, or not.

    Effects: peak over start, peak over end, and with `recovers` start over end (true) or end over start (false). Held:
    all are clearly above zero. Failed: one is clearly below zero, or the curve clearly rises and its highest point is
    its last. Else inconclusive.
    """

    kind: Literal["peak_then_recover"]
    #: `<run> <corpus>`
    curve: Quantity
    recovers: bool | None = None
    #: where the peak is looked for
    window: tuple[float, float] | None = None


class Ratio(_Test):
    """A quantity, or a quantity over another, lies between bounds.

    Held: with its noise it lies inside. Failed: with its noise it lies outside. Else inconclusive; so too where the
    denominator is not clearly above zero, for then there is nothing to take a share of.
    """

    kind: Literal["ratio"]
    of: Quantity
    over: Quantity | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounded(self):
        if self.at_least is None and self.at_most is None:
            raise ValueError("give 'at_least' or 'at_most'")
        return self


Test = Annotated[
    Ordering | Monotone | Within | Crossing | PeakThenRecover | Ratio,
    Field(discriminator="kind"),
]


class Claim(Strict):
    """One statement of a paper; it holds when all its tests hold."""

    id: str
    statement: str
    source: str
    #: how it is read below the paper's scale, and where bounds and shares come from
    note: str = ""
    tests: tuple[Test, ...] = Field(min_length=1)


def _braces(text: str) -> list[str]:
    found = _BRACES.search(text)
    if not found:
        return [text]
    head, tail = text[: found.start()], text[found.end() :]
    return [full for part in found[1].split(",") for full in _braces(head + part.strip() + tail)]


def _named(text: str, names: dict[str, str]) -> str:
    """Short names, where a run stands, replaced."""
    words = text.split()
    first = [i == 0 or words[i - 1] in ("+", "-") for i in range(len(words))]
    return " ".join(names.get(word, word) if run else word for word, run in zip(words, first, strict=True))


def _spelled(value: Any, names: dict[str, str], key: str = "") -> Any:
    """A test with braces and short names of its quantities spelled out."""
    if isinstance(value, dict):
        return {inner: _spelled(v, names, inner) for inner, v in value.items()}
    if isinstance(value, list):
        out: list[Any] = []
        for item in value:
            out.extend(
                [_named(t, names) for t in _braces(item)]
                if isinstance(item, str)
                else [_spelled(item, names)]
            )
        return out
    plain = key in ("kind", "says", "only_at")
    return value if plain or not isinstance(value, str) else _named(value, names)


def _tests(declared: Any, names: dict[str, str], where: str) -> list[Any]:
    out = []
    for test in declared if isinstance(declared, list) else []:
        each = test.get("each", {}) if isinstance(test, dict) else {}
        if not isinstance(each, dict) or not all(isinstance(values, list) for values in each.values()):
            raise UserError(
                "the key 'each' is wrong.", where=where, do="Give every variable a list: each: {x: [1, 2]}."
            )
        rest = {k: v for k, v in test.items() if k != "each"} if isinstance(test, dict) else test
        for combination in itertools.product(*each.values()):
            out.append(_spelled(fill(rest, dict(zip(each, combination, strict=True))), names))
    return out


def quantities(test: Any) -> Iterator[Quantity]:
    """Every quantity that a test names, in order."""
    for name in type(test).model_fields:
        stack = [getattr(test, name)]
        while stack:
            value = stack.pop(0)
            if isinstance(value, Quantity):
                yield value
            elif isinstance(value, tuple):
                stack = [*value, *stack]
            elif isinstance(value, Tolerance):
                stack = [value.of, *stack]


def readings(test: Any) -> list[Reading]:
    """Every reading of a test, each once, in order."""
    return list(dict.fromkeys(reading for quantity in quantities(test) for _, reading in quantity.terms))


def _unknown(name: str, known: Iterable[str], what: str, where: str) -> UserError:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    listed = f"Known: {', '.join(known)}." if len(known) < 12 else "Declare it, or use a declared one."
    return UserError(
        f"the {what} '{name}' is unknown.", where=where, do=f"Did you mean '{near[0]}'?" if near else listed
    )


def _checked(reading: Reading, paper: Paper, suites: set[str], where: str) -> Reading:
    """The reading with `average` resolved; what cannot be read is a `UserError`."""
    new = reading
    for name in reading.runs:
        run = paper.runs.get(name)
        if run is None and name not in paper.merges:
            raise _unknown(name, [*paper.runs, *paper.merges], "run or merge", where)
        if reading.what in ("suite", "task"):
            if reading.of[0] not in suites:
                raise _unknown(reading.of[0], suites, "suite", where)
            continue
        if run is None:
            do = "Ask it for a suite or a task."
            raise UserError(f"'{name}' is a merge: it has no curve and no length.", where=where, do=do)
        wanted = {"loss": reading.of, "r_squared": ("pile", "sp"), "compute": ()}[reading.what]
        if wanted == ("average",):
            if len(run.validate_on) != 2:
                do = "Use a run with two validated corpora."
                raise UserError(f"'average' of '{name}' is not clear.", where=where, do=do)
            new = reading.model_copy(update={"of": tuple(run.validate_on)})
            wanted = new.of
        for corpus in wanted:
            if corpus not in run.validate_on:
                raise _unknown(corpus, run.validate_on, f"corpus (of the run '{name}')", where)
        length = run.until or run.iterations * (run.batch or paper.batch).tokens / 1e9
        if (
            reading.window
            and reading.window[reading.when != "at"] > (1.01 if reading.when == "at" else 10) * length
        ):
            what = f"'{name}' is {length:.0f}B tokens long; {reading.window[0]:g}B is asked for."
            raise UserError(what, where=where, do="Ask for an earlier point.")
    return new


def _with_averages(value: Any, resolve: Any) -> Any:
    """A copy of a test with every reading passed through `resolve`."""
    if isinstance(value, Quantity):
        return value.model_copy(update={"terms": tuple((weight, resolve(r)) for weight, r in value.terms)})
    if isinstance(value, tuple):
        return tuple(_with_averages(item, resolve) for item in value)
    if isinstance(value, Strict):
        fields = {name: _with_averages(getattr(value, name), resolve) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    return value


@cache
def load_claims(paper: str) -> tuple[Claim, ...]:
    """Reads one paper's `claims.yaml`; () where it has none. Every fault is a `UserError` naming file and claim."""
    path = PAPERS / paper / "claims.yaml"
    return parse_claims(read_yaml(path), paper, str(path)) if path.exists() else ()


def parse_claims(raw: Any, paper: str, path: str) -> tuple[Claim, ...]:
    """The claims in the content of a `claims.yaml`, checked against the paper's runs."""
    if not isinstance(raw, dict) or not isinstance(raw.get("claims"), list):
        raise UserError("it must hold a list 'claims'.", where=path, do="Give it 'paper', 'names', 'claims'.")
    for key in raw:
        if key not in ("paper", "names", "lists", "claims"):  # lists: anchors only
            raise _unknown(str(key), ("paper", "names", "lists", "claims"), "key", path)
    if raw.get("paper") != paper:
        raise UserError(f"the key 'paper' says '{raw.get('paper')}'.", where=path, do=f"Make it '{paper}'.")
    told = raw.get("names") or {}
    if not isinstance(told, dict):
        raise UserError(
            "the key 'names' must be a mapping.", where=path, do="Write short names: run, or list of runs."
        )
    names = {str(k): "|".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in told.items()}
    runs, declared = load_paper(paper), load_declarations(paper)
    suites = {
        c.suite for e in declared.exhibits.values() if isinstance(e, Rows) for c in e.columns if c.suite
    }
    scales = {file.stem for file in SCALES.glob("*.yaml")} | {"paper"}
    out: list[Claim] = []
    for position, entry in enumerate(raw["claims"], 1):
        where = f"{path}, claim {entry.get('id', position) if isinstance(entry, dict) else position}"
        if isinstance(entry, dict):
            entry = {
                **entry,
                "id": str(entry.get("id", "")),
                "tests": _tests(entry.get("tests"), names, where),
            }
        claim = parse(Claim, entry, where)
        if not claim.id or claim.id in [other.id for other in out]:
            raise UserError("its id is missing or stands twice.", where=where, do="Give every claim its own.")
        for test in claim.tests:
            if test.only_at and test.only_at not in scales:
                raise _unknown(test.only_at, scales, "scale", where)
        resolve = lambda reading, where=where: _checked(reading, runs, suites, where)  # noqa: E731
        out.append(claim.model_copy(update={"tests": _with_averages(claim.tests, resolve)}))
    return tuple(out)
