"""Where trained weights lie: `store/<scale>/<segment id>/<identity>/`, outside every declared output.

The workflow deletes outputs of failed jobs, so nothing that took long to make may be one. A folder `iteration-<n>`
holds a model (and the optimizer's state where a child asked for it); `resume.json` names the training states kept
against interruption; `receipt.json` appears last, when all is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpt_repro.config import ROOT
from cpt_repro.errors import UserError
from cpt_repro.evaluation.benchmarks import declared_suites
from cpt_repro.files import digest, file_digest, read_json, write_json, writing
from cpt_repro.plan import Plan, Segment
from cpt_repro.receipts import Receipt, evaluation_path, is_current, read_receipt, receipt_path

#: The optimizer's state beside a model's weights.
OPTIMIZER = "optimizer.pt"


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
        return folder.is_dir() and (not optimizer or (folder / OPTIMIZER).exists())

    def recorded_hash(self, segment: Segment, iteration: int) -> str | None:
        """SHA-256 that the finished segment's receipt gives for the weights of `iteration`."""
        path = self.folder(segment) / "receipt.json"
        return read_receipt(path).checkpoints.get(iteration) if is_current(path, segment.identity) else None

    def finished(self, segment: Segment, kept: dict[int, bool]) -> Receipt | None:
        """The receipt in the store, if the segment finished and every checkpoint in `kept` is there."""
        path = self.folder(segment) / "receipt.json"
        if not is_current(path, segment.identity):
            return None
        if not all(self.has(segment, iteration, optimizer) for iteration, optimizer in kept.items()):
            return None
        return read_receipt(path)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by name; several at a time, for they are large."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        return {
            str(path.relative_to(folder)): found
            for path, found in zip(paths, pool.map(file_digest, paths), strict=True)
        }


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class SavedStates:
    """Training states kept against interruption: `resume-<iteration>.pt`, and `resume.json`, which vouches for them.

    A state counts once the JSON, written after it, names it with its hash; of the two newest the first whole one is
    used. They are this program's own files, of one run and one machine, and hold more than weights. A sharded state is
    a folder `resume-<iteration>` of files, hashed one by one.
    """

    KEPT = 2

    def __init__(self, folder: Path, data: dict[str, str]):
        self.folder, self.data = folder, data
        self.record = folder / "resume.json"

    def _named(self) -> list[dict[str, Any]]:
        return read_json(self.record) if self.record.exists() else []

    def newest(self) -> tuple[int, Path | None]:
        """(iteration, file or folder) of the newest whole state, (0, None) without one.

        One of other data than now is a `UserError`.
        """
        for state in self._named():
            path = self.folder / state["file"]
            sharded = isinstance(state["sha256"], dict)
            if not (path.is_dir() if sharded else path.is_file()):
                continue
            if (_digests(path) if sharded else file_digest(path)) != state["sha256"]:
                continue
            for corpus, fingerprint in self.data.items():
                if state["data"].get(corpus) != fingerprint:
                    then = state["data"].get(corpus)
                    raise UserError(
                        f"it was trained on '{corpus}' with fingerprint {then}, which is now {fingerprint}.",
                        where=str(path),
                        do="Restore the corpus, or remove this folder to train anew.",
                    )
            return state["iteration"], path
        return 0, None

    def execution(self, iteration: int) -> dict[str, Any]:
        """How the run that wrote the state of `iteration` was spread over hardware, as far as it said so."""
        return next((s.get("execution", {}) for s in self._named() if s["iteration"] == iteration), {})

    @contextmanager
    def adding(
        self, iteration: int, write: bool = True, sharded: bool = False, execution: dict[str, Any] | None = None
    ) -> Iterator[Path]:
        """Yields the path to write the state of `iteration` to; it is then hashed, named, and the oldest removed.

        `write` False (other ranks than the first) only yields the path. `sharded`: the path is that of a folder, which
        all ranks fill before the first one goes on. `execution`: kept with the state.
        """
        path = self.folder / (f"resume-{iteration}" if sharded else f"resume-{iteration}.pt")
        aside = path.with_name(f".{path.stem}.aside{path.suffix}")
        if not write:
            yield aside
            return
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove(aside)  # of a killed writer
            try:
                yield aside
                found = _digests(aside) if sharded else file_digest(aside)
                new = {"iteration": iteration, "file": path.name, "sha256": found, "data": self.data}
                if execution:
                    new["execution"] = execution
                if sharded:  # whose files torch has synced
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with open(aside, "rb") as stream:
                        os.fsync(stream.fileno())
                os.replace(aside, path)
            finally:
                _remove(aside)
        named = [new, *(state for state in self._named() if state["iteration"] < iteration)][: self.KEPT]
        write_json(self.record, named)
        self._remove_but({state["file"] for state in named})

    def clear(self) -> None:
        """Removes all states, and what killed writers left: the segment is finished."""
        self.record.unlink(missing_ok=True)
        self._remove_but(set())
        for left in self.folder.glob(".*.aside.*"):
            left.unlink()

    def _remove_but(self, kept: set[str]) -> None:
        for path in [*self.folder.glob("resume-*"), *self.folder.glob(".resume-*.aside*")]:
            if path.name not in kept:
                _remove(path)


def evaluation_identity(plan: Plan, model_id: str) -> tuple[str, list[tuple[Segment, int]]]:
    """Identity of a model to be evaluated, and the (segment, iteration) weights it is made of."""
    suites = declared_suites(plan.scale)
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
