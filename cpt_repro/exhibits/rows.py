"""A table with one run or merge a row: both values of every cell, and what of them compares.

Below the scale `paper` losses and scores do not compare as they are; ranks and normalised effects do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Literal, NamedTuple

from pydantic import ValidationInfo, model_validator

from cpt_repro.declarations.strict import Strict
from cpt_repro.exhibits import base
from cpt_repro.exhibits.base import CorpusRef, Result, Row, RunRef, TableKind, View, check_known, unique
from cpt_repro.exhibits.typeset import Cell, Measured, Ranks, Table, Texts, Values, count, decimals, rate_text
from cpt_repro.records.lookup import NO_COUNTERPART
from cpt_repro.records.uncertainty import Effect, difference, quotient

Measure = Callable[[Row, "Key"], Measured | None]


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

    @property
    def losses(self) -> bool:
        """Whether it shows losses."""
        return self.show in ("loss", "average_loss")

    def corpora(self, old: str, new: str | None) -> tuple[str | None, ...]:
        """Corpora that the losses of a row about the data `new` are the mean over."""
        if self.show == "average_loss":
            return old, new
        return (new if self.corpus == "new" else self.corpus,)


class Anchors(Strict):
    """What makes losses comparable across scales: (loss - zero) / (one - zero), column by column."""

    #: the rows it holds for: their new corpus and their model
    new: CorpusRef
    model: str
    zero: RunRef
    one: RunRef
    #: in words, such as: gap to the union as a share of the gap without replay
    says: str


class Rows(TableKind):
    """A table with one run or merge a row; its rows are those of the published table, in order."""

    kind: Literal["rows"] = "rows"
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    anchors: tuple[Anchors, ...] = ()

    @property
    def runs(self) -> list[str]:
        return unique(row.run for row in self.rows) if any(column.losses for column in self.columns) else []

    @property
    def evaluations(self) -> list[str]:
        return unique(row.model for row in self.rows) if self.suites else []

    @property
    def suites(self) -> list[str]:
        return unique(column.suite for column in self.columns)

    @property
    def published_table(self) -> tuple[list[str], int]:
        return [name for column in self.columns for name in column.published], len(self.rows)

    @model_validator(mode="after")
    def _declared(self, info: ValidationInfo) -> Rows:
        for name in (name for anchors in self.anchors for name in (anchors.zero, anchors.one)):
            check_known(name, [row.run for row in self.rows if row.run], "row")
        corpora = info.context.paper.corpora if info.context else ()
        for column in self.columns if corpora else ():
            check_known(column.corpus or "new", [*corpora, "new"], "corpus")
            new = column.show == "average_loss" or column.corpus == "new"
            for row in self.rows if new else ():
                if row.new_corpus(info.context) not in corpora:
                    raise ValueError(f"the row of '{row.model}' is validated on no new corpus: give it 'new'")
        return self

    def notes(self, view: View) -> list[str]:
        losses = any(column.losses for column in self.columns)
        out = ["Losses in nats per token; AVG is the mean of D0 and D1."] if losses else []
        out += ["Scores in percent."] if self.suites else []
        return [*out, f"±: {base.INTERVAL}."] if out else out

    def table(self, view: View) -> Table:
        builder = _Builder(self, view)
        columns = [made for column in self.columns for made in builder.of(column)]
        cells = [cell for column in columns if isinstance(column, Values) for cell in column.cells]
        notes = ["In square brackets: the number of seeds."] if any(cell.reproduced for cell in cells) else []
        if view.full_size:
            return Table(columns, [*notes, "Difference: reproduced - published."])
        if any(cell.ranks for cell in cells):
            same = "rows with the same new data and model that have both values"
            left = "the noise of differences leaves open here (else these are named; open: all are)"
            notes += ["At this scale absolute values do not compare with the published ones."]
            notes += [f"Agrees: the published rank among {same}, 1 the best, is among those that {left}."]
        if any(cell.effects != (None, None) for cell in cells):
            says = " or ".join(unique(anchor.says for anchor in self.anchors))
            notes += [f"The CSV has ranks and effects ({says})."]
        return Table(columns, notes)

    def results(self, view: View) -> list[Result]:
        """Every loss and score; those of a column with the same new corpus and model compare."""
        builder, out = _Builder(self, view), []
        shown = [column for column in self.columns if column.losses or column.suite]
        for column, made in [(one, made) for one in shown for made in builder.of(one)]:
            record = "evaluation" if column.suite else "receipt"
            rows = zip(self.rows, builder.keys, made.cells, strict=True)
            for line, (row, key, cell) in enumerate(rows, 1):
                both = cell.published, cell.reproduced
                group = f"{made.heading}, {key.new}, {key.model}" if cell.comparable else None
                out.append(Result(line, view.called(row), made.heading, *both, row.model, record, group))
        return out


class Key(NamedTuple):
    """A row's run or merge, its new corpus and its model: rows with the same two last are compared."""

    name: str
    new: str
    model: str


