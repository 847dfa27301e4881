"""What a plan costs before anything runs: work, time, money, disk and memory, by formula; and as text for 80
columns. Imports no torch.

Every number comes from the declarations, except the speed: that is given, measured (`benchmarks/`, receipts)
or an assumption that is named. A device is a GPU, or a core at scales for CPUs. GB are 10^9 bytes.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, Json, RootModel, field_validator
from rich.console import Console
from rich.table import Table

from cpt_repro.declarations.manifests import Files, Hub
from cpt_repro.declarations.strict import Count, Strict, nearest, parse
from cpt_repro.errors import UserError
from cpt_repro.files import RECORD_BYTES, read_bytes
from cpt_repro.models.architecture import GB, IN_MEMORY, architecture
from cpt_repro.planning.plan import Plan, PlannedRun
from cpt_repro.training.store import kept_bytes, state_bytes
from cpt_repro.workflow.jobs import Workflow

#: Where no speed is known: share of the peak that training reaches, and the peak of an H100 (dense bf16).
MFU, PEAK_TFLOPS = 0.45, 989.0
#: Published utilisations are of models at least this wide; for narrower ones nothing is assumed.
FILLS_A_GPU = 1024
TOKEN_BYTES = 2
#: Runs that are listed; whoever has more reads totals, or lets a program read.
MOST_ROWS = 500

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Options(Strict):
    """What the user may say of a plan's cost."""

    exhibits: tuple[str, ...] = ()
    gpus: Count | None = None
    #: model -> of one device; the command line has MODEL=X
    tokens_per_second: dict[str, Positive] = {}
    mfu: Annotated[float, Field(gt=0, le=1)] | None = None
    peak_tflops: Positive | None = None
    #: USD per GPU-hour
    price: Positive | None = None
    #: GB
    gpu_memory: Positive = 80

    @field_validator("tokens_per_second", mode="before")
    @classmethod
    def _by_model(cls, texts: Iterable[str]) -> dict[str, str]:
        parts = [text.rpartition("=") for text in texts]
        if not all(model for model, _, _ in parts):
            raise ValueError("write MODEL=X")
        return {model: number for model, _, number in parts}


class Measurement(BaseModel):
    """What counts of a row of `benchmarks/`; one without a model and its size has no speed of training."""

    scale: str = "paper"
    model: str | None = None
    parameters: int | None = None
    arm: str = ""
    #: whose tokens these are, together; 0: of a process on CPUs
    gpus: int = Field(default=0, ge=0)
    tokens_per_second: Positive | None = None
    date: str = ""
    hardware: str = ""


