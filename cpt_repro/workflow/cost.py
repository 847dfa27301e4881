"""What a plan costs before anything runs: work, time, money, disk and memory, by formula. Imports no torch.

Every number comes from the declarations, except the speed: that is given, measured (`benchmarks/`, receipts) or an
assumption that is named. Units are in the names; GB are 10^9 bytes.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cpt_repro.declarations.exhibits import absent, find_exhibit, needs
from cpt_repro.declarations.manifests import Files, Hub, load_manifest
from cpt_repro.declarations.scale import Scale
from cpt_repro.errors import UserError
from cpt_repro.files import read_json
from cpt_repro.models.sizes import FORMULAS, GB, IN_MEMORY, flops_per_token, matmul_parameters, parameters
from cpt_repro.planning.evaluation_identity import evaluation_identity
from cpt_repro.planning.plan import Part, Plan, Segment
from cpt_repro.project import ROOT
from cpt_repro.records.receipts import corpus_path, read_fingerprint, receipt_path
from cpt_repro.training.store import kept_bytes, state_bytes
from cpt_repro.workflow.jobs import Workflow, outstanding

#: Rows of what was measured, one JSON object a line.
MEASUREMENTS = ROOT / "benchmarks"

#: Where no speed is known: share of the peak that training reaches, and the peak of an H100 or H200 (dense bf16).
MFU, PEAK_TFLOPS = 0.45, 989.0
#: Published utilisations are of models at least this wide; narrower ones do not fill a GPU, and nothing is assumed.
FILLS_A_GPU = 1024
#: Tokens are stored in 16 bits.
TOKEN_BYTES = 2
NOT_COUNTED = "text, building data, starting, compiling, saving, communication, benchmarks, recomputation"


# -- tokens


def validation_tokens(segment: Segment) -> int:
    """Tokens of all the segment's validation passes (forward only)."""
    once = len(segment.validate_on) * segment.validation_sequences * segment.sequence_length
    return len(segment.evaluations) * once


def corpus_tokens(segment: Segment) -> dict[str, float]:
    """Corpus -> tokens that the segment trains on from it, replay included."""

    def leaves(parts: Iterable[Part], share: float) -> Iterator[tuple[str, float]]:
        for part in parts:
            if part.stream:
                yield part.stream.corpus, share * part.share
            else:
                yield from leaves(part.parts, share * part.share)

    out: dict[str, float] = {}
    for corpus, share in leaves(segment.mixture, 1):
        out[corpus] = out.get(corpus, 0) + share * segment.tokens
    return out


# -- speed


@dataclass(frozen=True)
class Options:
    """What the user may say; None takes the default that `estimate` describes."""

    exhibits: tuple[str, ...] = ()
    gpus: int | None = None
    cores: int | None = None
    #: `X`, or `MODEL=X` for each of several models: tokens per second of one GPU (core).
    tokens_per_second: tuple[str, ...] = ()
    mfu: float | None = None
    peak_tflops: float | None = None
    price: float | None = None
    gpu_memory: float | None = None
    attention: str = "full"

    def checked(self, device: str, scale: str) -> Options:
        """Itself, or a `UserError` on a number that is none, and on what does not fit the scale's device."""
        numbers = ("gpus", "cores", "mfu", "peak_tflops", "price", "gpu_memory")
        told = {name: value for name in numbers if (value := getattr(self, name)) is not None}
        for name, value in told.items():
            _positive(_flag(name), value)
        if self.mfu is not None and self.mfu > 1:
            raise UserError(f"--mfu {self.mfu:g} is above 1.", do="It is a share of the peak, such as 0.45.")
        if self.attention not in FORMULAS:
            raise UserError(
                f"--attention '{self.attention}' is unknown.", do=f"Known: {', '.join(FORMULAS)}."
            )
        foreign = {"cores"} if device == "gpu" else set(numbers) - {"cores"}
        if wrong := sorted(map(_flag, foreign & set(told))):
            where, runs_on = f"configs/scales/{scale}.yaml, device", {"gpu": "GPUs", "cpu": "CPUs"}[device]
            other = {"gpu": "--gpus", "cpu": "--cores"}[device]
            do = f"Leave {'them' if len(wrong) > 1 else 'it'} out; {other} says how many."
            raise UserError(f"{', '.join(wrong)}: the scale '{scale}' runs on {runs_on}.", where=where, do=do)
        if self.tokens_per_second and (self.mfu is not None or self.peak_tflops is not None):
            what = "--tokens-per-second and --mfu (--peak-tflops) both say how fast it is."
            raise UserError(what, do="Give one of them.")
        return self


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{name} must be a number above 0 (given: {value}).", do="Correct it.")
    return number


