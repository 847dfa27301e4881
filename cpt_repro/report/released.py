"""Published scores beside those measured on the weights that the authors published."""

from __future__ import annotations

from cpt_repro.declarations.strict import Strict
from cpt_repro.evaluation.released import MARK, released_models
from cpt_repro.exhibits.catalogue import Catalogue


class Compared(Strict):
    """A score of a run's published weights, in percent, beside the one that was printed (None: none was)."""

    #: `<paper>/<run>`
    run: str
    suite: str
    #: `AVG`: the suite's mean
    task: str
    published: float | None
    measured: float
    stderr: float


class Comparison(Strict):
    """All published weights of a plan's papers."""

    note: str = MARK
    scores: list[Compared] = []
    #: `<paper>/<run>` -> repository, and whether it is known to hold weights
    not_measured: dict[str, str] = {}


def compare(catalogue: Catalogue) -> Comparison:
    """Every model that the papers of the plan declare as published."""
    out = Comparison()
    for one in released_models(catalogue.plan):
        if one.evaluation is None:
            out.not_measured[one.name] = f"{one.declared.repository}, weights {one.declared.weights}"
            continue
        printed = catalogue.counterparts(one.paper)
        for suite, scores in one.evaluation.suites.items():
            rows = [(task, score.value, score.stderr, task) for task, score in scores.tasks.items()]
            for name, value, stderr, task in (*rows, ("AVG", scores.average, scores.stderr, None)):
                found = printed.score(one.run, suite, task)
                score = {"published": found and found.value, "measured": 100 * value, "stderr": 100 * stderr}
                out.scores.append(Compared(run=one.name, suite=suite, task=name, **score))
    return out


def print_comparison(compared: Comparison) -> None:
    """Prints a table of all scores, then a line for each model that was not measured."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table("run", "suite", "task", title=MARK)
    for name in ("published", "measured", "difference"):
        table.add_column(name, justify="right")
    for one in compared.scores:
        known = one.published is not None
        beside = (f"{one.published:.2f}", f"{one.measured - one.published:+.2f}") if known else ("", "")
        measured = f"{one.measured:.2f} ± {one.stderr:.2f}"
        table.add_row(one.run, one.suite, one.task, beside[0], measured, beside[1])
    if compared.scores:
        console.print(table)
    for name, known in compared.not_measured.items():
        console.print(f"not measured: {name} ({known})", soft_wrap=True)
