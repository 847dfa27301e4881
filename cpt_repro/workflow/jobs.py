"""What the Snakefile needs to know: the files of a scale, what each is made from, and what jobs ask for.

What is current is decided by content, not by times of files: a product that is what is wanted now has no
inputs, so that the workflow engine leaves it alone, whoever made it. One that lies there and is something
else has an input that is always new, so that it is made again. Nothing here writes a file.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cpt_repro.declarations.benchmarks import task_digests
from cpt_repro.declarations.manifests import Hub
from cpt_repro.declarations.scale import Execution, load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError
from cpt_repro.evaluation import evaluate
from cpt_repro.exhibits.catalogue import Catalogue, Needs
from cpt_repro.exhibits.draw import Drawn
from cpt_repro.files import digest, read_json
from cpt_repro.planning.plan import Plan, PlannedRun
from cpt_repro.project import Project
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Failure, Fingerprint, read_fingerprint
from cpt_repro.training.store import Store

FIGURE_FILES = ("png", "svg", "pdf", "json")
TABLE_FILES = ("csv", "md", "tex", "json")
#: Always there and always new: its times are the looking process's. Of a file its hash would count too.
NEW = "/proc/self/task"
#: Files that tell of one call that weights are there again.
WEIGHTS = ".snakemake/weights"
#: `cpt-repro`, run by the process that has everything imported if there is one; and always by itself.
WARM, ALONE = (f"{shlex.quote(sys.executable)} -m cpt_repro.{module}" for module in ("workflow.warm", "cli"))
#: What a job asks for beside its cores of a node (`cpus_per_task`).
RESOURCES = ("nodes", "tasks", "mem_mb", "runtime", "gpu_percent", "slurm_extra", "mpi")
#: Processes that build a corpus of the hub.
HUB_PROCESSES = 32


@dataclass(frozen=True)
class Status:
    """What is done and what is left at a scale; lists are of ids, a training under its first name."""

    trainings: int
    to_train: list[str]
    #: runs whose curves lack points that are wanted, and those of them of which kept weights give some
    to_be_measured: list[str]
    measurable: list[str]
    evaluations: int
    to_evaluate: list[str]
    exhibits: int
    to_draw: list[str]
    #: those that lack one of their formats: git keeps neither SVG, PDF nor TeX
    incomplete: list[str]

    def lines(self) -> list[str]:
        parts = (
            ("trainings", self.trainings, self.to_train),
            ("evaluations", self.evaluations, self.to_evaluate),
            ("exhibits", self.exhibits, self.to_draw),
        )
        out = [f"{name}: {whole - len(left)} of {whole} done" for name, whole, left in parts]
        if count := len({*self.incomplete} - {*self.to_draw}):
            out[-1] += f" ({count} of them not in every format; `cpt-repro draw` makes all)"
        if count := len(self.to_be_measured):
            kept = f"{len(self.measurable)} of them on weights that are kept"
            out.append(f"curves to be measured: {count} runs, {kept}; `train --again` gives all points")
        return out


class Workflow:
    """The jobs of one scale; every method that names inputs answers [] for what is current."""

    def __init__(self, project: Project, scale: str, papers: tuple[str, ...] = ()):
        self.project = project
        self.plan = Plan(project, load_scale(project, scale), papers)
        self.catalogue = Catalogue(self.plan)
        #: Models to be evaluated; asking for them plans the runs of other papers that exhibits show.
        self.models = list(self.catalogue.models)
        self.scale, self.records, self.store = self.plan.scale, Records(self.plan), Store(project, scale)
        self.data, self.figures = project.data / scale, project.figures / scale

    # -- what is to be made

    def outstanding(
        self, runs: Iterable[str], models: Iterable[str], again: bool = False
    ) -> tuple[list[PlannedRun], list[str]]:
        """(trainings to do for these runs and models, parents first; models to evaluate).

        A training that has a receipt is done again only where its weights are gone and something still to be
        made starts from them; so committed receipts redraw every exhibit without training.
        `again`: these runs are done again in any case.
        """
        to_evaluate = evaluate.outstanding(self.plan, self.records, list(models), self.catalogue.generating)
        to_train: dict[str, PlannedRun] = {}

        def need(run: PlannedRun) -> None:
            if run.identity in to_train:
                return
            to_train[run.identity] = run
            parent, optimizer = self.plan.runs.get(run.parent), "optimizer" in run.keep
            if parent and not self.store.has(parent.identity, run.parent_iteration, optimizer):
                need(parent)

        for run in (self.plan.runs[run_id] for run_id in runs):
            if again or not self.records.has_receipt(run):
                need(run)
        for run, iteration in (weights for one in to_evaluate for weights in self.plan.model(one).weights):
            if not (self.records.has_receipt(run) and self.store.has(run.identity, iteration)):
                need(run)
        order = {run_id: number for number, run_id in enumerate(self.plan.runs)}
        return sorted(to_train.values(), key=lambda run: order[run.id]), to_evaluate

    def status(self) -> Status:
        first = [runs[0] for runs in self.plan.trainings.values()]
        to_train, to_evaluate = self.outstanding(self.plan.runs, self.models)
        exhibits = {"/".join(exhibit): exhibit for exhibit in self.catalogue.exhibits}
        return Status(
            trainings=len(first),
            to_train=[run.id for run in to_train],
            to_be_measured=[run.id for run in first if self.records.incomplete_curves(run)],
            measurable=[run.id for run in first if self.can_measure(run)],
            evaluations=len(self.models),
            to_evaluate=to_evaluate,
            exhibits=len(exhibits),
            to_draw=[name for name, one in exhibits.items() if not self.is_drawn(*one, whole=False)],
            incomplete=[name for name, one in exhibits.items() if not self.is_drawn(*one)],
        )

    def exhibit_named(self, text: str) -> tuple[str, str]:
        """(paper, key) of `<paper>/<exhibit>`; anything else is a `UserError`."""
        paper, _, key = text.partition("/")
        if not key:
            example = "/".join(next(iter(self.catalogue.exhibits), ("<paper>", "<exhibit>")))
            raise UserError(f"'{text}' is no exhibit.", do=f"Write <paper>/<exhibit>, such as {example}.")
        self.catalogue.find(paper, key)
        return paper, key

    def execution_of(self, runs: Iterable[PlannedRun]) -> tuple[str, Execution]:
        """A model and how it is spread, for one process that trains `runs`: their ranks must not differ."""
        spread = {model: self.scale.run_as(model) for model in sorted({run.model_name for run in runs})}
        if len({(one.nodes, one.ranks_per_node) for one in spread.values()}) > 1:
            fault = f"the models {', '.join(spread)} are spread differently over hardware."
            where = f"configs/scales/{self.scale.name}.yaml, execution"
            raise UserError(fault, where=where, do="Train one run at a time.")
        return min(spread.items(), key=lambda item: item[1].jobs_per_gpu)

    @cached_property
    def _to_evaluate(self) -> frozenset[str]:
        return frozenset(self.outstanding((), self.models)[1])

    def named(self, folder: str) -> str:
        """The id of the run or merge whose records lie, or are to lie, in a folder of the results."""
        if name := self._names.get(folder):
            return name
        if folder in self.plan.runs:
            path = self.records.receipt_path(self.plan.runs[folder])
            raise UserError(f"'{folder}' is the same training as that of {path}.", do="Ask for that file.")
        raise UserError(f"there is no run '{folder}' at this scale.", do="See `cpt-repro plan`.")

    @cached_property
    def _names(self) -> dict[str, str]:
        """Folder -> id of what is recorded there: of that very name, or of an equal training."""
        paths = [(self.records.evaluation_path(model), model) for model in self.models]
        paths += [(self.records.receipt_path(run), run.id) for run in self.plan.runs.values()]
        names = [(self._folder(path), name) for path, name in paths]
        return dict(names) | {folder: name for folder, name in names if folder == name}

    def _folder(self, record: Path) -> str:
        return str(record.parent.relative_to(self.records.folder / "runs"))

    def _anew(self, product: Path) -> list[str]:
        """An input that makes `product` anew, where one lies there that is not what is wanted."""
        return [NEW] if product.exists() else []

    # -- inputs of trainings and evaluations

    def training(self, folder: str) -> list[str]:
        """Of a run's receipt."""
        run = self.plan.runs[self.named(folder)]
        if self.records.has_receipt(run):
            return []
        return [*self.training_again(folder), *self._anew(self.records.receipt_path(run))]

    def training_again(self, folder: str) -> list[str]:
        """Of a training, whether it has a receipt or not."""
        run = self.plan.runs[self.named(folder)]
        corpora = dict.fromkeys((*run.training.data, *self.plan.wanted(run.identity).corpora))
        inputs = [self.fingerprint(corpus) for corpus in corpora]
        if parent := self.plan.runs.get(run.parent):
            inputs += self._weights(parent, run.parent_iteration, "optimizer" in run.keep)
        return inputs

    def _weights(self, run: PlannedRun, iteration: int, optimizer: bool = False) -> list[str]:
        """What makes a run's weights; [] where they are in the store."""
        path = self.records.receipt_path(run)
        if not self.records.has_receipt(run):
            return [str(path)]
        if self.store.has(run.identity, iteration, optimizer):
            return []
        gone = digest([run.identity, path.stat().st_mtime_ns])[:16]
        return [f"{WEIGHTS}/{self.scale.name}/{self._folder(path)}/{gone}"]

    def measuring(self, folder: str) -> list[str]:
        """Of losses measured on kept weights."""
        run = self.plan.runs[self.named(folder)]
        left = self.records.to_measure(run)
        return [*map(self.fingerprint, left), *(self._anew(self.records.later_path(run)) if left else [])]

    def can_measure(self, run: PlannedRun) -> bool:
        """Whether losses are wanted that the run's weights, which are kept, can still give."""
        return self.store.has(run.identity, run.training.iterations) and bool(self.records.to_measure(run))

    def _has_later(self, run: PlannedRun) -> bool:
        return self.can_measure(run) or self.records.later(run) is not None

    def evaluating(self, folder: str) -> list[str]:
        """Of the benchmark results of a run or merge."""
        model_id = self.named(folder)
        if model_id not in self._to_evaluate:
            return []
        model = self.plan.model(model_id)
        weights = [path for run, iteration in model.weights for path in self._weights(run, iteration)]
        anew = self._anew(self.records.evaluation_path(model_id))
        return [str(self.data / "suites" / "fingerprint.json"), *weights, *anew]

    # -- corpora, tokenizer and tasks

    def fingerprint(self, corpus: str) -> str:
        """Path of a corpus' fingerprint, its last file to be written."""
        return str(self.data / corpus / "fingerprint.json")

    @cached_property
    def _tokenizer(self) -> str | None:
        """SHA-256 of the tokenizer, if it is there and the one wanted."""
        from cpt_repro.data.build import current_tokenizer

        with suppress(UserError):
            return current_tokenizer(self.project, self.scale)

    def tokenizer(self) -> list[str]:
        return [] if self._tokenizer else self._anew(self.data / "tokenizer" / "tokenizer.json")

    def fits(self, corpus: str, built: Fingerprint) -> bool:
        """Whether a corpus was built from the text that is wanted, into sequences as long as wanted."""
        wanted = self.plan.manifest(corpus).digest, self.scale.sequence_length
        return (built.manifest, built.sequence_length) == wanted

    def built(self, corpus: str) -> Fingerprint | None:
        """The corpus, if it is there and the one wanted."""
        path = Path(self.fingerprint(corpus))
        built = read_fingerprint(path) if path.exists() else None
        current = built and self.fits(corpus, built) and built.tokenizer == self._tokenizer
        return built if current else None

    def corpus(self, corpus: str) -> list[str]:
        if corpus not in self.scale.corpora:
            known = ", ".join(self.scale.corpora)
            raise UserError(f"the scale '{self.scale.name}' has no corpus '{corpus}'.", do=f"Known: {known}.")
        if self.built(corpus):
            return []
        tokenizer = str(self.data / "tokenizer" / "tokenizer.json")
        return [tokenizer, *self._anew(Path(self.fingerprint(corpus)))]

    def corpus_threads(self, corpus: str) -> int:
        """Processes that build a corpus, given the cores: many for hundreds of billions of tokens."""
        return HUB_PROCESSES if isinstance(self.plan.manifest(corpus), Hub) else 1

    def record(self, corpus: str) -> list[str]:
        record, built = self.records.fingerprint(corpus), self.built(corpus)
        if record and self.fits(corpus, record) and built in (None, record):
            return []
        return [self.fingerprint(corpus), *self._anew(self.records.corpus_path(corpus))]

    def suites(self) -> list[str]:
        from cpt_repro.evaluation.suites import SuitesRecord, suites_record

        path = suites_record(self.project, self.scale)
        digests = task_digests(self.project, self.scale, self.plan.data)
        wanted = {f"{suite}/{task}": digests[suite][task] for suite in digests for task in digests[suite]}
        made = parse(SuitesRecord, read_json(path), str(path)).tasks if path.is_file() else None
        if made is not None and {name: task.declaration for name, task in made.items()} == wanted:
            return []
        read = {corpus for suite in self.scale.suites.values() for corpus in suite.corpora}
        corpora = [corpus for corpus in self.scale.corpora if corpus in read]
        return [*map(self.fingerprint, corpora), *self._anew(path)]

    # -- exhibits, claims, report

    def exhibit(self, paper: str, key: str) -> list[str]:
        """Records that an exhibit is drawn from; [] where its files are there, drawn from just these."""
        if self.is_drawn(paper, key):
            return []
        records = self._records(self.catalogue.needs(paper, key)).values()
        return [*dict.fromkeys(map(str, records)), *self._anew(Path(self.exhibit_files(paper, key)[-1]))]

    def _records(self, needs: Needs) -> dict[str, Path]:
        """Records that an exhibit is drawn from, by the names that its sidecar has for them."""
        runs = [self.plan.runs[run_id] for run_id in needs.runs]
        records = {f"receipt {run.id}": self.records.receipt_path(run) for run in runs}
        records |= {f"losses {run.id}": self.records.later_path(run) for run in runs if self._has_later(run)}
        records |= {f"evaluation {model}": self.records.evaluation_path(model) for model in needs.models}
        return records | {f"corpus {corpus}": self.records.corpus_path(corpus) for corpus in needs.corpora}

    def is_drawn(self, paper: str, key: str, whole: bool = True) -> bool:
        """Whether an exhibit is drawn from just these records, in all formats (else: in the first)."""
        needs = self.catalogue.needs(paper, key)
        runs = [self.plan.runs[run_id] for run_id in needs.runs]
        *files, sidecar = map(Path, self.exhibit_files(paper, key))
        current = all(self.records.has_receipt(run) and not self.can_measure(run) for run in runs)
        current &= self._to_evaluate.isdisjoint(needs.models) and not any(map(self.record, needs.corpora))
        if not current or not all(path.is_file() for path in (*files[: None if whole else 1], sidecar)):
            return False
        now = {name: self.records.digest(path) for name, path in self._records(needs).items()}
        with suppress(UserError):  # of another version
            drawn = parse(Drawn, read_json(sidecar), str(sidecar))
            planned = {name: run.identity for name, run in self.plan.runs.items() if name in drawn.plans}
            return (drawn.sha256, drawn.plans) == (now, planned)
        return False

    def exhibit_files(self, paper: str, key: str) -> list[str]:
        """The files of one exhibit; the last one says what it was drawn from."""
        suffixes = FIGURE_FILES if key.startswith("figure") else TABLE_FILES
        return [str(self.figures / paper / f"{key}.{suffix}") for suffix in suffixes]

    def all_records(self) -> list[str]:
        """Every receipt and evaluation, and what was measured later: what the claims are judged by."""
        runs = self.plan.runs.values()
        paths = [self.records.receipt_path(run) for run in runs]
        paths += [self.records.later_path(run) for run in runs if self._has_later(run)]
        paths += map(self.records.evaluation_path, self.models)
        return list(dict.fromkeys(map(str, paths)))

    def claims(self) -> list[str]:
        # Sentences on claims that failed, where somebody wrote them.
        analysis = self.records.folder / "analysis.yaml"
        records = [*self.all_records(), *([str(analysis)] if analysis.exists() else [])]
        return self._unless_whole(records, self.figures / "claims.json")

    def report(self) -> list[str]:
        sidecars = [self.exhibit_files(*exhibit)[-1] for exhibit in self.catalogue.exhibits]
        shown = [*sidecars, *self._made("claims.json", "claims.md"), *self.all_records()]
        return self._unless_whole(shown, self.figures / "index.html")

    def _unless_whole(self, inputs: list[str], product: Path) -> list[str]:
        """Inputs whose times decide; where some are missing the engine alone would do nothing."""
        whole = all(Path(path).exists() for path in inputs)
        return inputs if whole else [*inputs, *self._anew(product)]

    def everything(self) -> list[str]:
        """The files of every exhibit, the claims and the report."""
        exhibits = [path for exhibit in self.catalogue.exhibits for path in self.exhibit_files(*exhibit)]
        return [*exhibits, *self._made("claims.json", "claims.md", "values.csv", "index.html", "index.json")]

    def _made(self, *names: str) -> list[str]:
        return [str(self.figures / name) for name in names]

    # -- what jobs ask for

    def job(self, folder: str) -> tuple[str, str]:
        """(`cpt-repro` as it is called, the run or model): of what is trained or evaluated there."""
        alone = self.scale.device == "gpu" or any(one.ranks > 1 for one in self.scale.execution.values())
        return ALONE if alone else WARM, self.named(folder)

    def cores(self, execution: Execution) -> int:
        """CPU cores that a training uses on each node."""
        return execution.ranks_per_node * (self.scale.threads + self.scale.loader_workers)

    def training_resources(self, folder: str) -> dict[str, Any]:
        """What a training asks for, in the words of the workflow engine and its Slurm executor."""
        run_as = self.scale.run_as(self.plan.runs[self.named(folder)].model_name)
        gpus = run_as.ranks_per_node / run_as.jobs_per_gpu
        return self._resources([run_as], run_as.nodes, self.cores(run_as), gpus)

    def evaluation_resources(self, folder: str) -> dict[str, Any]:
        weights = self.plan.model(self.named(folder)).weights
        run_as = [self.scale.run_as(run.model_name) for run, _ in weights]
        return self._resources(run_as, 1, self.scale.threads, 1)

    def _resources(self, run_as: list[Execution], nodes: int, cores: int, gpus: float) -> dict[str, Any]:
        """`gpus`: of one node, below 1 where jobs share one.

        GPUs are not asked for under the name `gpu`: of that the Slurm executor makes one task for every GPU,
        each of which sees that GPU alone, and here one task of a node starts all ranks.
        """
        gpus *= self.scale.device == "gpu"
        return {
            "nodes": nodes,
            "tasks": nodes,
            "cpus_per_task": cores,
            "mem_mb": max(one.memory_gb for one in run_as) * 1000,
            "runtime": math.ceil(max(one.hours for one in run_as) * 60),
            # Hundredths of a GPU, for a limit on one machine; and whole ones, for Slurm.
            "gpu_percent": int(100 * gpus),
            "slurm_extra": f"--gres=gpu:{math.ceil(gpus)}" if gpus else "",
            # The executor then leaves it to the job to start what runs on the nodes.
            "mpi": "srun" if nodes > 1 else "",
        }

    def heed_failures(self, runs: Iterable[PlannedRun], attempt: int) -> None:
        """Raises `UserError` where an earlier attempt of the same call failed, and was not just cut off.

        The first attempt forgets what failed: a new call tries it anew.
        """
        for run in runs:
            path = self.records.place_of(run.id) / "failure.json"
            if attempt == 1:
                path.unlink(missing_ok=True)
            failure = parse(Failure, read_json(path), str(path)) if path.is_file() else None
            if failure and failure.identity == run.identity:
                fault = f"it failed in an earlier attempt: {failure.why}"
                raise UserError(fault, where=run.id, do="The next call tries it anew.")