class _Builder:
    """The columns of one table."""

    def __init__(self, exhibit: Rows, view: View):
        self.view, self.rows, self.anchors = view, exhibit.rows, exhibit.anchors
        of = [(row, base.declaration(view.study, row.model)[1]) for row in self.rows]
        self.keys = [Key(row.model, row.new_corpus(view.study) or "", run.model) for row, run in of]
        heads = exhibit.published_table[0]
        self.digits = max((decimals(view.published(head, len(self.rows))) for head in heads), default=0)

    def of(self, column: Column) -> list[Texts] | list[Values]:
        """The columns that a declared one stands for."""
        if column.losses:
            return [self._losses(column)]
        return self._scores(column) if column.suite else [self._texts(column)]

    def _texts(self, column: Column) -> Texts:
        heading, here = column.heading, column.show in ("here", "rate")
        if column.show == "here":
            heading += ": layers × width, tokens with those of what it starts from"
        if here and not self.view.full_size:
            heading += f" ({self.view.scale.name} scale)"
        return Texts(heading.strip(), [self._text(column, row) for row in self.rows], not here)

    def _text(self, column: Column, row: Row) -> str:
        match column.show:
            case "name":
                return self.view.called(row)
            case "size":
                return self.view.size(row.model)
            case "text":
                return row.cells.get(column.key, "")
        run = self.view.planned(row.model)
        if run is None:
            return NO_COUNTERPART
        training = run.training
        if column.show == "rate":
            return rate_text(getattr(training.schedule, "eta_max", None) or training.schedule.eta_const)
        tokens = "merge" if row.merge else count(self.view.plan.lineage_tokens(run.id))
        return f"{training.model.layers} × {training.model.width}, {tokens}"

    def _losses(self, column: Column) -> Values:
        view, old = self.view, self.view.study.paper.old

        def loss(row: Row, key: Key) -> Measured | None:
            return view.loss(row.run, *column.corpora(old, key.new)) if row.run else None

        shown = unique(column.corpora(old, key.new)[0] for key in self.keys if column.show == "loss")
        there = " / ".join(view.study.paper.corpora[corpus].stands_for for corpus in shown)
        here = there if view.full_size else " / ".join(map(view.plan.corpus_title, shown))
        return self._values(column, column.heading, next(iter(column.published), None), loss, there, here)

    def _scores(self, column: Column) -> list[Values]:
        """The columns that one of scores stands for."""
        suite = self.view.scale.suites.get(column.suite)
        tasks = list(suite.tasks) if suite else []

        def values(heading: str, published: str | None, task: str | None, here: str = "") -> Values:
            score = lambda row, key: self.view.score(row.model, column.suite, task)  # noqa: E731
            measure = score if task or column.show == "average" else None
            return self._values(column, heading, published, measure, "", here)

        first = next(iter(column.published), None)
        if column.show == "average":
            return [values(column.heading, first, None)]
        if column.show == "task":
            task = next((name for name in column.task if name in tasks), None)
            return [values(column.heading, first, task, task or "")]
        # A task of this scale is the published one of the same letters and digits: arc_c is ARC-c.
        own = {letters(task): task for task in tasks}
        out = [values(head, head, own.pop(letters(head), None)) for head in column.published]
        return out + [values(task, None, task) for task in own.values()]

    def _values(
        self, column: Column, heading: str, published: str | None, measure: Measure | None, *of: str
    ) -> Values:
        """A published column beside what is measured (None: the scale has nothing of the kind)."""
        view, cells = self.view, []
        printed = view.published(published, len(self.rows))
        for number, (row, key, value) in enumerate(zip(self.rows, self.keys, printed, strict=True)):
            measured = measure(row, key) if measure else None
            if measured:
                planned = len(view.plan.ids(view.paper, key.name))
                few = f" of {planned}" * (measured.seeds < planned)
                seeds = f"{measured.seeds}{few} seed{'s' * (planned > 1)}"
                state = f"reproduced at scale {view.scale.name} with {seeds}"
            elif row.merge and column.losses:
                state = "not measured"  # losses are taken in training, and a merge has none
            else:
                state = view.why(key.name) if measure else NO_COUNTERPART
            misprint = (view.key, number, published) in view.counterparts.misprints
            cells.append(Cell(value, measured, state, view.full_name(row.model), misprint))
        values = Values(heading, *of, view.scale.name, cells, self.digits)
        compare(values, self.keys, self.anchors, column.losses)
        return values


