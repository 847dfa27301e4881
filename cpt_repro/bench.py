"""Speed, always as a ratio between two things measured in turn in one run."""

from __future__ import annotations

import datetime
import gc
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cpt_repro import __version__
from cpt_repro.declarations.scale import Execution, Scale, load_scale
from cpt_repro.errors import UserError
from cpt_repro.planning.plan import Plan, Segment
from cpt_repro.training.store import Store


def _summary(name: str, scale: str, rates: dict[str, list[float]], unit: str) -> dict[str, Any]:
    first, second = rates
    ratios = [a / b for a, b in zip(rates[first], rates[second], strict=True)]
    return {
        "benchmark": name,
        "scale": scale,
        "unit": unit,
        **{arm: round(statistics.median(values)) for arm, values in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "rounds": len(ratios),
        "cpt_repro": __version__,
        "python": platform.python_version(),
    }


def bench_train(scale_name: str, data: Path, rounds: int, iterations: int) -> dict[str, Any]:
    """Tokens/s of our training against a plain PyTorch loop: same model, data, optimizer and clipping, in turns."""
    import torch

    from cpt_repro.models.neox import neox_config, new_model
    from cpt_repro.training import trainer as ours

    scale = load_scale(scale_name)
    whole = next(iter(Plan(scale).segments.values()))
    segment = whole.model_copy(
        update={"iterations": iterations, "evaluations": (), "closing": (), "validate_on": ()}
    )
    corpora = ours.Corpora(data)
    tokens = iterations * segment.batch_sequences * segment.sequence_length

    def plain() -> float:
        torch.set_num_threads(segment.threads)
        size = neox_config(segment.model, segment.vocabulary, segment.sequence_length)
        model = ours.CausalLM(new_model(size, segment.seed))
        optimizer = ours.adamw(model)
        batches = ours.Batches(segment, corpora)
        began = time.perf_counter()
        for k in range(iterations):
            batch = batches[k]
            for group in optimizer.param_groups:
                group["lr"] = segment.schedule(k, segment.schedule_iterations)
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss(model(batch), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), ours.CLIP)
            optimizer.step()
            loss.item()
        return tokens / (time.perf_counter() - began)

    def composer() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return ours.train(segment, None, corpora, Store(scale_name, Path(folder)), {}).measured[
                "tokens_per_second"
            ]

    plain(), composer()  # warm-up: imports, caches
    rates: dict[str, list[float]] = {"composer": [], "plain": []}
    for turn in range(rounds):
        for arm in (("composer", composer), ("plain", plain))[:: 1 if turn % 2 else -1]:
            rates[arm[0]].append(arm[1]())
    return {**_summary("train", scale_name, rates, "tokens/s"), "hardware": ours.environment()["hardware"]}


def bench_data(scale_name: str, rounds: int) -> dict[str, Any]:
    """Tokens/s, with one process, of the whole corpus build (read, check, tokenise, pack, write, hash) and of the
    tokenizer alone on the same text, in turns, on the scale's downstream corpus; and of a hub build (`bench_hub`)."""
    from cpt_repro.data.build import build_corpus, build_tokenizer, load_fingerprint
    from cpt_repro.data.text import documents
    from cpt_repro.data.tokenizer import load_tokenizer
    from cpt_repro.declarations.manifests import SPLITS, load_manifest

    scale = load_scale(scale_name)
    rates: dict[str, list[float]] = {"build": [], "tokenizer": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = load_tokenizer(build_tokenizer(scale, root))
        for _ in range(rounds):
            shutil.rmtree(root / "sp", ignore_errors=True)
            began = time.perf_counter()
            build_corpus(scale, "sp", root, processes=1, progress=False)
            seconds = time.perf_counter() - began
            splits = load_fingerprint(root, "sp")["splits"]
            tokens = sum(domain["tokens"] for split in splits.values() for domain in split.values())
            rates["build"].append(tokens / seconds)
            manifest = load_manifest(scale.corpora["sp"])
            texts = [document["text"] for split in SPLITS for document in documents(manifest, split)]
            began = time.perf_counter()
            count = sum(
                len(e.ids)
                for k in range(0, len(texts), 512)
                for e in tokenizer.encode_batch(texts[k : k + 512])
            )
            rates["tokenizer"].append(count / (time.perf_counter() - began))
    return _summary("data", scale_name, rates, "tokens/s") | {"hub": bench_hub(scale, rounds)}


def _neox_like(texts: list[str]) -> Any:
    """A tokenizer of the kind and size of GPT-NeoX-20B's, trained on `texts`: 50,277 entries if these give as many."""
    from tokenizers import AddedToken, normalizers

    from cpt_repro.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(texts, 50_277 - 23)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in range(24, 1, -1)])
    return tokenizer