@dataclass(frozen=True)
class ModelCost:
    """One of the scale's models; memory is that of weights, gradients and Adam's moments on each device."""

    parameters: int
    flops_per_token: int
    #: that are trained on one device, None where that is unknown, and what says so
    tokens_per_second: float | None
    speed_from: str
    #: that one training holds; and trainings that share one
    devices: int
    trainings_per_device: int
    memory_gb: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training, or several together; hours are None where a speed is unknown."""

    trainings: int = 1
    tokens: int
    training_flops: int
    validation_flops: int
    device_hours: float | None

    @classmethod
    def of(cls, model: ModelCost, tokens: int, validated: int = 0, /, **about: Any) -> Self:
        """Training on some tokens and validating on others; `about`: further fields."""
        speed = model.tokens_per_second
        return cls(
            tokens=tokens,
            training_flops=tokens * model.flops_per_token,
            # A forward pass is a third of the work on a trained token.
            validation_flops=validated * model.flops_per_token // 3,
            device_hours=(tokens + validated / 3) / speed / 3600 if speed else None,
            **about,
        )

    @staticmethod
    def sum(runs: Iterable[Work]) -> Work:
        """Some trainings together."""
        runs = list(runs)
        parts = {part.name: [getattr(run, part.name) for run in runs] for part in fields(Work)}
        return Work(**{name: None if None in values else sum(values) for name, values in parts.items()})


@dataclass(frozen=True, kw_only=True)
class RunCost(Work):
    """One training, and what it starts from, under their first names."""

    id: str
    parent: str | None
    model: str
    identity: str
    #: its receipt is there, and its weights are if anything asked for still starts from them
    done: bool


@dataclass(frozen=True)
class Bound:
    """Least hours on a number of devices (None: any), of all trainings and of those that are left."""

    devices: int | None
    all_hours: float
    left_hours: float


@dataclass(frozen=True)
class Disk:
    """What takes room on disk, and what is to be said of it."""

    what: str
    bytes: int
    about: str


@dataclass(frozen=True)
class Cost:
    """What a scale, or some exhibits of it, cost; runs come after what they start from."""

    scale: str
    device: Literal["cpu", "gpu"]
    exhibits: list[str]
    #: tokens in units of the papers
    units: float
    unit: str
    #: models to be evaluated
    evaluations: int
    #: of FLOPs per token
    formula: str
    models: dict[str, ModelCost]
    runs: list[RunCost]
    all: Work
    done: Work
    left: Work
    #: USD per GPU-hour
    price: float | None
    #: [] where a speed is unknown
    wall: list[Bound]
    #: every lineage trained by itself, without validation
    alone: Work
    disk: list[Disk]
    #: run -> why the scale has none
    no_counterpart: dict[str, str]


# -- speed


def _measured(work: Workflow, model: str, parameters: int) -> tuple[float, str] | None:
    """By the latest row of `benchmarks/` of this size; on CPUs else the median of the scale's receipts."""
    scale, gpu, folder = work.scale, work.scale.device == "gpu", work.project.measurements
    cores = scale.threads + scale.loader_workers
    fitting = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(read_bytes(path, RECORD_BYTES).splitlines(), 1):
            row = parse(RootModel[Json[Measurement]], line, f"{path}, line {number}").root
            of = (row.scale, row.model, row.parameters, row.gpus > 0)
            if of == (scale.name, model, parameters, gpu) and row.tokens_per_second and row.arm != "plain":
                speed = row.tokens_per_second / (row.gpus or cores)
                fitting.append((row.date, speed, f"{folder.name}/{path.name}, {row.date}, {row.hardware}"))
    if fitting:
        # Of one day the last row counts: `bench train` puts the way in which the scale trains there.
        return sorted(fitting, key=lambda row: row[0])[-1][1:]
    runs = () if gpu else (run for run in work.plan.runs.values() if run.model_name == model)
    receipts = [one for run in runs if (one := work.records.receipt(run)) and one.measured.tokens_per_second]
    if not receipts:
        return None
    machines = ", ".join(sorted({receipt.environment.get("hardware", "?") for receipt in receipts}))
    speed = statistics.median(receipt.measured.tokens_per_second for receipt in receipts) / cores
    return speed, f"median of {len(receipts)} receipts, {machines}"


def _speed(
    work: Workflow, run: PlannedRun, parameters: int, flops_per_token: int, options: Options
) -> tuple[float | None, str]:
    """(tokens per second of one device, where that is from): given, measured, on GPUs assumed, or unknown."""
    if given := options.tokens_per_second.get(run.model_name):
        return given, "given (--tokens-per-second)"
    chosen = bool(options.mfu or options.peak_tflops)
    if not chosen and (measured := _measured(work, run.model_name, parameters)):
        return measured[0], f"measured ({measured[1]})"
    gpu, small = work.scale.device == "gpu", run.training.model.width < FILLS_A_GPU
    if not gpu or (small and not chosen):
        return None, "unknown (measure it with `cpt-repro bench train`, or give --tokens-per-second)"
    mfu, peak = options.mfu or MFU, options.peak_tflops or PEAK_TFLOPS
    source = f"{'given' if chosen else 'assumed'} (MFU {mfu:g} of {peak:g} TFLOP/s)"
    if small:
        source += "; it is too small to fill a GPU: it will take longer, perhaps many times"
    return mfu * peak * 1e12 / flops_per_token, source


# -- models and runs


