"""Everything that is evaluated of one model, as the dict that the pipeline writes down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpt_repro.evaluation.generate import generate
from cpt_repro.evaluation.harness import Harness, environment

#: Length of a generation, in tokens, and its seed.
GENERATED_TOKENS = 48
SEED = 0


def evaluate_run(harness: Harness, model_dir: Path, prompts: Sequence[str] | None = None) -> dict[str, Any]:
    """Scores the model in `model_dir` on the harness's suites and, with `prompts`, lets it continue them.

    Returns {"suites": see `Harness.evaluate`, "suites_fingerprint", "batch_size", "environment"} and, with prompts,
    "generations": [{"prompt", "continuation"}]. Nothing in it names the machine or the time.
    """
    result = {
        "suites": harness.evaluate(model_dir),
        "suites_fingerprint": harness.fingerprint,
        "batch_size": harness.batch_size,
        "environment": environment(),
    }
    if prompts:
        texts = generate(model_dir, harness.tokenizer_dir, prompts, GENERATED_TOKENS, SEED)
        result["generations"] = [{"prompt": p, "continuation": t} for p, t in zip(prompts, texts, strict=True)]
    return result
