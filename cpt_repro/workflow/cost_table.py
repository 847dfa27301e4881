"""What `workflow.cost.estimate` says, as text for 80 columns."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from cpt_repro.workflow.cost import Cost, RunCost, Work

_TOKENS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
_BYTES = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
_NOT_COUNTED = "text, building data, starting, compiling, saving, communication, benchmarks, recomputation"


def _number(value: float | None) -> str:
    """Three digits, or whole with separators from 100."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def _in(units: tuple[tuple[float, str], ...], value: float) -> str:
    unit, name = next((one for one in units if value >= one[0]), units[-1])
    return f"{_number(value / unit)}{name}"


def _hours(value: float) -> str:
    return f"{_number(value)} h" + (f" ({value / 24:,.0f} days)" if value >= 72 else "")


def _tree(runs: list[RunCost]) -> list[tuple[int, str, list[RunCost]]]:
    """(depth, name, its seeds) of every run, what starts from it below it.

    A name leaves out the folders that it shares with the run above it.
    """
    seeds: dict[str, list[RunCost]] = {}
    for run in runs:
        seeds.setdefault(run.id.rpartition("/seed-")[0], []).append(run)
    place: dict[str, tuple[int, ...]] = {"": ()}
    short = {}
    for number, (name, members) in enumerate(seeds.items()):
        above = (members[0].parent or "").rpartition("/seed-")[0]
        place[name] = (*place[above], number)
        folder = os.path.commonprefix([above.rpartition("/")[0] + "/", name]).rpartition("/")[0]
        short[name] = name.removeprefix(folder).lstrip("/")
    return [(len(place[name]) - 1, short[name], seeds[name]) for name in sorted(seeds, key=place.get)]


def _table(
    title: str, heads: Iterable[str], rows: Iterable[Iterable[str]], words: tuple[int, ...] = (0,)
) -> Table:
    """`words`: columns to the left; the others are numbers."""
    look = {"title_justify": "left", "title_style": "bold", "box": None, "pad_edge": False}
    out = Table(title=title, padding=(0, 1), **look)
    for k, heading in enumerate(heads):
        out.add_column(heading, justify="left" if k in words else "right", no_wrap=bool(k), overflow="fold")
    for row in rows:
        out.add_row(*row)
    return out


#: Runs that are listed; whoever has more reads totals, or lets a program read.
MOST_ROWS = 500


def _runs(cost: Cost, unit: str) -> Table:
    rows, tree = [], list(_tree(cost.runs))
    for depth, name, seeds in tree[:MOST_ROWS]:
        part, done = Work.sum(seeds), sum(run.done for run in seeds)
        many = f" [dim]({len(seeds)} seeds)[/]" if len(seeds) > 1 else ""
        state = "yes" if done == len(seeds) else f"{done} of {len(seeds)}" if done else "no"
        numbers = _in(_TOKENS, part.tokens), f"{part.training_flops:.1e}", _number(part.device_hours)
        rows.append(("  " * depth + name + many, *numbers, state))
    if len(tree) > MOST_ROWS:
        rows.append((f"and {len(tree) - MOST_ROWS:,} more, which --json lists",))
    heads = "run", "tokens", "FLOP", f"{unit}-h", "done"
    return _table(f"{cost.scale}: runs, below what they start from", heads, rows)


def _models(cost: Cost, unit: str) -> Table:
    rows = []
    for name, model in cost.models.items():
        shared = model.trainings_per_device
        devices = f"1/{shared}" if shared > 1 else str(model.devices)
        size = f"{model.parameters:,}", f"{model.flops_per_token:.4g}"
        rows.append((name, *size, _number(model.tokens_per_second), devices, _number(model.memory_gb)))
    heads = "parameters", "FLOP a token", f"tokens/s a {unit}", f"{unit}s a training", f"GB a {unit}"
    return _table("Models", ("model", *heads), rows)


def _work(cost: Cost, unit: str) -> Table:
    of_models = {f"  {name}": Work.sum(run for run in cost.runs if run.model == name) for name in cost.models}
    rows = []
    for name, part in {"all": cost.all, **of_models, "done": cost.done, "left": cost.left}.items():
        hours, flops = part.device_hours, (f"{part.training_flops:.3g}", f"{part.validation_flops:.3g}")
        row = [name, str(part.trainings), _in(_TOKENS, part.tokens), *flops, _number(hours)]
        rows.append([*row, _number(hours and cost.price * hours)] if cost.price else row)
    heads = ["", "trainings", "tokens", "FLOP", "validation", f"{unit}-hours"]
    return _table("\nWork", heads + ["USD"] * bool(cost.price), rows)


def _disk(cost: Cost) -> Table:
    rows = [(one.what, _in(_BYTES, one.bytes), one.about) for one in cost.disk if one.bytes]
    rows.append(("in all", _in(_BYTES, sum(one.bytes for one in cost.disk)), ""))
    return _table("\nDisk", ("", "bytes", ""), rows, words=(0, 2))


def print_estimate(cost: Cost) -> None:
    """Prints an estimate."""
    console, unit = Console(highlight=False), "GPU" if cost.device == "gpu" else "core"
    if not cost.runs:
        console.print(f"{cost.scale}: nothing to train.")
        return
    console.print(_runs(cost, unit))
    console.print(
        f"\n{cost.all.trainings} trainings, {cost.all.tokens:,} tokens = {cost.units:.1f} times {cost.unit}; "
        f"{cost.evaluations} models to evaluate, {len(cost.exhibits)} exhibits.\n"
    )
    console.print(_models(cost, unit))
    console.print(f"FLOP a token: {cost.formula}, forward and backward.")
    for name, model in cost.models.items():
        console.print(f"tokens/s of {name}: {model.speed_from}.")
    console.print(f"GB a {unit}: weights, gradients, Adam's moments; activations and buffers come on top.")
    console.print(_work(cost, unit))
    times = cost.alone.training_flops / cost.all.training_flops
    alone = f"{cost.alone.training_flops:.3g} FLOP, {_number(cost.alone.device_hours)} {unit}-hours"
    console.print(f"Every lineage trained by itself: {alone}: {times:.2f} times as much.")
    if cost.wall:
        rows = [
            (f"{one.devices:,}" if one.devices else "any", _hours(one.all_hours), _hours(one.left_hours))
            for one in cost.wall
        ]
        console.print(_table("\nWall time, at least", (f"{unit}s", "all", "what is left"), rows))
        console.print("The longest chain of runs (any), or all work shared out evenly, whichever is more.")
    else:
        console.print("\n[bold]Wall time[/]: unknown, like the speed.")
    console.print(_disk(cost))
    console.print(f"\nNot counted: {_NOT_COUNTED}.")
    if cost.left.trainings == 0:
        console.print("Every training is done.")
    for name, why in cost.no_counterpart.items():
        console.print(f"[dim]no counterpart: {name} ({why})[/]")