def _model(work: Workflow, run: PlannedRun, options: Options) -> ModelCost:
    """Of the model of a run; `UserError` where a GPU is too small for it, or too few GPUs are at hand."""
    training, name, scale = run.training, run.model_name, work.scale
    shape, size, run_as = architecture(training.model.architecture), training.model, scale.run_as(name)
    parameters = training.parameters
    flops = shape.flops_per_token(size, training.vocabulary, training.sequence_length)
    memory = IN_MEMORY * parameters / (run_as.ranks if run_as.fsdp else 1) * run_as.jobs_per_gpu / GB
    devices = run_as.ranks if scale.device == "gpu" else work.cores(run_as) * run_as.nodes
    where = f"configs/scales/{scale.name}.yaml, execution.{name}"
    if scale.device == "gpu" and memory > options.gpu_memory:
        need = f"{memory:.1f} GB on each GPU for weights, gradients and Adam's moments alone"
        what = f"the model {name} needs {need}, and a GPU has {options.gpu_memory:g} (--gpu-memory)."
        raise UserError(what, where=where, do="Set 'fsdp' there, with more ranks, or lower 'jobs_per_gpu'.")
    if options.gpus and options.gpus < devices:
        what = f"one training of the model {name} needs {devices} GPUs, and there are {options.gpus}."
        do = "Give more, lower its ranks, choose exhibits without it, or set the model to null."
        raise UserError(what, where=where, do=do)
    speed = _speed(work, run, parameters, flops, options)
    return ModelCost(parameters, flops, *speed, devices, run_as.jobs_per_gpu, memory)


def _run(plan: Plan, run: PlannedRun, model: ModelCost, done: bool) -> RunCost:
    training, wanted = run.training, plan.wanted(run.identity)
    whole, along = len(wanted.of_all), len(wanted.evaluations) - len(wanted.of_all)
    sequences = len(wanted.corpora) * (whole * wanted.sequences + along * (wanted.along or wanted.sequences))
    parent = plan.trainings[training.start.parent][0].id if training.start else None
    about = {"id": run.id, "parent": parent, "model": run.model_name, "identity": run.identity, "done": done}
    return RunCost.of(model, training.tokens, sequences * training.sequence_length, **about)


def _selected(work: Workflow, exhibits: list[tuple[str, str]]) -> tuple[list[PlannedRun], list[str]]:
    """(runs, one a training, parents first; models to evaluate) of some exhibits; without any, of all."""
    plan = work.plan
    if not exhibits:
        return [runs[0] for runs in plan.trainings.values()], work.models
    needs = [work.catalogue.needs(*exhibit) for exhibit in exhibits]
    models = list(dict.fromkeys(model for need in needs for model in need.models))
    shown = {run for need in needs for run in need.runs}
    shown |= {run.id for model in models for run, _ in plan.model(model).weights}
    wanted = {run.identity for name in shown for run in plan.lineage(name)}
    return [runs[0] for identity, runs in plan.trainings.items() if identity in wanted], models


# -- time, sharing, disk


def bounds(costs: list[RunCost], models: dict[str, ModelCost], gpus: int | None) -> list[Bound]:
    """For the GPUs at hand, else for the least devices and doublings until no more help; then for any.

    The longest chain of trainings, or all work shared out evenly, whichever is more.
    """

    def chain(runs: list[RunCost]) -> float:
        until: dict[str | None, float] = {}
        for run in runs:
            until[run.id] = until.get(run.parent, 0) + run.device_hours / models[run.model].devices
        return max(until.values(), default=0)

    parts = costs, [run for run in costs if not run.done]
    hours = [Work.sum(part).device_hours for part in parts]
    if None in hours:
        return []
    chains = [chain(part) for part in parts]
    counts = [gpus or max((model.devices for model in models.values()), default=1)]
    while not gpus and len(counts) < 6 and hours[0] / counts[-1] > 1.01 * chains[0]:
        counts.append(2 * counts[-1])
    shared = [Bound(n, max(chains[0], hours[0] / n), max(chains[1], hours[1] / n)) for n in counts]
    return [*shared, Bound(None, *chains)]


def _alone(plan: Plan, runs: list[PlannedRun], models: dict[str, ModelCost]) -> Work:
    """Every last training of a lineage, with ancestors of its own as far as a child needs them.

    A training that another goes on from at its end is that one's beginning.
    """
    starts = [run.training.start for run in runs if run.training.start]
    begun = {s.parent for s in starts if s.iteration == plan.trainings[s.parent][0].training.iterations}
    parts = []
    for last in (run for run in runs if run.identity not in begun):
        iterations = last.training.iterations
        for run in reversed(plan.lineage(last.id)):
            tokens = iterations * run.training.batch_sequences * run.training.sequence_length
            parts.append(Work.of(models[run.model_name], tokens))
            iterations = run.parent_iteration
    return Work.sum(parts)