def bench_hub(scale: Scale, rounds: int) -> dict[str, Any]:
    """Tokens/s of a whole hub build, jsonl.zst files of a copy in, shards out, with one process and with two.

    The text is that of all the scale's corpora, the tokenizer as large as the papers'. Rates are by wall clock and,
    for machines that do other things too, by processor time (of all processes together, so per core); `library` is
    the tokenizer's library alone. Every build begins with nothing remembered (see `data.encoding`).
    """
    import json
    import resource
    from unittest import mock

    import yaml
    import zstandard

    from cpt_repro.data import build, shards
    from cpt_repro.data.text import documents
    from cpt_repro.data.tokenizer import load_tokenizer, save_tokenizer
    from cpt_repro.declarations import manifests
    from cpt_repro.models import hub

    shards.preload()
    texts = [
        d["text"]
        for name in scale.corpora.values()
        for d in documents(manifests.load_manifest(name), "train")
    ]
    files = 24
    declared = {
        "kind": "hub",
        "name": "bench",
        "about": "",
        "licence": "",
        "gating": "",
        "note": "",
        "revision": None,
    }
    declared |= {"domains": {"all": 1}, "dataset": "bench/bench", "format": "jsonl.zst", "tokens_billions": 1}
    declared |= {"splits": {"train": {"files": ["*.jsonl.zst"]}}, "validation_share": 0.01}

    def used() -> float:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict("os.environ", {hub.MIRROR_VARIABLE: folder}),
        mock.patch.object(hub, "LOCK", Path(folder) / "lock.json"),
        mock.patch.object(manifests, "MANIFESTS", Path(folder)),
    ):
        copies = [Path(folder) / kind / "bench" / "bench" for kind in ("datasets", "models")]
        for copy in copies:
            copy.mkdir(parents=True)
        for k in range(files):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[k::files])
            (copies[0] / f"{k:02d}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
        tokenizer = _neox_like(texts[::2])
        save_tokenizer(tokenizer, copies[1])
        (Path(folder) / "bench.yaml").write_text(yaml.safe_dump(declared))
        told = {"kind": "pretrained", "name": "bench/bench", "revision": "0" * 40}
        settings = type(scale.tokenizer)(**told, vocab_size=tokenizer.get_vocab_size())
        update = {"tokenizer": settings, "corpora": {"bench": "bench"}, "sequence_length": 2048}
        scale, root = scale.model_copy(update=update), Path(folder) / "data"
        library = load_tokenizer(build.build_tokenizer(scale, root))
        wall: dict[int, list[float]] = {1: [], 2: []}
        processor: dict[int, list[float]] = {1: [], 2: []}
        alone = []
        for turn in range(rounds):
            for processes in (1, 2)[:: 1 if turn % 2 else -1]:
                shutil.rmtree(root / "bench", ignore_errors=True)
                build._encoder.cache_clear()
                began, processor_began = time.perf_counter(), used()
                build.build_corpus(scale, "bench", root, processes, progress=False)
                seconds, processor_seconds = time.perf_counter() - began, used() - processor_began
                splits = build.load_fingerprint(root, "bench")["splits"].values()
                tokens = sum(domain["tokens"] for split in splits for domain in split.values())
                wall[processes].append(tokens / seconds)
                processor[processes].append(tokens / processor_seconds)
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


#: Dense bf16 TFLOP/s by a part of the GPU's name; the first that fits counts.
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}
#: Steps before those that are timed: compiling, first allocations.
WARM_STEPS = 5


