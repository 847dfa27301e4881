"""The exhibits of a plan's papers (`configs/papers/<paper>/exhibits.yaml`) and what each needs."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Annotated, Any, NamedTuple, Union

from pydantic import Field

from cpt_repro.declarations.published import Misprint
from cpt_repro.declarations.strict import Strict, nearest, parse, read_yaml
from cpt_repro.declarations.study import Study, WantedPoints
from cpt_repro.errors import UserError
from cpt_repro.exhibits.bars import Bars
from cpt_repro.exhibits.base import RunRef, check_known, unique
from cpt_repro.exhibits.counterparts import Counterparts
from cpt_repro.exhibits.curves import Curves
from cpt_repro.exhibits.domains import Domains
from cpt_repro.exhibits.generations import Generations
from cpt_repro.exhibits.plane import Plane
from cpt_repro.exhibits.relation import Relation
from cpt_repro.exhibits.rows import Rows
from cpt_repro.exhibits.schedule import ScheduleDiagram
from cpt_repro.exhibits.settings import Settings
from cpt_repro.exhibits.style import Style
from cpt_repro.planning.plan import Plan

#: Every kind of exhibit; the key `kind` of a declaration chooses one.
KINDS = (Curves, Plane, Bars, ScheduleDiagram, Relation, Rows, Domains, Generations, Settings)
Exhibit = Annotated[Union[KINDS], Field(discriminator="kind")]  # noqa: UP007


class Exhibits(Strict):
    """One paper's figures and tables."""

    paper: str
    #: run, or a pattern of runs -> its look
    styles: dict[str, Style] = {}
    #: how the tables call a run
    names: dict[RunRef, str] = {}
    exhibits: dict[Annotated[str, Field(pattern=r"^(figure|table)_\d\d$")], Exhibit] = {}
    points: WantedPoints = ()
    #: anchors of the file, nothing else
    lists: Any = None

    def style(self, run: str) -> Style | None:
        """The run's look: under its own name, else of the first pattern that fits."""
        fits = (style for pattern, style in self.styles.items() if fnmatchcase(run, pattern))
        return self.styles.get(run) or next(fits, None)


class Needs(NamedTuple):
    """What an exhibit is drawn from, over all seeds; what has no counterpart at the scale is left out.

    Ids of runs for their receipts, of runs and merges for their evaluations, corpora for their records.
    """

    runs: tuple[str, ...]
    models: tuple[str, ...]
    corpora: tuple[str, ...]


class Catalogue:
    """The exhibits of the papers of a plan, read paper by paper when they are asked for."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.declared = cache(self.declared)
        self.counterparts = cache(self.counterparts)

    def declared(self, paper: str) -> Exhibits:
        """A paper's exhibits, checked; a fault is a `UserError` that names file and key."""
        return load_exhibits(self.plan.studies[paper])

    def counterparts(self, paper: str) -> Counterparts:
        """What a paper published of its runs."""
        return Counterparts(self.plan.studies[paper], self.declared(paper))

    @cached_property
    def exhibits(self) -> dict[tuple[str, str], Exhibit]:
        """(paper, key) -> exhibit, of all papers of the plan in order."""
        return {(p, key): one for p in self.plan.papers for key, one in self.declared(p).exhibits.items()}

    def find(self, paper: str, key: str) -> Exhibit:
        """One exhibit; an unknown paper or key is a `UserError`."""
        exhibits = self.declared(paper).exhibits
        if key not in exhibits:
            where = str(self.plan.studies[paper].path("exhibits.yaml"))
            raise UserError(f"the exhibit '{key}' is unknown.", where=where, do=nearest(key, exhibits))
        return exhibits[key]

    def needs(self, paper: str, key: str) -> Needs:
        """What an exhibit is drawn from."""
        exhibit = self.find(paper, key)
        ids = [
            tuple(unique(one for name in names for one in self.plan.ids(paper, name)))
            for names in (exhibit.runs, exhibit.evaluations)
        ]
        return Needs(*ids, tuple(corpus for corpus in exhibit.corpora if corpus in self.plan.scale.corpora))

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Ids of all runs and merges that are to be evaluated."""
        return tuple(unique(model for key in self.exhibits for model in self.needs(*key).models))

    @cached_property
    def generating(self) -> dict[str, str | tuple[str, ...]]:
        """Those that are to continue prompts -> these, or the corpus from whose held-out text they are taken.

        The published prompts are for models of the paper's own size and languages.
        """
        shown = {key: e for key, e in self.exhibits.items() if isinstance(e, Generations)}
        here = {key: e.corpus for key, e in shown.items() if e.corpus in self.plan.scale.corpora}
        published: dict[str, tuple[str, ...]] = {}
        for (paper, key), exhibit in shown.items() if self.plan.scale.full_size else ():
            if exhibit.layout == "prompts" and exhibit.published:
                table = self.plan.studies[paper].published.tables[key]
                column = table.columns.index(exhibit.published)
                published[paper] = tuple(str(row[column]) for row in table.rows)
        return {
            model: published.get(key[0], corpus)
            for key, corpus in here.items()
            for model in self.needs(*key).models
        }


def load_exhibits(study: Study) -> Exhibits:
    """Reads and checks one paper's `exhibits.yaml`; none where it has no file."""
    path = study.path("exhibits.yaml")
    if not path.exists():
        return Exhibits(paper=study.name)
    declared = parse(Exhibits, read_yaml(path), str(path), context=study)
    if declared.paper != study.name:
        what, do = f"the key 'paper' says '{declared.paper}'.", f"Make it '{study.name}'."
        raise UserError(what, where=str(path), do=do)
    try:
        for key in declared.exhibits:
            where = f"{path}, exhibits.{key}"
            _check(study, declared, key)
        for one in study.discrepancies:
            where = f"{study.path('discrepancies.yaml')}, {one.id}.misprints"
            for wrong in one.misprints:
                _check_misprint(study, wrong)
    except ValueError as error:
        raise UserError(str(error), where=where) from None
    return declared


def _check(study: Study, declared: Exhibits, key: str) -> None:
    """Refuses a kind under a key of the other sort, a run without a look, and another published table."""
    exhibit = declared.exhibits[key]
    if not key.startswith(exhibit.makes):
        raise ValueError(f"its kind makes a {exhibit.makes}. Call it {exhibit.makes}_NN.")
    for name in exhibit.runs if exhibit.makes == "figure" and exhibit.styled else ():
        if declared.style(name) is None:
            raise ValueError(f"no look in 'styles' fits the run '{name}'. Give it one.")
    columns, rows = exhibit.published_table
    if columns and rows != (there := _rows_of(study, key, columns)):
        what = f"it has {rows} rows or bars, and the published table {there}."
        raise ValueError(f"{what} Give both the same rows in the same order.")


def _check_misprint(study: Study, wrong: Misprint) -> None:
    rows = _rows_of(study, wrong.table, wrong.columns)
    if wrong.row > rows:
        what = f"row {wrong.row} of {wrong.table} is not there, which has {rows}."
        raise ValueError(f"{what} Count rows from 1.")


def _rows_of(study: Study, table: str, columns: Iterable[str]) -> int:
    """How many rows a published table with these columns has."""
    check_known(table, study.published.tables, "published table")
    for column in columns:
        check_known(column, study.published.tables[table].columns, "published column")
    return len(study.published.tables[table].rows)