def letters(text: str) -> str:
    """The letters and digits of a name, by which a task is the published one."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def compare(column: Values, keys: list[Key], anchors: tuple[Anchors, ...], losses: bool) -> None:
    """Fills in ranks (ties of printed digits share the better one), effects and differences.

    Only rows that have both values count, and a run that stands in two rows counts once. Here a row is better
    than another where their difference, paired, is clear of its noise.
    """
    groups: dict[tuple[str, str], dict[str, Cell]] = {}
    for key, cell in zip(keys, column.cells, strict=True):
        if cell.comparable:
            groups.setdefault((key.new, key.model), {}).setdefault(key.name, cell)
            if column.scale == "paper":
                cell.difference = cell.reproduced.value - cell.published.value
    sign = 1 if losses else -1
    ranks = {which: _ranks(list(group.values()), sign) for which, group in groups.items() if len(group) > 1}
    for key, cell in zip(keys, column.cells, strict=True):
        if not cell.comparable:
            continue
        group = groups[key[1:]]
        if key[1:] in ranks:
            cell.ranks = ranks[key[1:]][list(group).index(key.name)]
        for anchor in anchors if losses else ():
            if (anchor.new, anchor.model) == key[1:] and {anchor.zero, anchor.one} <= {*group}:
                cell.effects = _effects(cell, group[anchor.zero], group[anchor.one], column.digits)


def _ranks(cells: list[Cell], sign: int) -> list[Ranks]:
    """Of cells that compare; `sign` is 1 where less is better."""
    there, count = [sign * cell.published.value for cell in cells], len(cells)
    above = [[0] * count for _ in cells]  # 1 where the first is clearly worse than the second
    for i, j in combinations(range(count), 2):
        effect = difference(cells[i].reproduced.samples, cells[j].reproduced.samples)
        above[i][j] = sign * effect.sign if effect else 0
        above[j][i] = -above[i][j]
    return [
        Ranks(1 + sum(v < there[i] for v in there), 1 + row.count(1), count - row.count(-1), count)
        for i, row in enumerate(above)
    ]


def _effects(cell: Cell, zero: Cell, one: Cell, digits: int) -> tuple[float | None, Effect | None]:
    """The published and the reproduced value with the anchors at 0 and 1; None where these are not apart."""
    there = one.published.value - zero.published.value
    published = (cell.published.value - zero.published.value) / there if round(there, digits) != 0 else None
    read = {name: c.reproduced.samples for name, c in (("zero", zero), ("one", one), ("it", cell))}
    # An anchor has no noise to itself.
    it = next(name for name, samples in read.items() if samples == read["it"])
    above = {"zero": -1.0} | {it: 1.0 if it != "zero" else 0.0}
    return published, quotient(above, {"one": 1.0, "zero": -1.0}, read)
