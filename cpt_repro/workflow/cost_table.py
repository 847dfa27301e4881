"""What `cpt_repro.cost.estimate` found, as text for 80 columns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from cpt_repro.planning.cost import sums_of
from cpt_repro.training.store import SavedStates


def _number(value: float | None) -> str:
    """Three digits, or whole with separators from 100."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def _tokens(count: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.2f}{name}"
    return f"{count:.0f}"


def _bytes(count: float) -> str:
    unit, name = next(
        ((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= u), (1e3, "kB")
    )
    return f"{count / unit:.3g} {name}" if count < 1e15 else f"{count / 1e12:,.0f} TB"


def _hours_and_days(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{_number(hours)} h" + (f" ({hours / 24:,.0f} days)" if hours >= 72 else "")


def _tree(rows: list[dict[str, Any]]) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
    """(depth, name, segments) of every run, what starts from it below it; a run's seeds are one line.

    A name leaves out the folders that it shares with the run above it.
    """
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["paper"], row["name"]), []).append(row)
    names = {row["id"]: (row["paper"], row["name"]) for row in rows}
    children: dict[tuple[str, str] | None, list[tuple[str, str]]] = {}
    for run, members in runs.items():
        children.setdefault(names.get(members[0]["parent"]), []).append(run)

    def below(
        run: tuple[str, str], depth: int, above: str
    ) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
        shared = os.path.commonprefix([above.rpartition("/")[0] + "/", run[1]]).rpartition("/")[0]
        yield depth, run[1][len(shared) :].lstrip("/"), runs[run]
        for child in children.get(run, []):
            yield from below(child, depth + 1, run[1])

    paper = None
    for run in children.get(None, []):
        if run[0] != paper:
            paper = run[0]
            yield 0, paper, []
        yield from below(run, 1, "")


def _table(title: str, *headings: str) -> Table:
    """The first column to the left, numbers to the right."""
    out = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1)
    )
    for k, heading in enumerate(headings):
        out.add_column(heading, justify="right" if k else "left", no_wrap=bool(k), overflow="fold")
    return out


