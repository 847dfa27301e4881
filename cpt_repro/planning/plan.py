"""Papers and a scale become planned runs: resolved, parents first, each training once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from cpt_repro.declarations.manifests import Manifest, load_manifest
from cpt_repro.declarations.runs import Run, check_number
from cpt_repro.declarations.scale import Scale
from cpt_repro.declarations.study import Studies
from cpt_repro.errors import UserError
from cpt_repro.files import digest
from cpt_repro.models.architecture import architecture
from cpt_repro.models.outside import check_size, outside_identity
from cpt_repro.planning.mixture import Mixture, Part, Stream, corpus_part, streams, with_replay
from cpt_repro.planning.training import External, Start, Training
from cpt_repro.project import Project

#: Evaluations of one run, at most.
MOST_EVALUATIONS = 10_000
#: Stages that a run replays, at most: the shares of the reservoir take the cube of their number.
MOST_REPLAYED = 100


@dataclass(frozen=True)
class ValidationPlan:
    """What is to be measured along a training."""

    corpora: tuple[str, ...]
    #: Of each corpus, at the start and in the closing evaluations.
    sequences: int
    #: Iterations (updates done) at which losses are taken, and those over which the final loss is averaged.
    evaluations: tuple[int, ...]
    closing: tuple[int, ...]
    #: The first so many sequences in the other evaluations; None: all.
    along: int | None = None
    #: Those evaluations that are there so that runs compare: claims name them where they lack.
    shared: tuple[int, ...] = ()

    @property
    def of_all(self) -> tuple[int, ...]:
        """Evaluations of all sequences."""
        return (0, *self.closing)


@dataclass(frozen=True)
class PlannedRun:
    """A training under a name: one seed of a paper's run at a scale."""

    #: `<paper>/<name>/seed-<seed>`
    id: str
    paper: str
    name: str
    seed: int
    model_name: str
    training: Training
    #: id of the run that it starts from
    parent: str | None
    replay_fraction: float
    validation: ValidationPlan
    tokens_per_billion: float

    @property
    def identity(self) -> str:
        """That of the training: equal trainings have one, whatever they are called."""
        return self.training.identity

    @property
    def parent_iteration(self) -> int | None:
        """The parent's iteration whose weights it starts from."""
        return self.training.start.iteration if self.training.start else None

    @property
    def keep(self) -> tuple[str, ...]:
        """What it takes over from its parent beside the weights."""
        return self.training.start.keep if self.training.start else ()

    @property
    def billions(self) -> float:
        """Length on the papers' token axis."""
        return self.position(self.training.iterations)

    def position(self, iteration: float) -> float:
        """Where an iteration lies on the papers' token axis, from this run's begin."""
        tokens = iteration * self.training.batch_sequences * self.training.sequence_length
        return tokens / self.tokens_per_billion


@dataclass(frozen=True)
class PlannedModel:
    """A model to be evaluated: a run's final weights, or a TIES merge of several runs' (first the base)."""

    id: str
    identity: str
    weights: tuple[tuple[PlannedRun, int], ...]
    #: of a merge
    density: float | None = None


