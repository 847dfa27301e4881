"""Weights that authors published, evaluated like ours: a second way to the tables, never a reproduction.

`configs/papers/<paper>/released.yaml` says which of our runs they are. Their records lie apart from those of
runs, in `results/<scale>/released/<paper>/<run>.json`, and no exhibit or claim reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cpt_repro.declarations.benchmarks import task_digests
from cpt_repro.declarations.published import Released
from cpt_repro.declarations.scale import ModelSize
from cpt_repro.errors import UserError
from cpt_repro.evaluation.evaluate import in_words
from cpt_repro.files import digest
from cpt_repro.models.architecture import architecture
from cpt_repro.models.outside import Outside, check_fits, check_tokenizer, load_outside
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import Evaluation, identity_in, read_record, write_record

if TYPE_CHECKING:
    from cpt_repro.evaluation.harness import Harness

MARK = "the authors' weights, not a reproduction"


class ReleasedModel(NamedTuple):
    """One run's published weights at a scale, and what was measured of them."""

    paper: str
    run: str
    declared: Released
    #: None where the scale has no such model
    size: ModelSize | None
    #: of the weights
    identity: str
    #: where its evaluation lies
    path: Path
    #: if it is of the scale's tasks as they are now
    evaluation: Evaluation | None

    @property
    def name(self) -> str:
        """`<paper>/<run>`"""
        return f"{self.paper}/{self.run}"


def released_models(plan: Plan) -> Iterator[ReleasedModel]:
    """Everything that the papers of a plan declare as published."""
    wanted = task_digests(plan.project, plan.scale, plan.data)
    for paper in plan.papers:
        study = plan.studies[paper]
        for run, declared in study.released.items():
            path = plan.project.results / plan.scale.name / "released" / paper / f"{run}.json"
            identity = digest(["released", declared.model])
            evaluation = read_record(Evaluation, path) if identity_in(path) == identity else None
            if evaluation and evaluation.current(wanted).suites.keys() != wanted.keys():
                evaluation = None
            size = plan.scale.models.get(study.paper.runs[run].model)
            yield ReleasedModel(paper, run, declared, size, identity, path, evaluation)


def evaluate_released(plan: Plan, pattern: str, say: Callable[[str], None]) -> None:
    """Evaluates published weights of the runs `<paper>/<run>` that fit `pattern`.

    Those with a current record, repositories without weights and models that the scale lacks are passed over.
    One that cannot be read or does not fit stops no other; all failures are raised as one `UserError`.
    """
    there = (one for one in released_models(plan) if one.size and one.declared.weights != "empty")
    if not (wanted := [one for one in there if fnmatchcase(one.name, pattern)]):
        raise UserError(f"no published weights fit '{pattern}'.", do="`cpt-repro released` lists them.")
    opened: list[tuple[ReleasedModel, Outside]] = []
    failed: list[str] = []

    @contextmanager
    def attempting(one: ReleasedModel) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            failed.append(f"{one.name}: {error}")
            say(f"{one.name}: FAILED. {error}")

    # All are fetched first: the harness shuts the network out.
    for one in (one for one in wanted if one.evaluation is None):
        with attempting(one):
            opened.append((one, _opened(plan, one)))
    if opened:
        # lm-eval and transformers take some ten seconds to import: only where there is something to evaluate.
        from cpt_repro.evaluation.harness import Harness

        harness = Harness(plan.project, plan.scale, plan.data)
    for one, outside in opened:
        with attempting(one):
            _evaluate(harness, one, outside, say)
    if failed:
        what = f"{len(failed)} of {len(wanted)} could not be evaluated. {' '.join(failed)}"
        raise UserError(what, do="Mend it; run again.")


def _opened(plan: Plan, one: ReleasedModel) -> Outside:
    """The model, its files fetched; a `UserError` if it is not the run's at this scale."""
    outside = Outside(plan.project, one.declared.model)
    check_fits(outside, one.size, None, f"the run in configs/scales/{plan.scale.name}.yaml")
    check_tokenizer(outside, plan.project.data / plan.scale.name / "tokenizer")
    _ = outside.weights  # fetched here
    return outside


def _evaluate(harness: Harness, one: ReleasedModel, outside: Outside, say: Callable[[str], None]) -> None:
    context = outside.config.get("max_position_embeddings", 2048)
    model = architecture(one.size.architecture).new(one.size, outside.vocabulary, context, seed=0)
    source = {"repository": one.declared.repository, "commit": str(outside.repository.commit)}
    source["weights"] = load_outside(outside, model)
    record = Evaluation(
        identity=one.identity,
        id=f"released/{one.name}",
        suites=harness.evaluate(model.eval()),
        suites_fingerprint=harness.fingerprint,
        environment=harness.environment | source,
    )
    write_record(one.path, record)
    say(f"{one.name} ({MARK}): {in_words(record)}")
