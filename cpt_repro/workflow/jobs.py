"""The jobs of a scale as paths and commands: all that the Snakefile needs to know."""

from __future__ import annotations

import fcntl
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cpt_repro.declarations.exhibits import find_exhibit, load_exhibits, needs
from cpt_repro.declarations.manifests import Hub, load_manifest
from cpt_repro.declarations.scale import Execution, load_scale
from cpt_repro.errors import UserError
from cpt_repro.evaluation.benchmarks import declared_suites
from cpt_repro.files import digest, read_json, write_text, writing
from cpt_repro.planning.evaluation_identity import evaluation_identity
from cpt_repro.planning.plan import Plan, Segment
from cpt_repro.records.receipts import (
    corpus_path,
    evaluation_path,
    is_current,
    read_fingerprint,
    receipt_path,
)
from cpt_repro.training.store import Store

FIGURE_FILES = ("png", "svg", "json")
TABLE_FILES = ("csv", "md", "tex", "json")
#: Models that one evaluation process takes where runs are bundled: imports cost ten times what a small model does.
MODELS_PER_PROCESS = 20
#: Processes that build a corpus of the hub.
HUB_PROCESSES = 32
#: Seconds that a file server's clock may be ahead.
CLOCK_TOLERANCE = 60


@dataclass(frozen=True)
class Job:
    """One process: what it reads and writes, as paths relative to the repository."""

    name: str
    inputs: list[str]
    outputs: list[str]
    #: CPU cores of one node.
    cores: int
    #: As the workflow engine and its Slurm executor call them.
    resources: dict[str, int | str]


