"""Weights that a paper's authors published, evaluated like ours: a second way to the tables, never a reproduction.

`configs/papers/<paper>/released.yaml` says which of our runs they are. Their records lie apart from those of runs, in
`results/<scale>/released/<paper>/<run>.json`, and no exhibit or claim reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cpt_repro.declarations.exhibits import Rows
from cpt_repro.declarations.runs import RunName
from cpt_repro.declarations.strict import Strict, load
from cpt_repro.errors import UserError
from cpt_repro.evaluation.benchmarks import declared_suites
from cpt_repro.files import digest
from cpt_repro.models.load_outside import check_tokenizer, load_outside
from cpt_repro.models.outside import Outside, check_fits
from cpt_repro.planning.plan import Plan
from cpt_repro.project import PAPERS
from cpt_repro.records.counterparts import counterparts
from cpt_repro.records.receipts import Evaluation, is_current, read_evaluation, write

NAME = r"^[\w.-]+/[\w.-]+$"
MARK = "the authors' weights, not a reproduction"


class Released(Strict):
    """One run's published weights, and what is known of them."""

    repository: str = Field(pattern=NAME)
    #: A commit; None takes the default branch and pins it at first use.
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    weights: Literal["seen", "named", "empty"]
    #: Another repository that should hold the same.
    also: str | None = Field(default=None, pattern=NAME)
    note: str

    @property
    def model(self) -> str:
        """As `init_from` names it."""
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


class ReleasedModels(Strict):
    """One paper's published weights."""

    source: str
    models: dict[RunName, Released]


def load_released(plan: Plan) -> dict[tuple[str, str], Released]:
    """(paper, run) -> published weights, of every paper that declares some; a run that is unknown is a `UserError`."""
    found = {}
    for paper, told in plan.papers.items():
        path = PAPERS / paper / "released.yaml"
        for run, one in load(ReleasedModels, path).models.items() if path.exists() else ():
            if run not in told.runs:
                raise UserError(f"the run '{run}' is not declared.", where=str(path), do="Correct the name.")
            found[paper, run] = one
    return found


def released_path(results: Path, scale: str, paper: str, run: str) -> Path:
    """Where the evaluation of a run's published weights lies."""
    return Path(results) / scale / "released" / paper / f"{run}.json"


def identity_of(plan: Plan, released: Released) -> str:
    """Identity of the evaluation of published weights at a scale."""
    return digest(["released", released.repository, released.revision, declared_suites(plan.scale)])


def _opened(plan: Plan, paper: str, run: str, released: Released, data: Path) -> Outside:
    """The published model, its files fetched; a `UserError` if it is not the run's at this scale."""
    model = plan.papers[paper].runs[run].model
    outside, entries = Outside(released.model), plan.scale.tokenizer.vocab_size
    check_fits(
        outside, plan.scale.models[model], None, f"models.{model} in configs/scales/{plan.scale.name}.yaml"
    )
    if outside.vocabulary < entries:
        fault = f"its embedding has {outside.vocabulary} rows, and the scale's tokenizer {entries} entries."
        raise UserError(fault, where=released.model, do="Evaluate it at a scale that has its tokenizer.")
    check_tokenizer(outside, data / "tokenizer")
    for file in outside.weight_files:
        outside.fetch(file)
    return outside


