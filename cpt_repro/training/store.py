"""Where trained weights lie: `store/<scale>/<identity>/`, outside every declared output, for the workflow
deletes outputs of failed jobs.

A folder `iteration-<n>` holds a model (and the optimizer's state where a child asked for it); `resume.json`
names the training states kept against interruption; `receipt.json` appears last, when all is there;
`name.txt` says what the training is called.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, RootModel

from cpt_repro.declarations.strict import Strict, parse
from cpt_repro.errors import StorageError, UserError
from cpt_repro.files import canonical_json, file_digest, locked, read_json, whole_file, write_text, writing
from cpt_repro.models.architecture import GB, MOMENTS, WEIGHTS
from cpt_repro.models.weights import OPTIMIZER
from cpt_repro.planning.plan import Plan, PlannedRun
from cpt_repro.planning.training import Training
from cpt_repro.project import STORE, Project
from cpt_repro.records.receipts import Receipt, identity_in, read_record, write_record


class Store:
    """Checkpoints of one scale; trainings are named by their identity alone."""

    def __init__(self, project: Project, scale: str):
        self.root = project.store / scale

    def folder(self, identity: str) -> Path:
        """The folder of a training."""
        return self.root / identity[:16]

    def weights(self, identity: str, iteration: int) -> Path:
        """The model folder kept at `iteration`."""
        return self.folder(identity) / f"iteration-{iteration}"

    def has(self, identity: str, iteration: int, optimizer: bool = False) -> bool:
        """Whether the model (and the optimizer's state) of `iteration` is there."""
        folder = self.weights(identity, iteration)
        return folder.is_dir() and (not optimizer or (folder / OPTIMIZER).exists())

    def iterations(self, identity: str) -> list[int]:
        """Iterations whose model is there."""
        names = [path.name for path in self.folder(identity).glob("iteration-*")]
        return sorted(int(name[10:]) for name in names if re.fullmatch(r"iteration-\d+", name))

    def receipt(self, identity: str) -> Receipt | None:
        """What the training left when it finished, whichever of its checkpoints are still there."""
        path = self.folder(identity) / "receipt.json"
        return read_record(Receipt, path) if identity_in(path) == identity else None

    def recorded_hash(self, identity: str, iteration: int) -> str | None:
        """SHA-256 that the finished training's receipt gives for the weights of `iteration`."""
        receipt = self.receipt(identity)
        return receipt.checkpoints.get(iteration) if receipt else None

    def finished(self, identity: str, kept: dict[int, bool]) -> Receipt | None:
        """The receipt in the store, if the training finished and every checkpoint in `kept` is there."""
        there = all(self.has(identity, iteration, optimizer) for iteration, optimizer in kept.items())
        return self.receipt(identity) if there else None

    def finish(self, receipt: Receipt) -> None:
        """Writes the receipt of a training of which all is there."""
        write_record(self.folder(receipt.identity) / "receipt.json", receipt)

    def name(self, identity: str, names: Iterable[str]) -> None:
        """Says in a file, for people, what a training is called."""
        path, text = self.folder(identity) / "name.txt", "".join(f"{name}\n" for name in names)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def hold(self, identity: str, busy: Callable[[], None]) -> AbstractContextManager[None]:
        """Holds the training for this process; calls `busy` where another one does, and waits."""
        return locked(self.folder(identity).with_suffix(".lock"), busy)


def _digests(path: Path) -> str | dict[str, str]:
    """SHA-256 of a file, or of every file below a folder by name; several at a time, for they are large."""
    if not path.is_dir():
        return file_digest(path)
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    with ThreadPoolExecutor() as pool:
        return dict(zip(files, pool.map(file_digest, files.values()), strict=True))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


#: Rights to write of all but the owner.
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def _close(path: Path) -> None:
    """Lets nobody but this user write to a file or folder of this user."""
    told = path.lstat()
    if told.st_mode & _OTHERS and told.st_uid == os.geteuid() and not stat.S_ISLNK(told.st_mode):
        path.chmod(stat.S_IMODE(told.st_mode) & ~_OTHERS)


def _refuse_others(path: Path, below: bool = True) -> None:
    """Refuses (`UserError`) links, what is another user's and what others may write to, at `path` and below.

    Whoever goes on from a state takes its weights for this training's own.
    """
    for entry in (path, *(path.rglob("*") if below else ())):
        told, do = entry.lstat(), f"Remove it, or let ${STORE} name a folder of your own."
        if not (stat.S_ISREG(told.st_mode) or stat.S_ISDIR(told.st_mode)):
            fault = "it is a link, or no plain file or folder."
        elif told.st_uid != os.geteuid():
            fault = f"it belongs to another user ({told.st_uid}), whose training only that user goes on with."
        elif told.st_mode & _OTHERS:
            fault = "others may write to it, and a training goes on from what its own user alone wrote."
            do = f"If you trust all who could, `chmod -R go-w '{entry}'`; else remove it."
        else:
            continue
        raise UserError(fault, where=str(entry), do=do)


class SavedState(Strict):
    """One entry of `resume.json`."""

    iteration: int = Field(ge=0)
    #: A plain name: no record leads to another file.
    file: str = Field(pattern=r"^resume-[0-9]+(\.pt)?$")
    #: Of the file, or of each file in the folder.
    sha256: str | dict[str, str]
    #: What it stands on: corpora with their fingerprints, the weights it started from.
    data: dict[str, str]
    #: How the run that wrote it was spread over hardware.
    execution: dict[str, Any] = {}


_Record = RootModel[tuple[SavedState, ...]]


class SavedStates:
    """Training states kept against interruption: `resume-<iteration>.pt`; `resume.json` vouches for them.

    A state counts once the JSON, written after it, names it with its hash; of the two newest the first
    whole one is used. A sharded state is a folder `resume-<iteration>` of files, hashed one by one. States,
    record and the folder they lie in are this user's own and writable by nobody else, whatever the umask.
    """

    KEPT = 2

    def __init__(self, folder: Path, data: dict[str, str]):
        self.folder, self.data = folder, data
        self.record = folder / "resume.json"

    def _named(self) -> tuple[SavedState, ...]:
        if not self.record.exists():
            return ()
        _refuse_others(self.folder, below=False)
        _refuse_others(self.record)
        return parse(_Record, read_json(self.record), str(self.record)).root

    def newest(self, sharded: bool = False) -> SavedState | None:
        """The newest whole state; of other data than now, or saved otherwise, it is a `UserError`."""
        for state in self._named():
            path = self.folder / state.file
            if path.exists():
                _refuse_others(path)
                if _digests(path) == state.sha256:
                    break
        else:
            return None
        fault, do = None, "Set that back, or remove this folder to train anew."
        for name, now in self.data.items():
            if (before := state.data.get(name)) != now:
                fault = f"it began with '{name}' being {before}, which is now {now}."
        if path.is_dir() != sharded:
            was, now = ("sharded", "is not") if path.is_dir() else ("not sharded", "is")
            fault = f"the state to go on from is {was}, and this run {now} ('fsdp' of its 'execution')."
        if fault:
            raise UserError(fault, where=str(path), do=do)
        return state

    @contextmanager
    def adding(
        self, iteration: int, sharded: bool = False, execution: dict[str, Any] | None = None
    ) -> Iterator[Path]:
        """Yields the path to write a state to; it is then hashed, named, and the oldest removed.

        `sharded`: the path is that of a folder, which all ranks fill; the first one alone comes here.
        `execution`: kept with the state.
        """
        path = self.folder / (f"resume-{iteration}" if sharded else f"resume-{iteration}.pt")
        # A name that nobody foresees, so that nobody's link stands there.
        aside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.aside{path.suffix}")
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            _close(self.folder)
            _refuse_others(self.folder, below=False)
            for left in self.folder.glob(".resume-*.aside*"):  # of killed writers
                _remove(left)
            try:
                aside.mkdir(0o700) if sharded else aside.touch(0o600, exist_ok=False)
                yield aside
                for entry in (aside, *aside.rglob("*")):
                    _close(entry)
                _refuse_others(aside)
                named = {"iteration": iteration, "file": path.name, "execution": execution or {}}
                state = SavedState(**named, sha256=_digests(aside), data=self.data)
                if sharded:  # whose files torch has synced
                    _remove(path)
                else:
                    with open(aside, "rb") as stream:
                        os.fsync(stream.fileno())
                os.replace(aside, path)
            finally:
                _remove(aside)
        states = [state, *(older for older in self._named() if older.iteration < iteration)][: self.KEPT]
        with whole_file(self.record) as record:
            _close(record)
            told = canonical_json([state.model_dump(mode="json") for state in states])
            record.write_text(told, encoding="utf-8")
        self._remove_but({state.file for state in states})

    def clear(self) -> None:
        """Removes all states, and what killed writers left: the training is finished."""
        self.record.unlink(missing_ok=True)
        self._remove_but(set())
        for left in self.folder.glob(".*.aside.*"):
            left.unlink()

    def _remove_but(self, kept: set[str]) -> None:
        for path in [*self.folder.glob("resume-*"), *self.folder.glob(".resume-*.aside*")]:
            if path.name not in kept:
                _remove(path)


def state_bytes(training: Training) -> int:
    """Bytes of the states against interruption at their most: those kept and the one being written."""
    return (SavedStates.KEPT + 1) * (WEIGHTS + MOMENTS) * training.parameters


def kept_bytes(training: Training, kept: dict[int, bool]) -> int:
    """Bytes of a training's checkpoints; `kept` as in `Plan.kept`: True keeps the optimizer's state too."""
    return (len(kept) * WEIGHTS + sum(kept.values()) * MOMENTS) * training.parameters


def check_room(plan: Plan, runs: list[PlannedRun], store: Store) -> None:
    """Refuses to begin where the store's disk is too small for what `runs` will keep beyond what lies there.

    Other processes that write to the same disk meanwhile are not known here.
    """
    needed = 0
    for identity, training in {run.identity: run.training for run in runs}.items():
        states = state_bytes(training) if plan.scale.save_every else 0
        whole = kept_bytes(training, plan.kept(identity)) + states
        there = sum(path.stat().st_size for path in store.folder(identity).rglob("*") if path.is_file())
        needed += max(whole - there, 0)
    folder = next(folder for folder in (store.root, *store.root.absolute().parents) if folder.exists())
    if (free := shutil.disk_usage(folder).free) < needed:
        what = f"{needed / GB:.3g} GB are needed for checkpoints, and {free / GB:.3g} GB are free."
        do = f"Make room, or let ${STORE} name a folder on a larger disk; then run the same command again."
        raise StorageError(what, where=str(store.root), do=do)
