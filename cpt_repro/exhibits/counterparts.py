"""Published counterparts of runs: which printed cell or digitised curve says the same thing as a receipt.

Rows of a declared table are the rows of the published one in order, and a declared curve names the labels of
the digitised curves: a run's published values are where its paper's exhibits show it, misprints excepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cpt_repro.declarations.published import Points, PublishedTable, Value
from cpt_repro.declarations.study import Study
from cpt_repro.exhibits.bars import Bars
from cpt_repro.exhibits.base import Row
from cpt_repro.exhibits.curves import Curve, Curves, Panel
from cpt_repro.exhibits.rows import Column, Rows, letters

if TYPE_CHECKING:
    from cpt_repro.exhibits.catalogue import Exhibits

#: A curve's end counts as a final loss if it shows at least this share of the run.
WHOLE = 0.9
#: Billions of tokens at the joint of two runs whose digitised points belong to neither.
JOINT = 0.1


class Printed(NamedTuple):
    """A printed cell with the row and column that show it here."""

    heading: str
    column: Column
    row: Row
    value: Value


class Counterparts:
    """What one paper published of its own runs."""

    def __init__(self, study: Study, declared: Exhibits):
        self.study, self.declared = study, declared
        #: (table, row from 0, column)
        self.misprints = {
            (wrong.table, wrong.row - 1, name)
            for one in study.discrepancies
            for wrong in one.misprints
            for name in wrong.columns
        }

    @property
    def suites(self) -> set[str]:
        """Suites whose scores the paper's exhibits show."""
        return {suite for exhibit in self.declared.exhibits.values() for suite in exhibit.suites}

    def _tables(self) -> list[tuple[str, Rows, PublishedTable]]:
        """Tables of rows that were published, the most complete first."""
        every, published = self.declared.exhibits.items(), self.study.published.tables
        tables = [(k, e, published[k]) for k, e in every if isinstance(e, Rows) and k in published]
        return sorted(tables, key=lambda table: -len(table[1].rows))

    def cells(self, name: str, *shows: str) -> Iterator[Printed]:
        """Every printed cell of columns that show this in a row of the run or merge `name`."""
        for key, exhibit, table in self._tables():
            for number, row in enumerate(exhibit.rows):
                for column in exhibit.columns:
                    for head in column.published if name == row.model and column.show in shows else ():
                        value = table.cell(key, number, head)
                        if value is not None and (key, number, head) not in self.misprints:
                            yield Printed(head, column, row, value)

    def loss(self, run: str, corpora: tuple[str, ...]) -> Value | None:
        """Final loss printed for a run on one corpus, or two averaged; else its digitised curve's end."""
        for _, column, row, value in self.cells(run, "loss", "average_loss"):
            if column.corpora(self.study.paper.old, row.new_corpus(self.study)) == tuple(corpora):
                return value
        if len(corpora) == 1 and (curve := self.curve(run, corpora[0])):
            points, place = curve
            if points[-1][0] >= WHOLE * self.study.paper.billions(run):
                return Value(value=points[-1][1], mark="digitised", place=f"{place}, end")
        return None

    def score(self, name: str, suite: str, task: str | None = None) -> Value | None:
        """Percent printed for a run or merge: a suite's average, or a task of it (`arc_c`: ARC-c)."""
        for head, column, _, value in self.cells(name, *(("tasks", "task") if task else ("average",))):
            if column.suite == suite and (task is None or letters(task) == letters(head)):
                return value
        return None

    def compute(self, run: str) -> Value | None:
        """What the update of a run cost, from a figure whose bars show it."""
        for key, exhibit in self.declared.exhibits.items():
            for panel in exhibit.panels if isinstance(exhibit, Bars) else ():
                bars = [name for group in exhibit.groups for name in group.runs]
                if panel.show == "compute" and panel.published and run in bars:
                    return self.study.published.tables[key].cell(key, bars.index(run), panel.published)
        return None

    def curve(self, run: str, y: str, beside: tuple[str, ...] = ()) -> tuple[Points, str] | None:
        """The run's digitised curve (billions of tokens since the run began, y), and its place.

        Of several figures the one that shows most of the run, among those that show the runs `beside` it if
        there are any. A curve of several runs is cut where they begin. Rates are in the unit of their panel.
        """
        best: tuple[Points, str] | None = None
        most = -1
        for key, exhibit, panel in self._panels(y):
            for curve in (curve for curve in panel.curves if run in curve.runs and curve.published):
                own = self._own(exhibit, panel.published, curve, run)
                shown = len({*beside} & {*panel.runs})
                if own and (shown > most or (shown == most and own[-1][0] > best[0][-1][0] + 1)):
                    most = shown
                    label = curve.published[-1 if len(curve.published) == 1 else curve.runs.index(run)]
                    best = own, f"Figure {int(key[-2:])}{panel.published[-1]}, {label}"
        return best

    def _panels(self, y: str) -> Iterator[tuple[str, Curves, Panel]]:
        """Digitised panels with this y."""
        for key, exhibit in self.declared.exhibits.items():
            for panel in exhibit.panels if isinstance(exhibit, Curves) else ():
                if panel.published and panel.y == y:
                    yield key, exhibit, panel

    def _own(self, exhibit: Curves, panel: str, curve: Curve, run: str) -> Points:
        """The part of a digitised curve that shows one of its runs, x from where the run begins."""
        at = curve.runs.index(run)
        begin, length = self.span(exhibit, run)
        first, last = begin - JOINT, begin + length + JOINT
        if len(curve.published) == len(curve.runs):  # each run has its own piece
            points = self.points(panel, curve.published[at : at + 1])
            last = begin + length * 1.01  # some curves are longer than their printed lengths
        else:
            points = self.points(panel, curve.published)
            # At a joint, a point may belong to the run before or to the one after.
            first = begin + JOINT if at else first
            last = begin + length - JOINT if at < len(curve.runs) - 1 else last
        return tuple((max(round(x - begin, 4), 0.0), value) for x, value in points if first <= x <= last)

    def points(self, panel: str, labels: tuple[str, ...]) -> Points:
        """The points of one curve, its pieces joined in the order of x."""
        curves = self.study.digitised.panels[panel].curves
        return tuple(sorted(point for label in labels for point in curves[label].points))

    def span(self, exhibit: Curves, run: str) -> tuple[float, float]:
        """Where a run begins on the figure's axis and how long it is, in billions of the paper's tokens."""
        studies, stop = self.study.studies, exhibit.after and self.study.resolve(exhibit.after)
        paper, name = self.study.resolve(run)
        begin, length = 0.0, studies[paper].paper.billions(name)
        while exhibit.lineage and (start := studies[paper].paper.runs[name].init_from) and start.run:
            paper, name = studies[paper].resolve(start.run)
            if (paper, name) == stop:
                break
            begin += studies[paper].paper.billions(name, start.iteration)
        return begin, length