def _given_speeds(told: tuple[str, ...], models: list[str]) -> dict[str, float]:
    """Model -> tokens per second of one device, as `--tokens-per-second` says."""
    out: dict[str, float] = {}
    for text in told:
        model, equals, number = text.rpartition("=")
        if not equals and len(models) > 1:
            do = f"Write {' '.join(f'--tokens-per-second {name}=X' for name in models)}, or choose exhibits."
            raise UserError(f"--tokens-per-second {text}: there are several models.", do=do)
        names = [model] if equals else models
        if equals and model not in models:
            what = f"--tokens-per-second {text}: no segment is of the model '{model}'."
            raise UserError(what, do=f"Known here: {', '.join(models) or 'none'}.")
        if set(names) & set(out):
            raise UserError(f"--tokens-per-second says twice how fast '{model}' is.", do="Give one of them.")
        out |= dict.fromkeys(names, _positive("--tokens-per-second", number))
    return out


def _benchmark_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, row) of every measurement, oldest first."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    "not a JSON object.", where=f"{path}, line {number}", do="Correct or remove the line."
                )
            rows.append((path.name, row))
    return iter(sorted(rows, key=lambda item: str(item[1].get("date", ""))))


@dataclass(frozen=True)
class Speed:
    """Trained tokens per second of one device (None: unknown), and where that comes from."""

    tokens_per_second: float | None
    kind: Literal["given", "measured", "assumed", "unknown"]
    source: str
    #: The model is too small for the utilisation that is taken: it will be slower, perhaps many times.
    at_best: bool = False


def _cores(scale: Scale) -> int:
    """CPU cores that a rank uses."""
    return scale.threads + scale.loader_workers


def _measured(plan: Plan, model: str, results: Path, folder: Path) -> Speed | None:
    """The latest benchmark row that fits the model and scale; on CPUs else the median of its receipts.

    Of one day the last row counts: `bench gpu` puts the way in which the scale trains there.
    """
    scale, gpu = plan.scale, plan.scale.device == "gpu"
    # `bench train` measures the model of the plan's first segment.
    first = next(iter(plan.segments.values())).model_name
    found = None
    for name, row in _benchmark_rows(folder):
        # Names of models are those of the papers, at any scale.
        fits = (row.get("benchmark"), row.get("scale", "paper")) == ("gpu" if gpu else "train", scale.name)
        # `bench gpu` also measures a plain loop, and on CPUs itself.
        fits = fits and row.get("device", scale.device) == scale.device and row.get("arm") != "plain"
        if fits and row.get("model", first) == model:
            found = name, row
    if found:
        name, row = found
        key = "tokens_per_second" if gpu else "composer"
        where = f"benchmarks/{name}: {key}"
        # A row counts the tokens of all its GPUs; one of `bench train` those of a process.
        devices = _positive(f"{where}: gpus", row.get("gpus", 1)) if gpu else _cores(scale)
        speed = _positive(where, row.get(key)) / devices
        return Speed(speed, "measured", f"benchmarks/{name}, {row.get('date')}, {row.get('hardware')}")
    if gpu:
        return None
    paths = [receipt_path(results, scale.name, s.id) for s in plan.segments.values() if s.model_name == model]
    told = [read_json(path) for path in paths if path.exists()]
    speeds = [speed for receipt in told if (speed := receipt.get("measured", {}).get("tokens_per_second"))]
    if not speeds:
        return None
    machines = sorted({receipt.get("environment", {}).get("hardware", "?") for receipt in told})
    source = f"median of {len(speeds)} receipts, {', '.join(machines)}"
    return Speed(statistics.median(speeds) / _cores(scale), "measured", source)


