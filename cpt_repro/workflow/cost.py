"""What a plan costs before anything runs: work, time, money, disk and memory, by formula. Imports no torch.

Every number comes from the declarations, except the speed: that is given, measured (`benchmarks/`, receipts)
or an assumption that is named. A device is a GPU, or a core at scales for CPUs. GB are 10^9 bytes.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from cpt_repro.declarations.manifests import Files, Hub
from cpt_repro.declarations.strict import Count, Strict, parse
from cpt_repro.errors import UserError
from cpt_repro.models.architecture import GB, IN_MEMORY, Attention, architecture
from cpt_repro.planning.mixture import Mixture
from cpt_repro.planning.plan import PlannedRun
from cpt_repro.training.store import kept_bytes, state_bytes
from cpt_repro.workflow.jobs import Workflow

#: Where no speed is known: share of the peak that training reaches, and the peak of an H100 (dense bf16).
MFU, PEAK_TFLOPS = 0.45, 989.0
#: Published utilisations are of models at least this wide; for narrower ones nothing is assumed.
FILLS_A_GPU = 1024
TOKEN_BYTES = 2
NOT_COUNTED = "text, building data, starting, compiling, saving, communication, benchmarks, recomputation"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Options(Strict):
    """What the user may say of a plan's cost."""

    exhibits: tuple[str, ...] = ()
    gpus: Count | None = None
    cores: Count | None = None
    #: `X`, or `MODEL=X` for each of several models: tokens per second of one device
    tokens_per_second: tuple[str, ...] = ()
    mfu: Annotated[float, Field(gt=0, le=1)] | None = None
    peak_tflops: Positive | None = None
    #: USD per GPU-hour
    price: Positive | None = None
    #: GB
    gpu_memory: Positive = 80
    attention: Attention = "full"


class Measurement(BaseModel):
    """What counts of a row of `benchmarks/`: `bench gpu` gives the tokens of all its GPUs, `bench train` of a
    training."""

    benchmark: str = ""
    scale: str = "paper"
    model: str | None = None
    device: str | None = None
    arm: str = ""
    gpus: int = Field(default=1, ge=0)
    tokens_per_second: Positive | None = None
    date: str = ""
    hardware: str = ""

    @model_validator(mode="before")
    @classmethod
    def _its_speed(cls, row: Any) -> Any:
        if isinstance(row, dict) and row.get("benchmark") == "train":
            row = row | {"tokens_per_second": row.get("composer")}
        return row


@dataclass(frozen=True)
class Speed:
    """Trained tokens per second of one device, None where it is unknown, and where that comes from."""

    tokens_per_second: float | None
    kind: Literal["given", "measured", "assumed", "unknown"]
    source: str
    #: the model is too small for the utilisation that is taken: it will be slower, perhaps many times
    at_best: bool = False


@dataclass(frozen=True)
class ModelCost:
    """One of the scale's models; memory is that of weights, gradients and Adam's moments on each device."""

    parameters: int
    matmul_parameters: int
    flops_per_token: int
    speed: Speed
    #: that one training holds; and trainings that share one
    devices: int
    trainings_per_device: int
    memory_gb: float


@dataclass(frozen=True)
class RunCost:
    """One training, under its first name; hours are None where the speed is unknown."""

    id: str
    parent: str | None
    model: str
    identity: str
    #: its receipt is there, and its weights are if anything asked for still starts from them
    done: bool
    iterations: int
    tokens: int
    training_flops: int
    validation_flops: int
    device_hours: float | None
    kept_bytes: int


@dataclass(frozen=True)
class Sum:
    """Several trainings together."""

    trainings: int
    tokens: int
    training_flops: int
    validation_flops: int
    device_hours: float | None

    @classmethod
    def of(cls, runs: Iterable[RunCost]) -> Sum:
        """The sum of some trainings."""
        runs = list(runs)
        parts = ([getattr(run, name) for run in runs] for name in list(cls.__annotations__)[1:])
        return cls(len(runs), *(None if None in part else sum(part) for part in parts))


