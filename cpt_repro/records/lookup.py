"""What the runs of a plan left, found by what it is and not by its name; and one exhibit's view of that."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel

from cpt_repro.declarations.benchmarks import task_digests
from cpt_repro.files import digest, read_json
from cpt_repro.planning.plan import Plan, PlannedRun
from cpt_repro.records import receipts
from cpt_repro.records.receipts import Evaluation, FinalLoss, Fingerprint, LaterLosses, Losses, Receipt

NOT_RUN, NO_COUNTERPART, FAILED = "not run", "no counterpart", "failed"


class Records:
    """Receipts, evaluations and corpus records of a plan's scale; each file is read once."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.folder = plan.project.results / plan.scale.name
        self._read: dict[Path, BaseModel] = {}
        self._digests: dict[Path, str] = {}

    @cached_property
    def _places(self) -> dict[tuple[str, str], Path]:
        """(file name, identity) -> where it lies, the place that its name asks for first."""
        places: dict[tuple[str, str], Path] = {}
        for path in sorted((self.folder / "runs").rglob("*.json")):
            if path.name in ("receipt.json", "evaluation.json"):
                places.setdefault((path.name, receipts.identity_in(path)), path)
        return places

    def _path(self, file: str, identity: str, name: str) -> Path:
        """Where a file of a model lies, under whatever name of it; else where it is to be, its first."""
        first = self.plan.trainings[identity][0].id if identity in self.plan.trainings else name
        return self._places.get((file, identity), self.place_of(first) / file)

    def place_of(self, run_id: str) -> Path:
        """The folder of a run or merge, named as it is."""
        return self.folder / "runs" / run_id

    def receipt_path(self, run: PlannedRun) -> Path:
        """Where the receipt of a run's training lies, or is to be."""
        return self._path("receipt.json", run.identity, run.id)

    def evaluation_path(self, model_id: str) -> Path:
        """Where the evaluation of a run or merge lies, or is to be."""
        return self._path("evaluation.json", self.plan.model(model_id).identity, model_id)

    def later_path(self, run: PlannedRun) -> Path:
        """Where losses lie that were measured on kept weights after the training."""
        return self.receipt_path(run).with_name("losses.json")

    def corpus_path(self, corpus: str) -> Path:
        """Where the record of a built corpus (a copy of its fingerprint) lies."""
        return self.folder / "corpora" / f"{corpus}.json"

    def _one(self, path: Path, read: Callable[[Path], BaseModel]) -> BaseModel | None:
        if path not in self._read and path.is_file():
            self._read[path] = read(path)
        return self._read.get(path)

    def has_receipt(self, run: PlannedRun) -> bool:
        """Whether the run's training has left its receipt."""
        return ("receipt.json", run.identity) in self._places

    def receipt(self, run: PlannedRun) -> Receipt | None:
        """The receipt of a run's training; a broken one is a `UserError`."""
        read = partial(receipts.read_record, Receipt)
        return self._one(self.receipt_path(run), read) if self.has_receipt(run) else None

    def evaluation(self, model_id: str) -> Evaluation | None:
        """The evaluation of a run or merge; one of other weights is none."""
        there = ("evaluation.json", self.plan.model(model_id).identity) in self._places
        read = partial(receipts.read_record, Evaluation)
        return self._one(self.evaluation_path(model_id), read) if there else None

    def scores(self, model_id: str) -> Evaluation | None:
        """The same with the scores of tasks as they are declared now, of suites that are whole."""
        evaluation = self.evaluation(model_id)
        return evaluation and evaluation.current(self._tasks)

    @cached_property
    def _tasks(self) -> dict[str, dict[str, str]]:
        return task_digests(self.plan.project, self.plan.scale, self.plan.data)

    def fingerprint(self, corpus: str) -> Fingerprint | None:
        """What was built of a corpus."""
        return self._one(self.corpus_path(corpus), receipts.read_fingerprint)

    def later(self, run: PlannedRun) -> LaterLosses | None:
        """Losses measured on the run's kept weights; those of other weights are none."""
        read = partial(receipts.read_record, LaterLosses)
        later = self._one(self.later_path(run), read) if self.has_receipt(run) else None
        return later if later and later.identity == run.identity else None

    def digest(self, path: Path) -> str:
        """SHA-256 of a record's content, without what was `measured` of speed."""
        if path not in self._digests:
            content = read_json(path)
            content.pop("measured", None)
            self._digests[path] = digest(content)
        return self._digests[path]

    def _current(self, run: PlannedRun, corpus: str) -> list[Losses]:
        """What was measured on a corpus as it is now: in training, and on kept weights."""
        both = [record.losses.get(corpus) for record in (self.receipt(run), self.later(run)) if record]
        return [one for one in both if one and one.data == self.plan.data.get(corpus)]

    def losses(self, run: PlannedRun, corpus: str) -> Losses | None:
        """A run's losses on a corpus as it is now: of enough sequences, else of as many as there are."""
        return max(self._current(run, corpus), key=lambda one: one.sequences, default=None)

    def curve(self, run: PlannedRun, corpus: str) -> tuple[tuple[int, float], ...]:
        """[(iteration, loss)]: the longer one of those that were taken in training and on kept weights."""
        return max((one.curve for one in self._current(run, corpus)), key=len, default=())

    def to_measure(self, run: PlannedRun) -> list[str]:
        """Corpora on which a trained run's final weights are still to be measured (on enough sequences)."""
        if not self.has_receipt(run):
            return []
        wanted = self.plan.wanted(run.identity)
        there = {corpus: self.losses(run, corpus) for corpus in wanted.corpora}
        return [c for c, losses in there.items() if losses is None or losses.sequences < wanted.sequences]

    def incomplete_curves(self, run: PlannedRun) -> list[str]:
        """Corpora whose curve lacks points that are wanted: only training once more would give them.

        Points that are there for comparisons alone are left to the claims, which name those that lack.
        """
        if not self.has_receipt(run):
            return []
        wanted = self.plan.wanted(run.identity)
        out = []
        for corpus in wanted.corpora:
            lacking = {*wanted.evaluations} - {*wanted.shared} - {*dict(self.curve(run, corpus))}
            receipt = self.receipt(run).losses.get(corpus)
            few = receipt is None or receipt.sequences < wanted.sequences
            if lacking or few or (receipt.along or receipt.sequences) < (wanted.along or 0):
                out.append(corpus)
        return out


