"""GPUs of one machine, leased to processes through lock files that the kernel frees when their holder dies.

The workflow engine counts GPUs and assigns none. Here every process that needs GPUs puts a file into one folder of the
user's, locks it for as long as it lives, and writes into it what it waits for or holds. So calls from several clones
share fairly too: whoever came first takes first, all GPUs of a job at once, and small jobs share a GPU.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from cpt_repro.errors import UserError
from cpt_repro.files import locked, writing

#: Seconds between two looks at what is free.
POLL = 1.0


def _asked(command: list[str]) -> list[str] | None:
    """Lines that a command prints; None where it is missing or fails."""
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.split("\n")[:-1] if told.returncode == 0 else None


def _installed() -> dict[str, str]:
    """Index -> UUID ("" where unknown) of the machine's GPUs, found without starting CUDA in this process.

    `$CPT_REPRO_GPUS` (a number) says how many there are instead: for tests, and machines where nothing can be asked.
    """
    if told := os.environ.get("CPT_REPRO_GPUS"):
        if not told.isdecimal():
            raise UserError(
                f"'{told}' is no number of GPUs.", where="$CPT_REPRO_GPUS", do="Correct or unset it."
            )
        return {str(index): "" for index in range(int(told))}
    rows = _asked(["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"])
    if rows is not None:
        # CUDA numbers the fastest GPU first unless told to number them as nvidia-smi does.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        return {index.strip(): uuid.strip() for index, _, uuid in (row.partition(",") for row in rows)}
    # Counting starts CUDA on some machines, after which CUDA_VISIBLE_DEVICES has no effect any more: not in here.
    count = _asked([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"])
    return {str(index): "" for index in range(int(count[-1]) if count else 0)}


def visible() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; those of that variable where it is set."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(_installed())
    names = []
    for name in (part.strip() for part in chosen.split(",")):
        if name in ("", "-1"):  # hides all that follow
            break
        # One GPU should have one name, however it was chosen; a UUID may be cut short.
        same = (
            [i for i, uuid in _installed().items() if uuid.startswith(name)]
            if name.startswith("GPU-")
            else []
        )
        names.append(same[0] if len(same) == 1 else name)
    return list(dict.fromkeys(names))


def folder() -> Path:
    """Folder of the leases: `$CPT_REPRO_GPU_LEASES`, or one of the user's in /tmp.

    Not in $TMPDIR: two shells may differ in that, and would each hand out every GPU. A Slurm job has a folder of its
    own, as within each the numbers of GPUs begin at 0.
    """
    told, job = os.environ.get("CPT_REPRO_GPU_LEASES"), os.environ.get("SLURM_JOB_ID")
    base = Path(told) if told else Path("/tmp") / f"cpt-repro-gpus-{os.getuid()}"
    return base / f"slurm-{job}" if job else base


def _opened(path: Path) -> None:
    """Makes the folder, only for this user; raises `UserError` where it cannot be used."""
    do = "Set CPT_REPRO_GPU_LEASES to a folder on this machine that you may write to."
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        usable = path.stat().st_uid == os.getuid() and os.access(path, os.W_OK | os.X_OK)
        fault = "it is not yours to write to"
    except OSError as error:
        usable, fault = False, error.strerror
    if not usable:
        raise UserError(f"the folder of GPU leases cannot be used ({fault}).", where=str(path), do=do)


class Lease:
    """GPUs held until `close`, or until this process, and those it was handed on to, have ended.

    `gpus`: names for CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, count: int, jobs_per_gpu: int, among: list[str], say: Callable[[str], None]):
        """Waits, and says so, until `count` of `among` have room for one of `jobs_per_gpu` jobs; takes them at once."""
        self.root = folder()
        _opened(self.root)
        self.own = {"gpus": [], "among": among, "jobs_per_gpu": jobs_per_gpu, "pid": os.getpid()}
        with self._alone():
            # Named by the time, so that names sort by who came first.
            self.path = self.root / f"{time.time_ns():020d}-{os.getpid()}.job"
            with writing(self.path):
                self._stream = open(self.path, "w")  # noqa: SIM115 - held open
            fcntl.flock(self._stream, fcntl.LOCK_EX)
            self._write()
        self.gpus = self._taken(count)
        while not self.gpus:
            if say:
                say(f"waiting for {count} of the GPUs {', '.join(among)}: others hold them or were first")
                say = None
            time.sleep(POLL)
            self.gpus = self._taken(count)

    def _alone(self):
        return locked(self.root / "lock")

    def _write(self) -> None:
        self._stream.seek(0)
        json.dump(self.own, self._stream)
        self._stream.truncate()
        self._stream.flush()

    def _others(self) -> dict[str, dict[str, Any]]:
        """File name -> what each other living process holds or waits for; files of the dead are removed."""
        out = {}
        for path in sorted(self.root.glob("*.job")):
            if path == self.path:
                continue
            with open(path, "r+") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    out[path.name] = json.load(stream)
                    continue
                path.unlink()
        return out

    def _taken(self, count: int) -> list[str]:
        """Takes `count` GPUs, or none where too few are free or somebody who wants one of them came first."""
        with self._alone():
            others, among = self._others(), self.own["among"]
            for name, other in others.items():
                if not other["gpus"] and name < self.path.name and set(other["among"]) & set(among):
                    return []
            used = {
                gpu: sum(
                    Fraction(1, other["jobs_per_gpu"]) for other in others.values() if gpu in other["gpus"]
                )
                for gpu in among
            }
            share = Fraction(1, self.own["jobs_per_gpu"])
            free = sorted(
                (gpu for gpu in among if used[gpu] + share <= 1), key=used.get
            )  # the emptiest first
            if len(free) >= count:
                self.own["gpus"] = sorted(free[:count], key=among.index)
                self._write()
            return self.own["gpus"]

    def hand_on(self) -> None:
        """Keeps the lease through a following `exec`: the new program holds it without knowing."""
        os.set_inheritable(self._stream.fileno(), True)

    def close(self) -> None:
        """Gives the GPUs back."""
        self._stream.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
