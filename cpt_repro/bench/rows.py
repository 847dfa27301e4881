"""Rows for `benchmarks/`: arms in turns, their ratios, what every row says, and all as a table. Light."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from cpt_repro import __version__
from cpt_repro.files import RECORD_BYTES, read_bytes
from cpt_repro.processes import cores, processor

#: As receipts name them -> as they are installed.
LIBRARIES = {"torch": "torch", "numpy": "numpy", "transformers": "transformers"}
LIBRARIES |= {"composer": "mosaicml", "streaming": "mosaicml-streaming"}
#: What a row of a benchmark says, in words, and in which unit; values are least, median and most.
SECONDS = {
    ("job", "whole_seconds"): "main job, whole",
    ("job", "whole_core_seconds"): "the same, work of the cores",
    ("job", "again_seconds"): "main job called again, nothing to do",
    ("job", "one_figure_seconds"): "main job for one figure",
    ("exhibits", "exhibits_seconds"): "all exhibits, claims and report from receipts",
    ("exhibits", "verify_seconds"): "`verify`",
    ("grid", "plan_seconds"): "`plan` of a grid of runs",
    ("grid", "graph_seconds"): "the workflow's graph of a grid of runs",
}
#: Ways of training that are compared.
ARMS = {
    "library": "Hugging Face's model in a plain loop",
    "whole_logits": "the same with an explicit mask",
    "plain": "the same with our loss",
    "composer": "ours: Composer and the harness",
    "deterministic": "ours, deterministic (as pocket trains)",
}
T = TypeVar("T")


def in_turns(arms: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each arm gave in each round.

    Every other round begins with the last arm, so that none profits from what came before it.
    """
    out: dict[str, list[T]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in list(arms)[:: -1 if turn % 2 else 1]:
            out[arm].append(arms[arm]())
    return out


def least_to_most(values: list[float], digits: int = 4) -> list[float]:
    """Least, median and most over the rounds."""
    return [round(one, digits) for one in (min(values), statistics.median(values), max(values))]


def ratios(of: list[float], to: list[float]) -> list[float]:
    """Least, median and most of the ratio of two arms over the rounds."""
    return least_to_most([one / other for one, other in zip(of, to, strict=True)])


def measured_here(benchmark: str, scale: str | None, rounds: int) -> dict[str, Any]:
    """What every row says of where and when it was measured; `cores`: those that this process may use."""
    told = {"benchmark": benchmark} | ({"scale": scale} if scale else {})
    told |= {"rounds": rounds, "cpt_repro": __version__}
    told |= {"python": platform.python_version(), "hardware": processor(), "cores": cores()}
    told |= {name: version(package) for name, package in LIBRARIES.items()}
    return told | {"date": datetime.date.today().isoformat()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows, oldest first."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for path in files for line in read_bytes(path, RECORD_BYTES).splitlines()]


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table, a line for each measurement, of its latest row."""
    lines: dict[tuple[Any, ...], str] = {}
    for row in rows:
        where = f"{row['rounds']} rounds, {row.get('cores', '?')} cores of {row['hardware']}, {row['date']}"
        for (benchmark, key), says in SECONDS.items():
            if benchmark == row["benchmark"] and key in row:
                text = "{1:g} s ({0:g} to {2:g})".format(*row[key])
                lines[row["benchmark"], row["scale"], key] = f"| {row['scale']}: {says} | {text} | {where} |"
        if row["benchmark"] == "job" and (parts := row.get("worked_for")):
            told = [f"{part} {seconds / sum(parts.values()):.0%}" for part, seconds in parts.items()]
            key = "job", row["scale"], "whole_core_seconds, parts"
            lines[key] = f"| {row['scale']}: what they work for | {', '.join(told)} | {where} |"
        if row["benchmark"] == "train" and row.get("arm") in ARMS:
            what = f"{row['scale']}, {row['parameters']:,} parameters: {ARMS[row['arm']]}"
            low, high = row["tokens_per_second_range"]
            text = f"{row['tokens_per_second']:,.0f} tokens/s ({low:,.0f} to {high:,.0f})"
            lines["train", row["scale"], row["arm"]] = f"| {what} | {text} | {where} |"
            if shares := row.get("shares"):
                text = ", ".join(f"{phase} {share:.1%}" for phase, share in shares.items())
                key = "train", row["scale"], f"{row['arm']}, shares"
                lines[key] = f"| {what}: a step | {text} | {where} |"
    heads = ["| what | median (least to most) | measured |", "| --- | --- | --- |"]
    return [*heads, *(lines[key] for key in sorted(lines))]
