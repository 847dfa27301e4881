"""The speed of training: plain loops and our trainer in turns."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cpt_repro.bench.rows import in_turns, measured_here, ratios
from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError
from cpt_repro.models.architecture import architecture
from cpt_repro.planning.plan import Plan, PlannedRun, ValidationPlan
from cpt_repro.planning.training import Training
from cpt_repro.training import execution as spread
from cpt_repro.training.batches import Batches, batch_loader
from cpt_repro.training.composer import Job, train
from cpt_repro.training.corpora import Corpora
from cpt_repro.training.loss import CausalLM
from cpt_repro.training.optimizer import CLIP, adamw, learning_rate, set_rate
from cpt_repro.training.store import Store

#: Dense bf16 TFLOP/s by a part of the GPU's name; the first that fits counts.
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}
#: Steps before those that are timed: compiling, first allocations.
WARM_STEPS = 5


class _AsItComes(CausalLM):
    """The library's model and its own loss, called as its users do."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=batch[:, :-1], labels=batch[:, :-1]).loss

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return outputs


def _whole_logits(model: torch.nn.Module) -> CausalLM:
    """With a mask, and cross-entropy of all logits at once."""
    wrapped = CausalLM(model)
    wrapped.in_rows = False
    return wrapped


#: Plain loops by what they train; on a GPU the last two are one.
LOOPS = {"library": _AsItComes, "whole_logits": _whole_logits, "plain": CausalLM}
#: Phases of a step, in order; the first is the wait for the batch.
PHASES = ("data", "forward", "backward", "optimizer")


def plain_loop(
    training: Training,
    corpora: Any,
    execution: Execution,
    device: str = "cpu",
    workers: int = 0,
    wrap: Callable[[torch.nn.Module], CausalLM] = CausalLM,
) -> dict[str, list[float]]:
    """Phase -> its seconds in each step of a plain loop over the trainer's parts.

    On a GPU, which is not waited for in between, what is left comes with the last phase.
    """
    where = torch.device("cuda" if device == "gpu" else "cpu")
    spread.prepare_process(training, execution.deterministic, device)
    shape = architecture(training.model.architecture)
    model = shape.new(training.model, training.vocabulary, training.sequence_length, training.seed)
    spread.prepare_model(model, shape, execution, device)
    wrapped = wrap(model).to(where)
    optimizer = adamw(wrapped)
    if execution.compile:
        spread.compile_parts(wrapped, shape)
    batches = Batches(training, corpora)
    loader = iter(batch_loader(batches, training.seed, 0, workers, pinned=device == "gpu"))
    microbatch = execution.microbatch_sequences or training.batch_sequences
    seconds: dict[str, list[float]] = {phase: [0.0] * training.iterations for phase in PHASES}
    mark = time.perf_counter()

    def ends(phase: str) -> None:
        nonlocal mark
        before, mark = mark, time.perf_counter()
        seconds[phase][iteration] += mark - before

    for iteration in range(training.iterations):
        batch = next(loader)
        ends("data")
        set_rate(optimizer, learning_rate(training, iteration))
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=where)
        for part in batch.split(microbatch):
            part = part.to(where, non_blocking=True)
            with spread.precision_context(training.precision, where):
                loss = wrapped.loss(wrapped(part), part) * (len(part) / len(batch))
            ends("forward")
            loss.backward()
            total += loss.detach()
            ends("backward")
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), CLIP)
        optimizer.step()
        total.item()  # waits for a GPU, as Composer does to report the loss
        ends("optimizer")
    return seconds


