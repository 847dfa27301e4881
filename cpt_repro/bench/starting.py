"""What commands cost before they do anything: each in fresh processes, beside an empty Python."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from cpt_repro.bench.rows import in_turns, least_to_most, measured_here
from cpt_repro.errors import UserError
from cpt_repro.workflow.warm import imports_of

#: Commands that are timed as far as their imports; the others ask, and are timed whole.
JOBS = ("corpus", "suites", "train", "measure", "evaluate", "draw", "claims", "report")


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """(seconds by the clock, seconds of CPU) of a process and its children; a failure is a `UserError`."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603  our own commands
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if told.returncode:
        what = f"it ended with status {told.returncode}: {told.stderr.strip()[-300:]}"
        raise UserError(what, where=" ".join(command), do="Run it by itself.")
    return wall, sum(getattr(after, of) - getattr(before, of) for of in ("ru_utime", "ru_stime"))


def bench_imports(root: Path, scale: str, rounds: int) -> dict[str, Any]:
    """A row: seconds of the start of each command, in a project.

    `pass` is an empty Python; `status` and `plan` are whole, the other commands what they import. Numbers are
    least, median and most over the rounds.
    """
    commands = {"pass": ["-c", "pass"]}
    commands |= {name: ["-m", "cpt_repro.cli", name, "--scale", scale] for name in ("status", "plan")}
    for name in JOBS:
        modules = ", ".join(("cpt_repro.cli", "cpt_repro.workflow.jobs", *imports_of(name)))
        commands[name] = ["-c", f"import {modules}"]
    arms = {name: partial(timed, [sys.executable, *command], root) for name, command in commands.items()}
    measured = in_turns(arms, rounds)
    seconds = {name: least_to_most([wall for wall, _ in of], 3) for name, of in measured.items()}
    cpu = {name: least_to_most([cpu for _, cpu in of], 3) for name, of in measured.items()}
    nothing = statistics.median(cpu for _, cpu in measured["pass"])
    ratio = {name: round(statistics.median(c for _, c in of) / nothing, 1) for name, of in measured.items()}
    about = {"seconds": seconds, "cpu_seconds": cpu, "ratio_to_pass": ratio, "load": os.getloadavg()[0]}
    return measured_here("imports", scale, rounds) | about