class Trained:
    """A planned run with what it left."""

    def __init__(self, records: Records, run: PlannedRun, receipt: Receipt):
        self.records, self.run, self.receipt = records, run, receipt
        self.seed, self.parameters = run.seed, receipt.parameters

    @cached_property
    def _losses(self) -> dict[str, Losses]:
        of, corpora = self.records.losses, self.records.plan.scale.corpora
        return {corpus: losses for corpus in corpora if (losses := of(self.run, corpus))}

    @cached_property
    def final(self) -> dict[str, FinalLoss]:
        """Corpus -> final loss."""
        return {corpus: losses.final for corpus, losses in self._losses.items()}

    def curve(self, corpus: str) -> list[tuple[float, float]]:
        """[(billions of the paper's tokens since the run began, loss)]; [] where it was not measured."""
        step = self.run.position(1)
        return [(i * step, loss) for i, loss in self.records.curve(self.run, corpus)]

    @property
    def learning_rate(self) -> list[tuple[float, float]]:
        """[(billions of the paper's tokens since the run began, learning rate)]."""
        return [(self.run.position(i), rate) for i, rate in self.receipt.learning_rate]

    def start(self, corpus: str) -> float | None:
        """Loss of all validation sequences before the first update; None where the curve is of all."""
        return self._losses[corpus].start if corpus in self._losses else None

    def final_of_curve(self, corpus: str) -> float:
        """Final loss of the sequences that the curve is of, to stand beside its points."""
        closing = self.run.validation.closing
        of_curve = [loss for i, loss in self.records.curve(self.run, corpus) if i in closing]
        # Of all sequences where the curve is of fewer.
        return fmean(of_curve) if of_curve and self.start(corpus) else self.final[corpus].loss

    def sequence_losses(self, corpus: str, along: bool = False) -> tuple[float, ...]:
        """Loss of each validation sequence at the last evaluation; () where it is not known.

        `along`: only of those that the curve is of.
        """
        losses = self._losses.get(corpus)
        return losses.of_sequences[: losses.along if along else None] if losses else ()

    def entropy_floor(self, corpus: str) -> float | None:
        """Entropy rate of a generated language, nats per token."""
        return self._losses[corpus].entropy_floor if corpus in self._losses else None


