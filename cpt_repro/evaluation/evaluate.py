"""Everything that is evaluated of one model, as the record that the pipeline writes down."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING

from cpt_repro.declarations.benchmarks import task_digests
from cpt_repro.models.weights import WEIGHTS, check_weights, load_model_folder
from cpt_repro.planning.plan import Plan, PlannedModel
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Evaluation, write_record
from cpt_repro.training.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Of a model that was not evaluated yet.
_NOTHING = Evaluation.model_construct(suites={}, environment={})


def outstanding(plan: Plan, records: Records, models: Sequence[str], generating: Container[str]) -> list[str]:
    """Those of the models whose records are not of the scale's tasks as declared, or lack generations."""
    wanted = task_digests(plan.project, plan.scale, plan.data)

    def complete(model_id: str) -> bool:
        record = records.evaluation(model_id)
        if record is None or (model_id in generating and not record.generations):
            return False
        return record.current(wanted).suites.keys() == wanted.keys()

    return [model_id for model_id in models if not complete(model_id)]


def evaluate_models(
    plan: Plan,
    records: Records,
    models: Sequence[str],
    store: Store,
    say: Callable[[str], None],
    generating: Mapping[str, str | tuple[str, ...]],
) -> None:
    """Scores runs and merges on the tasks that their records lack.

    Those in `generating` also continue the prompts given there, or some from the corpus of that name.
    Missing or altered weights or items are a `UserError`; the records written until then stay.
    """
    todo = outstanding(plan, records, models, generating)
    if not todo:
        return
    # lm-eval and transformers take some ten seconds to import: only where there is something to evaluate.
    from cpt_repro.evaluation.generate import generate, held_out_prompts
    from cpt_repro.evaluation.harness import Harness

    harness = Harness(plan.project, plan.scale, plan.data)
    for number, model_id in enumerate(todo, 1):
        planned, record = plan.model(model_id), records.evaluation(model_id) or _NOTHING
        prompts, generations = record.prompts, record.generations
        model = _load(planned, store)
        if asked := generating.get(model_id, ()):
            if isinstance(asked, str):
                asked = tuple(held_out_prompts(plan.project.data / plan.scale.name / asked))
            if asked != prompts or not generations:
                prompts, generations = asked, tuple(generate(model, harness.tokenizer, asked))
        evaluation = Evaluation(
            identity=planned.identity,
            id=model_id,
            suites=harness.evaluate(model, record.suites),
            prompts=prompts,
            generations=generations,
            suites_fingerprint=harness.fingerprint,
            environment=_with_earlier(harness.environment, record.environment),
        )
        write_record(records.evaluation_path(model_id), evaluation)
        say(f"[{number}/{len(todo)}] {model_id}: {in_words(evaluation)}")


def in_words(evaluation: Evaluation) -> str:
    """The averages of the suites."""
    return ", ".join(f"{name} {100 * suite.average:.1f} %" for name, suite in evaluation.suites.items())


def _load(planned: PlannedModel, store: Store) -> PreTrainedModel:
    """A model with its checked weights; a merge is made here."""
    from safetensors.torch import load_file

    from cpt_repro.evaluation.merge import ties_merge

    folders = []
    for run, iteration in planned.weights:
        folders.append(store.weights(run.identity, iteration))
        check_weights(folders[-1], store.recorded_hash(run.identity, iteration))
    model = load_model_folder(folders[0])
    if planned.density:
        base, task = [load_file(folder / WEIGHTS) for folder in folders]
        model.load_state_dict(ties_merge(base, task, planned.density))
    return model


def _with_earlier(environment: dict[str, str], earlier: dict[str, str]) -> dict[str, str]:
    """What computed the scores; where those that are kept had something else, that stands first."""
    return {
        name: value if earlier.get(name, value) == value else f"{earlier[name]}, {value}"
        for name, value in environment.items()
    }
