"""What a paper declares to be run: `configs/papers/<paper>/runs.yaml`, in the paper's own units."""

from __future__ import annotations

import itertools
import math
import re
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cpt_repro.declarations.published import Variant
from cpt_repro.declarations.schedules import Schedule
from cpt_repro.declarations.strict import Billions, Count, Name, Share, Strict, parse, read_yaml
from cpt_repro.errors import UserError
from cpt_repro.project import Project

#: Runs of a file or of a plan, and tests of a claim, at most.
MOST_RUNS = 20_000

#: A corpus, or corpus/k for its k-th largest domain, k from 1.
DataKey = Annotated[str, Field(pattern=r"^[^/]+(/[1-9][0-9]*)?$")]


class CorpusOf(Strict):
    #: In the study: what is continued from, or what is continued on.
    role: Literal["old", "new"]
    #: The role in the paper's words: upstream, downstream.
    called: str
    stands_for: str


class Unit(Strict):
    """What the paper counts compute in."""

    #: Billions of tokens.
    billions: Billions
    name: str


class Batch(Strict):
    sequences: Count
    sequence_length: Count

    @property
    def tokens(self) -> int:
        return self.sequences * self.sequence_length


class OutsideSize(Strict):
    """How big a model from outside is, so that a plan tells without a network whether it fits a scale."""

    layers: Count
    width: Count
    heads: Count
    vocab_size: Count


class InitFrom(Strict):
    """Another run, at its end or an iteration of the paper's count, or a model from outside, for short
    `init_from: <owner>/<name>@<revision>`."""

    run: str | None = None
    iteration: int | None = Field(default=None, ge=0, le=2**31)
    #: `<owner>/<name>@<revision>` of the hub, or the path of a folder with an HF GPT-NeoX model.
    model: str | None = Field(default=None, pattern=r"^(/|\./)\S+$|^[\w.-]+/[\w.-]+@[\w./-]+$")
    #: What that model was trained on (shares that sum to 1) and for how many billions of tokens, for replay.
    data: dict[DataKey, Share] = {}
    billions: Billions | None = None
    size: OutsideSize | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    def model_post_init(self, context: Any) -> None:
        if (self.run is None) == (self.model is None):
            raise ValueError("give either 'run' or 'model' (<owner>/<name>@<revision>, or a path)")
        if self.run is not None and (self.data or self.billions or self.size):
            raise ValueError("'data', 'billions' and 'size' belong to a 'model' from outside")
        if self.model is not None and self.iteration is not None:
            raise ValueError("'iteration' belongs to a 'run'; a model from outside has a revision")
        if bool(self.data) != bool(self.billions):
            raise ValueError("give both 'data' and 'billions', or neither")
        if self.data and abs(sum(self.data.values()) - 1) > 1e-6:
            raise ValueError(f"the shares of 'data' sum to {sum(self.data.values()):g}, not 1")


class PrintedFor(Strict):
    """For what a stage's length is printed: how many domains, and all stages' iterations."""

    domains: Count
    iterations: Count


class Run(Strict):
    """One declared training; lengths in the paper's iterations or billions of tokens, rates as printed."""

    model: str
    init_from: InitFrom | None = None
    keep: tuple[Literal["optimizer", "data"], ...] = ()
    #: -> share of the new data; the shares sum to 1.
    data: dict[DataKey, Share] = Field(min_length=1)
    #: share of every batch that is replayed from all that the lineage saw before (Ibrahim section 4.2, A.1).
    replay_fraction: Share = 0
    iterations: Count
    #: With another number of domains a stage on `corpus/k` gets its domain's share of all stages' iterations.
    printed_for: PrintedFor | None = None
    until: Billions | None = None
    start: float = Field(default=0, ge=0, le=1e9)
    batch: Batch | None = None
    schedule: Schedule
    validate_on: tuple[str, ...] = Field(alias="validate", min_length=1)
    #: Why the run is not trained, where a variant leaves it out.
    absent: str | None = Field(default=None, min_length=1)

    @property
    def all_data(self) -> tuple[str, ...]:
        """Keys of its own data, and of what a model from outside saw."""
        return (*self.data, *(self.init_from.data if self.init_from else ()))

    def model_post_init(self, context: Any) -> None:
        if abs((total := sum(self.data.values())) - 1) > 1e-6:
            raise ValueError(f"the shares of 'data' sum to {total:g}, not 1")
        if (self.replay_fraction or self.keep) and self.init_from is None:
            raise ValueError("'replay_fraction' and 'keep' need 'init_from'")
        outside = self.init_from if self.init_from and self.init_from.model else None
        if outside and self.keep:
            raise ValueError("'keep' needs a parent that is a run: a model from outside has weights only")
        if outside and self.replay_fraction and not outside.data:
            what = "replay needs to know what the model from outside saw"
            raise ValueError(f"{what}: 'init_from.data', '.billions'")
        if self.printed_for and not (len(self.data) == 1 and "/" in next(iter(self.data))):
            raise ValueError("'printed_for' is for a run on one domain, corpus/k")