def speed_of(
    plan: Plan, segment: Segment, flops: int, options: Options, given: dict[str, float], results: Path
) -> Speed:
    """How fast a segment trains: as given, else as measured, else (on GPUs) by an assumed utilisation, else unknown.

    `flops`: per token; `given`: model -> tokens per second of a device.
    """
    model = segment.model_name
    if model in given:
        return Speed(given[model], "given", "--tokens-per-second")
    chosen = options.mfu is not None or options.peak_tflops is not None
    if not chosen and (found := _measured(plan, model, results, MEASUREMENTS)):
        return found
    gpu, small = plan.scale.device == "gpu", segment.model.width < FILLS_A_GPU
    if not gpu or (small and not chosen):
        bench = "gpu" if gpu else "train"
        return Speed(
            None, "unknown", f"measure it with `cpt-repro bench {bench}`, or give --tokens-per-second"
        )
    mfu, peak = options.mfu or MFU, options.peak_tflops or PEAK_TFLOPS
    source = f"MFU {mfu:g} of {peak:g} TFLOP/s, {FORMULAS[options.attention]}"
    return Speed(mfu * peak * 1e12 / flops, "given" if chosen else "assumed", source, small)


# -- time


@dataclass
class Process:
    """One process of the workflow (a bundle): what it waits for, holds and takes."""

    name: str
    after: set[str]
    #: Devices it needs at once, and its part of each: below 1 where several share one.
    devices: int
    part: float
    #: With its devices to itself.
    seconds: float
    states_bytes: int
    longest_path_seconds: float = field(default=0, compare=False)


def critical_path(processes: list[Process]) -> float:
    """Seconds of the longest chain, which no number of devices makes shorter; notes each process' own way to the end.

    Processes come after those they wait for.
    """
    behind: dict[str, float] = {}
    for process in reversed(processes):
        process.longest_path_seconds = process.seconds + behind.get(process.name, 0)
        for name in process.after:
            behind[name] = max(behind.get(name, 0), process.longest_path_seconds)
    return max((process.longest_path_seconds for process in processes), default=0)


def schedule(processes: list[Process], devices: int) -> tuple[float, int]:
    """(seconds until all is done, most bytes of training states at a time) on a number of devices.

    List scheduling: whenever devices are free, of what can begin the process with the longest way to the end does.
    Those that share a device share its speed. Each process must fit on `devices`.
    """
    critical_path(processes)
    devices = min(devices, sum(process.devices for process in processes))
    waiting = sorted(processes, key=lambda process: (-process.longest_path_seconds, process.name))
    load, clock, most = [0.0] * devices, 0.0, 0
    done: set[str] = set()
    running: dict[str, tuple[Process, list[int]]] = {}
    left = {process.name: process.seconds for process in processes}
    while waiting or running:
        for process in [process for process in waiting if process.after <= done]:
            if process.part == 1 and load.count(0) < process.devices:
                continue
            room = [k for k in range(devices) if load[k] + process.part < 1 + 1e-9]
            if len(room) >= process.devices:
                held = sorted(room, key=load.__getitem__)[: process.devices]
                for k in held:
                    load[k] += process.part
                running[process.name] = process, held
                waiting.remove(process)
        most = max(most, sum(process.states_bytes for process, _ in running.values()))
        speed = {name: min(process.part / load[k] for k in held) for name, (process, held) in running.items()}
        step = min(left[name] / speed[name] for name in running)
        clock += step
        for name, (process, held) in list(running.items()):
            left[name] -= step * speed[name]
            if left[name] <= 1e-9 * process.seconds:
                done.add(name)
                del running[name]
                for k in held:
                    load[k] = round(load[k] - process.part, 9)
    return clock, most


