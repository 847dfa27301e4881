"""Papers and a scale become segments: resolved, ordered, each trained once.

A segment is a run with every number worked out for this scale. Its identity is the digest of all that decides its
numbers, its parent's identity included; a receipt with another identity is stale.
"""

from __future__ import annotations

import re
from collections import defaultdict
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from pydantic import Field

from cpt_repro.declarations.manifests import load_manifest
from cpt_repro.declarations.runs import Merge, Paper, Run, load_papers
from cpt_repro.declarations.scale import ModelSize, MoreSeeds, Scale
from cpt_repro.declarations.schedules import Schedule
from cpt_repro.declarations.strict import Strict
from cpt_repro.errors import UserError
from cpt_repro.files import digest
from cpt_repro.models.outside import check_size

#: Evaluations of one segment, at most.
MOST_EVALUATIONS = 10_000
#: Raised when the meaning of a segment changes in code, so that old receipts become stale.
SEGMENT_VERSION = 1


class Stream(Strict):
    """One domain of one corpus as a segment reads it."""

    corpus: str
    domain: str
    #: Position in the domain's order (sequences) where reading begins.
    start: int = Field(ge=0)


class Part(Strict):
    """A node of a mixture: a share of its surroundings, split further or read from one stream."""

    share: float = Field(ge=0, le=1)
    parts: tuple[Part, ...] = ()
    stream: Stream | None = None


class External(Strict):
    """A model from outside that a segment starts from, and what it saw where that is declared."""

    #: `<owner>/<name>@<revision>` or the path of a folder.
    model: str
    mixture: tuple[Part, ...] = ()
    tokens: int = Field(default=0, ge=0)


class Segment(Strict):
    """One training segment, all in units of this scale (iterations, sequences, absolute learning rates)."""

    id: str
    paper: str
    name: str
    seed: int
    model_name: str
    model: ModelSize
    parent: str | None
    parent_identity: str | None
    parent_iteration: int | None
    #: Instead of a parent.
    external: External | None = None
    keep: tuple[Literal["optimizer", "data"], ...]
    mixture: tuple[Part, ...]
    replay_fraction: float
    #: Batches of the mixture already read (above 0 only where `keep` has `data`).
    batch_offset: int
    schedule: Schedule
    schedule_iterations: int
    iterations: int
    batch_sequences: int
    sequence_length: int
    vocabulary: int
    precision: str
    threads: int
    validate_on: tuple[str, ...]
    validation_sequences: int
    #: Iterations (updates done) at which the validation losses are taken, and those the final loss averages.
    evaluations: tuple[int, ...]
    closing: tuple[int, ...]
    data: dict[str, str] = Field(description="corpus -> digest of its manifest and tokenizer settings")
    tokens_per_billion: float

    @cached_property
    def identity(self) -> str:
        """Digest of everything that decides this segment's numbers."""
        # What came later is left out where it is not used, so that older identities stand.
        unused = {"external"} if self.external is None else set()
        told = self.model_dump(mode="json", exclude={"paper", "name", "id"} | unused)
        return digest({"version": SEGMENT_VERSION, **told})

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.iterations * self.batch_sequences * self.sequence_length

    @property
    def billions(self) -> float:
        """Length on the papers' token axis."""
        return self.tokens / self.tokens_per_billion

    def position(self, iteration: float) -> float:
        """Where an iteration lies on the papers' token axis, from this segment's begin."""
        return iteration * (self.batch_sequences * self.sequence_length) / self.tokens_per_billion


def domain_shares(scale: Scale, corpus: str) -> dict[str, float]:
    """Shares of a corpus' domains, largest first (ties by name), from its manifest."""
    name = scale.corpora[corpus]
    shares = load_manifest(name).domains
    if None in shares.values():
        where, do = f"the manifest '{name}'", "Give every domain its share; that of the tokens built will do."
        raise UserError("its domains have no shares, and a plan needs them.", where=where, do=do)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _split_rank(key: str) -> tuple[str, int | None]:
    corpus, slash, rank = key.partition("/")
    return corpus, int(rank) if slash else None


