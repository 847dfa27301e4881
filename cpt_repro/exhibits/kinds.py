"""What a paper declares to be shown: `configs/papers/<paper>/exhibits.yaml`, its figures and tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cpt_repro.declarations.published import load_digitised, load_discrepancies, load_published
from cpt_repro.declarations.runs import load_paper, paper_names
from cpt_repro.declarations.schedules import Cosine
from cpt_repro.declarations.strict import Strict, parse, read_yaml
from cpt_repro.errors import UserError
from cpt_repro.planning.plan import Plan
from cpt_repro.project import PAPERS

Range = tuple[float, float]
LEARNING_RATE = "learning_rate"
#: Settings that the receipt knows and the plan does not.
COUNTED = ("parameters", "non_embedding")


class Style(Strict):
    """How a run looks in every figure."""

    label: str
    colour: Literal["black", "grey", "orange", "sky", "green", "blue", "vermillion", "purple", "brown"]
    dash: Literal["solid", "dashed", "dotted", "dashdot", "longdash", "dashdotdot"]
    marker: str


class Corpus(Strict):
    """A corpus of the paper in words: its role, and its name in the paper."""

    role: str
    stands_for: str


class _Exhibit(Strict):
    title: str
    see: str

    @property
    def runs(self) -> list[str]:
        """Runs whose receipts are shown, in order of appearance."""
        return []

    @property
    def evaluations(self) -> list[str]:
        """Runs and merges whose suites or generations are shown, in order of appearance."""
        return []


def _unique(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))


class Curve(Strict):
    """One curve: a run, or runs one after another on one axis."""

    runs: tuple[str, ...] = Field(min_length=1)
    label: str | None = None
    #: labels of the digitised curves of the panel that show these runs, in the order of their pieces
    published: tuple[str, ...] = ()
    #: whether the y-limits make room for it
    fits: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"runs": [value]} if isinstance(value, str) else value


class Reference(Strict):
    """A horizontal line: a run's final loss on the panel's corpus."""

    run: str
    label: str
    #: label of the printed line in the digitised panel
    published: str | None = None


class Panel(Strict):
    """One pair of axes; x is tokens in billions of the paper."""

    title: str = ""
    #: the digitised panel, such as 4a
    published: str | None = None
    #: a corpus of the paper, or `learning_rate`
    y: str
    xlim: Range
    #: the paper's limits, used at scale paper only
    ylim: Range | None = None
    #: first part of the x-range that the y-limits may cut off
    settle: float = Field(default=0.05, ge=0, le=1)
    #: the transient is the subject: nothing is cut off
    spike: bool = False
    warmup_ends: bool = False
    boundaries: bool = False
    reference: Reference | None = None
    curves: tuple[Curve, ...] = Field(min_length=1)


class Curves(_Exhibit):
    """Losses or learning rates against tokens."""

    kind: Literal["curves"]
    columns: int = 2
    #: x counts the tokens of the ancestors too, those after the run `after` alone where it is given
    lineage: bool = False
    after: str | None = None
    panels: tuple[Panel, ...] = Field(min_length=1)

    @property
    def runs(self) -> list[str]:
        drawn = [run for panel in self.panels for curve in panel.curves for run in curve.runs]
        return _unique([*drawn, *(panel.reference.run for panel in self.panels if panel.reference)])


class Plane(_Exhibit):
    """Paths of runs in the plane of two perplexities, coloured by tokens."""

    kind: Literal["plane"]
    x: str
    y: str
    until: float
    #: print R² of the linear fit
    fit: bool = False
    curves: tuple[Curve, ...]

    @property
    def runs(self) -> list[str]:
        return _unique(run for curve in self.curves for run in curve.runs)


class BarGroup(Strict):
    """Bars side by side; `new` is the corpus averaged with that of the panel."""

    label: str
    new: str
    runs: tuple[str, ...]


class BarPanel(Strict):
    """What the bars of a panel show."""

    title: str
    show: Literal["compute", "loss", "suite"]
    corpus: str | None = None
    suite: str | None = None
    #: column of the published values of this figure; their rows are the bars, group by group
    published: str | None = None


class Bars(_Exhibit):
    """Grouped bars."""

    kind: Literal["bars"]
    bars: tuple[str, ...]
    groups: tuple[BarGroup, ...]
    panels: tuple[BarPanel, ...]

    @property
    def runs(self) -> list[str]:
        return _unique(run for group in self.groups for run in group.runs)

    @property
    def evaluations(self) -> list[str]:
        return self.runs if any(panel.show == "suite" for panel in self.panels) else []


class ScheduleDiagram(_Exhibit):
    """A schedule's shape, without data."""

    kind: Literal["schedule"]
    schedule: Cosine


