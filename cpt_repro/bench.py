"""Speed, always as a ratio between two things measured in turn in one run."""

from __future__ import annotations

import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cpt_repro import __version__
from cpt_repro.config import load_scale
from cpt_repro.plan import Plan
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

    from cpt_repro.training import trainer as ours
    from cpt_repro.training.model import neox_config, new_model

    scale = load_scale(scale_name)
    whole = next(iter(Plan(scale).segments.values()))
    segment = whole.model_copy(update={"iterations": iterations, "evaluations": (), "closing": (), "validate_on": ()})
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
            return ours.train(segment, None, corpora, Store(scale_name, Path(folder)), {}).measured["tokens_per_second"]

    plain(), composer()  # warm-up: imports, caches
    rates: dict[str, list[float]] = {"composer": [], "plain": []}
    for turn in range(rounds):
        for arm in (("composer", composer), ("plain", plain))[:: 1 if turn % 2 else -1]:
            rates[arm[0]].append(arm[1]())
    return {**_summary("train", scale_name, rates, "tokens/s"), "hardware": ours.environment()["hardware"]}


def bench_data(scale_name: str, rounds: int) -> dict[str, Any]:
    """Tokens/s, with one process, of the whole corpus build (read, check, tokenise, pack, write, hash) and of the
    tokenizer alone on the same text, in turns, on the scale's downstream corpus."""
    from cpt_repro.data.build import build_corpus, build_tokenizer, load_fingerprint
    from cpt_repro.data.manifest import SPLITS, load_manifest
    from cpt_repro.data.text import documents
    from cpt_repro.data.tokenizer import load_tokenizer

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
                len(e.ids) for k in range(0, len(texts), 512) for e in tokenizer.encode_batch(texts[k : k + 512])
            )
            rates["tokenizer"].append(count / (time.perf_counter() - began))
    return _summary("data", scale_name, rates, "tokens/s")