# -- the estimate


def _selection(
    workflow: Workflow, exhibits: tuple[str, ...]
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """(exhibits, segments with ancestors, models to evaluate) asked for; everything without `exhibits`."""
    plan = workflow.plan
    if not exhibits:
        return list(workflow.exhibits), list(plan.segments), workflow.evaluations
    keys = list(dict.fromkeys(tuple(text.split("/", 1)) for text in exhibits))
    wanted: set[str] = set()
    models: dict[str, None] = {}
    for key in keys:
        if len(key) < 2:
            raise UserError(
                f"'{key[0]}' is no exhibit.", do="Write <paper>/<exhibit>, such as ibrahim2024/figure_05."
            )
        segments, evaluated = needs(plan, key[0], find_exhibit(*key))
        models |= dict.fromkeys(evaluated)
        sources = [s.id for model in evaluated for s, _ in evaluation_identity(plan, model)[1]]
        wanted |= {s.id for shown in (*segments, *sources) for s in plan.lineage(shown)}
    return keys, [s for s in plan.segments if s in wanted], list(models)


def _to_train(workflow: Workflow, selected: list[str], models: list[str]) -> set[str]:
    """Those of `selected` that have no receipt, and what must be trained again for them or for `models`."""
    part = copy.copy(workflow.plan)
    part.segments = {name: workflow.plan.segments[name] for name in selected}
    return set(outstanding(part, workflow.results, workflow.store, models)[0])


def _lineages_alone(plan: Plan, selected: list[str]) -> list[tuple[Segment, int]]:
    """(segment, tokens) of the same runs without sharing: every last run of a lineage with its ancestors, each of them
    as far as its child goes on from it. A run that another goes on from at its end is that one's beginning."""
    parents = {s.parent for name in selected if (s := plan.segments[name]).parent and _from_the_end(plan, s)}
    out = []
    for name in selected:
        if name not in parents:
            below = None
            for segment in reversed(plan.lineage(name)):
                iterations = segment.iterations if below is None else below.parent_iteration
                out.append((segment, iterations * segment.batch_sequences * segment.sequence_length))
                below = segment
    return out


def _from_the_end(plan: Plan, segment: Segment) -> bool:
    return segment.parent_iteration == plan.segments[segment.parent].iterations


def corpus_disk(workflow: Workflow, corpus: str) -> dict[str, Any]:
    """Tokens and bytes of a corpus' shards: as built, else as its manifest says, else estimated from its text."""
    scale = workflow.plan.scale
    manifest, length = load_manifest(scale.corpora[corpus]), scale.sequence_length
    for path in (Path(workflow.fingerprint(corpus)), corpus_path(workflow.results, scale.name, corpus)):
        built = read_fingerprint(path) if path.exists() else {}
        if (built.get("manifest"), built.get("sequence_length")) == (manifest.digest, length):
            domains = [domain for split in built["splits"].values() for domain in split.values()]
            tokens = sum(domain["tokens"] for domain in domains)
            size = sum(domain["sequences"] for domain in domains) * (length + 1) * TOKEN_BYTES
            return {"tokens": tokens, "bytes": size, "basis": "built"}
    if isinstance(manifest, Hub):
        # What is built of it does not depend on the scale.
        tokens, basis = manifest.tokens_billions * 1e9, "manifest"
    elif isinstance(manifest, Files):
        tokens, basis = (
            sum(split.text_bytes for split in manifest.splits.values()) / 4,
            "estimate: 4 bytes a token",
        )
    else:
        tokens, basis = sum(manifest.words.values()), "estimate: 1 token a word"
    return {
        "tokens": round(tokens),
        "bytes": round(tokens * TOKEN_BYTES * (length + 1) / length),
        "basis": basis,
    }


def _counts(device_count: int | None, least: int, seconds: float, processes: list[Process]) -> list[int]:
    """The numbers of devices to tell of: the one asked for, else doublings from the least until no more helps."""
    if device_count:
        return [device_count]
    out = [least]
    while len(out) < 6 and schedule(processes, out[-1])[0] > 1.01 * seconds:
        out.append(2 * out[-1])
    return out


def estimate(workflow: Workflow, options: Options) -> dict[str, Any]:
    """The cost of a scale, or of some exhibits of it, as `cpt-repro plan --json` prints it.

    Keys (a device is a GPU, or a core at scales for CPUs; None where the speed of a model is unknown):
    - scale, device, exhibits, tokens, units_of_300B, evaluations: what it is about; evaluations are counted only.
    - formula: name and text of the FLOPs per trained token.
    - models: name -> parameters, matmul_parameters, flops_per_token, tokens_per_second_per_device, speed (given,
      measured, assumed, unknown), speed_source, at_best (too small a model for the utilisation taken: slower in
      truth), devices_per_process, processes_per_device, memory_gb_per_device (weights, gradients and Adam's moments;
      None at scales for CPUs), all (its part of `all`).
    - all, done, left: segments, processes, tokens, training_flops, validation_flops, device_hours, price_usd.
    - wall: for numbers of devices: devices, all_hours, left_hours, busy_share (of the devices' time that is worked, in
      `all`), held_usd (the price of all devices from begin to end of `left`), states_bytes (the most at a time).
    - critical_path_hours: all, left: what no number of devices makes shorter.
    - sharing: alone_tokens, alone_flops, alone_device_hours: every lineage trained by itself; times: its share of
      `all` in FLOPs.
    - disk: corpora (name -> tokens, bytes, basis, tokens_read: by all training, replay included), shards_bytes,
      checkpoints, checkpoints_bytes, states_bytes, total_bytes.
    - segments: id, paper, name, seed, parent, model, process, iterations, tokens, identity, done, training_flops,
      validation_flops, device_hours, kept_bytes.
    - no_counterpart: run -> why the scale has none. not_counted: what the hours leave out.

    Raises `UserError` on options that make no sense, exhibits that are unknown, devices that are too few, or too small.
    """
    plan, scale = workflow.plan, workflow.plan.scale
    gpu = scale.device == "gpu"
    options.checked(scale.device, scale.name)
    exhibits, selected, evaluated = _selection(workflow, options.exhibits)
    segments = [plan.segments[name] for name in selected]
    models: dict[str, dict[str, Any]] = {}
    names = list(dict.fromkeys(segment.model_name for segment in segments))
    given = _given_speeds(options.tokens_per_second, names)
    for segment in segments:
        if segment.model_name not in models:
            models[segment.model_name] = _model(plan, segment, options, given, workflow.results)
    if gpu:
        _check_memory(models, scale.name, options.gpu_memory)
    least = max((model["devices_per_process"] for model in models.values()), default=0)
    asked = options.gpus or options.cores
    if asked and asked < least:
        name, model = max(models.items(), key=lambda item: item[1]["devices_per_process"])
        what = f"one process of the model {name} needs {least} {'GPUs' if gpu else 'cores'}, and there are {asked}."
        do = "Give more, lower its ranks (or threads), choose exhibits without it, or set the model to null."
        raise UserError(what, where=f"configs/scales/{scale.name}.yaml, execution.{name}", do=do)
    left = _to_train(workflow, selected, evaluated)
    process_of = {s.id: name for name, members in plan.bundles.items() for s in members}
    rows = [_row(plan, s, models[s.model_name], process_of[s.id], s.id not in left) for s in segments]
    known = all(model["tokens_per_second_per_device"] for model in models.values())
    for name, model in models.items():
        model["all"] = sums_of([row for row in rows if row["model"] == name], options.price)
    sums = {
        "all": sums_of(rows, options.price),
        "done": sums_of([row for row in rows if row["done"]], options.price),
        "left": sums_of([row for row in rows if not row["done"]], options.price),
    }
    processes = {part: _processes(plan, rows, models, part) for part in ("all", "left")}
    paths = {part: critical_path(members) for part, members in processes.items()}
    wall = []
    for count in _counts(asked, least, paths["all"], processes["all"]) if segments else []:
        (seconds, states), (remaining, _) = (schedule(processes[part], count) for part in ("all", "left"))
        worked = sum(process.seconds * process.devices for process in processes["all"])
        wall.append(
            {
                "devices": count,
                "all_hours": seconds / 3600 if known else None,
                "left_hours": remaining / 3600 if known else None,
                "busy_share": worked / (seconds * count) if known else None,
                "held_usd": remaining / 3600 * count * options.price if known and options.price else None,
                "states_bytes": states,
            }
        )
    alone = _lineages_alone(plan, selected)
    alone_flops = sum(tokens * models[s.model_name]["flops_per_token"] for s, tokens in alone)
    disk = _disk(workflow, segments, rows, wall)
    return {
        "scale": scale.name,
        "device": scale.device,
        "exhibits": ["/".join(key) for key in exhibits],
        "tokens": sums["all"]["tokens"],
        "units_of_300B": sum(segment.billions for segment in segments) / 300,
        "evaluations": len(evaluated),
        "formula": {"attention": options.attention, "flops_per_token": FORMULAS[options.attention]},
        "models": models,
        **sums,
        "wall": wall,
        "critical_path_hours": {part: seconds / 3600 if known else None for part, seconds in paths.items()},
        "sharing": {
            "alone_tokens": sum(tokens for _, tokens in alone),
            "alone_flops": alone_flops,
            "alone_device_hours": _hours(
                tokens / speed if (speed := models[s.model_name]["tokens_per_second_per_device"]) else None
                for s, tokens in alone
            ),
            "times": alone_flops / sums["all"]["training_flops"] if segments else None,
        },
        "disk": disk,
        "segments": rows,
        "no_counterpart": _absent(plan, exhibits if options.exhibits else None),
        "not_counted": NOT_COUNTED,
    }


def _absent(plan: Plan, exhibits: list[tuple[str, str]] | None) -> dict[str, str]:
    """Run or merge -> why it has no counterpart, of those that `exhibits` show; all runs where that is None."""
    if exhibits is None:
        return {"/".join(run): why for run, why in plan.absent.items()}
    shown = {(paper, key): find_exhibit(paper, key) for paper, key in exhibits}
    named = [(paper, name) for (paper, _), one in shown.items() for name in (*one.runs, *one.evaluations)]
    return {"/".join(run): why for run in named if (why := absent(plan, *run))}


def _model(
    plan: Plan, segment: Segment, options: Options, given: dict[str, float], results: Path
) -> dict[str, Any]:
    scale, execution = plan.scale, plan.scale.run_as(segment.model_name)
    count = parameters(segment.model, segment.vocabulary)
    flops = flops_per_token(segment.model, segment.vocabulary, segment.sequence_length, options.attention)
    speed = speed_of(plan, segment, flops, options, given, results)
    gpu = scale.device == "gpu"
    memory = IN_MEMORY * count / (execution.ranks if execution.fsdp else 1) * execution.jobs_per_gpu / GB
    return {
        "parameters": count,
        "matmul_parameters": matmul_parameters(segment.model, segment.vocabulary),
        "flops_per_token": flops,
        "tokens_per_second_per_device": speed.tokens_per_second,
        "speed": speed.kind,
        "speed_source": speed.source,
        "at_best": speed.at_best,
        "devices_per_process": execution.ranks * (1 if gpu else _cores(scale)),
        "processes_per_device": execution.jobs_per_gpu if gpu else 1,
        "memory_gb_per_device": memory if gpu else None,
    }


def _check_memory(models: dict[str, dict[str, Any]], scale: str, told: float | None) -> None:
    there = told or 80
    for name, model in models.items():
        needed = model["memory_gb_per_device"]
        if needed > there:
            what = (
                f"the model {name} needs {needed:.1f} GB on each GPU for weights, gradients and Adam's moments alone, "
                f"and a GPU has {there:g} (--gpu-memory)."
            )
            do = "Set 'fsdp' there, with more ranks, or lower 'jobs_per_gpu'."
            raise UserError(what, where=f"configs/scales/{scale}.yaml, execution.{name}", do=do)


def _row(plan: Plan, segment: Segment, model: dict[str, Any], process: str, done: bool) -> dict[str, Any]:
    speed, validated = model["tokens_per_second_per_device"], validation_tokens(segment)
    return {
        "id": segment.id,
        "paper": segment.paper,
        "name": segment.name,
        "seed": segment.seed,
        "parent": segment.parent,
        "model": segment.model_name,
        "process": process,
        "iterations": segment.iterations,
        "tokens": segment.tokens,
        "identity": segment.identity,
        "done": done,
        "training_flops": segment.tokens * model["flops_per_token"],
        # A forward pass is a third of the work on a trained token.
        "validation_flops": validated * model["flops_per_token"] // 3,
        "device_hours": (segment.tokens + validated / 3) / speed / 3600 if speed else None,
        "kept_bytes": kept_bytes(segment, plan.checkpoints[segment.id]),
    }


def _hours(seconds: Iterable[float | None]) -> float | None:
    told = list(seconds)
    return None if None in told else sum(told) / 3600


def sums_of(rows: list[dict[str, Any]], price: float | None) -> dict[str, Any]:
    hours = [row["device_hours"] for row in rows]
    total = None if None in hours else sum(hours)
    return {
        "segments": len(rows),
        "processes": len({row["process"] for row in rows}),
        "tokens": sum(row["tokens"] for row in rows),
        "training_flops": sum(row["training_flops"] for row in rows),
        "validation_flops": sum(row["validation_flops"] for row in rows),
        "device_hours": total,
        "price_usd": total * price if price and total is not None else None,
    }


def _processes(
    plan: Plan, rows: list[dict[str, Any]], models: dict[str, dict[str, Any]], part: str
) -> list[Process]:
    """The processes of all rows, or of those left, in an order in which what is waited for comes first.

    Where a speed is unknown all times are in FLOPs, which keeps their proportions.
    """
    rows = [row for row in rows if part == "all" or not row["done"]]
    process_of = {row["id"]: row["process"] for row in rows}
    known = all(model["tokens_per_second_per_device"] for model in models.values())
    members: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        members.setdefault(row["process"], []).append(row)
    out = []
    for name in (name for name in plan.bundles if name in members):
        model = models[members[name][0]["model"]]
        work = [
            3600 * r["device_hours"] if known else r["training_flops"] + r["validation_flops"]
            for r in members[name]
        ]
        parents = {process_of.get(row["parent"]) for row in members[name]} - {None, name}
        states = (
            max(state_bytes(plan.segments[row["id"]]) for row in members[name])
            if plan.scale.save_every
            else 0
        )
        devices, part_of = model["devices_per_process"], 1 / model["processes_per_device"]
        out.append(Process(name, parents, devices, part_of, sum(work) / devices, states))
    return out


def _disk(
    workflow: Workflow, segments: list[Segment], rows: list[dict[str, Any]], wall: list[dict[str, Any]]
) -> dict[str, Any]:
    used = {corpus for segment in segments for corpus in segment.data}
    corpora = {
        corpus: corpus_disk(workflow, corpus) for corpus in workflow.plan.scale.corpora if corpus in used
    }
    for corpus, told in corpora.items():
        told["tokens_read"] = round(sum(corpus_tokens(segment).get(corpus, 0) for segment in segments))
    sizes = {
        "shards_bytes": sum(told["bytes"] for told in corpora.values()),
        "checkpoints_bytes": sum(row["kept_bytes"] for row in rows),
        "states_bytes": max((row["states_bytes"] for row in wall), default=0),
    }
    count = sum(len(workflow.plan.checkpoints[segment.id]) for segment in segments)
    return {"corpora": corpora, "checkpoints": count, **sizes, "total_bytes": sum(sizes.values())}