class RandomTokens:
    """Stands for corpora that are not built: every sequence is random tokens."""

    def __init__(self, root: Path, vocabulary: int, width: int):
        self.root, self._vocabulary, self._width = root, vocabulary, width

    def sequences(self, corpus: str, domain: str) -> RandomTokens:
        """Itself, for every domain."""
        return self

    def fingerprint(self, corpus: str) -> dict[str, Any]:
        """What a receipt records instead of a fingerprint."""
        return {"fingerprint": "random tokens"}

    def __len__(self) -> int:
        return 1 << 24

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Random tokens (n, L + 1) as uint16, the same for the same indices."""
        generator = np.random.default_rng(int(indices[0]))
        return generator.integers(0, self._vocabulary, (len(indices), self._width), dtype=np.uint16)


def _plain_gpu(
    segment: Segment, corpora: Any, execution: Execution, device: str, workers: int
) -> dict[str, float]:
    """Seconds of a step and share of waiting of a plain loop that does what our trainer does, and nothing else."""
    import torch

    from cpt_repro.models.neox import neox_config, new_model
    from cpt_repro.training import execution as spread
    from cpt_repro.training import trainer as ours

    where = torch.device("cuda" if device == "gpu" else "cpu")
    torch.set_num_threads(segment.threads)
    spread.choose_kernels(execution.deterministic, device)
    model = new_model(neox_config(segment.model, segment.vocabulary, segment.sequence_length), segment.seed)
    spread.prepare(model, execution, device)
    wrapped = ours.CausalLM(model).to(where)
    optimizer = ours.adamw(wrapped)
    if execution.compile:
        spread.compile_parts(wrapped)
    loader = iter(ours.batch_loader(ours.Batches(segment, corpora), segment, 0, workers, device))
    half = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}.get(segment.precision)
    steps, waits = [], []
    for k in range(segment.iterations):
        began = time.perf_counter()
        batch = next(loader)
        waits.append(time.perf_counter() - began)
        for group in optimizer.param_groups:
            group["lr"] = segment.schedule(k, segment.schedule_iterations)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=where)
        for part in batch.split(execution.microbatch_sequences):
            part = part.to(where, non_blocking=True)
            with torch.autocast(where.type, dtype=half, enabled=half is not None):
                loss = wrapped.loss(wrapped(part), part) * (len(part) / len(batch))
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), ours.CLIP)
        optimizer.step()
        total.item()  # waits for the GPU, as Composer does to report the loss
        steps.append(time.perf_counter() - began)
    return {
        "step_seconds": statistics.median(steps[WARM_STEPS:]),
        "loader_wait_share": sum(waits[WARM_STEPS:]) / sum(steps[WARM_STEPS:]),
    }


def _composer_gpu(
    segment: Segment, corpora: Any, execution: Execution, device: str, workers: int
) -> dict[str, Any]:
    """The same of our trainer, and the micro-batch that it took."""
    from cpt_repro.training import trainer as ours

    with tempfile.TemporaryDirectory() as folder:
        how = {"device": device, "execution": execution, "workers": workers}
        return ours.train(segment, None, corpora, Store("bench", Path(folder)), {}, **how).measured


def bench_gpu(
    scale_name: str,
    model: str,
    data: Path,
    steps: int = 20,
    microbatch: int | Literal["auto"] = "auto",
    device: str = "gpu",
    rounds: int = 1,
) -> list[dict[str, Any]]:
    """Rows on the training of `model` at a scale on one GPU, one a way of training, taken in turn in one run.

    The ways (arms): a plain loop and our trainer with the fastest kernels, our trainer with deterministic kernels, and,
    where the former are compiled, our trainer uncompiled. A step is the share of the scale's batch that one rank of its
    `execution` has, `steps` of them are timed. `device` cpu is a dry run, uncompiled and in float32. Where the scale's
    shards are not built the tokens are random, and the row says so. Nothing is exchanged between GPUs here.
    Raises `UserError` without a GPU before anything heavy begins.
    """
    import torch

    if device == "gpu" and not torch.cuda.is_available():
        do = "Run it on a machine with one, or try it out with --device cpu at a small scale."
        raise UserError("there is no GPU to measure.", do=do)
    scale = load_scale(scale_name)
    plan = Plan(scale)
    found = [
        s for s in plan.segments.values() if s.model_name == model and s.parent is None and s.external is None
    ]
    if not found:
        known = sorted({s.model_name for s in plan.segments.values()})
        raise UserError(
            f"no run of scale '{scale_name}' trains the model '{model}'.", do=f"Known: {', '.join(known)}."
        )
    from cpt_repro.training import trainer as ours

    declared = scale.run_as(model)
    none = {"keep": (), "evaluations": (), "closing": (), "validate_on": ()}
    segment = found[0].model_copy(
        update={
            **none,
            "iterations": WARM_STEPS + steps,
            "batch_sequences": max(found[0].batch_sequences // declared.ranks, 1),
            "precision": found[0].precision if device == "gpu" else "fp32",
        }
    )
    built = all((data / corpus / "fingerprint.json").exists() for corpus in segment.data)
    corpora = ours.Corpora(data, scale)
    if not built:
        corpora = RandomTokens(data, segment.vocabulary, segment.sequence_length + 1)
    fast = {"compile": device == "gpu", "deterministic": False}
    fast |= {
        "activation_checkpointing": declared.activation_checkpointing,
        "microbatch_sequences": microbatch,
    }
    arms = {
        "plain": (_plain_gpu, Execution(**fast)),
        "composer": (_composer_gpu, Execution(**fast)),
        "deterministic": (_composer_gpu, Execution(**fast | {"deterministic": True})),
    }
    if fast["compile"]:
        arms["uncompiled"] = _composer_gpu, Execution(**fast | {"compile": False})
    # For the workspace that deterministic products need; torch reads it once, so all arms have it.
    ours.spread.choose_kernels(True, device)
    # Finds the micro-batch that all arms then share, and warms up.
    warm = Execution(**fast | {"compile": False})
    size = _composer_gpu(segment.model_copy(update={"iterations": 2}), corpora, warm, device, 0)["execution"]
    size = size["microbatch_sequences"]
    told: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in list(arms)[:: 1 if turn % 2 == 0 else -1]:
            train, execution = arms[arm]
            execution = execution.model_copy(update={"microbatch_sequences": size})
            torch._dynamo.reset()
            gc.collect()
            if device == "gpu":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            measured = train(segment, corpora, execution, device, scale.loader_workers)
            peak = torch.cuda.max_memory_allocated() / 1e9 if device == "gpu" else None
            told[arm].append({**measured, "peak_memory_gb": peak})

    same = {
        "benchmark": "gpu",
        "scale": scale_name,
        "model": model,
        "device": device,
        "gpus": int(device == "gpu"),
        "tokens": "the scale's shards" if built else "random",
        "step_sequences": segment.batch_sequences,
        "sequence_length": segment.sequence_length,
        "precision": segment.precision,
        "loader_workers": scale.loader_workers,
        "steps": steps,
        "rounds": rounds,
        **ours.environment(),
        "cuda": torch.version.cuda,
        "cpt_repro": __version__,
        "date": datetime.date.today().isoformat(),
    }
    rows = []
    for arm, (_, execution) in arms.items():
        how = execution.model_copy(update={"microbatch_sequences": size})
        rows.append(
            {"arm": arm, **_gpu_speeds(arm, told, segment, same["hardware"]), **_told_of(how), **same}
        )
    # The way in which the scale trains comes last, which is what `cpt-repro plan` reckons with.
    way = declared.compile, declared.deterministic
    return sorted(
        rows, key=lambda row: (row["arm"] != "plain", (row["compile"], row["deterministic"]) == way)
    )


def _told_of(execution: Execution) -> dict[str, Any]:
    names = ("microbatch_sequences", "compile", "deterministic", "activation_checkpointing")
    return {name: getattr(execution, name) for name in names}


def _gpu_speeds(
    arm: str, told: dict[str, list[dict[str, Any]]], segment: Segment, hardware: str
) -> dict[str, Any]:
    """What was measured of one arm: medians over the rounds; utilisations by both formulas where the peak is known."""
    from cpt_repro.models.sizes import FORMULAS, flops_per_token, parameters

    def ratio(one: str, other: str) -> float:
        pairs = zip(told[one], told[other], strict=True)
        return round(statistics.median(b["step_seconds"] / a["step_seconds"] for a, b in pairs), 4)

    tokens = segment.batch_sequences * segment.sequence_length
    speed = statistics.median(tokens / run["step_seconds"] for run in told[arm])
    memory = [run["peak_memory_gb"] for run in told[arm]]
    peak = (
        next((value for name, value in PEAK_TFLOPS.items() if name in hardware), None) if memory[0] else None
    )
    size = segment.model, segment.vocabulary, segment.sequence_length
    mfu = {name: peak and round(speed * flops_per_token(*size, name) / peak / 1e12, 4) for name in FORMULAS}
    return {
        "parameters": parameters(segment.model, segment.vocabulary),
        "tokens_per_second": round(speed),
        "mfu": mfu["full"],
        "mfu_formula": FORMULAS["full"],
        "mfu_causal": mfu["causal"],
        "mfu_causal_formula": FORMULAS["causal"],
        "peak_tflops": peak,
        "peak_memory_gb": memory[0] and round(max(memory), 2),
        "loader_wait_share": round(statistics.median(run["loader_wait_share"] for run in told[arm]), 5),
        "overhead_share": round(1 - ratio("composer", "plain"), 4) if arm == "composer" else None,
        "ratio_to_composer": ratio(arm, "composer"),
    }