def evaluate_released(
    plan: Plan, pattern: str, data: Path, results: Path, say: Callable[[str], None]
) -> None:
    """Evaluates published weights of the runs `<paper>/<run>` that fit `pattern` (all: any) and have no current record.

    Repositories without weights are passed over. One that cannot be read or does not fit does not stop the others; all
    failures are raised together as a `UserError`.
    """
    declared = load_released(plan)
    wanted = [key for key in declared if pattern == "all" or fnmatchcase("/".join(key), pattern)]
    if not wanted:
        raise UserError(f"no published weights fit '{pattern}'.", do="`cpt-repro released` lists them.")
    opened, failed = {}, {}

    def failing(key: tuple[str, str], error: UserError) -> None:
        failed["/".join(key)] = str(error)
        say(f"{'/'.join(key)}: FAILED. {error}")

    # All are fetched first: the harness shuts the network out.
    for paper, run in wanted:
        one, size = declared[paper, run], plan.scale.models.get(plan.papers[paper].runs[run].model)
        if one.weights == "empty" or size is None:
            why = f"no weights in {one.repository}" if size else f"scale {plan.scale.name} has no such model"
            say(f"{paper}/{run}: passed over, {why}")
        elif not is_current(released_path(results, plan.scale.name, paper, run), identity_of(plan, one)):
            try:
                opened[paper, run] = _opened(plan, paper, run, one, data)
            except UserError as error:
                failing((paper, run), error)
    if opened:
        # lm-eval and transformers take some ten seconds to import: only where there is something to evaluate.
        from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM

        from cpt_repro.evaluation.harness import Harness, environment
        from cpt_repro.models.neox import neox_config

        harness = Harness(plan.scale, data)
    for (paper, run), outside in opened.items():
        one, size = declared[paper, run], plan.scale.models[plan.papers[paper].runs[run].model]
        try:
            model = GPTNeoXForCausalLM(neox_config(size, outside.vocabulary, outside.context))
            weights = load_outside(model, outside)
            suites = harness.evaluate(model.eval())
        except UserError as error:
            failing((paper, run), error)
            continue
        told = {key: str(value) for key, value in environment().items()}
        told |= {"batch_size": str(harness.batch_size), "repository": one.repository, "weights": weights}
        record = Evaluation(
            id=f"released/{paper}/{run}",
            identity=identity_of(plan, one),
            suites=suites,
            suites_fingerprint=harness.fingerprint,
            environment=told | {"commit": str(outside.commit)},
        )
        write(released_path(results, plan.scale.name, paper, run), record)
        scores = ", ".join(f"{name} {100 * suite['average']:.1f} %" for name, suite in suites.items())
        say(f"{paper}/{run} ({MARK}): {scores}")
    if failed:
        listing = " ".join(f"{name}: {why}" for name, why in failed.items())
        raise UserError(
            f"{len(failed)} of {len(wanted)} could not be evaluated. {listing}", do="Mend it; run again."
        )


def _headings(paper: str, suite: str, tasks: list[str]) -> dict[str, str]:
    """task of the scale -> column of the published tables of the same letters and digits (arc_c: ARC-c)."""

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    exhibits = (e for e in counterparts(paper).declared.exhibits.values() if isinstance(e, Rows))
    columns = [c for e in exhibits for c in e.columns if c.show == "tasks" and c.suite == suite]
    heads = {letters(head): head for column in columns for head in column.published}
    return {task: heads[letters(task)] for task in tasks if letters(task) in heads}


def compare(plan: Plan, results: Path) -> list[dict[str, Any]]:
    """Published and measured scores of every declared model: what is known of it, and {suite: {task: score}}.

    Scores are in percent, the suite's mean under `AVG`: {"published", "measured", "stderr", "difference"}, each None
    where it is not known. `suites` is {} for what was not measured; `stale` says that the suites have changed since.
    """
    out = []
    for (paper, run), one in load_released(plan).items():
        path = released_path(results, plan.scale.name, paper, run)
        record = read_evaluation(path) if path.exists() else None
        suites: dict[str, dict[str, Any]] = {}
        for suite, scores in record.suites.items() if record else ():
            heads = _headings(paper, suite, list(scores["tasks"]))
            rows = [
                (task, heads.get(task), score["value"], score["stderr"])
                for task, score in scores["tasks"].items()
            ]
            for name, head, value, stderr in [*rows, ("AVG", "AVG", scores["average"], scores["stderr"])]:
                said = (
                    counterparts(paper).score(run, suite, None if name == "AVG" else head) if head else None
                )
                published = said.value if said else None
                suites.setdefault(suite, {})[name] = {
                    "published": published,
                    "measured": 100 * value,
                    "stderr": 100 * stderr,
                    "difference": None if published is None else 100 * value - published,
                }
        told = one.model_dump(mode="json") | {"commit": record.environment.get("commit") if record else None}
        stale = record is not None and record.identity != identity_of(plan, one)
        out.append({"paper": paper, "run": run, **told, "stale": stale, "suites": suites})
    return out


def print_comparison(found: list[dict[str, Any]]) -> None:
    """Prints what `compare` gives: one table a measured model, then a line for each of the others."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for one in found:
        for suite, scores in one["suites"].items():
            stale = ", OF OTHER SUITES THAN NOW" if one["stale"] else ""
            table = Table(
                title=f"{one['paper']}/{one['run']}, {suite}: {MARK}{stale}", caption=one["repository"]
            )
            table.add_column("task")
            for name in ("published", "measured", "difference"):
                table.add_column(name, justify="right")
            for task, score in scores.items():
                published = "" if score["published"] is None else f"{score['published']:.2f}"
                difference = "" if score["difference"] is None else f"{score['difference']:+.2f}"
                table.add_row(task, published, f"{score['measured']:.2f} ± {score['stderr']:.2f}", difference)
            console.print(table)
    for one in found:
        if not one["suites"]:
            told = f"{one['repository']}, weights {one['weights']}"
            console.print(f"not measured: {one['paper']}/{one['run']} ({told})", soft_wrap=True)
