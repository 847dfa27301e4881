"""What commands cost before they do anything: each in fresh processes, beside an empty Python."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cpt_repro.bench.rows import in_turns, least_to_most, measured_here
from cpt_repro.errors import UserError
from cpt_repro.workflow.warm import imports_of

#: Commands that are timed as far as their imports; the others ask, and are timed whole.
JOBS = ("corpus", "suites", "train", "measure", "evaluate", "draw", "claims", "report")


class Spent(NamedTuple):
    """What a process took, its children included."""

    seconds: float
    cpu_seconds: float
    #: resident memory of the largest process at its most
    gib: float


def timed(command: list[str], folder: Path) -> Spent:
    """Runs a command; its failure is a `UserError`."""
    with tempfile.TemporaryFile() as told:
        began = time.perf_counter()
        with subprocess.Popen(  # noqa: S603  our own commands
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=told
        ) as process:
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            told.seek(0)
            words = told.read().decode(errors="replace").strip()[-300:]
            what = f"it ended with status {process.returncode}: {words}"
            raise UserError(what, where=" ".join(command), do="Run it by itself.")
    kibibyte = 1 if sys.platform == "darwin" else 1024  # in which memory is counted
    return Spent(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * kibibyte / 2**30)


def bench_imports(root: Path, scale: str, rounds: int) -> dict[str, Any]:
    """A row: seconds of the start of each command, in a project.

    `pass` is an empty Python; `status` and `plan` are whole, the other commands what they import. Numbers are
    least, median and most over the rounds.
    """
    commands = {"pass": ["-c", "pass"]}
    commands |= {name: ["-m", "cpt_repro.cli", name, "--scale", scale] for name in ("status", "plan")}
    for name in JOBS:
        commands[name] = ["-c", f"import {', '.join(imports_of(name))}"]
    arms = {name: partial(timed, [sys.executable, *command], root) for name, command in commands.items()}
    measured = in_turns(arms, rounds)
    seconds = {name: least_to_most([one.seconds for one in of], 3) for name, of in measured.items()}
    cpu = {name: least_to_most([one.cpu_seconds for one in of], 3) for name, of in measured.items()}
    nothing = statistics.median(one.cpu_seconds for one in measured["pass"])
    ratio = {
        name: round(statistics.median(one.cpu_seconds for one in of) / nothing, 1)
        for name, of in measured.items()
    }
    about = {"seconds": seconds, "cpu_seconds": cpu, "ratio_to_pass": ratio, "load": os.getloadavg()[0]}
    return measured_here("imports", scale, rounds) | about
