"""Rows of `benchmarks/` as a table for the pages of docs/: the latest of each thing that was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cpt_repro.files import RECORD_BYTES, read_bytes

#: What a row of a benchmark says, in words, and in which unit; values are least, median and most.
SECONDS = {
    "job": {
        "whole_seconds": "main job, whole",
        "whole_core_seconds": "the same, work of the cores",
        "again_seconds": "main job called again, nothing to do",
        "one_figure_seconds": "main job for one figure",
    },
    "exhibits": {
        "exhibits_seconds": "all exhibits, claims and report from receipts",
        "verify_seconds": "`verify`",
    },
    "grid": {
        "plan_seconds": "`plan` of a grid of runs",
        "graph_seconds": "the workflow's graph of a grid of runs",
    },
}
#: Ways of training that are compared.
ARMS = {
    "library": "Hugging Face's model in a plain loop",
    "whole_logits": "the same with an explicit mask",
    "plain": "the same with our loss",
    "composer": "ours: Composer and the harness",
    "deterministic": "ours, deterministic (as pocket trains)",
}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows, oldest first."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for path in files for line in read_bytes(path, RECORD_BYTES).splitlines()]


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table, a line for each measurement, of its latest row."""
    lines: dict[tuple[Any, ...], str] = {}
    for row in rows:
        where = f"{row['rounds']} rounds, {row.get('cores', '?')} cores of {row['hardware']}, {row['date']}"
        for key, says in SECONDS.get(row["benchmark"], {}).items():
            if key in row:
                text = "{1:g} s ({0:g} to {2:g})".format(*row[key])
                lines[row["benchmark"], row["scale"], key] = f"| {row['scale']}: {says} | {text} | {where} |"
        if row["benchmark"] == "train" and row.get("arm") in ARMS:
            what = f"{row['scale']}, {row['parameters']:,} parameters: {ARMS[row['arm']]}"
            low, high = row["tokens_per_second_range"]
            text = f"{row['tokens_per_second']:,.0f} tokens/s ({low:,.0f} to {high:,.0f})"
            lines["train", row["scale"], row["arm"]] = f"| {what} | {text} | {where} |"
            if shares := row.get("shares"):
                text = ", ".join(f"{phase} {share:.1%}" for phase, share in shares.items())
                lines["train", row["scale"], f"{row['arm']}, shares"] = (
                    f"| {what}: a step | {text} | {where} |"
                )
    heads = ["| what | median (least to most) | measured |", "| --- | --- | --- |"]
    return [*heads, *(lines[key] for key in sorted(lines))]