class Plan:
    """All segments of the given papers at a scale, in an order in which parents come first."""

    def __init__(self, scale: Scale, papers: list[Paper] | None = None):
        self.scale = scale
        where = f"configs/scales/{scale.name}.yaml, variants"
        self.papers = {paper.paper: paper for paper in (papers or load_papers(scale.variants, where))}
        self.segments: dict[str, Segment] = {}
        #: Runs that have no counterpart at this scale -> why.
        self.absent: dict[tuple[str, str], str] = {}
        self._shares = {corpus: domain_shares(scale, corpus) for corpus in scale.corpora}
        self._data = {
            corpus: digest([load_manifest(name).digest, scale.tokenizer.identity])
            for corpus, name in scale.corpora.items()
        }
        for paper in self.papers.values():
            for name in paper.runs:
                for seed in scale.seeds:
                    self._resolve(paper, name, seed, ())
        if scale.more_seeds:
            self._repeat(scale.more_seeds)

    def _repeat(self, more: MoreSeeds) -> None:
        for pattern in more.runs:
            names = [
                (p, n) for p in self.papers.values() for n in p.runs if fnmatchcase(f"{p.paper}/{n}", pattern)
            ]
            if not names:
                where = f"configs/scales/{self.scale.name}.yaml, more_seeds.runs"
                raise UserError(
                    f"no run fits '{pattern}'.", where=where, do="Write <paper>/<run>; * stands for any."
                )
            for paper, name in names:
                for seed in more.seeds:
                    self._resolve(paper, name, seed, ())

    # -- resolution

    def id_of(self, paper: str, name: str, seed: int | None = None) -> str:
        """A segment's id: readable, and the path of its receipt."""
        return f"{paper}/{name}/seed-{self.scale.seeds[0] if seed is None else seed}"

    def _where(self, paper: Paper, name: str) -> str:
        return f"configs/papers/{paper.paper}/runs.yaml, run '{name}'"

    def _resolve(self, paper: Paper, name: str, seed: int, below: tuple[str, ...]) -> Segment | None:
        where = self._where(paper, name)
        if name not in paper.runs:
            raise UserError(
                f"the run '{name}' is not declared.", where=self._where(paper, below[-1]), do="Declare it."
            )
        if name in below:
            raise UserError(
                "the run is its own ancestor.", where=where, do="Break the circle in 'init_from'."
            )
        segment_id = self.id_of(paper.paper, name, seed)
        if segment_id in self.segments or (paper.paper, name) in self.absent:
            return self.segments.get(segment_id)
        run, scale = paper.runs[name], self.scale
        if run.absent:
            self.absent[paper.paper, name] = run.absent
            return None
        if run.model not in scale.models:
            do = f"Known at scale {scale.name}: {', '.join(scale.models)}; a scale says null for what it leaves out."
            raise UserError(f"the model '{run.model}' is unknown.", where=where, do=do)
        if scale.models[run.model] is None:
            self.absent[paper.paper, name] = f"scale {scale.name} has no counterpart of the model {run.model}"
            return None
        parent = None
        if run.init_from and run.init_from.run:
            parent = self._resolve(paper, run.init_from.run, seed, (*below, name))
            if parent is None:
                self.absent[paper.paper, name] = self.absent[paper.paper, run.init_from.run]
                return None
        if parent and parent.model_name != run.model:
            do = "Give both the same 'model'."
            raise UserError(
                f"its model is {run.model}, but '{parent.name}' is a {parent.model_name}.", where=where, do=do
            )
        if "data" in run.keep:
            trunk = paper.runs[parent.name]
            if (run.data, run.replay_fraction) != (trunk.data, trunk.replay_fraction):
                what = f"'keep' has 'data', but the mixture is not that of '{parent.name}'."
                raise UserError(what, where=where, do="Repeat its 'data' and 'replay_fraction'.")
        for corpus in run.validate_on:
            if corpus not in self._shares:
                do = f"Known at scale {scale.name}: {', '.join(self._shares)}."
                raise UserError(f"the corpus '{corpus}' in 'validate' is unknown.", where=where, do=do)
        for key in (*run.data, *(run.init_from.data if run.init_from else ())):
            if not re.fullmatch(r"[^/]+(/[1-9][0-9]*)?", key):
                do = "Write a corpus, or corpus/k for its k-th largest domain, k from 1."
                raise UserError(
                    f"'{key}' in 'data' is not a corpus or one of its domains.", where=where, do=do
                )
            corpus, rank = _split_rank(key)
            if corpus not in self._shares:
                do = f"Known at scale {scale.name}: {', '.join(self._shares)}."
                raise UserError(f"the corpus '{corpus}' in 'data' is unknown.", where=where, do=do)
            if rank is not None and rank > len(self._shares[corpus]):
                count = len(self._shares[corpus])
                self.absent[paper.paper, name] = f"{scale.corpora[corpus]} has {count} domains only"
                return None
        segment = self._segment(paper, name, run, seed, parent, where)
        twin = next((s for s in self.segments.values() if s.identity == segment.identity), None)
        if twin is not None:
            raise UserError(
                f"it is the same training as '{twin.id}'.", where=where, do="Use that run's name instead."
            )
        self.segments[segment_id] = segment
        return segment

    def _segment(
        self, paper: Paper, name: str, run: Run, seed: int, parent: Segment | None, where: str
    ) -> Segment:
        scale = self.scale
        batch = run.batch or paper.batch
        sequences = batch.sequences if scale.batch_sequences == "published" else scale.batch_sequences
        if scale.batch_sequences == "published" and scale.sequence_length != batch.sequence_length:
            do = f"Set 'sequence_length' of the scale to {batch.sequence_length}, or give it a 'batch_sequences'."
            raise UserError(
                f"its batch is of sequences of {batch.sequence_length} tokens.", where=where, do=do
            )
        execution = scale.run_as(run.model)
        if sequences % execution.ranks:
            fault = f"{execution.ranks} ranks do not divide its batch of {sequences} sequences."
            do = f"Change 'nodes' or 'ranks_per_node' in execution.{run.model} of configs/scales/{scale.name}.yaml."
            raise UserError(fault, where=where, do=do)

        def its(billions: float) -> int:
            return scale.iterations(billions, sequences)

        billions = run.iterations * batch.tokens / 1e9
        if run.printed_for:
            corpus, rank = _split_rank(next(iter(run.data)))
            if len(self._shares[corpus]) != run.printed_for.domains:
                share = list(self._shares[corpus].values())[rank - 1]
                billions = share * run.printed_for.iterations * batch.tokens / 1e9
        total = max(its(billions), 1)
        iterations = min(total, max(its(run.until), 1)) if run.until else total
        parent_iteration = None
        if parent:
            parent_iteration = parent.iterations
            if run.init_from.iteration is not None:
                parent_run = paper.runs[parent.name]
                parent_batch = parent_run.batch or paper.batch
                if run.init_from.iteration > parent_run.iterations:
                    raise UserError(
                        f"'init_from.iteration' asks for {run.init_from.iteration} of '{parent.name}', which ends at "
                        f"{parent_run.iterations}.",
                        where=where,
                        do="Ask for an earlier iteration or lengthen the parent.",
                    )
                asked = scale.iterations(
                    run.init_from.iteration * parent_batch.tokens / 1e9, parent.batch_sequences
                )
                if asked > parent.iterations:
                    raise UserError(
                        f"'init_from.iteration' asks for {asked} iterations at this scale, but '{parent.name}' stops "
                        f"at {parent.iterations} ('until').",
                        where=where,
                        do="Ask for an earlier iteration or raise the parent's 'until'.",
                    )
                parent_iteration = asked
                if "data" in run.keep:  # a branch goes on to the very end of its trunk, whatever the rounding
                    total = iterations = parent.schedule_iterations - parent_iteration
                    if total < 1:
                        do = "Ask for an earlier iteration."
                        what = (
                            f"'init_from.iteration' is the end of '{parent.name}': nothing is left to train."
                        )
                        raise UserError(what, where=where, do=do)
        external = self._external(run, where)
        offset = 0
        if "data" in run.keep:
            mixture, offset = parent.mixture, parent.batch_offset + parent_iteration
        else:
            mixture = self._mixture(run, parent, external)
        factor = scale.models[run.model].eta_factor
        closing_first = max(1, iterations - its(scale.validation.closing))
        n = scale.validation.closing_evaluations
        if billions / scale.validation.every > MOST_EVALUATIONS:
            what = f"{billions:g}B tokens with an evaluation every {scale.validation.every:g}B are too many evaluations."
            raise UserError(what, where=where, do="Raise 'validation.every' of the scale.")
        closing = {round(closing_first + (iterations - closing_first) * k / (n - 1)) for k in range(n)}
        regular = {its(k * scale.validation.every) for k in range(int(billions / scale.validation.every) + 1)}
        early = {its(b) for b in scale.validation.early}
        evaluations = {0, iterations} | {i for i in regular | early | closing if 0 <= i <= iterations}
        corpora = {stream.corpus for stream in streams(mixture)} | set(run.validate_on)
        return Segment(
            id=self.id_of(paper.paper, name, seed),
            paper=paper.paper,
            name=name,
            seed=seed,
            model_name=run.model,
            model=scale.models[run.model],
            parent=parent.id if parent else None,
            parent_identity=parent.identity if parent else None,
            parent_iteration=parent_iteration,
            external=external,
            keep=run.keep,
            mixture=mixture,
            replay_fraction=run.replay_fraction,
            batch_offset=offset,
            schedule=run.schedule.scaled(factor),
            schedule_iterations=total,
            iterations=iterations,
            batch_sequences=sequences,
            sequence_length=scale.sequence_length,
            vocabulary=scale.models[run.model].vocab_size or scale.tokenizer.vocab_size,
            precision=scale.precision,
            threads=scale.threads,
            validate_on=run.validate_on,
            validation_sequences=scale.validation.sequences,
            evaluations=tuple(sorted(evaluations)),
            closing=tuple(sorted(closing)),
            data={corpus: self._data[corpus] for corpus in sorted(corpora)},
            tokens_per_billion=scale.tokens_per_billion,
        )

    def _corpus_part(self, key: str, share: float, start_billions: float) -> Part:
        corpus, rank = _split_rank(key)
        shares = self._shares[corpus]
        if rank is not None:
            domain = list(shares)[rank - 1]
            return Part(share=share, stream=Stream(corpus=corpus, domain=domain, start=0))
        first = start_billions * self.scale.tokens_per_billion / self.scale.sequence_length
        total = sum(shares.values())
        parts = tuple(
            Part(
                share=part / total,
                stream=Stream(corpus=corpus, domain=domain, start=round(first * part / total)),
            )
            for domain, part in shares.items()
        )
        return Part(share=share, parts=parts)

    def _external(self, run: Run, where: str) -> External | None:
        told, scale = run.init_from, self.scale
        if told is None or told.model is None:
            return None
        size, entries = scale.models[run.model], scale.tokenizer.vocab_size
        setting = f"models.{run.model} in configs/scales/{scale.name}.yaml"
        if (size.vocab_size or entries) < entries:
            fault = f"the model {run.model} has {size.vocab_size} rows, the tokenizer {entries} entries."
            raise UserError(fault, where=where, do=f"Raise 'vocab_size' of {setting}.")
        check_size(told.model, told.size, size, size.vocab_size or entries, where, setting)
        mixture = tuple(self._corpus_part(key, share, 0) for key, share in told.data.items())
        return External(
            model=told.model,
            mixture=mixture,
            tokens=round((told.billions or 0) * self.scale.tokens_per_billion),
        )

    def _mixture(self, run: Run, parent: Segment | None, external: External | None) -> tuple[Part, ...]:
        """Replay first, so that its share of every batch is within one sample; then the new data."""
        new = tuple(self._corpus_part(key, share, run.start) for key, share in run.data.items())
        if not run.replay_fraction:
            return new
        lineage = self._lineage(parent)
        first = external or lineage[0].external
        # What a model from outside saw comes before all; where that is not declared it cannot be replayed.
        outside = [(first.tokens, first.mixture)] if first and first.mixture else []
        if any(segment.replay_fraction == 1 for segment in lineage):
            where = self._where(self.papers[parent.paper], parent.name)
            raise UserError("'replay_fraction' 1 leaves no new data to replay.", where=where, do="Lower it.")
        # A replayed stage stands for its new data only: its own replay share is not replayed again.
        stages = [(s.tokens, s.mixture[1:] if s.replay_fraction else s.mixture) for s in lineage]
        shares = reservoir_shares([tokens for tokens, _ in outside + stages], run.replay_fraction)
        replayed = tuple(
            Part(share=share, parts=mixture)
            for (_, mixture), share in zip(outside + stages, shares, strict=True)
        )
        replayed = tuple(
            part.model_copy(update={"parts": _renormalised(part.parts)}) if part.parts else part
            for part in replayed
        )
        return (
            Part(share=run.replay_fraction, parts=replayed),
            *(part.model_copy(update={"share": part.share * (1 - run.replay_fraction)}) for part in new),
        )

    def _lineage(self, segment: Segment | None) -> list[Segment]:
        """Ancestors from the root to `segment`, itself included."""
        out: list[Segment] = []
        while segment is not None:
            out.append(segment)
            segment = self.segments[segment.parent] if segment.parent else None
        return out[::-1]

    # -- questions

    def lineage(self, segment_id: str) -> list[Segment]:
        """The segment's ancestors from the root, and itself."""
        return self._lineage(self.segments[segment_id])

    def find(self, paper: str, name: str) -> list[Segment]:
        """The run's segments, one per seed; [] where the scale has no counterpart."""
        return [s for seed in self.seeds if (s := self.segments.get(self.id_of(paper, name, seed)))]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that some run has, those of all runs first."""
        more = self.scale.more_seeds
        return tuple(dict.fromkeys((*self.scale.seeds, *(more.seeds if more else ()))))

    def ids(self, paper: str, name: str) -> list[str]:
        """Ids of a run or merge, one per seed that all its runs have; [] where the scale has no counterpart."""
        merge = self.papers[paper].merges.get(name)
        runs = (merge.base, merge.task) if merge else (name,)
        there = [s for s in self.seeds if all(self.id_of(paper, run, s) in self.segments for run in runs)]
        return [self.id_of(paper, name, seed) for seed in there]

    def merge_of(self, model_id: str) -> Merge:
        """The declared merge that the id of a merged model, `<paper>/<merge>/seed-<seed>`, names."""
        paper, _, rest = model_id.partition("/")
        return self.papers[paper].merges[rest.rpartition("/")[0]]

    @cached_property
    def checkpoints(self) -> dict[str, dict[int, bool]]:
        """Per segment: iterations whose weights are kept, and whether a child needs the optimizer's state too."""
        out: dict[str, dict[int, bool]] = {s.id: {s.iterations: False} for s in self.segments.values()}
        for segment in self.segments.values():
            if segment.parent:
                kept = out[segment.parent]
                kept[segment.parent_iteration] = (
                    kept.get(segment.parent_iteration, False) or "optimizer" in segment.keep
                )
        return out

    @cached_property
    def bundles(self) -> dict[str, list[Segment]]:
        """Segments trained by one process, parents before children, filled up to `scale.bundle`.

        A process start costs seconds of imports; small segments share it. A lineage that fits stays together; runs with
        many children stand apart from them, so that the children can be trained side by side. The partition depends on
        the declarations alone: a job means the same whatever has been trained already.
        """
        children: dict[str | None, list[Segment]] = defaultdict(list)
        for segment in self.segments.values():
            children[segment.parent].append(segment)

        def family(segment: Segment) -> list[Segment]:
            return [segment, *(s for child in children[segment.id] for s in family(child))]

        units: dict[tuple[int, str], list[list[Segment]]] = defaultdict(list)

        def cut(segment: Segment, generation: int) -> None:
            whole = family(segment)
            fits = sum(s.billions for s in whole) <= self.scale.bundle
            units[generation, segment.model_name].append(whole if fits else [segment])
            for child in [] if fits else children[segment.id]:
                cut(child, generation + 1)

        for root in children[None]:
            cut(root, 0)
        out: dict[str, list[Segment]] = {}
        for (generation, model), members in sorted(units.items()):
            load, current = 0.0, []
            for unit in members:
                size = sum(segment.billions for segment in unit)
                if current and load + size > self.scale.bundle:
                    out[f"{model}-{generation}-{len(out):03d}"] = current
                    load, current = 0.0, []
                current, load = current + unit, load + size
            out[f"{model}-{generation}-{len(out):03d}"] = current
        return out


