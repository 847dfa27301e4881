"""Speed, always as a ratio between two things measured in turn in one run."""

from __future__ import annotations

import datetime
import gc
import json
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import yaml

from cpt_repro import __version__
from cpt_repro.data.build import build_corpus, build_tokenizer
from cpt_repro.data.corpus import load_fingerprint
from cpt_repro.data.text import documents
from cpt_repro.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from cpt_repro.declarations.manifests import SPLITS
from cpt_repro.declarations.scale import Execution, Scale
from cpt_repro.errors import UserError
from cpt_repro.models.architecture import architecture
from cpt_repro.planning.plan import Plan, PlannedRun, ValidationPlan
from cpt_repro.planning.training import Training
from cpt_repro.project import Project
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
#: Entries of the papers' tokenizer.
PAPERS_VOCABULARY = 50_277


def _in_turns(arms: Iterable[str], turn: int) -> list[str]:
    """Every other turn begins with the other arm, so that none profits from what came before it."""
    return list(arms)[:: -1 if turn % 2 else 1]


def _summary(name: str, scale: str, rates: dict[str, list[float]]) -> dict[str, Any]:
    first, second = rates
    ratios = [a / b for a, b in zip(rates[first], rates[second], strict=True)]
    return {
        "benchmark": name,
        "scale": scale,
        "unit": "tokens/s",
        **{arm: round(statistics.median(values)) for arm, values in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "rounds": len(ratios),
        "cpt_repro": __version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


# -- training


def plain_loop(
    training: Training, corpora: Any, execution: Execution, device: str = "cpu", workers: int = 0
) -> tuple[list[float], list[float]]:
    """Seconds of each step of a plain loop over the trainer's parts, and those it waited for its batch."""
    where = torch.device("cuda" if device == "gpu" else "cpu")
    spread.prepare_process(training, execution.deterministic, device)
    shape = architecture(training.model.architecture)
    model = shape.new(training.model, training.vocabulary, training.sequence_length, training.seed)
    spread.prepare_model(model, shape, execution, device)
    wrapped = CausalLM(model).to(where)
    optimizer = adamw(wrapped)
    if execution.compile:
        spread.compile_parts(wrapped, shape)
    batches = Batches(training, corpora)
    loader = iter(batch_loader(batches, training.seed, 0, workers, pinned=device == "gpu"))
    microbatch, steps, waits = execution.microbatch_sequences or training.batch_sequences, [], []
    for iteration in range(training.iterations):
        began = time.perf_counter()
        batch = next(loader)
        waits.append(time.perf_counter() - began)
        set_rate(optimizer, learning_rate(training, iteration))
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=where)
        for part in batch.split(microbatch):
            part = part.to(where, non_blocking=True)
            with spread.precision_context(training.precision, where):
                loss = wrapped.loss(wrapped(part), part) * (len(part) / len(batch))
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), CLIP)
        optimizer.step()
        total.item()  # waits for a GPU, as Composer does to report the loss
        steps.append(time.perf_counter() - began)
    return steps, waits


def _shortened(run: PlannedRun, **changes: Any) -> PlannedRun:
    """A run with some of its training changed."""
    return replace(run, training=Training.model_validate(run.training.model_dump() | changes))


def _ours(project: Project, run: PlannedRun, corpora: Any, **how: Any) -> Any:
    """What our trainer measured of itself; nothing is validated or kept."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(run, ValidationPlan((), 1, (), ()), {}, **how)
        return train(job, corpora, Store(project.with_(store=Path(folder)), "bench")).measured


def bench_train(plan: Plan, rounds: int, iterations: int) -> dict[str, Any]:
    """Tokens/s of our training against a plain loop: same model, data, optimizer and clipping, in turns."""
    run = _shortened(next(iter(plan.runs.values())), iterations=iterations)
    corpora, tokens = Corpora(plan), run.training.tokens
    arms = {
        "composer": lambda: _ours(plan.project, run, corpora).tokens_per_second,
        "plain": lambda: tokens / sum(plain_loop(run.training, corpora, Execution())[0]),
    }
    for measure in arms.values():  # imports, caches
        measure()
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in _in_turns(arms, turn):
            rates[arm].append(arms[arm]())
    hardware = spread.environment()["hardware"]
    return {**_summary("train", plan.scale.name, rates), "hardware": hardware, "torch": torch.__version__}


# -- data


def _tokens(project: Project, scale: Scale, corpus: str) -> int:
    splits = load_fingerprint(project.data / scale.name / corpus).splits.values()
    return sum(domain.tokens for split in splits for domain in split.values())


@contextmanager
def _cold(project: Project, scale: Scale) -> Iterator[Project]:
    """The project with a data folder that has the tokenizer alone, and no encoder that knows it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(project.data / scale.name / "tokenizer", Path(folder) / scale.name / "tokenizer")
        yield project.with_(data=Path(folder))