class Column(Strict):
    """One column of a table, or several for `tasks`."""

    show: Literal["name", "size", "here", "text", "rate", "loss", "average_loss", "tasks", "task", "average"]
    heading: str = ""
    #: of `loss`: a corpus, or `new` for the row's
    corpus: str | None = None
    suite: str | None = None
    #: the first of these names that the suite has
    task: tuple[str, ...] = ()
    key: str | None = None
    #: columns of the published table: one, of `tasks` all
    published: tuple[str, ...] = ()


class Row(Strict):
    """A run or a merge, with the texts of its row."""

    run: str | None = None
    merge: str | None = None
    name: str | None = None
    #: the new data; without it, the second corpus that the run is validated on
    new: str | None = None
    cells: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Row:
        if (self.run is None) == (self.merge is None):
            raise ValueError("a row needs 'run' or 'merge', and not both")
        return self


class Anchors(Strict):
    """What 0 and 1 mean when losses are made comparable across scales: (loss - zero) / (one - zero), per column."""

    #: the rows it holds for: their new corpus and their model
    new: str
    model: str
    zero: str
    one: str
    #: in words, such as: gap to the union as a share of the gap without replay
    says: str


class Rows(_Exhibit):
    """A table with one run or merge a row; its rows are those of the published table, in order."""

    kind: Literal["rows"]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    anchors: tuple[Anchors, ...] = ()

    @property
    def runs(self) -> list[str]:
        losses = any(column.show in ("loss", "average_loss") for column in self.columns)
        return _unique(row.run for row in self.rows) if losses else []

    @property
    def evaluations(self) -> list[str]:
        suites = any(column.suite for column in self.columns)
        return _unique(row.run or row.merge for row in self.rows) if suites else []


class Domains(_Exhibit):
    """The domains of a corpus."""

    kind: Literal["domains"]
    corpus: str
    columns: tuple[Literal["domain", "sampling", "train", "validation"], ...]
    #: columns of the published table, in the order of `columns`; its rows are `order` and the total
    published: tuple[str, ...] = ()
    #: order of domains that the paper has; others follow
    order: tuple[str, ...] = ()


class Generations(_Exhibit):
    """Prompts, or what models write after them."""

    kind: Literal["generations"]
    layout: Literal["prompts", "generations"]
    rows: tuple[Row, ...]

    @property
    def evaluations(self) -> list[str]:
        return _unique(row.run or row.merge for row in self.rows)


class SettingColumn(Strict):
    """A model of the paper."""

    label: str
    run: str | None = None
    #: column of the published table
    published: str


class Setting(Strict):
    """A setting: a field of the resolved run, or the same `everywhere`; what was printed is in the published table."""

    group: str = ""
    label: str
    run: str | None = None
    field: str | None = None
    everywhere: str | None = None


class Settings(_Exhibit):
    """Hyperparameters beside those of the paper."""

    kind: Literal["settings"]
    columns: tuple[SettingColumn, ...]
    rows: tuple[Setting, ...]

    @property
    def runs(self) -> list[str]:
        counted = any(row.field in COUNTED for row in self.rows)
        return _unique(column.run for column in self.columns) if counted else []


Exhibit = Annotated[
    Curves | Plane | Bars | ScheduleDiagram | Rows | Domains | Generations | Settings,
    Field(discriminator="kind"),
]


class Exhibits(Strict):
    """One paper's figures and tables."""

    paper: str
    corpora: dict[str, Corpus]
    #: how the paper calls its models
    sizes: dict[str, str]
    styles: dict[str, Style]
    #: how the tables call a run
    names: dict[str, str] = {}
    exhibits: dict[Annotated[str, Field(pattern=r"^(figure|table)_\d\d$")], Exhibit]

    def style(self, run: str) -> Style | None:
        """The run's look: under its own name, else of the first pattern that fits."""
        fits = (style for pattern, style in self.styles.items() if fnmatchcase(run, pattern))
        return self.styles.get(run) or next(fits, None)


def _check(name: str, known: Iterable[str], what: str, key: str, where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1)
        do = f"Did you mean '{near[0]}'?" if near else "Declare it, or use a declared one."
        raise UserError(f"the {what} '{name}' in '{key}' is not declared.", where=where, do=do)


