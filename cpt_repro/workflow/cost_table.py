"""What `workflow.cost.estimate` says, as text for 80 columns."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from cpt_repro.workflow.cost import Cost, RunCost, Sum

_TOKENS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
_BYTES = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))


def _number(value: float | None) -> str:
    """Three digits, or whole with separators from 100."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def _in(units: tuple[tuple[float, str], ...], value: float) -> str:
    unit, name = next((one for one in units if value >= one[0]), units[-1])
    return f"{_number(value / unit)}{name}"


def _hours(value: float | None) -> str:
    return f"{_number(value)} h" + (f" ({value / 24:,.0f} days)" if value and value >= 72 else "")


def _tree(runs: list[RunCost]) -> Iterator[tuple[int, str, list[RunCost]]]:
    """(depth, name, its seeds) of every run, what starts from it below it.

    A name leaves out the folders that it shares with the run above it.
    """
    seeds: dict[str, list[RunCost]] = {}
    for run in runs:
        seeds.setdefault(run.id.rpartition("/seed-")[0], []).append(run)
    names = {run.id: name for name, members in seeds.items() for run in members}
    children: dict[str | None, list[str]] = {}
    for name, members in seeds.items():
        children.setdefault(names.get(members[0].parent), []).append(name)

    def below(name: str, depth: int, above: str) -> Iterator[tuple[int, str, list[RunCost]]]:
        shared = os.path.commonprefix([above.rpartition("/")[0] + "/", name]).rpartition("/")[0]
        yield depth, name[len(shared) :].lstrip("/"), seeds[name]
        for child in children.get(name, []):
            yield from below(child, depth + 1, name)

    for name in children.get(None, []):
        yield from below(name, 0, "")


def _table(title: str, *headings: str) -> Table:
    """The first column to the left, numbers to the right."""
    look = {"title_justify": "left", "title_style": "bold", "box": None, "pad_edge": False}
    out = Table(title=title, padding=(0, 1), **look)
    for k, heading in enumerate(headings):
        out.add_column(heading, justify="right" if k else "left", no_wrap=bool(k), overflow="fold")
    return out


def print_estimate(cost: Cost) -> None:
    """Prints an estimate."""
    console, unit = Console(highlight=False), "GPU" if cost.device == "gpu" else "core"
    if not cost.runs:
        console.print(f"{cost.scale}: nothing to train.")
        return
    heads = ("run", "tokens", "FLOP", f"{unit}-h", "done")
    runs = _table(f"{cost.scale}: runs, below what they start from", *heads)
    for depth, name, seeds in _tree(cost.runs):
        part, done = Sum.of(seeds), sum(run.done for run in seeds)
        many = f" [dim]({len(seeds)} seeds)[/]" if len(seeds) > 1 else ""
        state = "yes" if done == len(seeds) else f"{done} of {len(seeds)}" if done else "no"
        flops = f"{part.training_flops:.1e}"
        runs.add_row(
            "  " * depth + name + many, _in(_TOKENS, part.tokens), flops, _number(part.device_hours), state
        )
    console.print(runs)
    console.print(
        f"\n{cost.all.trainings} trainings, {cost.all.tokens:,} tokens = {cost.units:.1f} times {cost.unit}; "
        f"{cost.evaluations} models to evaluate, {len(cost.exhibits)} exhibits.\n"
    )
    _print_models(cost, unit, console)
    _print_work(cost, unit, console)
    _print_disk(cost, console)
    console.print(f"\nNot counted: {cost.not_counted}.")
    if cost.left.trainings == 0:
        console.print("Every training is done.")
    for name, why in cost.no_counterpart.items():
        console.print(f"[dim]no counterpart: {name} ({why})[/]")


def _print_models(cost: Cost, unit: str, console: Console) -> None:
    heads = ("parameters", "FLOP a token", f"tokens/s a {unit}", f"{unit}s a training", f"GB a {unit}")
    models = _table("Models", "model", *heads)
    for name, model in cost.models.items():
        shared, speed = model.trainings_per_device, _number(model.speed.tokens_per_second)
        devices = f"1/{shared}" if shared > 1 else str(model.devices)
        row = (
            f"{model.parameters:,}",
            f"{model.flops_per_token:.4g}",
            speed,
            devices,
            _number(model.memory_gb),
        )
        models.add_row(name, *row)
    console.print(models)
    console.print(f"FLOP a token: {cost.formula}, forward and backward.")
    for name, model in cost.models.items():
        console.print(f"tokens/s of {name}: {model.speed.kind} ({model.speed.source}).")
        if model.speed.at_best:
            console.print(
                f"[bold]{name} is too small to fill a GPU: it will take longer, perhaps many times.[/]"
            )
    console.print(f"GB a {unit}: weights, gradients, Adam's moments; activations and buffers come on top.")


def _print_work(cost: Cost, unit: str, console: Console) -> None:
    money = ["USD"] if cost.price else []
    work = _table("\nWork", "", "trainings", "tokens", "FLOP", "validation", f"{unit}-hours", *money)
    of_models = {f"  {name}": Sum.of(run for run in cost.runs if run.model == name) for name in cost.models}
    parts = {
        "all": cost.all,
        **(of_models if len(of_models) > 1 else {}),
        "done": cost.done,
        "left": cost.left,
    }
    for name, part in parts.items():
        hours = part.device_hours
        flops = f"{part.training_flops:.3g}", f"{part.validation_flops:.3g}"
        price = [_number(hours and cost.price * hours)] if money else []
        work.add_row(name, str(part.trainings), _in(_TOKENS, part.tokens), *flops, _number(hours), *price)
    console.print(work)
    times = cost.alone_flops / cost.all.training_flops
    alone = f"{cost.alone_flops:.3g} FLOP, {_number(cost.alone_hours)} {unit}-hours"
    console.print(f"Every lineage trained by itself: {alone}: {times:.2f} times as much.")
    if cost.wall[0].all_hours is None:
        console.print("\n[bold]Wall time[/]: unknown, like the speed.")
        return
    wall = _table("\nWall time, at least", f"{unit}s", "all", "what is left")
    for bound in cost.wall:
        devices = f"{bound.devices:,}" if bound.devices else "any"
        wall.add_row(devices, _hours(bound.all_hours), _hours(bound.left_hours))
    console.print(wall)
    console.print("The longest chain of runs (any), or all work shared out evenly, whichever is more.")


def _print_disk(cost: Cost, console: Console) -> None:
    sizes = _table("\nDisk", "", "bytes", "")
    for corpus, size in cost.corpora.items():
        text = f"{_in(_TOKENS, size.tokens)} tokens ({size.basis}), {_in(_TOKENS, size.tokens_read)} read"
        sizes.add_row(f"shards of {corpus}", _in(_BYTES, size.bytes), text)
    sizes.add_row("checkpoints kept", _in(_BYTES, cost.checkpoints_bytes), f"{cost.checkpoints} of them")
    if cost.states_bytes:
        sizes.add_row("training states", _in(_BYTES, cost.states_bytes), "at a time, against interruption")
    shards = sum(size.bytes for size in cost.corpora.values())
    sizes.add_row("in all", _in(_BYTES, shards + cost.checkpoints_bytes + cost.states_bytes), "")
    sizes.columns[2].justify = "left"
    console.print(sizes)