def streams(mixture: tuple[Part, ...]) -> list[Stream]:
    """The streams at the leaves, in order."""
    return [s for part in mixture for s in ([part.stream] if part.stream else streams(part.parts))]


def _renormalised(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    total = sum(part.share for part in parts)
    return tuple(part.model_copy(update={"share": part.share / total}) for part in parts)


def reservoir_shares(sizes: list[float], replay_fraction: float) -> list[float]:
    """Shares of D_0..D_{i-1} in the replay buffer R_i of discrete reservoir sampling (Ibrahim A.1, Eq. 5).

    p_{i,j} = (s_j (1 - alpha)^{gamma_j} + sum_{k=j+1}^{i-1} p_{k,j} s_k alpha) / sum_{k<i} s_k, gamma_0 = 0 and 1 else:
    a later dataset gave up `replay_fraction` of its batches to what came before it.
    """
    alpha, shares = replay_fraction, {}
    for i in range(1, len(sizes) + 1):
        for j in range(i):
            own = sizes[j] * (1 - alpha if j else 1)
            replayed = sum(shares[k, j] * sizes[k] * alpha for k in range(j + 1, i))
            shares[i, j] = (own + replayed) / sum(sizes[:i])
    return [shares[len(sizes), j] for j in range(len(sizes))]