def bench_data(plan: Plan, rounds: int) -> dict[str, Any]:
    """Tokens/s, with one process, of a whole corpus build (read, check, tokenise, pack, write, hash) against
    the tokenizer alone on the same text, in turns, on the second of the scale's corpora; and of a hub build.
    """
    scale, corpus = plan.scale, [*plan.scale.corpora][:2][-1]
    rates: dict[str, list[float]] = {"build": [], "tokenizer": []}
    with tempfile.TemporaryDirectory() as folder:
        project = plan.project.with_(data=Path(folder))
        tokenizer = load_tokenizer(build_tokenizer(project, scale))
        texts = [d["text"] for split in SPLITS for d in documents(project, plan.manifest(corpus), split)]
        for _ in range(rounds):
            with _cold(project, scale) as fresh:
                began = time.perf_counter()
                build_corpus(fresh, scale, corpus, processes=1, progress=False)
                seconds = time.perf_counter() - began
                rates["build"].append(_tokens(fresh, scale, corpus) / seconds)
            began = time.perf_counter()
            parts = (tokenizer.encode_batch(texts[k : k + 512]) for k in range(0, len(texts), 512))
            count = sum(len(encoded.ids) for part in parts for encoded in part)
            rates["tokenizer"].append(count / (time.perf_counter() - began))
    return _summary("data", scale.name, rates) | {"hub": bench_hub(plan, rounds)}


def _large_tokenizer(texts: list[str]) -> Any:
    """A tokenizer of the kind and size of the papers', trained on `texts`; smaller if these do not give as
    many.
    """
    from tokenizers import AddedToken, normalizers

    spaces = [AddedToken(" " * n, normalized=True, special=False) for n in range(24, 1, -1)]
    tokenizer = train_tokenizer(texts, PAPERS_VOCABULARY - len(spaces))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(spaces)
    return tokenizer


