"""Seconds from records to exhibits, claims and report, and of their verification."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt_repro.bench.rows import in_turns, least_to_most, measured_here
from cpt_repro.bench.starting import Spent, timed
from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.processes import cores
from cpt_repro.records.lookup import Records
from cpt_repro.report.making import Made, make_all

_WHOLE = "import sys; from cpt_repro.bench.drawing import make_here; make_here(*sys.argv[1:])"


def make_here(scale: str, folder: str) -> None:
    """Makes all of a scale below `folder`: a process of its own, whose start counts."""
    from cpt_repro.project import Project
    from cpt_repro.workflow.jobs import Workflow

    work = Workflow(Project.at(), scale)
    list(make_all(work.catalogue, work.records, Path(folder)))


def bench_exhibits(
    catalogue: Catalogue, records: Records, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """A row: all exhibits, claims and report of a scale from its records, in fresh processes; and `verify`.

    `say` gets a table by exhibit, of one process that makes them one after the other. Raises `UserError`
    where something cannot be made, or where `verify` finds a difference.
    """
    plan = catalogue.plan
    with tempfile.TemporaryDirectory() as folder:
        one_by_one = list(make_all(catalogue, records, Path(folder) / "each", processes=1))
        for made in one_by_one:
            if made.failed:
                raise UserError(str(made.failed), where=made.what, do="Draw it by itself.")
        for line in _table(one_by_one):
            say(line)

        def run(*command: str) -> Spent:
            return timed([sys.executable, *command], plan.project.root)

        verify = ("-m", "cpt_repro.cli", "verify", "--scale", plan.scale.name)
        all_of_it = ("-c", _WHOLE, plan.scale.name, str(Path(folder) / "all"))
        arms = {"exhibits": lambda: run(*all_of_it), "verify": lambda: run(*verify)}
        measured = in_turns(arms, rounds)
    row = measured_here("exhibits", plan.scale.name, rounds)
    row |= {"exhibits": len(catalogue.exhibits), "processes": cores(), "load": os.getloadavg()[0]}
    for arm, of in measured.items():
        row[f"{arm}_seconds"] = least_to_most([one.seconds for one in of], 2)
        row[f"{arm}_cpu_seconds"] = least_to_most([one.cpu_seconds for one in of], 2)
    return row | {"each_cpu_seconds": {made.what: round(made.cpu_seconds, 3) for made in one_by_one}}


def _table(made: list[Made]) -> list[str]:
    lines = ["| made | seconds | CPU seconds |", "| --- | --- | --- |"]
    slowest = sorted(made, key=lambda one: -one.cpu_seconds)
    lines += [f"| {one.what} | {one.seconds:.2f} | {one.cpu_seconds:.2f} |" for one in slowest]
    together = [sum(getattr(one, of) for one in made) for of in ("seconds", "cpu_seconds")]
    return [*lines, "| all | {:.2f} | {:.2f} |".format(*together)]