@dataclass(frozen=True)
class Bound:
    """Least hours on a number of devices: the longest chain, or all work shared out evenly, whichever is
    more.

    `devices` None: any number, so that the chain alone counts.
    """

    devices: int | None
    all_hours: float | None
    left_hours: float | None


@dataclass(frozen=True)
class CorpusCost:
    """The shards of one corpus, where their size is from, and what all training reads, replay included."""

    tokens: int
    bytes: int
    basis: str
    tokens_read: int


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
    all: Sum
    done: Sum
    left: Sum
    #: USD per GPU-hour
    price: float | None
    wall: list[Bound]
    #: FLOPs and device-hours of every lineage trained by itself
    alone_flops: int
    alone_hours: float | None
    corpora: dict[str, CorpusCost]
    #: that are kept, and their bytes
    checkpoints: int
    checkpoints_bytes: int
    #: at a time, against interruption, on the most devices of `wall`
    states_bytes: int
    #: run -> why the scale has none
    no_counterpart: dict[str, str]
    not_counted: str = NOT_COUNTED


# -- speed


def given_speeds(texts: tuple[str, ...], models: list[str]) -> dict[str, float]:
    """Model -> tokens per second of one device, as `--tokens-per-second` says."""
    out: dict[str, float] = {}
    for text in texts:
        model, equals, number = text.rpartition("=")
        fault, do = None, f"Write {' '.join(f'--tokens-per-second {name}=X' for name in models)}."
        if not equals and len(models) > 1:
            fault = "there are several models"
        elif equals and model not in models:
            fault = f"no training is of '{model}'"
        elif model in out:
            fault = f"it is said twice how fast '{model}' is"
        if fault:
            raise UserError(f"{fault}.", where=f"--tokens-per-second {text}", do=do)
        speed = parse(Measurement, {"tokens_per_second": number}, "the command line").tokens_per_second
        out |= dict.fromkeys([model] if equals else models, speed)
    return out


def measured_speed(work: Workflow, model: str) -> Speed | None:
    """By the latest row of `benchmarks/` that fits; on CPUs else the median of the scale's receipts."""
    scale, gpu, folder = work.scale, work.scale.device == "gpu", work.project.measurements
    cores, latest = scale.threads + scale.loader_workers, None
    # `bench train` measures the model of the plan's first run.
    first = next(iter(work.plan.runs.values())).model_name
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{path}, line {number}"
            try:
                row = parse(Measurement, json.loads(line or "{}"), where)
            except ValueError:
                raise UserError("not JSON.", where=where, do="Correct or remove the line.") from None
            fits = (row.benchmark, row.scale) == ("gpu" if gpu else "train", scale.name)
            # `bench gpu` also measures a plain loop, and on CPUs itself.
            fits &= (row.device or scale.device) == scale.device and row.arm != "plain"
            # Of one day the last row counts: `bench gpu` puts the way in which the scale trains there.
            if not fits or (row.model or first) != model:
                continue
            if not (row.tokens_per_second and row.gpus):
                raise UserError("it measures nothing.", where=where, do="Correct or remove the line.")
            if latest is None or row.date >= latest[0].date:
                latest = row, path
    if latest:
        row, path = latest
        speed = row.tokens_per_second / (row.gpus if gpu else cores)
        return Speed(speed, "measured", f"{folder.name}/{path.name}, {row.date}, {row.hardware}")
    runs = () if gpu else (run for run in work.plan.runs.values() if run.model_name == model)
    receipts = [one for run in runs if (one := work.records.receipt(run)) and one.measured.tokens_per_second]
    if not receipts:
        return None
    machines = ", ".join(sorted({receipt.environment.get("hardware", "?") for receipt in receipts}))
    speed = statistics.median(receipt.measured.tokens_per_second for receipt in receipts) / cores
    return Speed(speed, "measured", f"median of {len(receipts)} receipts, {machines}")


