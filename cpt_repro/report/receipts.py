"""Receipts to be read: what a run was trained on and how, and a line for what each seed left."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cpt_repro.planning.mixture import Mixture
from cpt_repro.planning.plan import Plan, PlannedModel, PlannedRun
from cpt_repro.records.lookup import NOT_RUN, Records

DONE, TO_BE_MEASURED = "done", "to be measured"


def anchor(name: str) -> str:
    """Where the page has a run or merge, `<paper>/<name>`."""
    return "run-" + re.sub(r"[^A-Za-z0-9.-]", "_", name)


class Record(NamedTuple):
    """A file that a seed left."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Seed:
    """What one seed of a run or merge left."""

    seed: int
    state: str
    receipt: Record | None
    evaluation: Record | None
    #: what was measured, by what it is called
    values: dict[str, str]


@dataclass(frozen=True)
class Readable:
    """A run or merge with its seeds."""

    name: str
    #: what its seeds left: Receipts, or of a merge Evaluations
    left: str
    #: (what, in words)
    settings: tuple[tuple[str, str], ...]
    #: names of what it starts from, or of what is merged
    origins: tuple[str, ...]
    seeds: tuple[Seed, ...]
    command: str

    @property
    def anchor(self) -> str:
        return anchor(self.name)

    @property
    def records(self) -> list[Record]:
        """Every file that its seeds left."""
        return [record for seed in self.seeds for record in (seed.receipt, seed.evaluation) if record]

    @property
    def heads(self) -> list[str]:
        """Names of what was measured, in the order of the first seed that has them."""
        return list(dict.fromkeys(name for seed in self.seeds for name in seed.values))


class Reader:
    """Makes them of a plan's records."""

    def __init__(self, records: Records, models: tuple[str, ...]):
        self.records, self.plan = records, records.plan
        #: ids of models that are evaluated
        self.models = set(models)

    def of_run(self, runs: list[PlannedRun]) -> Readable:
        """A run, from its seeds."""
        first = runs[0]
        return Readable(
            name=_name(first),
            left="Receipts",
            settings=tuple(_settings(self.plan, first)),
            origins=(_name(self.plan.runs[first.parent]),) if first.parent else (),
            seeds=tuple(self._seed(run) for run in runs),
            command=f"cpt-repro train {_name(first)}/ --scale {self.plan.scale.name}",
        )

    def merges(self, paper: str) -> list[Readable]:
        """A paper's merges that are evaluated."""
        seeds: dict[str, list[PlannedModel]] = {}
        for model_id in sorted(self.models):
            model = self.plan.model(model_id)
            if model.density is not None and model_id.startswith(f"{paper}/"):
                seeds.setdefault(model_id.rsplit("/", 1)[0], []).append(model)
        return [self._merge(name, models) for name, models in seeds.items()]

    def _merge(self, name: str, models: list[PlannedModel]) -> Readable:
        seeds = []
        for model in models:
            evaluation, scores = self._evaluated(model.id)
            state = DONE if evaluation else NOT_RUN
            seeds.append(Seed(int(model.id.rsplit("-", 1)[1]), state, None, evaluation, scores))
        return Readable(
            name=name,
            left="Evaluations",
            settings=(("method", f"TIES, density {models[0].density:g}"),),
            origins=tuple(dict.fromkeys(_name(run) for run, _ in models[0].weights)),
            seeds=tuple(seeds),
            command=f"cpt-repro evaluate {name}/ --scale {self.plan.scale.name}",
        )

    def _seed(self, run: PlannedRun) -> Seed:
        state, record, values = NOT_RUN, None, {}
        if receipt := self.records.receipt(run):
            state = TO_BE_MEASURED if self.records.incomplete_curves(run) else DONE
            record = self._record(self.records.receipt_path(run))
            for corpus in self.plan.scale.corpora:
                if losses := self.records.losses(run, corpus):
                    start = f"{losses.start or losses.curve[0][1]:.3f} → "
                    values[f"loss on {self.plan.corpus_title(corpus)}"] = f"{start}{losses.final.loss:.4f}"
            values["trained in"] = f"{receipt.measured.seconds / 60:,.1f} min"
        evaluation, scores = self._evaluated(run.id) if run.id in self.models else (None, {})
        return Seed(run.seed, state, record, evaluation, values | scores)

    def _evaluated(self, model_id: str) -> tuple[Record | None, dict[str, str]]:
        if not self.records.evaluation(model_id):
            return None, {}
        suites = self.records.scores(model_id).suites.items()
        scores = {f"{name} suite": f"{100 * suite.average:.1f} %" for name, suite in suites}
        return self._record(self.records.evaluation_path(model_id)), scores

    def _record(self, path: Path) -> Record:
        return Record(path, self.records.digest(path))


def _name(run: PlannedRun) -> str:
    return f"{run.paper}/{run.name}"


def _settings(plan: Plan, run: PlannedRun) -> Iterator[tuple[str, str]]:
    training, scale = run.training, plan.scale
    size = training.model
    heads = f"{size.heads} head{'s' * (size.heads > 1)}"
    model = f"{training.parameters:,} parameters ({size.layers} layers, width {size.width}, {heads})"
    yield "model", model if scale.full_size else f"{model}, for the paper's {run.model_name}"
    length = f"{training.tokens:,} ({run.billions:,.0f}B of the paper), in {training.iterations:,} iterations"
    yield "tokens", f"{length} of {training.batch_sequences} x {training.sequence_length}"
    shares = _shares(plan, training.mixture).items()
    yield "text", "; ".join(f"{100 * share:.3g} % {corpus}" for corpus, share in shares)
    told = training.schedule.model_dump(exclude={"kind", "version"}, exclude_none=True).items()
    fields = (f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in told)
    yield "schedule", ", ".join([training.schedule.kind, *fields])
    if run.keep:
        yield "kept from its start", ", ".join(run.keep)
    yield "identity", training.identity


def _shares(plan: Plan, mixture: Mixture) -> dict[str, float]:
    """Shares of the tokens by corpus, with the domain where a corpus gives that one alone."""
    shares: Counter[str] = Counter()
    domains: defaultdict[str, set[str]] = defaultdict(set)

    def add(parts: Mixture, whole: float) -> None:
        for part in parts:
            add(part.parts, whole * part.share)
            if part.stream:
                shares[part.stream.corpus] += whole * part.share
                domains[part.stream.corpus].add(part.stream.domain)

    add(mixture, 1.0)
    alone = {corpus: f" ({', '.join(of)})" * (len(of) == 1) for corpus, of in domains.items()}
    return {f"{plan.corpus_title(corpus)}{alone[corpus]}": share for corpus, share in shares.items()}
