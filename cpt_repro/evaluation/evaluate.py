"""Everything that is evaluated of one model, as the record that the pipeline writes down."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from cpt_repro.errors import UserError
from cpt_repro.planning.evaluation_identity import evaluation_identity
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import Evaluation, evaluation_path, is_current, write
from cpt_repro.training.store import Store

#: Ibrahim Tables 8 and 9: five German prompts, continuations of one length.
PROMPT_CORPUS, PROMPTS, PROMPT_WORDS, GENERATED_TOKENS, SEED = "german", 5, 8, 48, 0


def evaluate_models(
    plan: Plan,
    models: list[str],
    generating: Collection[str],
    data: Path,
    results: Path,
    store: Store,
    say: Callable[[str], None],
) -> None:
    """Evaluates runs and merges that have no current record yet; those in `generating` also continue prompts.

    Missing weights are a `UserError`; the records written until then stay.
    """
    harness = None
    for number, model_id in enumerate(models, 1):
        path = evaluation_path(results, plan.scale.name, model_id)
        identity, sources = evaluation_identity(plan, model_id)
        if is_current(path, identity):
            continue
        # lm-eval and transformers take some ten seconds to import: only where there is something to evaluate.
        from cpt_repro.evaluation.generate import generate, held_out_prompts
        from cpt_repro.evaluation.harness import Harness, environment
        from cpt_repro.evaluation.merge import merge_folders
        from cpt_repro.models.neox import check_weights

        harness = harness or Harness(plan.scale, data)
        for segment, iteration in sources:
            if not store.has(segment, iteration):
                raise UserError(
                    "the weights are missing.",
                    where=str(store.weights(segment, iteration)),
                    do="Train the run again.",
                )
            check_weights(store.weights(segment, iteration), store.recorded_hash(segment, iteration))
        folders = [store.weights(segment, iteration) for segment, iteration in sources]
        with tempfile.TemporaryDirectory() as scratch:
            folder = folders[0]
            if len(folders) > 1:
                merge = plan.merge_of(model_id)
                folder = merge_folders(folders[0], folders[1:], merge.density, Path(scratch) / "merged")
            suites = harness.evaluate(folder)
            prompts = generations = []
            if model_id in generating:
                prompts = held_out_prompts(data, PROMPT_CORPUS, PROMPTS, PROMPT_WORDS)
                generations = generate(folder, harness.tokenizer_dir, prompts, GENERATED_TOKENS, SEED)
        versions = {key: str(value) for key, value in environment().items()}
        record = Evaluation(
            id=model_id,
            identity=identity,
            suites=suites,
            prompts=prompts,
            generations=generations,
            suites_fingerprint=harness.fingerprint,
            environment={**versions, "batch_size": str(harness.batch_size)},
        )
        write(path, record)
        scores = ", ".join(f"{name} {100 * suite['average']:.1f} %" for name, suite in suites.items())
        say(f"[{number}/{len(models)}] {model_id}: {scores}")