def _hub_project(folder: Path, texts: list[str], files: int = 24) -> tuple[Project, Any]:
    """A project with a copy of a made-up data set of the hub, `texts` in some files, and the tokenizer of
    that.
    """
    import zstandard

    places = {name: folder / name for name in ("results", "figures", "data", "store", "corpora")}
    project = Project(root=folder, hub_copies=folder / "hub", **places)
    copies = [project.hub_copies / kind / "bench" / "bench" for kind in ("datasets", "models")]
    for path in (*copies, project.manifests):
        path.mkdir(parents=True)
    for k in range(files):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[k::files])
        (copies[0] / f"{k:02d}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    save_tokenizer(tokenizer := _large_tokenizer(texts[::2]), copies[1])
    manifest = {"kind": "hub", "name": "bench", "dataset": "bench/bench", "revision": None}
    manifest |= {"format": "jsonl.zst", "domains": {"all": 1}, "tokens_billions": 1, "validation_share": 0.2}
    manifest |= {"splits": {"train": {"files": ["*.jsonl.zst"]}}}
    manifest |= dict.fromkeys(("about", "licence", "gating", "note"), "")
    (project.manifests / "bench.yaml").write_text(yaml.safe_dump(manifest))
    return project, tokenizer


def _processor_seconds() -> float:
    """Of this process and those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def bench_hub(plan: Plan, rounds: int) -> dict[str, Any]:
    """Tokens/s of a whole hub build, compressed files in, shards out, with one process and with two.

    The text is that of all the scale's corpora, the tokenizer as large as the papers'. Rates are by wall
    clock and, for machines that do other things too, by processor time (of all processes together, so per
    core); `library` is the tokenizer's library alone. Every build begins with nothing remembered
    (`data.encoding`).
    """
    texts = [
        d["text"] for c in plan.scale.corpora for d in documents(plan.project, plan.manifest(c), "train")
    ]
    wall: dict[int, list[float]] = {1: [], 2: []}
    processor: dict[int, list[float]] = {1: [], 2: []}
    alone = []
    with tempfile.TemporaryDirectory() as folder:
        project, tokenizer = _hub_project(Path(folder), texts)
        published = {"kind": "pretrained", "name": "bench/bench", "revision": "0" * 40}
        settings = type(plan.scale.tokenizer)(**published, vocab_size=tokenizer.get_vocab_size())
        changes = {"tokenizer": settings, "corpora": {"bench": "bench"}, "sequence_length": 2048}
        scale = plan.scale.model_copy(update=changes)
        library = load_tokenizer(build_tokenizer(project, scale))
        for turn in range(rounds):
            for processes in _in_turns(wall, turn):
                with _cold(project, scale) as fresh:
                    began, used = time.perf_counter(), _processor_seconds()
                    build_corpus(fresh, scale, "bench", processes, progress=False)
                    seconds, used = time.perf_counter() - began, _processor_seconds() - used
                    tokens = _tokens(fresh, scale, "bench")
                wall[processes].append(tokens / seconds)
                processor[processes].append(tokens / used)
            sample, began = texts[turn::20], time.process_time()
            count = sum(len(e) for e in library.encode_batch_fast(sample, add_special_tokens=False))
            alone.append(count / (time.process_time() - began))
    scaling = [two / one / 2 for one, two in zip(wall[1], wall[2], strict=True)]
    return {
        "vocabulary": settings.vocab_size,
        "tokens": tokens,
        "wall": {n: round(statistics.median(rates)) for n, rates in wall.items()},
        "processor": {n: round(statistics.median(rates)) for n, rates in processor.items()},
        "library": round(statistics.median(alone)),
        "scaling": round(statistics.median(scaling), 3),
        "scaling_range": [round(min(scaling), 3), round(max(scaling), 3)],
    }


# -- a GPU


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


def _gpu_run(plan: Plan, model: str | None, steps: int, device: str) -> PlannedRun:
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


class _Arms:
    """The ways of training that `bench_gpu` compares, with one micro-batch for all of them."""

    def __init__(self, plan: Plan, run: PlannedRun, microbatch: int | Literal["auto"], device: str):
        self.project, self.run, self.gpu = plan.project, run, device == "gpu"
        self.how = {"device": device, "workers": plan.scale.loader_workers}
        folders = [plan.project.data / plan.scale.name / corpus for corpus in run.training.data]
        self.built = all((folder / "fingerprint.json").exists() for folder in folders)
        self.corpora = Corpora(plan) if self.built else RandomTokens(plan, run.training)
        checkpointing = plan.scale.run_as(run.model_name).activation_checkpointing
        plain = Execution(
            deterministic=False, activation_checkpointing=checkpointing, microbatch_sequences=microbatch
        )
        # For the workspace that deterministic products need; torch reads it once, so all arms have it.
        spread.choose_kernels(True, device)
        # Finds the micro-batch, and warms up.
        warm = self._ours(plain, _shortened(run, iterations=2)).execution["microbatch_sequences"]
        plain = plain.model_copy(update={"microbatch_sequences": warm})
        fast = plain.model_copy(update={"compile": self.gpu})
        self.arms = {"plain": fast, "composer": fast}
        self.arms["deterministic"] = fast.model_copy(update={"deterministic": True})
        if self.gpu:
            self.arms["uncompiled"] = plain

    def _ours(self, execution: Execution, run: PlannedRun) -> Any:
        return _ours(self.project, run, self.corpora, **self.how, execution=execution)

    def measure(self, arm: str) -> dict[str, float | None]:
        """Seconds of a step, share of waiting, and peak memory of one arm."""
        torch._dynamo.reset()
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if arm == "plain":
            both = plain_loop(self.run.training, self.corpora, self.arms[arm], **self.how)
            steps, waits = (times[WARM_STEPS:] for times in both)
            speed = {"step_seconds": statistics.median(steps), "loader_wait_share": sum(waits) / sum(steps)}
        else:
            ours = self._ours(self.arms[arm], self.run)
            speed = {name: getattr(ours, name) for name in ("step_seconds", "loader_wait_share")}
        return speed | {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if self.gpu else None}


def bench_gpu(
    plan: Plan,
    model: str | None,
    steps: int = 20,
    microbatch: int | Literal["auto"] = "auto",
    device: str = "gpu",
    rounds: int = 1,
) -> list[dict[str, Any]]:
    """Rows on the training of `model` at a scale on one GPU, one a way of training, in turn in one run.

    The ways (arms): a plain loop and our trainer with the fastest kernels, our trainer with deterministic
    kernels, and, where the former are compiled, our trainer uncompiled. A step is the share of the scale's
    batch that one rank of its `execution` has, `steps` of them are timed. `device` cpu is a dry run,
    uncompiled and in float32. Where the scale's shards are not built the tokens are random, and the row says
    so. Nothing is exchanged between GPUs here. Raises `UserError` without a GPU before anything heavy begins.
    """
    if device == "gpu" and not torch.cuda.is_available():
        do = "Run it on a machine with one, or try it out with --device cpu at a small scale."
        raise UserError("there is no GPU to measure.", do=do)
    run = _gpu_run(plan, model, steps, device)
    training, declared = run.training, plan.scale.run_as(run.model_name)
    arms = _Arms(plan, run, microbatch, device)
    measured: dict[str, list[dict[str, float | None]]] = {arm: [] for arm in arms.arms}
    for turn in range(rounds):
        for arm in _in_turns(arms.arms, turn):
            measured[arm].append(arms.measure(arm))
    same = {
        "benchmark": "gpu",
        "scale": plan.scale.name,
        "model": run.model_name,
        "device": device,
        "gpus": int(device == "gpu"),
        "tokens": "the scale's shards" if arms.built else "random",
        "step_sequences": training.batch_sequences,
        "sequence_length": training.sequence_length,
        "precision": training.precision,
        "loader_workers": plan.scale.loader_workers,
        "steps": steps,
        "rounds": rounds,
        **spread.environment(),
        "cuda": torch.version.cuda,
        "cpt_repro": __version__,
        "date": datetime.date.today().isoformat(),
    }
    names = ("microbatch_sequences", "compile", "deterministic", "activation_checkpointing")
    rows = [
        {"arm": arm, **_speeds(arm, measured, training, same["hardware"])}
        | {name: getattr(how, name) for name in names}
        | same
        for arm, how in arms.arms.items()
    ]
    # The way in which the scale trains comes last, which is what `cpt-repro plan` reckons with.
    way = declared.compile, declared.deterministic
    return sorted(
        rows, key=lambda row: (row["arm"] != "plain", (row["compile"], row["deterministic"]) == way)
    )


def _speeds(
    arm: str, measured: dict[str, list[dict[str, float]]], training: Training, hardware: str
) -> dict[str, Any]:
    """Of one arm: medians over the rounds, and utilisations by both formulas where the peak is known."""

    def ratio(one: str, other: str) -> float:
        pairs = zip(measured[one], measured[other], strict=True)
        return round(statistics.median(b["step_seconds"] / a["step_seconds"] for a, b in pairs), 4)

    shape, size = architecture(training.model.architecture), (training.model, training.vocabulary)
    tokens = training.batch_sequences * training.sequence_length
    speed = statistics.median(tokens / one["step_seconds"] for one in measured[arm])
    memory = [one["peak_memory_gb"] for one in measured[arm]]
    peak = (
        next((value for name, value in PEAK_TFLOPS.items() if name in hardware), None) if memory[0] else None
    )
    flops = {kind: shape.flops_per_token(*size, training.sequence_length, kind) for kind in shape.formulas}
    mfu = {kind: peak and round(speed * flops[kind] / peak / 1e12, 4) for kind in flops}
    return {
        "parameters": shape.parameters(*size),
        "tokens_per_second": round(speed),
        "mfu": mfu["full"],
        "mfu_formula": shape.formulas["full"],
        "mfu_causal": mfu["causal"],
        "mfu_causal_formula": shape.formulas["causal"],
        "peak_tflops": peak,
        "peak_memory_gb": memory[0] and round(max(memory), 2),
        "loader_wait_share": round(statistics.median(one["loader_wait_share"] for one in measured[arm]), 5),
        "overhead_share": round(1 - ratio("composer", "plain"), 4) if arm == "composer" else None,
        "ratio_to_composer": ratio(arm, "composer"),
    }