def speed_of(work: Workflow, run: PlannedRun, flops: int, options: Options, given: dict[str, float]) -> Speed:
    """How fast a run trains: as given, else as measured, else on GPUs by an assumed utilisation, else
    unknown.

    `flops`: per token; `given`: as `given_speeds` has it.
    """
    if run.model_name in given:
        return Speed(given[run.model_name], "given", "--tokens-per-second")
    chosen = bool(options.mfu or options.peak_tflops)
    if not chosen and (measured := measured_speed(work, run.model_name)):
        return measured
    gpu, small = work.scale.device == "gpu", run.training.model.width < FILLS_A_GPU
    if not gpu or (small and not chosen):
        bench = f"cpt-repro bench {'gpu' if gpu else 'train'}"
        return Speed(None, "unknown", f"measure it with `{bench}`, or give --tokens-per-second")
    mfu, peak = options.mfu or MFU, options.peak_tflops or PEAK_TFLOPS
    kind, source = "given" if chosen else "assumed", f"MFU {mfu:g} of {peak:g} TFLOP/s"
    return Speed(mfu * peak * 1e12 / flops, kind, source, small)


# -- models and runs


def _model(work: Workflow, run: PlannedRun, options: Options, given: dict[str, float]) -> ModelCost:
    """Of the model of a run; `UserError` where a GPU is too small for it, or too few devices are at hand."""
    training, name, scale, gpu = run.training, run.model_name, work.scale, work.scale.device == "gpu"
    shape, run_as, size = (
        architecture(training.model.architecture),
        scale.run_as(name),
        (training.model, training.vocabulary),
    )
    flops, parameters = (
        shape.flops_per_token(*size, training.sequence_length, options.attention),
        shape.parameters(*size),
    )
    devices, shared = run_as.ranks if gpu else work.cores(run_as) * run_as.nodes, run_as.jobs_per_gpu
    memory = IN_MEMORY * parameters / (run_as.ranks if run_as.fsdp else 1) * shared / GB
    where, at_hand = f"configs/scales/{scale.name}.yaml, execution.{name}", options.gpus or options.cores
    if gpu and memory > options.gpu_memory:
        need = f"{memory:.1f} GB on each GPU for weights, gradients and Adam's moments alone"
        what = f"the model {name} needs {need}, and a GPU has {options.gpu_memory:g} (--gpu-memory)."
        raise UserError(what, where=where, do="Set 'fsdp' there, with more ranks, or lower 'jobs_per_gpu'.")
    if at_hand and at_hand < devices:
        what = f"one training of the model {name} needs {devices} {'GPUs' if gpu else 'cores'}"
        do = "Give more, lower its ranks (or threads), choose exhibits without it, or set the model to null."
        raise UserError(f"{what}, and there are {at_hand}.", where=where, do=do)
    speed = speed_of(work, run, flops, options, given)
    return ModelCost(parameters, shape.matmul_parameters(*size), flops, speed, devices, shared, memory)


def _run(work: Workflow, run: PlannedRun, model: ModelCost, done: bool) -> RunCost:
    training, wanted, speed = run.training, work.plan.wanted(run.identity), model.speed.tokens_per_second
    once = len(wanted.corpora) * wanted.sequences * training.sequence_length
    validated = len(wanted.evaluations) * once
    return RunCost(
        id=run.id,
        parent=run.parent,
        model=run.model_name,
        identity=run.identity,
        done=done,
        iterations=training.iterations,
        tokens=training.tokens,
        training_flops=training.tokens * model.flops_per_token,
        # A forward pass is a third of the work on a trained token.
        validation_flops=validated * model.flops_per_token // 3,
        device_hours=(training.tokens + validated / 3) / speed / 3600 if speed else None,
        kept_bytes=kept_bytes(training, work.plan.kept(run.identity)),
    )


def _selected(work: Workflow, exhibits: list[tuple[str, str]]) -> tuple[list[PlannedRun], list[str]]:
    """(runs, one a training, parents first; models to evaluate) of some exhibits; without any, of all."""
    plan, catalogue = work.plan, work.catalogue
    if not exhibits:
        return [runs[0] for runs in plan.trainings.values()], work.models
    needs = [catalogue.needs(*exhibit) for exhibit in exhibits]
    models = list(dict.fromkeys(model for need in needs for model in need.models))
    shown = {run for need in needs for run in need.runs}
    shown |= {run.id for model in models for run, _ in plan.model(model).weights}
    wanted = {run.identity for name in shown for run in plan.lineage(name)}
    return [runs[0] for identity, runs in plan.trainings.items() if identity in wanted], models