def _shards(work: Workflow, corpus: str) -> Disk:
    """As they were built, else as the manifest lets expect."""
    what, manifest, length = f"shards of {corpus}", work.plan.manifest(corpus), work.scale.sequence_length
    built = work.records.fingerprint(corpus)
    if built and work.fits(corpus, built):
        sequences = sum(domain.sequences for split in built.splits.values() for domain in split.values())
        return Disk(what, sequences * (length + 1) * TOKEN_BYTES, "as built")
    if isinstance(manifest, Hub):
        tokens, basis = manifest.tokens_billions * 1e9, "as the manifest says"
    elif isinstance(manifest, Files):
        text = sum(split.text_bytes for split in manifest.splits.values())
        tokens, basis = text / 4, "estimate: 4 bytes a token"
    else:
        tokens, basis = sum(manifest.words.values()), "estimate: 1 token a word"
    return Disk(what, round(tokens * (length + 1) / length * TOKEN_BYTES), basis)


def _disk(work: Workflow, runs: list[PlannedRun], models: dict[str, ModelCost], devices: int) -> list[Disk]:
    """Shards, checkpoints, and the most of states against interruption at a time on a number of devices."""
    read = {corpus for run in runs for corpus in run.training.data}
    shards = [_shards(work, corpus) for corpus in work.scale.corpora if corpus in read]
    kept = [work.plan.kept(run.identity) for run in runs]
    size = sum(kept_bytes(run.training, one) for run, one in zip(runs, kept, strict=True))
    states, free = 0, float(devices if work.scale.save_every else 0)
    for state, name in sorted(((state_bytes(run.training), run.model_name) for run in runs), reverse=True):
        if (held := models[name].devices / models[name].trainings_per_device) <= free:
            states, free = states + state, free - held
    rest = Disk("training states", states, "at a time, against interruption")
    return [*shards, Disk("checkpoints kept", size, f"{sum(map(len, kept))} of them"), rest]