class Workflow:
    """Jobs still to be run at a scale, and the files of every exhibit.

    `results`, `figures`, `data` are folders relative to the working directory.
    """

    def __init__(self, scale: str, results: str = "results", figures: str = "figures", data: str = "data"):
        self.plan = Plan(load_scale(scale))
        self.scale, self.results, self.figures = scale, Path(results), Path(figures)
        self.data = Path(data) / scale
        self.store = Store(scale)
        self.exhibits = {
            (paper, key): e for paper in self.plan.papers for key, e in load_exhibits(paper).items()
        }

    @cached_property
    def needs(self) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
        """(paper, exhibit) -> (segments, models to be evaluated)."""
        return {
            (paper, key): needs(self.plan, paper, exhibit) for (paper, key), exhibit in self.exhibits.items()
        }

    @cached_property
    def evaluations(self) -> list[str]:
        """Every model that some exhibit wants evaluated, in a fixed order."""
        return list(dict.fromkeys(model for _, models in self.needs.values() for model in models))

    @cached_property
    def generating(self) -> set[str]:
        """Models whose continuations of prompts some exhibit shows."""
        shown = [key for key, exhibit in self.exhibits.items() if exhibit.kind == "generations"]
        return {model for key in shown for model in self.needs[key][1]}

    @cached_property
    def outstanding(self) -> tuple[list[str], list[str]]:
        """(segments to train, models to evaluate), in the plan's order."""
        return outstanding(self.plan, self.results, self.store, self.evaluations)

    def begin(self) -> None:
        """Claims this folder and scale until this process ends, however it ends; a second run at once is refused."""
        path = Path(".snakemake") / f"{self.scale}.running"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            self._running = open(path, "a")  # noqa: SIM115 - held open
        try:
            fcntl.flock(self._running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"snakemake is already running for the scale '{self.scale}' in this folder.",
                where=str(Path.cwd()),
                do="Wait for it to end, or end it; what it finished is kept.",
            ) from None

    def mend_times(self) -> None:
        """After the clock was set back: files of the future count as made just now, drawn ones as older than all.

        The workflow engine would take the former for changed at every call, and the latter for current until then.
        """
        now = time.time()
        corpora = self.plan.scale.corpora
        built = [self.data / "tokenizer" / "tokenizer.json", self.data / "suites" / "fingerprint.json"]
        read = [*built, *map(self.fingerprint, corpora), *map(self.corpus_record, corpora), *self.records()]
        requests = (self.store.root / "requests").rglob("*")
        # Snakemake takes a time of 0 for none.
        for paths, counts_as in ((self.all_files(), 1), ((*read, *requests), now - 1)):
            for path in paths:
                with suppress(OSError):
                    if os.stat(path).st_mtime > now + CLOCK_TOLERANCE:
                        os.utime(path, (counts_as, counts_as))

    def execution_of(self, models: set[str]) -> tuple[str, Execution]:
        """A model and how it is spread, for one process that trains `models`; those must not differ in their ranks."""
        spread = {model: self.plan.scale.run_as(model) for model in sorted(models)}
        if len({(e.nodes, e.ranks_per_node) for e in spread.values()}) > 1:
            fault = f"the models {', '.join(spread)} are spread differently over hardware."
            where = f"configs/scales/{self.scale}.yaml, execution"
            raise UserError(fault, where=where, do="Train one bundle or run at a time.")
        return min(spread.items(), key=lambda item: item[1].jobs_per_gpu)

    def _failure(self, segment: Segment) -> Path:
        return Path(self.receipt(segment.id)).with_name("failure.json")

    def forget_failures(self, segments: list[Segment]) -> None:
        """A new call tries anew what failed."""
        for segment in segments:
            self._failure(segment).unlink(missing_ok=True)

    def refuse_failed(self, segments: list[Segment]) -> None:
        """Raises `UserError` where an earlier attempt of the same call failed by itself, and was not just cut off."""
        for segment in segments:
            told = read_json(path) if (path := self._failure(segment)).is_file() else {}
            if told.get("identity") == segment.identity:
                fault = f"it failed in an earlier attempt: {told['why']}"
                raise UserError(fault, where=segment.id, do="The next call tries it anew.")

    def cores(self, execution: Execution) -> int:
        """CPU cores that a training uses on each node."""
        scale = self.plan.scale
        return execution.ranks_per_node * (scale.threads + scale.loader_workers)

    def _resources(
        self, nodes: int, cores: int, hours: float, memory_gb: int, gpus: float
    ) -> dict[str, int | str]:
        """What a job asks for. `gpus`: of one node, below 1 where jobs share one.

        GPUs are not asked for under the name `gpu`: of that the Slurm executor makes one task for every GPU, each of
        which sees that GPU alone, and here one task of a node starts all ranks.
        """
        asked = {
            "nodes": nodes,
            "tasks": nodes,
            "cpus_per_task": cores,
            "mem_mb": memory_gb * 1000,
            "runtime": math.ceil(hours * 60),
        }
        if self.plan.scale.device == "gpu":
            # Hundredths of a GPU, for a limit on one machine; and whole ones, for Slurm.
            asked |= {"gpu_percent": int(100 * gpus), "slurm_extra": f"--gres=gpu:{math.ceil(gpus)}"}
        if nodes > 1:
            asked["mpi"] = "srun"  # the executor then leaves it to the job to start what runs on the nodes
        return asked

    def receipt(self, segment_id: str) -> str:
        """Path of a segment's receipt."""
        return str(receipt_path(self.results, self.scale, segment_id))

    def evaluation(self, model_id: str) -> str:
        """Path of a model's benchmark results."""
        return str(evaluation_path(self.results, self.scale, model_id))

    def fingerprint(self, corpus: str) -> str:
        """Path of a corpus' fingerprint, its last file to be written."""
        return str(self.data / corpus / "fingerprint.json")

    def _request(self, what: str, wanted: str, product: str | Path, current: bool) -> str:
        """A small file, input of the job that makes `product`, that says what is wanted; its path.

        The workflow engine compares times of files and cannot know that a product is of another identity than the one
        wanted. So the file is written anew when the wish changes, or when a product that is not current is newer.
        """
        path, product = self.store.root / "requests" / what, Path(product)
        stale = not current and product.exists()
        if (
            not path.exists()
            or path.read_text() != wanted
            or (stale and product.stat().st_mtime >= path.stat().st_mtime)
        ):
            write_text(path, wanted)
        return str(path)

    def _lost_request(self, what: str, wanted: str, product: Path) -> None:
        """Puts back a wish, older than its `product`, which is known to be current: nothing is to be made again.

        The store, where wishes lie, was moved or emptied, or the product was made without the workflow engine.
        """
        path = self.store.root / "requests" / what
        if not path.exists():
            write_text(path, wanted)
            before = product.stat().st_mtime - 1
            os.utime(path, (before, before))

    def tokenizer_request(self) -> str:
        """Wish for the tokenizer, input of its job."""
        from cpt_repro.data.build import current_tokenizer

        scale, product = self.plan.scale, self.data / "tokenizer" / "tokenizer.json"
        wanted = digest([load_manifest(scale.corpora[scale.upstream]).digest, scale.tokenizer.identity])
        if product.exists():
            with suppress(UserError):
                current_tokenizer(scale, self.data)
                self._lost_request("tokenizer", wanted, product)
        return self._request("tokenizer", wanted, product, True)

    def corpus_request(self, corpus: str) -> str:
        """Wish for a built corpus, input of its job."""
        if corpus not in self.plan.scale.corpora:
            raise UserError(
                f"the corpus '{corpus}' is unknown.", do=f"Known: {', '.join(self.plan.scale.corpora)}."
            )
        manifest, length = (
            load_manifest(self.plan.scale.corpora[corpus]).digest,
            self.plan.scale.sequence_length,
        )
        path = Path(self.fingerprint(corpus))
        built = read_fingerprint(path) if path.exists() else {}
        current = (built.get("manifest"), built.get("sequence_length")) == (manifest, length)
        if current:
            self._lost_request(f"corpora/{corpus}", digest([manifest, length]), path)
        return self._request(f"corpora/{corpus}", digest([manifest, length]), path, current)

    def corpus_threads(self, corpus: str) -> int:
        """Processes that build a corpus, where there are as many cores: many for hundreds of billions of tokens."""
        return HUB_PROCESSES if isinstance(load_manifest(self.plan.scale.corpora[corpus]), Hub) else 1

    def suites_request(self) -> str:
        """Wish for the benchmark tasks, input of their job."""
        wanted = digest(declared_suites(self.plan.scale))
        return self._request("suites", wanted, self.data / "suites" / "fingerprint.json", True)

    def suites_inputs(self) -> list[str]:
        """What the benchmark tasks are made from: the wish for them, and the text of local ones."""
        suites = self.plan.scale.suites.values()
        corpora = [c for c in self.plan.scale.corpora if any(c in suite.corpora for suite in suites)]
        return [self.suites_request(), *map(self.fingerprint, corpora)]

    def recording(self) -> list[str]:
        """Corpora of which no current record lies among the results."""
        current = {}
        for corpus, name in self.plan.scale.corpora.items():
            path = corpus_path(self.results, self.scale, corpus)
            current[corpus] = (
                path.exists() and read_fingerprint(path)["manifest"] == load_manifest(name).digest
            )
        return [corpus for corpus, there in current.items() if not there]

    def corpus_record(self, corpus: str) -> str:
        """Path of a corpus' record among the results."""
        return str(corpus_path(self.results, self.scale, corpus))

    def training(self) -> list[Job]:
        """One job per bundle that has something to train; nothing where every receipt is current."""
        to_train = set(self.outstanding[0])
        jobs = []
        for name, members in self.plan.bundles.items():
            todo = [segment for segment in members if segment.id in to_train]
            if not todo:
                continue
            own = {segment.id for segment in todo}
            corpora = sorted({corpus for segment in todo for corpus in segment.data})
            parents = sorted({s.parent for s in todo if s.parent in to_train and s.parent not in own})
            inputs = [self.fingerprint(corpus) for corpus in corpora] + [
                self.receipt(parent) for parent in parents
            ]
            inputs += [self._request(f"runs/{s.id}", s.identity, self.receipt(s.id), False) for s in todo]
            run_as = self.plan.scale.run_as(todo[0].model_name)
            cores, gpus = self.cores(run_as), run_as.ranks_per_node / run_as.jobs_per_gpu
            resources = self._resources(run_as.nodes, cores, run_as.hours, run_as.memory_gb, gpus)
            jobs.append(Job(name, inputs, [self.receipt(segment.id) for segment in todo], cores, resources))
        return jobs

    def evaluating(self) -> list[Job]:
        """One job per group of models without a current evaluation; groups follow the plan's order."""
        to_train, to_evaluate = (set(part) for part in self.outstanding)
        jobs = []
        step = self.models_per_process
        for start in range(0, len(self.evaluations), step):
            todo = [m for m in self.evaluations[start : start + step] if m in to_evaluate]
            if todo:
                sources = {s.id for model in todo for s, _ in evaluation_identity(self.plan, model)[1]}
                inputs = [self.receipt(source) for source in sorted(sources & to_train)]
                for model in todo:
                    wanted = evaluation_identity(self.plan, model)[0]
                    inputs.append(
                        self._request(f"evaluations/{model}", wanted, self.evaluation(model), False)
                    )
                suites = str(self.data / "suites" / "fingerprint.json")
                weights = {
                    s.model_name for model in todo for s, _ in evaluation_identity(self.plan, model)[1]
                }
                run_as = [self.plan.scale.run_as(model) for model in weights]
                hours, memory = max(e.hours for e in run_as), max(e.memory_gb for e in run_as)
                threads, outputs = self.plan.scale.threads, [self.evaluation(model) for model in todo]
                resources = self._resources(1, threads, hours, memory, 1)
                jobs.append(Job(f"{start // step:03d}", [suites, *inputs], outputs, threads, resources))
        return jobs

    def group(self, name: str) -> list[str]:
        """The models of the evaluation job `name`."""
        start = int(name) * self.models_per_process
        return self.evaluations[start : start + self.models_per_process]

    @property
    def models_per_process(self) -> int:
        """Models that one evaluation process takes."""
        return MODELS_PER_PROCESS if self.plan.scale.bundle else 1

    def exhibit_inputs(self, paper: str, key: str) -> list[str]:
        """Receipts and evaluations that an exhibit is drawn from."""
        find_exhibit(paper, key)
        segments, models = self.needs[paper, key]
        corpora = [exhibit.corpus] if (exhibit := self.exhibits[paper, key]).kind == "domains" else []
        records = [self.corpus_record(corpus) for corpus in corpora]
        return [*map(self.receipt, segments), *map(self.evaluation, models), *records]

    def exhibit_files(self, paper: str, key: str) -> list[str]:
        """The files of one exhibit."""
        suffixes = FIGURE_FILES if key.startswith("figure") else TABLE_FILES
        return [str(self.figures / self.scale / paper / f"{key}.{suffix}") for suffix in suffixes]

    def exhibit_sidecars(self) -> list[str]:
        """The record beside each exhibit: what it was drawn from."""
        return [str(self.figures / self.scale / paper / f"{key}.json") for paper, key in self.exhibits]

    def records(self) -> list[str]:
        """Every receipt and evaluation of the scale: what the claims are judged by."""
        return [*map(self.receipt, self.plan.segments), *map(self.evaluation, self.evaluations)]

    def ledger_files(self) -> list[str]:
        """The claims with their verdicts."""
        return [str(self.figures / self.scale / name) for name in ("claims.json", "claims.md")]

    def analysis(self) -> list[str]:
        """Sentences on claims that failed, where somebody wrote them."""
        path = self.results / self.scale / "analysis.yaml"
        return [str(path)] if path.exists() else []

    def report_files(self) -> list[str]:
        """The page that shows all, and the record of its hash."""
        return [str(self.figures / self.scale / name) for name in ("index.html", "index.json")]

    def all_files(self) -> list[str]:
        """The files of every exhibit, the claims and the report."""
        exhibits = [path for paper, key in self.exhibits for path in self.exhibit_files(paper, key)]
        return [*exhibits, *self.ledger_files(), *self.report_files()]