# -- time, sharing, disk


def _chain(work: Workflow, costs: list[RunCost], models: dict[str, ModelCost]) -> float:
    """Hours of the longest chain of trainings."""
    until: dict[str, float] = {}
    for cost in costs:
        start = work.plan.runs[cost.id].training.start
        before = until.get(start.parent, 0) if start else 0
        until[cost.identity] = before + cost.device_hours / models[cost.model].devices
    return max(until.values(), default=0)


def bounds(
    work: Workflow, costs: list[RunCost], models: dict[str, ModelCost], at_hand: int | None
) -> list[Bound]:
    """For the devices at hand, else for the least that will do and doublings until no more help; then for
    any.
    """
    if any(cost.device_hours is None for cost in costs):
        return [Bound(None, None, None)]
    parts = costs, [cost for cost in costs if not cost.done]
    chains, hours = (
        [_chain(work, part, models) for part in parts],
        [Sum.of(part).device_hours for part in parts],
    )
    counts = [at_hand or max((model.devices for model in models.values()), default=1)]
    while not at_hand and len(counts) < 6 and hours[0] / counts[-1] > 1.01 * chains[0]:
        counts.append(2 * counts[-1])
    limits = list(zip(chains, hours, strict=True))
    return [
        *(Bound(n, *(max(chain, work / n) for chain, work in limits)) for n in counts),
        Bound(None, *chains),
    ]


def alone(work: Workflow, runs: list[PlannedRun]) -> Counter[str]:
    """Model -> tokens of every last training of a lineage with its ancestors, each as far as its child goes
    on.

    A training that another goes on from at its end is that one's beginning.
    """
    ends = {identity: named[0].training.iterations for identity, named in work.plan.trainings.items()}
    starts = [run.training.start for run in runs if run.training.start]
    begun = {start.parent for start in starts if start.iteration == ends[start.parent]}
    tokens: Counter[str] = Counter()
    for last in runs:
        iterations = last.training.iterations
        for run in reversed(work.plan.lineage(last.id)) if last.identity not in begun else ():
            tokens[run.model_name] += iterations * run.training.batch_sequences * run.training.sequence_length
            iterations = run.parent_iteration
    return tokens


def tokens_by_corpus(mixture: Mixture, tokens: float) -> Counter[str]:
    """Corpus -> tokens that a training of so many takes from it, replay included."""
    out: Counter[str] = Counter()
    for part in mixture:
        share = part.share * tokens
        out.update({part.stream.corpus: share} if part.stream else tokens_by_corpus(part.parts, share))
    return out


def _corpus(work: Workflow, corpus: str, read: float) -> CorpusCost:
    manifest, length = work.plan.manifest(corpus), work.scale.sequence_length
    record = work.records.fingerprint(corpus)
    if built := work.built(corpus) or (record if record and work.fits(corpus, record) else None):
        domains = [domain for split in built.splits.values() for domain in split.values()]
        size = sum(domain.sequences for domain in domains) * (length + 1) * TOKEN_BYTES
        return CorpusCost(sum(domain.tokens for domain in domains), size, "built", round(read))
    if isinstance(manifest, Hub):
        tokens, basis = manifest.tokens_billions * 1e9, "manifest"
    elif isinstance(manifest, Files):
        text = sum(split.text_bytes for split in manifest.splits.values())
        tokens, basis = text / 4, "estimate: 4 bytes a token"
    else:
        tokens, basis = sum(manifest.words.values()), "estimate: 1 token a word"
    return CorpusCost(round(tokens), round(tokens * TOKEN_BYTES * (length + 1) / length), basis, round(read))


