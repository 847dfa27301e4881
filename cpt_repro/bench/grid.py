"""Seconds and memory of planning a study of many runs, and of the workflow's graph for it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cpt_repro.bench.job import put_project
from cpt_repro.bench.rows import in_turns, least_to_most, measured_here
from cpt_repro.bench.starting import Spent, timed
from cpt_repro.declarations.runs import number
from cpt_repro.declarations.scale import Scale, load_scale
from cpt_repro.project import Project

SCALE = "smoke"
#: Shares of replay; as many rates as runs are asked for.
REPLAYED = [round(0.01 * k, 2) for k in range(100)]


def grid(scale: Scale, runs: int) -> dict[str, Any]:
    """Declarations by file of a study that goes on from one run in at least `runs` ways, all in one table."""
    model, (old, new, *_) = next(iter(scale.models)), scale.corpora
    rates = [1e-4 + 1e-6 * k for k in range(-(-runs // len(REPLAYED)))]
    trained = {"model": model, "iterations": 86000, "validate": [old, new]}
    schedule = {"kind": "constant", "eta_const": "{eta}"}
    continued = {"data": {new: 1}, "init_from": {"run": "base"}, "schedule": schedule}
    declared = {
        "base": trained | {"data": {old: 1}, "schedule": schedule | {"eta_const": 3e-4}},
        "replay-{r}/eta-{eta}": trained
        | continued
        | {"each": {"r": REPLAYED, "eta": rates}, "replay_fraction": "{r}"},
    }
    columns = [
        {"show": "name", "heading": "Run"},
        {"show": "loss", "heading": "loss", "corpus": old},
    ]
    rows = [f"replay-{number(r)}/eta-{number(eta)}" for r in REPLAYED for eta in rates]
    corpora = {
        name: {"role": role, "called": role, "stands_for": name}
        for name, role in ((old, "old"), (new, "new"))
    }
    table = {"kind": "rows", "title": "Grid", "see": "Every run.", "columns": columns, "rows": rows}
    return {
        "runs": {
            "paper": "grid",
            "reference": "A made-up grid",
            "batch": {"sequences": 1104, "sequence_length": 2048},
            "unit": {"billions": 300, "name": "300B tokens"},
            "corpora": corpora,
            "models": {model: model},
            "runs": declared,
        },
        "exhibits": {"paper": "grid", "exhibits": {"table_01": table}},
    }


def bench_grid(project: Project, runs: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """A row: `plan` of a made-up study of at least `runs` runs, and the graph of all its jobs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        put_project(project, folder)
        study = folder / "configs" / "papers" / "grid"
        study.mkdir()
        files = grid(load_scale(project, SCALE), runs)
        for name, content in files.items():
            (study / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        config = [f"scale={SCALE}", "papers=grid"]
        ask = {
            "plan": ["cpt_repro.cli", "plan", "--scale", SCALE, "--papers", "grid"],
            "graph": ["snakemake", "figures/", "--rulegraph", "--config", *config],
        }

        def arm(command: list[str]) -> Spent:
            spent = timed([sys.executable, "-m", *command], folder)
            say(f"{command[0]}: {spent.seconds:.1f} s, {spent.gib:.2f} GiB")
            return spent

        measured = in_turns(
            {name: lambda command=command: arm(command) for name, command in ask.items()}, rounds
        )
    made = 1 + len(files["exhibits"]["exhibits"]["table_01"]["rows"])
    row = measured_here("grid", SCALE, rounds) | {"runs": made, "load": os.getloadavg()[0]}
    for name, of in measured.items():
        row[f"{name}_seconds"] = least_to_most([one.seconds for one in of], 1)
        row[f"{name}_gib"] = least_to_most([one.gib for one in of], 2)
    return row