def outstanding(
    plan: Plan, results: Path, store: Store, evaluations: list[str]
) -> tuple[list[str], list[str]]:
    """(segments to train, models to evaluate): those without a current receipt, and what they need from the store.

    A segment with a current receipt is trained again only where its weights are gone and something still to be made
    starts from them; so committed receipts redraw every exhibit without training.
    """
    scale = plan.scale.name
    to_evaluate = [
        model_id
        for model_id in evaluations
        if not is_current(evaluation_path(results, scale, model_id), evaluation_identity(plan, model_id)[0])
    ]
    to_train: set[str] = set()

    def need(segment: Segment) -> None:
        if segment.id not in to_train:
            to_train.add(segment.id)
            if segment.parent:
                need_weights(
                    plan.segments[segment.parent], segment.parent_iteration, "optimizer" in segment.keep
                )

    def need_weights(segment: Segment, iteration: int, optimizer: bool = False) -> None:
        if not store.has(segment, iteration, optimizer):
            need(segment)

    for segment in plan.segments.values():
        if not is_current(receipt_path(results, scale, segment.id), segment.identity):
            need(segment)
    for model_id in to_evaluate:
        for segment, iteration in evaluation_identity(plan, model_id)[1]:
            need_weights(segment, iteration)
    return [s for s in plan.segments if s in to_train], to_evaluate