class Evidence:
    """The records behind one exhibit or one paper's claims, with their hashes and with what is missing.

    Runs are named as the paper writes them; `<paper>/<run>` is another paper's.
    """

    def __init__(self, records: Records, paper: str):
        self.records, self.paper = records, paper
        self.plan, self.scale = records.plan, records.plan.scale
        self.study = self.plan.studies[paper]
        #: "receipt <id>", "evaluation <id>" or "corpus <name>" -> SHA-256 of its content
        self.digests: dict[str, str] = {}
        #: runs of whose plan something is shown -> identity of their training
        self.plans: dict[str, str] = {}
        #: names as of digests, wanted and not there
        self.missing: set[str] = set()
        #: runs and merges without counterpart -> why
        self.without: dict[str, str] = {}
        #: runs whose curves lack points that are wanted
        self.to_be_measured: set[str] = set()

    def _noted(self, kind: str, name: str, record: BaseModel | None, path: Path) -> BaseModel | None:
        """The record, which is noted as one of those behind the exhibit or as missing."""
        if record:
            self.digests[f"{kind} {name}"] = self.records.digest(path)
        else:
            self.missing.add(f"{kind} {name}")
        return record

    def _has_counterpart(self, name: str) -> bool:
        if why := self.plan.why_absent(self.paper, name):
            self.without[name] = why
        return not why

    def runs(self, name: str) -> list[Trained]:
        """A run's receipts, one a seed."""
        out = []
        for run in self.plan.find(self.paper, name) if self._has_counterpart(name) else ():
            receipt, path = self.records.receipt(run), self.records.receipt_path(run)
            if self._noted("receipt", run.id, receipt, path):
                out.append(Trained(self.records, run, receipt))
                if later := self.records.later(run):
                    self._noted("losses", run.id, later, self.records.later_path(run))
                if self.records.incomplete_curves(run):
                    self.to_be_measured.add(run.id)
        return out

    def evaluations(self, name: str) -> list[Evaluation]:
        """The evaluations of a run or a merge, one a seed; their `id` is the name that is asked for."""
        out = []
        for model_id in self.plan.ids(self.paper, name) if self._has_counterpart(name) else ():
            scores, path = self.records.scores(model_id), self.records.evaluation_path(model_id)
            if self._noted("evaluation", model_id, scores, path):
                out.append(scores.model_copy(update={"id": model_id}))
        return out

    def fingerprint(self, corpus: str) -> Fingerprint | None:
        """What was built of a corpus, or None."""
        built = self.records.fingerprint(corpus)
        return self._noted("corpus", corpus, built, self.records.corpus_path(corpus))

    def why(self, name: str) -> str:
        """The word that stands where a value is missing."""
        if self.plan.why_absent(self.paper, name):
            return NO_COUNTERPART
        places = [self.records.place_of(run_id) for run_id in self.plan.ids(self.paper, name)]
        return FAILED if any((place / "failure.json").is_file() for place in places) else NOT_RUN

    def planned(self, name: str) -> PlannedRun | None:
        """The run as planned (first seed); of a merge, its task's."""
        paper, name = self.study.resolve(name)
        merge = self.plan.studies[paper].paper.merges.get(name)
        run = next(iter(self.plan.find(paper, merge.task if merge else name)), None)
        if run:
            self.plans[run.id] = run.identity
        return run

    def corpus(self, corpus: str) -> str:
        """A corpus in words, as at this scale: upstream (its text here, for that of the paper)."""
        declared = self.study.paper.corpora[corpus]
        if self.scale.full_size:
            return declared.stands_for
        return f"{declared.called} ({self.plan.corpus_title(corpus)}, for {declared.stands_for})"
