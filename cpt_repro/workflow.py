"""The jobs of a scale as paths and commands: all that the Snakefile needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cpt_repro.config import load_scale
from cpt_repro.exhibits.declarations import find_exhibit, load_exhibits, needs
from cpt_repro.plan import Plan
from cpt_repro.receipts import evaluation_path, receipt_path
from cpt_repro.training.store import Store, evaluation_identity, outstanding

FIGURE_FILES = ("png", "svg", "json")
TABLE_FILES = ("csv", "md", "tex", "json")
#: Models that one evaluation process takes: its imports cost ten times what a small model does.
MODELS_PER_PROCESS = 20


@dataclass(frozen=True)
class Job:
    """One process: what it reads and writes, as paths relative to the repository."""

    name: str
    inputs: list[str]
    outputs: list[str]


class Workflow:
    """Jobs still to be run at a scale, and the files of every exhibit.

    `results`, `figures`, `data` are folders relative to the working directory.
    """

    def __init__(self, scale: str, results: str = "results", figures: str = "figures", data: str = "data"):
        self.plan = Plan(load_scale(scale))
        self.scale, self.results, self.figures = scale, Path(results), Path(figures)
        self.data = Path(data) / scale
        self.store = Store(scale)
        self.exhibits = {(paper, key): e for paper in self.plan.papers for key, e in load_exhibits(paper).items()}

    @cached_property
    def needs(self) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
        """(paper, exhibit) -> (segments, models to be evaluated)."""
        return {(paper, key): needs(self.plan, paper, exhibit) for (paper, key), exhibit in self.exhibits.items()}

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

    def receipt(self, segment_id: str) -> str:
        """Path of a segment's receipt."""
        return str(receipt_path(self.results, self.scale, segment_id))

    def evaluation(self, model_id: str) -> str:
        """Path of a model's benchmark results."""
        return str(evaluation_path(self.results, self.scale, model_id))

    def fingerprint(self, corpus: str) -> str:
        """Path of a corpus' fingerprint, its last file to be written."""
        return str(self.data / corpus / "fingerprint.json")

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
            inputs = [self.fingerprint(corpus) for corpus in corpora] + [self.receipt(parent) for parent in parents]
            jobs.append(Job(name, inputs, [self.receipt(segment.id) for segment in todo]))
        return jobs

    def evaluating(self) -> list[Job]:
        """One job per group of models without a current evaluation; groups follow the plan's order."""
        to_train, to_evaluate = (set(part) for part in self.outstanding)
        jobs = []
        for start in range(0, len(self.evaluations), MODELS_PER_PROCESS):
            todo = [m for m in self.evaluations[start : start + MODELS_PER_PROCESS] if m in to_evaluate]
            if todo:
                sources = {s.id for model in todo for s, _ in evaluation_identity(self.plan, model)[1]}
                inputs = [self.receipt(source) for source in sorted(sources & to_train)]
                suites = str(self.data / "suites" / "fingerprint.json")
                job = Job(f"{start // MODELS_PER_PROCESS:03d}", [suites, *inputs], [self.evaluation(m) for m in todo])
                jobs.append(job)
        return jobs

    def group(self, name: str) -> list[str]:
        """The models of the evaluation job `name`."""
        start = int(name) * MODELS_PER_PROCESS
        return self.evaluations[start : start + MODELS_PER_PROCESS]

    def exhibit_inputs(self, paper: str, key: str) -> list[str]:
        """Receipts and evaluations that an exhibit is drawn from."""
        find_exhibit(paper, key)
        segments, models = self.needs[paper, key]
        return [self.receipt(segment) for segment in segments] + [self.evaluation(model) for model in models]

    def exhibit_files(self, paper: str, key: str) -> list[str]:
        """The files of one exhibit."""
        suffixes = FIGURE_FILES if key.startswith("figure") else TABLE_FILES
        return [str(self.figures / self.scale / paper / f"{key}.{suffix}") for suffix in suffixes]

    def all_files(self) -> list[str]:
        """The files of every exhibit."""
        return [path for paper, key in self.exhibits for path in self.exhibit_files(paper, key)]