class RandomTokens:
    """Stands for corpora that are not built: every sequence is random tokens."""

    def __init__(self, plan: Plan, training: Training):
        self.plan, self._vocabulary, self._width = plan, training.vocabulary, training.sequence_length + 1

    def sequences(self, corpus: str, domain: str) -> RandomTokens:
        """Itself, for every domain."""
        return self

    def fingerprint(self, corpus: str) -> Any:
        """What a receipt records instead of a fingerprint."""
        return SimpleNamespace(fingerprint="random tokens")

    def __len__(self) -> int:
        return 1 << 24

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Random tokens (n, L + 1) as uint16, the same for the same indices."""
        generator = np.random.default_rng(int(indices[0]))
        return generator.integers(0, self._vocabulary, (len(indices), self._width), dtype=np.uint16)


def _shortened(run: PlannedRun, **changes: Any) -> PlannedRun:
    """A run with some of its training changed."""
    return replace(run, training=Training.model_validate(run.training.model_dump() | changes))


def _run(plan: Plan, model: str | None, steps: int, device: str) -> PlannedRun:
    """A run from scratch of a model, with the batch of one rank and as many steps."""
    roots = {run.model_name: run for run in reversed(plan.runs.values()) if not run.parent}
    model = model or next(iter(plan.scale.models))
    if model not in roots:
        what = f"no run of scale '{plan.scale.name}' trains the model '{model}' from scratch."
        raise UserError(what, do=f"Known: {', '.join(sorted(roots))}.")
    training = roots[model].training
    batch = max(training.batch_sequences // plan.scale.run_as(model).ranks, 1)
    precision = training.precision if device == "gpu" else "fp32"
    changes = {"iterations": WARM_STEPS + steps, "batch_sequences": batch, "external": None}
    return _shortened(roots[model], **changes, precision=precision)


def _time_training(
    plan: Plan, run: PlannedRun, corpora: Any, device: str, rounds: int
) -> tuple[dict[str, Execution], dict[str, list[dict[str, float | None]]]]:
    """(arm -> how it trains, arm -> what it took in each round); all arms have one micro-batch."""
    how, gpu = {"device": device, "workers": plan.scale.loader_workers}, device == "gpu"
    declared = plan.scale.run_as(run.model_name)

    def ours(run: PlannedRun, execution: Execution) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(run, ValidationPlan((), 1, (), ()), {}, execution=execution, **how)
            return train(job, corpora, Store(plan.project.with_(store=Path(folder)), "bench")).measured

    def measure(arm: str, execution: Execution) -> dict[str, float | None]:
        torch._dynamo.reset()
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if arm in LOOPS:
            phases = plain_loop(run.training, corpora, execution, **how, wrap=LOOPS[arm])
            steps = list(map(sum, zip(*(of[WARM_STEPS:] for of in phases.values()), strict=True)))
            shares = {phase: sum(of[WARM_STEPS:]) / sum(steps) for phase, of in phases.items()}
            speed = {"step_seconds": statistics.median(steps), "loader_wait_share": shares["data"]}
            speed |= {"shares": shares}
        else:
            measured = ours(run, execution)
            speed = {name: getattr(measured, name) for name in ("step_seconds", "loader_wait_share")}
        return speed | {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None}

    plain = Execution(
        deterministic=False,
        activation_checkpointing=declared.activation_checkpointing,
        microbatch_sequences=declared.microbatch_sequences or "auto",
    )
    # For the workspace that deterministic products need; torch reads it once, so all arms have it.
    spread.choose_kernels(True, device)
    # Finds the micro-batch, and warms up.
    size = ours(_shortened(run, iterations=2), plain).execution["microbatch_sequences"]
    plain = plain.model_copy(update={"microbatch_sequences": size})
    fast = plain.model_copy(update={"compile": gpu})
    ways = {"plain": fast, "composer": fast, "deterministic": fast.model_copy(update={"deterministic": True})}
    ways |= {"uncompiled": plain} if gpu else {"library": fast, "whole_logits": fast}
    return ways, in_turns({arm: partial(measure, arm, way) for arm, way in ways.items()}, rounds)


def bench_training(
    plan: Plan, model: str | None, steps: int, device: str | None = None, rounds: int = 1
) -> list[dict[str, Any]]:
    """Rows on the training of `model` at a scale on one device, one a way of training.

    The ways (arms): a plain loop over the trainer's parts and our trainer with the fastest kernels, our
    trainer with deterministic kernels; on a GPU, where the former are compiled, our trainer uncompiled; on a
    CPU a plain loop with whole logits, and one of the library's model as it comes. Plain loops tell the
    shares of a step's phases. `steps` steps are timed, each with what one rank has of the scale's batch.
    `device`: the scale's without it; cpu at a scale for GPUs is a dry run. On CPUs it is uncompiled and in
    float32. Tokens are random where the scale's shards are not built. Nothing is exchanged between GPUs.
    Raises `UserError` without a GPU before anything heavy begins.
    """
    device = device or plan.scale.device
    if device == "gpu" and not torch.cuda.is_available():
        do = "Run it on a machine with one, or try it out with --device cpu at a small scale."
        raise UserError("there is no GPU to measure.", do=do)
    run = _run(plan, model, steps, device)
    training, declared = run.training, plan.scale.run_as(run.model_name)
    folders = [plan.project.data / plan.scale.name / corpus for corpus in training.data]
    built = all((folder / "fingerprint.json").exists() for folder in folders)
    corpora = Corpora(plan) if built else RandomTokens(plan, training)
    ways, measured = _time_training(plan, run, corpora, device, rounds)
    same = measured_here("train", plan.scale.name, rounds) | spread.environment()
    same |= {
        "model": run.model_name,
        "device": device,
        "gpus": int(device == "gpu"),
        "tokens": "the scale's shards" if built else "random",
        "step_sequences": training.batch_sequences,
        "sequence_length": training.sequence_length,
        "precision": training.precision,
        "loader_workers": plan.scale.loader_workers,
        "steps": steps,
        "cuda": torch.version.cuda,
    }
    rows = []
    for arm, way in ways.items():
        told = {"microbatch_sequences", "compile", "deterministic", "activation_checkpointing"}
        speeds = _speeds(arm, measured, training, same["hardware"])
        rows.append({"arm": arm} | speeds | way.model_dump(include=told) | same)
    # The way in which the scale trains comes last, which is what `cpt-repro plan` reckons with.
    last = (declared.compile and device == "gpu", declared.deterministic)
    return sorted(
        rows, key=lambda row: (row["arm"] != "plain", (row["compile"], row["deterministic"]) == last)
    )


def _speeds(
    arm: str, measured: dict[str, list[dict[str, float]]], training: Training, hardware: str
) -> dict[str, Any]:
    """Of one arm: medians over the rounds, and utilisations by both formulas where the peak is known."""
    seconds = {name: [one["step_seconds"] for one in rounds] for name, rounds in measured.items()}
    waits, memory = ([one[key] for one in measured[arm]] for key in ("loader_wait_share", "peak_memory_gb"))
    shape, size = architecture(training.model.architecture), (training.model, training.vocabulary)
    speed = (tokens := training.batch_sequences * training.sequence_length) / statistics.median(seconds[arm])
    shares = [one["shares"] for one in measured[arm] if "shares" in one]
    known = [value for name, value in PEAK_TFLOPS.items() if name in hardware and memory[0]]
    flops = {kind: shape.flops_per_token(*size, training.sequence_length, kind) for kind in shape.formulas}
    mfu = {kind: round(speed * flops[kind] / known[0] / 1e12, 4) if known else None for kind in flops}
    least, ratio, most = ratios(seconds["composer"], seconds[arm])
    return {
        "parameters": shape.parameters(*size),
        "tokens_per_second": round(speed),
        "tokens_per_second_range": [round(tokens / s) for s in (max(seconds[arm]), min(seconds[arm]))],
        "shares": {
            phase: round(statistics.median(one[phase] for one in shares), 3) for phase in PHASES if shares
        },
        "mfu": mfu["full"],
        "mfu_causal": mfu["causal"],
        "mfu_formulas": shape.formulas,
        "peak_tflops": known[0] if known else None,
        "peak_memory_gb": memory[0] and round(max(memory), 2),
        "loader_wait_share": round(statistics.median(waits), 5),
        "ratio_to_composer": ratio,
        "ratio_range": [least, most],
        "overhead_share": round(1 - ratios(seconds["plain"], seconds[arm])[1], 4),
    }