class Plan:
    """All runs of the papers that are made at a scale, with what they start from, parents first."""

    def __init__(self, project: Project, scale: Scale, papers: tuple[str, ...] = ()):
        self.project, self.scale = project, scale
        where = str(project.scales / f"{scale.name}.yaml")
        self.studies = Studies(project, scale.variants, f"{where}, variants")
        #: names of the papers that are made, in order
        self.papers: tuple[str, ...] = tuple(papers or scale.papers or self.studies.names)
        for paper in self.papers:
            study = self.studies[paper]
            for name, merge in study.paper.merges.items():
                for run in (merge.base, merge.task):
                    study.check_run(run, f"{study.path('runs.yaml')}, merges.{name}")
        self.runs: dict[str, PlannedRun] = {}
        #: identity -> the runs that are this training; it is trained under the first one's name
        self.trainings: dict[str, list[PlannedRun]] = {}
        self._kept: dict[str, dict[int, bool]] = {}
        #: (paper, sequences of a batch) -> evaluations that all its runs have
        self.shared: dict[tuple[str, int], set[int]] = {}
        #: (paper, run) without counterpart at this scale -> why
        self.absent: dict[tuple[str, str], str] = {}
        declared = [(paper, name) for paper in self.papers for name in self.studies[paper].paper.runs]
        check_number(len(declared) * len(scale.seeds), where)
        for run, seed in itertools.product(declared, scale.seeds):
            self._planned(*run, seed)
        for pattern in scale.more_seeds.runs if scale.more_seeds else ():
            self._repeat(pattern, f"{where}, more_seeds.runs")

    def _repeat(self, pattern: str, where: str) -> None:
        every = [(paper, name) for paper in self.studies.names for name in self.studies[paper].paper.runs]
        fitting = [run for run in every if fnmatchcase("/".join(run), pattern)]
        if not fitting:
            do = "Write <paper>/<run>; * stands for any."
            raise UserError(f"no run fits '{pattern}'.", where=where, do=do)
        made = [run for run in fitting if run[0] in self.papers]
        check_number(len(self.runs) + len(made) * len(self.scale.more_seeds.seeds), where)
        for run, seed in itertools.product(made, self.scale.more_seeds.seeds):
            self._planned(*run, seed)

    def manifest(self, corpus: str) -> Manifest:
        return self._manifests[corpus]

    def corpus_title(self, corpus: str) -> str:
        """What a corpus is called at this scale; its key where there is none."""
        return self.manifest(corpus).title if corpus in self.scale.corpora else corpus

    @cached_property
    def _manifests(self) -> dict[str, Manifest]:
        return {corpus: load_manifest(self.project, name) for corpus, name in self.scale.corpora.items()}

    @cached_property
    def data(self) -> dict[str, str]:
        """Corpus -> digest of what decides its tokens: its text and the tokenizer."""
        tokens = [self.scale.tokenizer.identity]
        if self.scale.tokenizer.kind == "train":
            tokens.append(self.manifest(self.scale.upstream).digest)
        return {corpus: digest([text.digest, *tokens]) for corpus, text in self._manifests.items()}

    def shares(self, corpus: str) -> dict[str, float]:
        """Shares of a corpus' domains, largest first (ties by name), from its manifest."""
        shares = self._manifests[corpus].domains
        if None in shares.values():
            where = f"the manifest '{self.scale.corpora[corpus]}'"
            do = "Give every domain its share; that of the tokens built will do."
            raise UserError("its domains have no shares, and a plan needs them.", where=where, do=do)
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def _planned(self, paper: str, name: str, seed: int) -> None:
        """Adds one seed's run, after what it starts from; one without counterpart goes into `absent`."""
        line: dict[tuple[str, str], tuple[str, str] | None] = {}
        at: tuple[str, str] | None = (paper, name)
        while at and id_of(*at, seed) not in self.runs and at not in self.absent:
            if at in line:
                do = "Break the circle in 'init_from'."
                raise UserError("the run is its own ancestor.", where=self.where(*at), do=do)
            line[at] = self._parent(*at)
            at = line[at]
        for (paper, name), parent in reversed(line.items()):
            if parent in self.absent:
                self.absent[paper, name] = self.absent[parent]
            elif (paper, name) not in self.absent:
                before = self.runs[id_of(*parent, seed)] if parent else None
                self._add(_Resolution(self, paper, name, seed, before).planned)

    def _add(self, run: PlannedRun) -> None:
        self.runs[run.id] = run
        self.trainings.setdefault(run.identity, []).append(run)
        self._kept.setdefault(run.identity, {run.training.iterations: False})
        if start := run.training.start:
            kept = self._kept[start.parent]
            kept[start.iteration] = kept.get(start.iteration, False) or "optimizer" in start.keep

    def where(self, paper: str, name: str) -> str:
        """What errors call a run."""
        return f"{self.studies[paper].path('runs.yaml')}, run '{name}'"

    def _parent(self, paper: str, name: str) -> tuple[str, str] | None:
        """The run that one starts from; one without counterpart is put into `absent`."""
        run = self.studies[paper].paper.runs[name]
        if why := self._why_absent(run):
            self.absent[paper, name] = why
        elif run.init_from and run.init_from.run is not None:
            self.studies[paper].check_run(run.init_from.run, self.where(paper, name))
            return self.studies[paper].resolve(run.init_from.run)
        return None

    def _why_absent(self, run: Run) -> str | None:
        scale = self.scale
        if run.absent:
            return run.absent
        if scale.models.get(run.model) is None:
            return f"scale {scale.name} has no counterpart of the model {run.model}"
        for key in run.all_data:
            corpus, rank = split_rank(key)
            if corpus not in scale.corpora:
                return f"scale {scale.name} has no corpus {corpus}"
            if rank and rank > (count := len(self.shares(corpus))):
                return f"{scale.corpora[corpus]} has {count} domains only"
        if not any(corpus in scale.corpora for corpus in run.validate_on):
            return f"scale {scale.name} has no corpus {' or '.join(run.validate_on)} to validate on"
        return None

    def lineage(self, run_id: str) -> list[PlannedRun]:
        """The run's ancestors from the root, and itself."""
        out, run = [], self.runs.get(run_id)
        while run:
            out.append(run)
            run = self.runs.get(run.parent)
        return out[::-1]

    def lineage_tokens(self, run_id: str) -> int:
        """Tokens that a run's weights have seen, with those of its ancestors up to where it leaves them."""
        lineage = self.lineage(run_id)
        tokens = lineage[-1].training.tokens
        for run, child in itertools.pairwise(lineage):
            tokens += run.training.batch_sequences * run.training.sequence_length * child.parent_iteration
        return tokens

    def _include(self, paper: str, name: str) -> None:
        """Plans a run of a paper that is not made, since one that is made shows it."""
        if paper not in self.papers and name in self.studies[paper].paper.runs:
            for seed in self.scale.seeds:
                self._planned(paper, name, seed)

    def find(self, paper: str, name: str) -> list[PlannedRun]:
        """A run's seeds; [] where the scale has no counterpart. `name` as that paper writes it."""
        paper, name = self.studies[paper].resolve(name)
        self._include(paper, name)
        return [run for seed in self.seeds if (run := self.runs.get(id_of(paper, name, seed)))]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that some run has, those of all runs first."""
        more = self.scale.more_seeds
        return tuple(dict.fromkeys((*self.scale.seeds, *(more.seeds if more else ()))))

    def _behind(self, paper: str, name: str) -> tuple[str, str, list[tuple[str, str]]]:
        """(paper, name, runs) of a run or merge: the runs are itself, or the merge's base and task."""
        study = self.studies[paper]
        paper, name = study.resolve(name)
        merge = self.studies[paper].paper.merges.get(name)
        names = (merge.base, merge.task) if merge else (name,)
        behind = [self.studies[paper].resolve(one) for one in names]
        for run in behind:
            self._include(*run)
        return paper, name, behind

    def ids(self, paper: str, name: str) -> list[str]:
        """Ids of a run or merge, one per seed that all its runs have; [] without counterpart at the scale."""
        paper, name, behind = self._behind(paper, name)
        there = [s for s in self.seeds if all(id_of(*run, s) in self.runs for run in behind)]
        return [id_of(paper, name, seed) for seed in there]

    def why_absent(self, paper: str, name: str) -> str | None:
        """Why a run or merge has no counterpart at this scale; None if it has one."""
        return next((self.absent[run] for run in self._behind(paper, name)[2] if run in self.absent), None)

    def model(self, model_id: str) -> PlannedModel:
        """The model that an id of `ids` names."""
        if run := self.runs.get(model_id):
            return PlannedModel(model_id, run.identity, ((run, run.training.iterations),))
        paper, _, rest = model_id.partition("/")
        name, _, seed = rest.rpartition("/seed-")
        density = self.studies[paper].paper.merges[name].density
        runs = [self.runs[id_of(*one, int(seed))] for one in self._behind(paper, name)[2]]
        identity = digest(["merge", density, [run.identity for run in runs]])
        return PlannedModel(model_id, identity, tuple((r, r.training.iterations) for r in runs), density)

    def wanted(self, identity: str) -> ValidationPlan:
        """What is to be measured along a training, for all its names together."""
        plans = [run.validation for run in self.trainings[identity]]
        return ValidationPlan(
            corpora=tuple(dict.fromkeys(corpus for plan in plans for corpus in plan.corpora)),
            sequences=max(plan.sequences for plan in plans),
            along=max(plan.along or plan.sequences for plan in plans),
            evaluations=tuple(sorted(every := {i for plan in plans for i in plan.evaluations})),
            closing=tuple(sorted({i for plan in plans for i in plan.closing})),
            shared=tuple(sorted(every - {i for plan in plans for i in {*plan.evaluations} - {*plan.shared}})),
        )

    def kept(self, identity: str) -> dict[int, bool]:
        """Iterations of a training whose weights are kept, and whether a child needs the optimizer too."""
        return self._kept[identity]