def print_estimate(told: dict[str, Any]) -> None:
    """Prints what `estimate` found, for 80 columns."""
    console = Console(highlight=False)
    unit = "GPU" if told["device"] == "gpu" else "core"

    if not told["segments"]:
        console.print(f"{told['scale']}: nothing to train.")
        return
    whole, left = told["all"], told["left"]
    runs = _table(
        f"{told['scale']}: runs, below what they start from", "run", "tokens", "FLOP", f"{unit}-h", "done"
    )
    for depth, name, rows in _tree(told["segments"]):
        if not rows:
            runs.add_row(f"[bold]{name}[/]")
            continue
        sums, done = sums_of(rows, None), sum(row["done"] for row in rows)
        seeds = f" [dim]({len(rows)} seeds)[/]" if len(rows) > 1 else ""
        state = "yes" if done == len(rows) else f"{done} of {len(rows)}" if done else "no"
        work = [
            _tokens(sums["tokens"]),
            f"{sums['training_flops']:.1e}",
            _number(sums["device_hours"]),
            state,
        ]
        runs.add_row("  " * (depth - 1) + name + seeds, *work)
    console.print(runs)
    console.print(
        f"\n{whole['segments']} segments in {whole['processes']} processes, {whole['tokens']:,} tokens = "
        f"{told['units_of_300B']:.1f} times 300B; {told['evaluations']} models to evaluate, "
        f"{len(told['exhibits'])} exhibits.\n"
    )

    gpu = told["device"] == "gpu"
    headings = [
        "parameters",
        "FLOP a token",
        f"tokens/s a {unit}",
        f"{unit}s a process",
        *(["GB a GPU"] if gpu else []),
    ]
    models = _table("Models", "model", *headings)
    for name, model in told["models"].items():
        shared = model["processes_per_device"]
        models.add_row(
            name,
            f"{model['parameters']:,}",
            f"{model['flops_per_token']:.4g}",
            _number(model["tokens_per_second_per_device"]),
            str(model["devices_per_process"]) if shared == 1 else f"1/{shared}",
            *([_number(model["memory_gb_per_device"])] if gpu else []),
        )
    console.print(models)
    console.print(f"FLOP a token: {told['formula']['flops_per_token']}, forward and backward.")
    for name, model in told["models"].items():
        console.print(f"tokens/s of {name}: {model['speed']} ({model['speed_source']}).")
        if model["at_best"]:
            console.print(
                f"[bold]{name} is too small to fill a GPU: it will take longer, perhaps many times.[/]"
            )
    if gpu:
        console.print("GB a GPU: weights, gradients, Adam's moments; activations and buffers come on top.")

    priced = whole["price_usd"] is not None
    work = _table(
        "\nWork",
        "",
        "segments",
        "tokens",
        "FLOP",
        "validation",
        f"{unit}-hours",
        *(["USD"] if priced else []),
    )
    parts = [("all", whole), *((f"  {name}", model["all"]) for name, model in told["models"].items())]
    for part, sums in [*parts[: len(parts) if len(parts) > 2 else 1], ("done", told["done"]), ("left", left)]:
        flops = [
            f"{sums['training_flops']:.3g}",
            f"{sums['validation_flops']:.3g}",
            _number(sums["device_hours"]),
        ]
        money = [f"{sums['price_usd']:,.0f}"] if priced else []
        work.add_row(part, str(sums["segments"]), _tokens(sums["tokens"]), *flops, *money)
    console.print(work)
    sharing = told["sharing"]
    alone = f"{_tokens(sharing['alone_tokens'])} tokens, {sharing['alone_flops']:.3g} FLOP"
    hours = f"{_number(sharing['alone_device_hours'])} {unit}-hours"
    console.print(f"Every lineage trained by itself: {alone}, {hours}: {sharing['times']:.2f} times as much.")

    _print_wall(told, unit, console)

    disk = told["disk"]
    sizes = _table("\nDisk", "", "bytes", "")
    for corpus, size in disk["corpora"].items():
        read = f"{_tokens(size['tokens'])} tokens ({size['basis']}), {_tokens(size['tokens_read'])} read in training"
        sizes.add_row(f"shards of {corpus}", _bytes(size["bytes"]), read)
    sizes.add_row("checkpoints kept", _bytes(disk["checkpoints_bytes"]), f"{disk['checkpoints']} of them")
    if disk["states_bytes"]:
        most = max(row["devices"] for row in told["wall"])
        text = f"against interruption, with {most:,} {unit}s: {SavedStates.KEPT} a process, and one being written"
        sizes.add_row("training states", _bytes(disk["states_bytes"]), text)
    sizes.add_row("in all", _bytes(disk["total_bytes"]), "")
    sizes.columns[2].justify, sizes.columns[2].no_wrap = "left", False
    console.print(sizes)
    console.print(f"\nNot counted: {told['not_counted']}.")
    if left["segments"] == 0:
        console.print("Every segment is done.")
    for name, why in told["no_counterpart"].items():
        console.print(f"[dim]no counterpart: {name} ({why})[/]")


def _print_wall(told: dict[str, Any], unit: str, console: Console) -> None:
    if told["wall"][0]["all_hours"] is None:
        console.print("\n[bold]Wall time[/]: unknown, like the speed.")
        return
    held = any(row["held_usd"] for row in told["wall"])
    headings = [f"{unit}s", "all", "what is left", "busy", *(["USD, all held"] if held else [])]
    wall = _table("\nWall time", *headings)
    for row in told["wall"]:
        busy = "?" if row["busy_share"] is None else f"{row['busy_share']:.0%}"
        money = [f"{row['held_usd']:,.0f}" if row["held_usd"] else "-"] if held else []
        wall.add_row(
            f"{row['devices']:,}",
            _hours_and_days(row["all_hours"]),
            _hours_and_days(row["left_hours"]),
            busy,
            *money,
        )
    path = told["critical_path_hours"]
    wall.add_row(
        "any", _hours_and_days(path["all"]), _hours_and_days(path["left"]), "", *([""] if held else [])
    )
    console.print(wall)
    console.print("any: the longest chain of runs, which no number of them makes shorter.")
