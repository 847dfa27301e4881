"""Where trained weights lie: `store/<scale>/<segment id>/<identity>/`, outside every declared output.

The workflow deletes outputs of failed jobs, so nothing that took long to make may be one. A folder `iteration-<n>`
holds a model (and the optimizer's state where a child asked for it); `resume.pt` is the training state kept against
interruption; `receipt.json` appears last, when all is there.
"""

from __future__ import annotations

import os
from pathlib import Path

from cpt_repro.config import ROOT
from cpt_repro.files import digest
from cpt_repro.plan import Plan, Segment
from cpt_repro.receipts import Receipt, evaluation_path, is_current, read_receipt, receipt_path


def default_store() -> Path:
    """`$CPT_REPRO_STORE`, or `store/` in the repository."""
    return Path(os.environ.get("CPT_REPRO_STORE", ROOT / "store"))


class Store:
    """Checkpoints of one scale."""

    def __init__(self, scale: str, root: Path | None = None):
        self.root = (root or default_store()) / scale

    def folder(self, segment: Segment) -> Path:
        """The folder of exactly this segment: another identity is another folder."""
        return self.root / segment.id / segment.identity[:16]

    def weights(self, segment: Segment, iteration: int) -> Path:
        """The model folder kept at `iteration`."""
        return self.folder(segment) / f"iteration-{iteration}"

    def has(self, segment: Segment, iteration: int, optimizer: bool = False) -> bool:
        """Whether the model (and the optimizer's state) of `iteration` is there."""
        folder = self.weights(segment, iteration)
        return folder.is_dir() and (not optimizer or (folder / "optimizer.pt").exists())

    def resume(self, segment: Segment) -> Path:
        """The training state kept against interruption."""
        return self.folder(segment) / "resume.pt"

    def finished(self, segment: Segment, kept: dict[int, bool]) -> Receipt | None:
        """The receipt in the store, if the segment finished and every checkpoint in `kept` is there."""
        path = self.folder(segment) / "receipt.json"
        if not is_current(path, segment.identity):
            return None
        if not all(self.has(segment, iteration, optimizer) for iteration, optimizer in kept.items()):
            return None
        return read_receipt(path)


def evaluation_identity(plan: Plan, model_id: str) -> tuple[str, list[tuple[Segment, int]]]:
    """Identity of a model to be evaluated, and the (segment, iteration) weights it is made of."""
    suites = {name: suite.model_dump(mode="json") for name, suite in plan.scale.suites.items()}
    if model_id in plan.segments:
        segment = plan.segments[model_id]
        return digest(["run", segment.identity, suites]), [(segment, segment.iterations)]
    merge, seed = plan.merge_of(model_id), int(model_id.rpartition("-")[2])
    paper = model_id.partition("/")[0]
    sources = [plan.segments[plan.id_of(paper, run, seed)] for run in (merge.base, merge.task)]
    identity = digest(["merge", merge.density, [s.identity for s in sources], suites])
    return identity, [(s, s.iterations) for s in sources]


def outstanding(plan: Plan, results: Path, store: Store, evaluations: list[str]) -> tuple[list[str], list[str]]:
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
                need_weights(plan.segments[segment.parent], segment.parent_iteration, "optimizer" in segment.keep)

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