def _states(work: Workflow, runs: list[PlannedRun], models: dict[str, ModelCost], devices: int) -> int:
    """Most bytes of states against interruption at a time, on a number of devices."""
    total, free = 0, float(devices)
    largest = sorted(((state_bytes(run.training), run.model_name) for run in runs), reverse=True)
    for size, name in largest if work.scale.save_every else ():
        if (held := models[name].devices / models[name].trainings_per_device) <= free:
            total, free = total + size, free - held
    return total


def _check(options: Options, scale: str, device: str) -> None:
    """Raises `UserError` for what does not go together."""
    foreign = {"cpu": ("gpus", "mfu", "peak_tflops", "price"), "gpu": ("cores",)}[device]
    if wrong := [f"--{name.replace('_', '-')}" for name in foreign if getattr(options, name) is not None]:
        what = f"{', '.join(wrong)}: the scale '{scale}' runs on {device.upper()}s."
        raise UserError(what, where=f"configs/scales/{scale}.yaml, device", do="Leave it out.")
    if options.tokens_per_second and (options.mfu or options.peak_tflops):
        what = "--tokens-per-second and --mfu (--peak-tflops) both say how fast it is."
        raise UserError(what, do="Give one of them.")


def estimate(work: Workflow, options: Options) -> Cost:
    """The cost of a scale, or of some exhibits of it.

    Raises `UserError` on options that make no sense, unknown exhibits, and devices that are too few, or
    small.
    """
    plan, scale, catalogue = work.plan, work.scale, work.catalogue
    _check(options, scale.name, scale.device)
    exhibits = [work.exhibit_named(text) for text in dict.fromkeys(options.exhibits)]
    runs, evaluated = _selected(work, exhibits)
    first = dict(reversed({run.model_name: run for run in reversed(runs)}.items()))
    given = given_speeds(options.tokens_per_second, list(first))
    models = {name: _model(work, run, options, given) for name, run in first.items()}
    left = {run.identity for run in work.outstanding([run.id for run in runs], evaluated)[0]}
    costs = [_run(work, run, models[run.model_name], run.identity not in left) for run in runs]
    wall = bounds(work, costs, models, options.gpus or options.cores)
    by_itself = alone(work, runs)
    speeds = {name: models[name].speed.tokens_per_second for name in by_itself}
    read = sum((tokens_by_corpus(run.training.mixture, run.training.tokens) for run in runs), Counter())
    absent = plan.absent
    if exhibits:
        shown = [(paper, catalogue.find(paper, key)) for paper, key in exhibits]
        named = [(paper, name) for paper, one in shown for name in (*one.runs, *one.evaluations)]
        absent = {run: why for run in named if (why := plan.why_absent(*run))}
    units = {run.paper: plan.studies[run.paper].paper.unit for run in runs}
    formulas = {architecture(run.training.model.architecture).formulas[options.attention] for run in runs}
    return Cost(
        scale=scale.name,
        device=scale.device,
        exhibits=["/".join(key) for key in exhibits or catalogue.exhibits],
        units=sum(run.billions / units[run.paper].billions for run in runs),
        unit=", ".join(dict.fromkeys(unit.name for unit in units.values())),
        evaluations=len(evaluated),
        formula=", ".join(sorted(formulas)),
        models=models,
        runs=costs,
        all=Sum.of(costs),
        done=Sum.of(cost for cost in costs if cost.done),
        left=Sum.of(cost for cost in costs if not cost.done),
        price=options.price,
        wall=wall,
        alone_flops=sum(tokens * models[name].flops_per_token for name, tokens in by_itself.items()),
        alone_hours=None
        if None in speeds.values()
        else sum(tokens / speeds[name] / 3600 for name, tokens in by_itself.items()),
        corpora={corpus: _corpus(work, corpus, read[corpus]) for corpus in scale.corpora if read[corpus]},
        checkpoints=sum(len(plan.kept(run.identity)) for run in runs),
        checkpoints_bytes=sum(cost.kept_bytes for cost in costs),
        states_bytes=_states(work, runs, models, max(bound.devices or 0 for bound in wall)),
        no_counterpart={"/".join(run): why for run, why in absent.items()},
    )
