"""Seconds of a scale's main job in a folder of its own: whole, called again, with one figure removed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt_repro.bench.rows import least_to_most, measured_here
from cpt_repro.bench.starting import timed
from cpt_repro.processes import cores
from cpt_repro.project import Project

#: What a checkout needs for a job beside the installed package.
PARTS = ("Snakefile", "CITATION.cff", "configs", "data_manifests", "profiles")


def busy() -> float:
    """Seconds that the processors worked since the start of the machine, for whomever (Linux; else 0).

    The warm process outlives the call that started it, so that its work is in no count of children.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def put_project(project: Project, folder: Path) -> None:
    """Copies what a checkout needs for a job, and no results, to `folder`."""
    for part in PARTS:
        copy = shutil.copytree if (project.root / part).is_dir() else shutil.copy
        copy(project.root / part, folder / part)


def bench_job(
    project: Project, scale: str, figure: str, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """A row: the main job of a scale from nothing, what a second call costs, and one `figure` drawn again.

    Least, median and most over the rounds; core-seconds are those of the whole machine. A job that fails is
    a `UserError`.
    """
    seconds: dict[str, list[float]] = {"whole": [], "again": [], "one_figure": []}
    worked: list[float] = []
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "figures/", "--config", f"scale={scale}"]
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            put_project(project, folder)
            before, began = busy(), time.perf_counter()
            timed(command, folder)
            seconds["whole"].append(time.perf_counter() - began)
            worked.append(busy() - before)
            seconds["again"].append(timed(command, folder).seconds)
            (folder / "figures" / scale / f"{figure}.png").unlink()
            seconds["one_figure"].append(timed(command, folder).seconds)
        say(f"[{number + 1}/{rounds}] {seconds['whole'][-1]:.0f} s, {worked[-1] / 60:.1f} core-minutes")
    row = measured_here("job", scale, rounds) | {"processes": cores(), "load": os.getloadavg()[0]}
    row |= {f"{name}_seconds": least_to_most(of, 1) for name, of in seconds.items()}
    return row | {"whole_core_seconds": least_to_most(worked, 1)}