def id_of(paper: str, name: str, seed: int) -> str:
    """A run's id: readable, and the path of its receipt."""
    return f"{paper}/{name}/seed-{seed}"


def split_rank(key: str) -> tuple[str, int | None]:
    """(corpus, k) of `corpus/k`, its k-th largest domain; k is None of a whole corpus."""
    corpus, _, rank = key.partition("/")
    return corpus, int(rank) if rank else None


class _Resolution:
    """One run worked out: lengths in iterations, rates of this scale, the mixture, what is measured when."""

    def __init__(self, plan: Plan, paper: str, name: str, seed: int, parent: PlannedRun | None):
        self.plan, self.parent, self._at = plan, parent, (paper, name)
        self.scale, self.study = plan.scale, (study := plan.studies[paper])
        self.run, self.batch = study.paper.runs[name], study.paper.batch_of(name)
        if parent and parent.training.model != self.scale.models[self.run.model].size:
            what = f"its model is {self.run.model}, but '{parent.name}' is a {parent.model_name}."
            raise self._wrong(what, "Give both the same 'model'.")
        self.sequences = self._batch_sequences()
        start = self._start()
        self.planned = PlannedRun(
            id=id_of(study.name, name, seed),
            paper=study.name,
            name=name,
            seed=seed,
            model_name=self.run.model,
            training=(training := self._training(seed, start)),
            parent=parent.id if parent else None,
            replay_fraction=self.run.replay_fraction,
            validation=self._validation(training.iterations),
            tokens_per_billion=self.scale.tokens_per_billion,
        )

    @property
    def where(self) -> str:
        """What errors call the run."""
        return self.plan.where(*self._at)

    def _wrong(self, what: str, do: str) -> UserError:
        return UserError(what, where=self.where, do=do)

    def _batch_sequences(self) -> int:
        scale, sequences, length = self.scale, self.scale.batch_sequences, self.batch.sequence_length
        if sequences == "published":
            sequences = self.batch.sequences
            if scale.sequence_length != length:
                do = f"Set the scale's 'sequence_length' to {length}, or give it 'batch_sequences'."
                raise self._wrong(f"its batch is of sequences of {length} tokens.", do)
        if sequences % (ranks := scale.run_as(self.run.model).ranks):
            do = f"Change the ranks in execution.{self.run.model} of configs/scales/{scale.name}.yaml."
            raise self._wrong(f"{ranks} ranks do not divide its batch of {sequences} sequences.", do)
        return sequences

    def _iterations(self, billions: float) -> int:
        return self.scale.iterations(billions, self.sequences)

    @cached_property
    def billions(self) -> float:
        """Length of the schedule in billions of tokens."""
        iterations = self.run.iterations
        if printed := self.run.printed_for:
            corpus, rank = split_rank(next(iter(self.run.data)))
            shares = list(self.plan.shares(corpus).values())
            if len(shares) != printed.domains:
                iterations = shares[rank - 1] * printed.iterations
        return iterations * self.batch.tokens / 1e9

    def _start(self) -> Start | None:
        if self.parent is None:
            return None
        before, asked, name = self.parent.training, self.run.init_from.iteration, self.parent.name
        of, iteration = self.plan.studies[self.parent.paper].paper, before.iterations
        if asked is not None:
            if asked > (end := of.runs[name].iterations):
                what = f"'init_from.iteration' asks for {asked} of '{name}', which ends at {end}."
                raise self._wrong(what, "Ask for an earlier iteration or lengthen the parent.")
            iteration = self.scale.iterations(of.billions(name, asked), before.batch_sequences)
            if iteration > before.iterations:
                what = f"'init_from.iteration' asks for {iteration} iterations at this scale, but '{name}' "
                what += f"stops at {before.iterations} ('until')."
                raise self._wrong(what, "Ask for an earlier one, or raise 'until'.")
        if "data" in self.run.keep:
            trunk = of.runs[name]
            if (self.run.data, self.run.replay_fraction) != (trunk.data, trunk.replay_fraction):
                what = f"'keep' has 'data', but the mixture is not that of '{name}'."
                raise self._wrong(what, "Repeat its 'data' and 'replay_fraction'.")
        return Start(parent=before.identity, iteration=iteration, keep=self.run.keep)

    def _lengths(self, start: Start | None) -> tuple[int, int]:
        """(iterations that the schedule is fitted to, iterations)."""
        total = max(self._iterations(self.billions), 1)
        iterations = min(total, max(self._iterations(self.run.until), 1)) if self.run.until else total
        if start and "data" in start.keep and self.run.init_from.iteration is not None:
            # A branch goes on to the very end of its trunk, whatever the rounding.
            total = iterations = self.parent.training.schedule_iterations - start.iteration
            if total < 1:
                what = f"'init_from.iteration' is the end of '{self.parent.name}': nothing is left to train."
                raise self._wrong(what, "Ask for an earlier iteration.")
        return total, iterations

    def _training(self, seed: int, start: Start | None) -> Training:
        scale, size = self.scale, self.scale.models[self.run.model]
        setting = f"models.{self.run.model} in configs/scales/{scale.name}.yaml"
        try:
            architecture(size.architecture).check(size.size)
        except ValueError as error:
            raise UserError(f"{error}.", where=setting, do="Correct the size.") from None
        total, iterations = self._lengths(start)
        external = self._external(size.vocab_size or scale.tokenizer.vocab_size, setting)
        if start and "data" in start.keep:
            before = self.parent.training
            mixture, offset = before.mixture, before.batch_offset + start.iteration
        else:
            mixture, offset = self._mixture(external), 0
        return Training(
            model=size.size,
            vocabulary=size.vocab_size or scale.tokenizer.vocab_size,
            sequence_length=scale.sequence_length,
            batch_sequences=self.sequences,
            seed=seed,
            precision=scale.precision,
            threads=scale.threads,
            start=start,
            external=external,
            mixture=mixture,
            batch_offset=offset,
            schedule=self.run.schedule.scaled(size.eta_factor),
            schedule_iterations=total,
            iterations=iterations,
            data={corpus: self.plan.data[corpus] for corpus in sorted({s.corpus for s in streams(mixture)})},
        )

    def _parts(self, data: dict[str, float], start_billions: float) -> Mixture:
        first = start_billions * self.scale.tokens_per_billion / self.scale.sequence_length
        out = []
        for key, share in data.items():
            corpus, rank = split_rank(key)
            shares = self.plan.shares(corpus)
            if rank is None:
                out.append(corpus_part(corpus, shares, share, first))
            else:
                out.append(Part(share=share, stream=Stream(corpus=corpus, domain=list(shares)[rank - 1])))
        return tuple(out)

    def _external(self, rows: int, setting: str) -> External | None:
        outside = self.run.init_from
        if outside is None or outside.model is None:
            return None
        entries = self.scale.tokenizer.vocab_size
        if rows < entries:
            what = f"the model {self.run.model} has {rows} rows, the tokenizer {entries} entries."
            raise self._wrong(what, f"Raise 'vocab_size' of {setting}.")
        size = self.scale.models[self.run.model].size
        check_size(self.plan.project, outside.model, outside.size, size, rows, self.where, setting)
        return External(
            model=outside.model,
            weights=outside_identity(self.plan.project, outside.model),
            mixture=self._parts(outside.data, 0),
            tokens=max(round(outside.billions * self.scale.tokens_per_billion), 1) if outside.data else 0,
        )

    def _mixture(self, external: External | None) -> Mixture:
        new = self._parts(self.run.data, self.run.start)
        if not self.run.replay_fraction:
            return new
        lineage = self.plan.lineage(self.parent.id) if self.parent else []
        if any(run.replay_fraction == 1 for run in lineage):
            what = "'replay_fraction' 1 of an ancestor leaves no new data to replay."
            raise self._wrong(what, "Lower it there.")
        first = external or lineage[0].training.external
        # What a model from outside saw comes before all; where that is not declared it cannot be replayed.
        outside = [(first.tokens, first.mixture)] if first and first.mixture else []
        # A replayed stage stands for its new data only: its own replay share is not replayed again.
        stages = [(r.training.tokens, r.training.mixture[1 if r.replay_fraction else 0 :]) for r in lineage]
        if len(stages) > MOST_REPLAYED:
            do = "Let it start from an earlier run."
            raise self._wrong(f"it replays {len(stages)} stages; {MOST_REPLAYED} are the most.", do)
        return with_replay(new, outside + stages, self.run.replay_fraction)

    def _closing(self, iterations: int) -> set[int]:
        """The evaluations that close a run of this length."""
        told = self.scale.validation
        first, last = max(1, iterations - self._iterations(told.closing)), told.closing_evaluations - 1
        return {round(first + (iterations - first) * k / last) for k in range(last + 1)}

    @property
    def _shared(self) -> set[int]:
        """Evaluations that all runs of the paper have, so that they compare: where claims and exhibits ask
        for them, and where runs that stop early close."""
        of = self.study.name, self.sequences
        if of not in self.plan.shared:
            stops = {run.until for run in self.study.paper.runs.values() if run.until}
            closing = (self._closing(max(self._iterations(stop), 1)) for stop in stops)
            self.plan.shared[of] = {self._iterations(x) for x in self.study.points}.union(*closing)
        return self.plan.shared[of]

    def _validation(self, iterations: int) -> ValidationPlan:
        told, billions = self.scale.validation, self.billions
        if billions / told.every > MOST_EVALUATIONS:
            what = f"{billions:g}B tokens with an evaluation every {told.every:g}B are too many evaluations."
            raise self._wrong(what, "Raise 'validation.every' of the scale.")
        closing = self._closing(iterations)
        regular = {self._iterations(k * told.every) for k in range(int(billions / told.every) + 1)}
        early = {self._iterations(b) for b in told.early}
        own = {0, iterations} | {i for i in regular | early | closing if i <= iterations}
        shared = {i for i in self._shared if i < iterations} - own
        return ValidationPlan(
            corpora=tuple(corpus for corpus in self.run.validate_on if corpus in self.scale.corpora),
            sequences=told.sequences,
            along=told.along,
            evaluations=tuple(sorted(own | shared)),
            closing=tuple(sorted(closing)),
            shared=tuple(sorted(shared)),
        )
