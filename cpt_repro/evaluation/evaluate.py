"""Everything that is evaluated of one model, as the record that the pipeline writes down."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cpt_repro.declarations.benchmarks import task_digests
from cpt_repro.errors import UserError
from cpt_repro.models.weights import check_weights
from cpt_repro.planning.plan import Plan, PlannedModel
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Evaluation, write_record
from cpt_repro.training.store import Store


def outstanding(plan: Plan, records: Records, models: Sequence[str]) -> list[str]:
    """Those of the models whose records lack a score of some task as it is declared, or their generations."""
    wanted = task_digests(plan.project, plan.scale, plan.data)

    def complete(record: Evaluation, model_id: str) -> bool:
        scores = {suite: record.suites[suite].tasks if suite in record.suites else {} for suite in wanted}
        scored = {
            suite: {name: score.declaration for name, score in scores[suite].items()} for suite in wanted
        }
        written = bool(record.generations) or model_id not in plan.generating
        return written and all(wanted[suite].items() <= scored[suite].items() for suite in wanted)

    return [one for one in models if not (record := records.evaluation(one)) or not complete(record, one)]


def evaluate_models(
    plan: Plan, records: Records, models: Sequence[str], store: Store, say: Callable[[str], None]
) -> None:
    """Scores runs and merges on the tasks that their records lack; those in `plan.generating` continue
    prompts.

    Missing or altered weights, and items that are not of the tasks as they are declared, are a `UserError`;
    the records written until then stay.
    """
    todo, wanted = outstanding(plan, records, models), task_digests(plan.project, plan.scale, plan.data)
    if not todo:
        return
    # lm-eval and transformers take some ten seconds to import: only where there is something to evaluate.
    from cpt_repro.evaluation.generate import generate, held_out_prompts
    from cpt_repro.evaluation.harness import Harness

    harness = Harness(plan.project, plan.scale)
    if harness.declarations != wanted:
        do = f"Make them again: `cpt-repro suites --scale {plan.scale.name}`."
        raise UserError("the items are not of the tasks as they are declared.", where=plan.scale.name, do=do)
    for number, model_id in enumerate(todo, 1):
        model, record = plan.model(model_id), records.evaluation(model_id)
        prompts, generations = (record.prompts, record.generations) if record else ((), ())
        with tempfile.TemporaryDirectory() as scratch:
            folder = _weights(model, store, Path(scratch))
            suites = harness.evaluate(folder, record.suites if record else {})
            if corpus := plan.generating.get(model_id):
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
        check_weights(store.weights(run, iteration), store.recorded_hash(run, iteration))
    base, *others = [store.weights(run, iteration) for run, iteration in model.weights]
    return merge_folders(base, others, model.density, scratch / "merged") if others else base


def _with_earlier(environment: dict[str, str], record: Evaluation | None) -> dict[str, str]:
    """What computed the scores; where those that are kept were computed by something else, that stands first."""
    earlier = record.environment if record else {}
    return {
        name: value if earlier.get(name, value) == value else f"{earlier[name]}, {value}"
        for name, value in environment.items()
    }
