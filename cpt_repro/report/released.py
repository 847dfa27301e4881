"""Published scores beside those measured on the weights that the authors published."""

from __future__ import annotations

from cpt_repro.declarations.published import Value
from cpt_repro.declarations.released import Released
from cpt_repro.declarations.strict import Strict
from cpt_repro.evaluation.released import MARK, released_models
from cpt_repro.exhibits.catalogue import Catalogue


class Compared(Strict):
    """A score in percent; what is not known is None."""

    published: float | None
    measured: float
    stderr: float
    difference: float | None


class Comparison(Released):
    """A run's published weights, with what was measured of them."""

    paper: str
    run: str
    commit: str | None
    #: whether the suites have changed since
    stale: bool
    #: suite -> task -> scores, the suite's mean under `AVG`; {} of what was not measured
    suites: dict[str, dict[str, Compared]]


def _compared(printed: Value | None, value: float, stderr: float) -> Compared:
    published, measured = printed.value if printed else None, 100 * value
    difference = None if published is None else measured - published
    return Compared(published=published, measured=measured, stderr=100 * stderr, difference=difference)


def compare(catalogue: Catalogue) -> list[Comparison]:
    """Every model that the papers of the plan declare as published."""
    out = []
    for one in released_models(catalogue.plan):
        suites, printed = {}, catalogue.counterparts(one.paper)
        for suite, scores in one.evaluation.suites.items() if one.evaluation else ():
            tasks = {
                task: _compared(printed.score(one.run, suite, task), score.value, score.stderr)
                for task, score in scores.tasks.items()
            }
            average = _compared(printed.score(one.run, suite), scores.average, scores.stderr)
            suites[suite] = {**tasks, "AVG": average}
        commit = one.evaluation.environment.get("commit") if one.evaluation else None
        known = one.declared.model_dump() | {"paper": one.paper, "run": one.run, "stale": one.stale}
        out.append(Comparison(**known, commit=commit, suites=suites))
    return out


def print_comparison(compared: list[Comparison]) -> None:
    """Prints one table a measured model and suite, then a line for each of the others."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for one in compared:
        stale = ", OF OTHER SUITES THAN NOW" if one.stale else ""
        for suite, scores in one.suites.items():
            table = Table(title=f"{one.paper}/{one.run}, {suite}: {MARK}{stale}", caption=one.repository)
            table.add_column("task")
            for name in ("published", "measured", "difference"):
                table.add_column(name, justify="right")
            for task, score in scores.items():
                published = "" if score.published is None else f"{score.published:.2f}"
                difference = "" if score.difference is None else f"{score.difference:+.2f}"
                table.add_row(task, published, f"{score.measured:.2f} ± {score.stderr:.2f}", difference)
            console.print(table)
    for one in compared:
        if not one.suites:
            known = f"{one.repository}, weights {one.weights}"
            console.print(f"not measured: {one.paper}/{one.run} ({known})", soft_wrap=True)