class Merge(Strict):
    """A TIES merge of one fine-tuned run into its base; no training."""

    base: str
    task: str
    density: float = Field(gt=0, le=1)


#: A run's or merge's name is a path below the results.
_PART = "[A-Za-z0-9][A-Za-z0-9._+@-]*"
RunName = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*$", max_length=200)]


class Paper(Strict):
    """One paper's runs and merges, templates expanded. A run of another paper is called `<paper>/<run>`."""

    paper: Name
    reference: str
    batch: Batch
    unit: Unit
    #: Corpora of the paper by the keys that scales give them; averages and replay take the first `old` one.
    corpora: dict[Name, CorpusOf] = Field(min_length=1)
    #: How the paper calls its models.
    models: dict[Name, str] = Field(min_length=1)
    runs: dict[RunName, Run]
    merges: dict[RunName, Merge] = {}

    def model_post_init(self, context: Any) -> None:
        if all(corpus.role != "old" for corpus in self.corpora.values()):
            raise ValueError("corpora: none has the role 'old'")
        for name, run in self.runs.items():
            named = {key.partition("/")[0] for key in run.all_data} | {*run.validate_on}
            for corpus in sorted(named - self.corpora.keys()):
                raise ValueError(f"runs.{name} names the corpus '{corpus}', which 'corpora' lacks")
            if run.model not in self.models:
                raise ValueError(f"runs.{name} names the model '{run.model}', which 'models' lacks")

    @property
    def old(self) -> str:
        """The corpus that is continued from."""
        return next(key for key, corpus in self.corpora.items() if corpus.role == "old")

    def batch_of(self, name: str) -> Batch:
        return self.runs[name].batch or self.batch

    def billions(self, name: str, iterations: int | None = None) -> float:
        """Length of a run in billions of tokens, or of its first iterations."""
        run = self.runs[name]
        if iterations is None and run.until:
            return run.until
        return (run.iterations if iterations is None else iterations) * self.batch_of(name).tokens / 1e9


def number(value: Any) -> str:
    """How a value stands in a name: 0.005, 3e-4, 1.5e-4."""
    if isinstance(value, float) and 0 < value < 1e-3:
        return re.sub(r"\.?0*e-0?", "e-", f"{value:.6e}")
    return f"{value:g}" if isinstance(value, float) else str(value)


def fill(value: Any, given: dict[str, Any]) -> Any:
    """A declaration with "{x}" filled in: by the value where that is the whole text, else by its text."""
    if isinstance(value, dict):
        return {key: fill(inner, given) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, given) for inner in value]
    if isinstance(value, str):
        for key, filling in given.items():
            if value == f"{{{key}}}":
                return filling
            value = value.replace(f"{{{key}}}", number(filling))
    return value


def check_number(runs: int, where: str) -> None:
    """Raises a `UserError` where there would be too many runs: combinations of values, or with seeds."""
    if runs > MOST_RUNS:
        do = "Give fewer values, or fewer seeds."
        raise UserError(f"{runs:g} combinations are too many: {MOST_RUNS} are the most.", where=where, do=do)


