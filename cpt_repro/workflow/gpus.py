"""GPUs of one machine, leased to processes by locks that the kernel frees when their holder dies.

The workflow engine counts GPUs and assigns none. Here each GPU has an empty file in a folder of the user's.
Its range of bytes stands for the GPU: a job locks its part of it, so that small jobs share a GPU. Who takes
must have the turn of every GPU that it could use, another lock on the files: so calls from several clones
share fairly, and a job that needs several GPUs takes all of them at once and is passed by none.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

from cpt_repro.errors import UserError

#: Seconds between two looks at what is free.
POLL = 1.0
FOLDER = "CPT_REPRO_GPU_LEASES"
_DO = f"Set {FOLDER} to a folder on this machine that you alone may write to."
#: Bytes of a GPU's name: more than any has, and few enough for a file's name.
_NAME = 60
#: Bytes that stand for a GPU: any number up to 10 divides them.
_WHOLE = 2520


def _lines(command: list[str]) -> list[str] | None:
    """Lines that a command prints; None where it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)  # noqa: S603  ours
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.split("\n")[:-1] if result.returncode == 0 else None


def _installed() -> dict[str, str]:
    """Index -> UUID ("" where unknown) of the machine's GPUs, found without starting CUDA in this process.

    `$CPT_REPRO_GPUS` says how many there are instead: for tests, and machines where nothing can be asked.
    """
    if count := os.environ.get("CPT_REPRO_GPUS"):
        if not re.fullmatch("[0-9]{1,3}", count):
            what = f"{count[:100]!r} is no number of GPUs."
            raise UserError(what, where="$CPT_REPRO_GPUS", do="Correct or unset it.")
        return {str(index): "" for index in range(int(count))}
    rows = _lines(["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"])
    if rows is not None:
        # CUDA numbers the fastest GPU first unless told to number them as nvidia-smi does.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        return {index.strip(): uuid.strip() for index, _, uuid in (row.partition(",") for row in rows)}
    # Counting starts CUDA on some machines, after which CUDA_VISIBLE_DEVICES has no effect: not in here.
    lines = _lines([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"])
    return {str(index): "" for index in range(int(lines[-1]) if lines else 0)}


def visible() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, which decides where it is set."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(_installed())
    names = []
    for name in (part.strip() for part in chosen.split(",")):
        if name in ("", "-1"):  # hides all that follow
            break
        # One GPU should have one name, however it was chosen; a UUID may be cut short.
        uuids = _installed().items() if name.startswith("GPU-") else ()
        same = [index for index, uuid in uuids if uuid.startswith(name)]
        names.append(same[0] if len(same) == 1 else name)
    return list(dict.fromkeys(names))


def folders() -> tuple[Path, ...]:
    """The folder of the leases, last, and the one that holds it where that is made here too.

    `$CPT_REPRO_GPU_LEASES`, or one of the user's in /tmp. Not in $TMPDIR: two shells may differ in that, and
    would each hand out every GPU. A Slurm job, within which GPUs count from 0, has a folder of its own.
    """
    given, job = os.environ.get(FOLDER), os.environ.get("SLURM_JOB_ID")
    base = Path(given or f"/tmp/cpt-repro-gpus-{os.getuid()}")  # noqa: S108  `_own_folder` checks it
    return (base, base / f"slurm-{job}") if job else (base,)


def _own_folder(path: Path) -> None:
    """Makes the folder; raises `UserError` where others could put files into it, or it cannot be used."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True, mode=0o700)
        there = os.lstat(path)
        faults = {
            "it is a link": not stat.S_ISDIR(there.st_mode),
            "it is not yours": there.st_uid != os.getuid(),
            "others may write to it": there.st_mode & (stat.S_IWGRP | stat.S_IWOTH),
            "you may not write to it": not os.access(path, os.W_OK | os.X_OK),
        }
        fault = next((fault for fault, found in faults.items() if found), None)
    except OSError as error:
        fault = error.strerror
    if fault:
        raise UserError(f"the folder of GPU leases cannot be used ({fault}).", where=str(path), do=_DO)


def _lock(descriptor: int, start: int, length: int, kind: int = fcntl.F_WRLCK) -> bool:
    """Locks (or with F_UNLCK frees) some bytes for this opening of a file; False where another has them."""
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    with suppress(BlockingIOError, PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        return True
    return False


class Lease(ExitStack):
    """GPUs held until `close`, or until this process, and those it was handed on to, have ended.

    `gpus`: names for CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, count: int, jobs_per_gpu: int, among: list[str], say: Callable[[str], None]):
        """Waits, and says so, until `count` of `among` each have room for one of `jobs_per_gpu` jobs."""
        super().__init__()
        for folder in folders():
            _own_folder(folder)
        self._files: dict[str, int] = {}
        for gpu in among:
            path = folder / f"gpu-{quote(os.fsencode(gpu)[:_NAME], safe='')}.lock"
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._files[gpu] = os.open(path, flags, 0o600)
            except OSError as error:
                raise UserError(f"it cannot be opened ({error.strerror}).", where=str(path), do=_DO) from None
        self.gpus: list[str] = []
        if not (self._turn(fcntl.LOCK_NB) and self._take(count, jobs_per_gpu)):
            say(f"waiting for {count} of the GPUs {', '.join(among)}: others hold them or were first")
            self._turn()
            while not self._take(count, jobs_per_gpu):
                time.sleep(POLL)
        for gpu in among:
            if gpu in self.gpus:
                fcntl.flock(self._files[gpu], fcntl.LOCK_UN)
                self.callback(os.close, self._files[gpu])
            else:
                os.close(self._files.pop(gpu))

    def _turn(self, flags: int = 0) -> bool:
        """Takes the turn of every GPU, in one order for all; False if one is taken and it may not wait."""
        with suppress(BlockingIOError):
            for gpu in sorted(self._files):
                fcntl.flock(self._files[gpu], fcntl.LOCK_EX | flags)
            return True
        return False

    def _take(self, count: int, jobs_per_gpu: int) -> bool:
        """Takes a part of `count` GPUs, empty ones first, or of none."""
        empty = [gpu for gpu, file in self._files.items() if _lock(file, 0, _WHOLE)]
        for file in self._files.values():
            _lock(file, 0, _WHOLE, fcntl.F_UNLCK)
        part, taken = _WHOLE // jobs_per_gpu, set()
        for gpu in sorted(self._files, key=lambda gpu: gpu not in empty):
            places = range(jobs_per_gpu if len(taken) < count else 0)
            if any(_lock(self._files[gpu], part * place, part) for place in places):
                taken.add(gpu)
        if len(taken) < count:
            for gpu in taken:
                _lock(self._files[gpu], 0, _WHOLE, fcntl.F_UNLCK)
            return False
        self.gpus = [gpu for gpu in self._files if gpu in taken]
        return True

    def hand_on(self) -> None:
        """Keeps the lease through a following `exec`: the new program holds it without knowing."""
        for file in self._files.values():
            os.set_inheritable(file, True)


def lease(count: int, jobs_per_gpu: int, where: str, say: Callable[[str], None]) -> Lease:
    """A lease of `count` GPUs of this machine, set in CUDA_VISIBLE_DEVICES; waits until they are free.

    `jobs_per_gpu`: jobs of this kind that fit on a GPU. `where`: who asks, for errors.
    Raises `UserError` at once where the machine has fewer, and where the folder of leases cannot be used.
    """
    among = visible()
    if not among:
        do = "Look at nvidia-smi and CUDA_VISIBLE_DEVICES, or choose a scale for CPUs."
        raise UserError("the scale asks for a GPU, and there is none.", where=where, do=do)
    if count > len(among):
        do = "Lower 'ranks_per_node' there, or use a machine with more."
        raise UserError(f"{count} GPUs are asked for, and here are {len(among)}.", where=where, do=do)
    taken = Lease(count, jobs_per_gpu, among, say)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken.gpus)
    return taken