def _no_counterpart(work: Workflow, exhibits: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Run or merge that some exhibits show -> why the scale has none."""
    shown = [(paper, work.catalogue.find(paper, key)) for paper, key in exhibits]
    named = dict.fromkeys((paper, name) for paper, one in shown for name in (*one.runs, *one.evaluations))
    return {"/".join(run): why for run in named if (why := work.plan.why_absent(*run))}


def estimate(work: Workflow, options: Options) -> Cost:
    """The cost of a scale, or of some exhibits of it; `UserError` where options or hardware do not fit."""
    plan, scale = work.plan, work.scale
    if scale.device == "cpu" and (options.gpus or options.mfu or options.peak_tflops or options.price):
        what, do = f"the scale '{scale.name}' runs on CPUs.", "Leave out what is about GPUs."
        raise UserError(what, where=f"configs/scales/{scale.name}.yaml, device", do=do)
    exhibits = [work.exhibit_named(text) for text in dict.fromkeys(options.exhibits)]
    runs, evaluated = _selected(work, exhibits)
    of_model = {run.model_name: run for run in reversed(runs)}
    for name in options.tokens_per_second.keys() - of_model:
        raise UserError(f"--tokens-per-second: no training is of '{name}'.", do=nearest(name, of_model))
    models = {name: _model(work, run, options) for name, run in reversed(of_model.items())}
    left = {run.identity for run in work.outstanding([run.id for run in runs], evaluated)[0]}
    costs = [_run(plan, run, models[run.model_name], run.identity not in left) for run in runs]
    wall = bounds(costs, models, options.gpus)
    most = max((bound.devices or 0 for bound in wall), default=0)
    units = {run.paper: plan.studies[run.paper].paper.unit for run in runs}
    return Cost(
        scale=scale.name,
        device=scale.device,
        exhibits=["/".join(key) for key in exhibits or work.catalogue.exhibits],
        units=sum(run.billions / units[run.paper].billions for run in runs),
        unit=", ".join(dict.fromkeys(unit.name for unit in units.values())),
        evaluations=len(evaluated),
        formula=", ".join({architecture(r.training.model.architecture).formulas["full"]: 0 for r in runs}),
        models=models,
        runs=costs,
        all=Work.sum(costs),
        done=Work.sum(cost for cost in costs if cost.done),
        left=Work.sum(cost for cost in costs if not cost.done),
        price=options.price,
        wall=wall,
        alone=_alone(plan, runs, models),
        disk=_disk(work, runs, models, most),
        no_counterpart=_no_counterpart(work, exhibits or work.catalogue.exhibits),
    )


# -- as text


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


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The first column, and those without a head, are words; the others are numbers."""
    look = {"title_justify": "left", "title_style": "bold", "box": None, "pad_edge": False}
    out = Table(title=title, padding=(0, 1), **look)
    for k, head in enumerate(heads):
        out.add_column(head, justify="right" if k and head else "left", no_wrap=bool(k), overflow="fold")
    for row in rows:
        out.add_row(*row[: len(heads)])
    return out


def _tree(runs: list[RunCost]) -> list[tuple[str, list[RunCost]]]:
    """(name, its seeds) of every run, indented below what it starts from.

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
        short[name] = "  " * len(place[above]) + name.removeprefix(folder).lstrip("/")
    return [(short[name], seeds[name]) for name in sorted(seeds, key=place.get)]


def _runs(cost: Cost, unit: str) -> Table:
    rows, tree = [], _tree(cost.runs)
    for name, seeds in tree[:MOST_ROWS]:
        part, done = Work.sum(seeds), sum(run.done for run in seeds)
        many = f" [dim]({len(seeds)} seeds)[/]" if len(seeds) > 1 else ""
        state = "yes" if done == len(seeds) else f"{done} of {len(seeds)}" if done else "no"
        numbers = _in(_TOKENS, part.tokens), f"{part.training_flops:.1e}", _number(part.device_hours)
        rows.append((name + many, *numbers, state))
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
        costs = _number(hours), _number(hours and (cost.price or 0) * hours)
        rows.append((name, str(part.trainings), _in(_TOKENS, part.tokens), *flops, *costs))
    heads = ("", "trainings", "tokens", "FLOP", "validation", f"{unit}-hours", "USD")
    return _table("\nWork", heads if cost.price else heads[:-1], rows)


def print_estimate(cost: Cost) -> None:
    say, unit = Console(highlight=False).print, "GPU" if cost.device == "gpu" else "core"
    if not cost.runs:
        return say(f"{cost.scale}: nothing to train.")
    say(_runs(cost, unit))
    say(
        f"\n{cost.all.trainings} trainings, {cost.all.tokens:,} tokens = {cost.units:.1f} times {cost.unit}; "
        f"{cost.evaluations} models to evaluate, {len(cost.exhibits)} exhibits.\n"
    )
    say(_models(cost, unit))
    say(f"FLOP a token: {cost.formula}, forward and backward.")
    for name, model in cost.models.items():
        say(f"tokens/s of {name}: {model.speed_from}.")
    say(f"GB a {unit}: weights, gradients, Adam's moments; activations and buffers come on top.")
    say(_work(cost, unit))
    times = cost.alone.training_flops / cost.all.training_flops
    alone = f"{cost.alone.training_flops:.3g} FLOP, {_number(cost.alone.device_hours)} {unit}-hours"
    say(f"Every lineage trained by itself: {alone}: {times:.2f} times as much.")
    if cost.wall:
        bounds = ((one.devices, _hours(one.all_hours), _hours(one.left_hours)) for one in cost.wall)
        rows = [(f"{devices:,}" if devices else "any", *hours) for devices, *hours in bounds]
        say(_table("\nWall time, at least", (f"{unit}s", "all", "what is left"), rows))
        say("The longest chain of runs (any), or all work shared out evenly, whichever is more.")
    else:
        say("\n[bold]Wall time[/]: unknown, like the speed.")
    whole = Disk("in all", sum(one.bytes for one in cost.disk), "")
    parts = [one for one in cost.disk if one.bytes]
    rows = [(one.what, _in(_BYTES, one.bytes), one.about) for one in (*parts, whole)]
    say(_table("\nDisk", ("", "bytes", ""), rows))
    say(f"\nNot counted: {_NOT_COUNTED}.")
    if cost.left.trainings == 0:
        say("Every training is done.")
    for name, why in cost.no_counterpart.items():
        say(f"[dim]no counterpart: {name} ({why})[/]")