def combinations(body: Any, where: str) -> list[tuple[Any, dict[str, Any]]]:
    """(the declaration without `each`, values of its variables) for every combination of these."""
    if not isinstance(body, dict):
        return [(body, {})]
    rest = dict(body)
    each = rest.pop("each", {})
    if not isinstance(each, dict) or not all(isinstance(values, list) for values in each.values()):
        do = "Give every variable a list: each: {x: [1, 2]}."
        raise UserError("the key 'each' is wrong.", where=where, do=do)
    check_number(math.prod(map(len, each.values())), where)
    return [(rest, dict(zip(each, values, strict=True))) for values in itertools.product(*each.values())]


def _expand(declared: Any, where: str) -> dict[str, Any]:
    """Templates with `each` become one entry per combination."""
    out: dict[str, Any] = {}
    if not isinstance(declared, dict) or not all(isinstance(body, dict) for body in declared.values()):
        do = "Map every name to a mapping."
        raise UserError("'runs' and 'merges' must be mappings of mappings.", where=where, do=do)
    for name, body in declared.items():
        for rest, given in combinations(body, f"{where}, '{name}'"):
            filled, full_name = fill(rest, given), fill(name, given)
            if full_name in out:
                what = f"the run '{full_name}' is declared twice."
                raise UserError(what, where=where, do="Rename one of them.")
            out[full_name] = _with_eta_min(filled, f"{where}, '{full_name}'")
            check_number(len(out), where)
    return out


def _with_eta_min(run: dict[str, Any], where: str) -> dict[str, Any]:
    """`eta_min_ratio` of a schedule becomes its `eta_min`."""
    schedule = run.get("schedule")
    if not (isinstance(schedule, dict) and "eta_min_ratio" in schedule):
        return run
    schedule = dict(schedule)
    try:
        schedule["eta_min"] = float(schedule["eta_max"]) * float(schedule.pop("eta_min_ratio"))
    except (KeyError, TypeError, ValueError, OverflowError):
        do = "Give both 'eta_max' and 'eta_min_ratio' as numbers."
        raise UserError("the key 'schedule.eta_min_ratio' is wrong.", where=where, do=do) from None
    return run | {"schedule": schedule}


def _switch(runs: dict[str, Any], variants: dict[str, Variant], where: str) -> None:
    """Sets what the variants say in the expanded runs; a clash or a pattern without a run: `UserError`."""
    decided: dict[tuple[str, str], tuple[str, Any]] = {}
    changes = [(name, change) for name, variant in variants.items() for change in variant.changes]
    for variant, change in changes:
        for pattern in change.runs:
            names = [name for name in runs if fnmatchcase(name, pattern)]
            if not names:
                what = f"no run fits '{pattern}' of the variant '{variant}'."
                raise UserError(what, where=where, do="Correct the pattern.")
            for name, (key, value) in itertools.product(names, change.set.items()):
                first, before = decided.setdefault((name, key), (variant, value))
                if before != value:
                    what = f"'{first}' and '{variant}' both set '{key}' of the run '{name}', differently."
                    raise UserError(what, where=where, do="Choose one of them.")
                *path, last = key.split(".")
                at = runs[name]
                for part in path:
                    at = at.get(part) if isinstance(at, dict) else None
                if not isinstance(at, dict):
                    what = f"'{key}' of the variant '{variant}' leads nowhere in the run '{name}'."
                    raise UserError(what, where=where, do="Correct the key.")
                at[last] = value


def load_paper(project: Project, name: str, variants: dict[str, Variant]) -> Paper:
    """Reads and expands one paper's runs, with `variants` in force; a fault is a `UserError`."""
    path = project.papers / name / "runs.yaml"
    raw, where = read_yaml(path), str(path)
    if not isinstance(raw, dict):
        raise UserError("it must hold a mapping.", where=where, do="Give it 'paper', 'batch', 'runs'.")
    raw.pop("schedules", None)  # anchors only
    raw |= {key: _expand(raw.get(key, {}), where) for key in ("runs", "merges")}
    _switch(raw["runs"], variants, str(path.with_name("discrepancies.yaml")))
    paper = parse(Paper, raw, where)
    if paper.paper != name:
        raise UserError(f"the key 'paper' says '{paper.paper}'.", where=where, do=f"Make it '{name}'.")
    return paper
