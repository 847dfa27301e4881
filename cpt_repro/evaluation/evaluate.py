"""Everything that is evaluated of one model, as the record that the pipeline writes down."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cpt_repro.declarations.benchmarks import task_digests
from cpt_repro.models.weights import check_weights
from cpt_repro.planning.plan import Plan, PlannedModel
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Evaluation, write_record
from cpt_repro.training.store import Store


def outstanding(
    plan: Plan, records: Records, models: Sequence[str], generating: Mapping[str, str]
) -> list[str]:
    """Those of the models whose records are not of the scale's tasks as declared, or lack generations."""
    wanted = task_digests(plan.project, plan.scale, plan.data)

    def complete(model_id: str, record: Evaluation | None) -> bool:
        written = record is not None and (bool(record.generations) or model_id not in generating)
        return written and all(record.has(s, t, w) for s, tasks in wanted.items() for t, w in tasks.items())

    return [one for one in models if not complete(one, records.evaluation(one))]


def evaluate_models(
    plan: Plan,
    records: Records,
    models: Sequence[str],
    store: Store,
    say: Callable[[str], None],
    generating: Mapping[str, str],
) -> None:
    """Scores runs and merges on the tasks that their records lack.

    Those in `generating` also continue prompts, from the corpus that is given there. Missing or altered
    weights or items are a `UserError`; the records written until then stay.
    """
    todo = outstanding(plan, records, models, generating)
    if not todo:
        return
    # lm-eval and transformers take some ten seconds to import: only where there is something to evaluate.
    from cpt_repro.evaluation.generate import generate, held_out_prompts
    from cpt_repro.evaluation.harness import Harness

    harness = Harness(plan.project, plan.scale, plan.data)
    for number, model_id in enumerate(todo, 1):
        model, record = plan.model(model_id), records.evaluation(model_id)
        prompts, generations = (record.prompts, record.generations) if record else ((), ())
        with tempfile.TemporaryDirectory() as scratch:
            folder = _weights(model, store, Path(scratch))
            suites = harness.evaluate(folder, record.suites if record else {})
            if corpus := generating.get(model_id):
                asked = tuple(held_out_prompts(plan.project.data / plan.scale.name / corpus))
                if asked != prompts or not generations:
                    prompts, generations = asked, tuple(generate(folder, harness.tokenizer, asked))
        evaluation = Evaluation(
            identity=model.identity,
            id=model_id,
            suites=suites,
            prompts=prompts,
            generations=generations,
            suites_fingerprint=harness.fingerprint,
            environment=_with_earlier(harness.environment, record),
        )
        write_record(records.evaluation_path(model_id), evaluation)
        scores = ", ".join(f"{name} {100 * suite.average:.1f} %" for name, suite in suites.items())
        say(f"[{number}/{len(todo)}] {model_id}: {scores}")


def _weights(model: PlannedModel, store: Store, scratch: Path) -> Path:
    """The folder of a model's weights, checked; that of a merge is made in `scratch`."""
    from cpt_repro.evaluation.merge import merge_folders

    for run, iteration in model.weights:
        recorded = store.recorded_hash(run.identity, iteration)
        check_weights(store.weights(run.identity, iteration), recorded)
    base, *others = [store.weights(run.identity, iteration) for run, iteration in model.weights]
    return merge_folders(base, others, model.density, scratch / "merged") if others else base


def _with_earlier(environment: dict[str, str], record: Evaluation | None) -> dict[str, str]:
    """What computed the scores; where those that are kept had something else, that stands first."""
    earlier = record.environment if record else {}
    return {
        name: value if earlier.get(name, value) == value else f"{earlier[name]}, {value}"
        for name, value in environment.items()
    }
