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

from cpt_repro.errors import StorageError, UserError
from cpt_repro.files import file_digest, read_json, write_json, writing
from cpt_repro.models.sizes import GB, MOMENTS, WEIGHTS, parameters
from cpt_repro.planning.plan import Plan, Segment
from cpt_repro.project import ROOT
from cpt_repro.records.receipts import Receipt, is_current, read_receipt

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
        self,
        iteration: int,
        write: bool = True,
        sharded: bool = False,
        execution: dict[str, Any] | None = None,
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


def state_bytes(segment: Segment) -> int:
    """Bytes of the states against interruption at their most: those that are kept, and the one being written."""
    return (SavedStates.KEPT + 1) * (WEIGHTS + MOMENTS) * parameters(segment.model, segment.vocabulary)


def kept_bytes(segment: Segment, kept: dict[int, bool]) -> int:
    """Bytes of a segment's checkpoints; `kept` as in `Plan.checkpoints`: True keeps the optimizer's state too."""
    count = parameters(segment.model, segment.vocabulary)
    return sum((WEIGHTS + (MOMENTS if optimizer else 0)) * count for optimizer in kept.values())


def check_room(plan: Plan, segments: list[Segment], store: Store) -> None:
    """Refuses to begin where the store's disk is too small for what `segments` will keep; looks at sizes only.

    Needed are a segment's checkpoints and its states against interruption, less what lies there already. Other
    processes that write to the same disk meanwhile are not known here.
    """
    needed = 0
    for segment in segments:
        whole = kept_bytes(segment, plan.checkpoints[segment.id])
        whole += state_bytes(segment) if plan.scale.save_every else 0
        there = sum(path.stat().st_size for path in store.folder(segment).rglob("*") if path.is_file())
        needed += max(whole - there, 0)
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"{needed / GB:.3g} GB are needed for checkpoints, and {free / GB:.3g} GB are free."
        do = "Make room, or let $CPT_REPRO_STORE name a folder on a larger disk; then run the same command again."
        raise StorageError(what, where=str(store.root), do=do)