def _check_published(declared: Exhibits, where: str) -> None:
    """Refuses what names no published table, column, panel, label or line, and tables of other lengths."""
    published, panels = load_published(declared.paper), load_digitised(declared.paper).panels

    def table(key: str, names: Iterable[str], rows: int) -> None:
        names = list(names)
        if not names:
            return
        _check(key, published.tables, "published table", f"exhibits.{key}", where)
        for name in names:
            _check(name, published.tables[key].columns, "published column", f"exhibits.{key}", where)
        if rows != (there := len(published.tables[key].rows)):
            what = f"'exhibits.{key}' has {rows} rows or bars, and the published table {there}."
            raise UserError(what, where=where, do="Give both the same rows in the same order.")

    def panel(key: str, shown: Panel) -> None:
        lines = (shown.reference,) if shown.reference and shown.reference.published else ()
        if shown.published is None:
            if lines or any(curve.published for curve in shown.curves):
                what = f"a panel of 'exhibits.{key}' has curves or a line with 'published', and none itself."
                raise UserError(what, where=where, do="Name the digitised panel, such as 4a.")
            return
        _check(shown.published, panels, "digitised panel", f"exhibits.{key}", where)
        here, found = f"exhibits.{key}, panel {shown.published}", panels[shown.published]
        for curve in shown.curves:
            for label in curve.published:
                _check(label, found.curves, "digitised curve", here, where)
            if len(curve.published) not in (0, 1, len(curve.runs)):
                what = f"a curve of '{here}' has {len(curve.runs)} runs and {len(curve.published)} published pieces."
                raise UserError(what, where=where, do="Name one piece for all runs, or one for each.")
        for line in lines:
            _check(line.published, found.lines, "published line", here, where)

    for key, exhibit in declared.exhibits.items():
        if isinstance(exhibit, Curves):
            for shown in exhibit.panels:
                panel(key, shown)
        elif isinstance(exhibit, Bars):
            named = (shown.published for shown in exhibit.panels if shown.published)
            table(key, named, sum(len(group.runs) for group in exhibit.groups))
        elif isinstance(exhibit, Rows):
            table(key, (name for column in exhibit.columns for name in column.published), len(exhibit.rows))
        elif isinstance(exhibit, Domains):
            table(key, exhibit.published, len(exhibit.order) + 1)
            if len(exhibit.published) not in (0, len(exhibit.columns)):
                do = "Name one for each of 'columns', or none."
                raise UserError(
                    f"'exhibits.{key}.published' is not as long as 'columns'.", where=where, do=do
                )
        elif isinstance(exhibit, Settings):
            table(key, (column.published for column in exhibit.columns), len(exhibit.rows))
    where = str(PAPERS / declared.paper / "discrepancies.yaml")
    for found in load_discrepancies(declared.paper):
        for wrong in found.misprints:
            _check(wrong.table, published.tables, "published table", f"{found.id}.misprints", where)
            there = published.tables[wrong.table]
            for name in wrong.columns:
                _check(name, there.columns, "published column", f"{found.id}.misprints", where)
            if wrong.row > len(there.rows):
                what = f"'{found.id}.misprints' names row {wrong.row} of {wrong.table}, which has {len(there.rows)}."
                raise UserError(what, where=where, do="Count rows from 1.")


def load_exhibits(study) -> Exhibits:
    """Reads one paper's `exhibits.yaml`; every fault is a `UserError` naming file and key."""
    _check(paper, paper_names(), "paper", "paper", str(PAPERS))
    path = PAPERS / paper / "exhibits.yaml"
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(
            "it must hold a mapping.", where=str(path), do="Give it 'paper', 'styles', 'exhibits'."
        )
    raw = dict(raw)
    raw.pop("lists", None)  # anchors only
    declared = parse(Exhibits, raw, str(path))
    runs = load_paper(paper)
    for name in declared.names:
        _check(name, runs.runs, "run", "names", str(path))
    for key, exhibit in declared.exhibits.items():
        for name in exhibit.runs:
            _check(name, runs.runs, "run", f"exhibits.{key}", str(path))
            if exhibit.kind in ("curves", "plane", "bars") and declared.style(name) is None:
                do = "Give it a label, colour, dash and marker."
                raise UserError(f"no look in 'styles' fits the run '{name}' ({key}).", where=str(path), do=do)
        for name in exhibit.evaluations:
            _check(name, [*runs.runs, *runs.merges], "run or merge", f"exhibits.{key}", str(path))
        if isinstance(exhibit, Settings):
            for name in _unique(part.run for part in (*exhibit.columns, *exhibit.rows)):
                _check(name, runs.runs, "run", f"exhibits.{key}", str(path))
        if isinstance(exhibit, Curves):
            for panel in exhibit.panels:
                _check(
                    panel.y,
                    [*declared.corpora, LEARNING_RATE],
                    "corpus",
                    f"exhibits.{key}.panels.y",
                    str(path),
                )
            if exhibit.after:
                _check(exhibit.after, runs.runs, "run", f"exhibits.{key}.after", str(path))
        for anchors in exhibit.anchors if isinstance(exhibit, Rows) else ():
            _check(anchors.new, declared.corpora, "corpus", f"exhibits.{key}.anchors", str(path))
            _check(anchors.model, declared.sizes, "model", f"exhibits.{key}.anchors", str(path))
            for name in (anchors.zero, anchors.one):
                _check(
                    name,
                    [row.run for row in exhibit.rows if row.run],
                    "row",
                    f"exhibits.{key}.anchors",
                    str(path),
                )
    _check_published(declared, str(path))
    return declared


