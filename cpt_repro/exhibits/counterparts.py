"""Published counterparts of runs: which printed cell or digitised curve says the same thing as a receipt.

Rows of a declared table are the rows of the published one in order, and a declared curve names the labels of
the digitised curves: a run's published values are where its paper's exhibits show it, misprints excepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_repro.declarations.published import Points, Value
from cpt_repro.declarations.study import Study
from cpt_repro.exhibits.bars import Bars
from cpt_repro.exhibits.base import Row
from cpt_repro.exhibits.curves import Curve, Curves
from cpt_repro.exhibits.rows import Column, Rows, letters

if TYPE_CHECKING:
    from cpt_repro.exhibits.catalogue import Exhibits

#: A curve's end counts as a final loss if it shows at least this share of the run.
WHOLE = 0.9
#: Billions of tokens at the joint of two runs whose digitised points belong to neither.
JOINT = 0.1


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

    def cells(self, name: str, *shows: str) -> Iterator[tuple[str, Column, Row, Value]]:
        """(heading, column, row, value) of every printed cell that shows this of the run or merge `name`.

        The most complete table is first.
        """
        published = self.study.published.tables
        tables = [(k, e) for k, e in self.declared.exhibits.items() if isinstance(e, Rows) and k in published]
        for key, exhibit in sorted(tables, key=lambda table: -len(table[1].rows)):
            heads = [(one, head) for one in exhibit.columns if one.show in shows for head in one.published]
            for number, row in enumerate(exhibit.rows):
                for column, head in heads if name == row.model else ():
                    value = published[key].cell(key, number, head)
                    if value is not None and (key, number, head) not in self.misprints:
                        yield head, column, row, value

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
        best, most = None, -1
        for key, exhibit in self.declared.exhibits.items():
            panels = exhibit.panels if isinstance(exhibit, Curves) else ()
            drawn = [(panel, curve) for panel in panels if panel.y == y for curve in panel.curves]
            for panel, curve in drawn:
                own = self._own(exhibit, panel.published, curve, run) if run in curve.runs else ()
                shown = len({*beside} & {*panel.runs})
                if own and (shown > most or (shown == most and own[-1][0] > best[0][-1][0] + 1)):
                    most = shown
                    label = curve.published[-1 if len(curve.published) == 1 else curve.runs.index(run)]
                    best = own, f"Figure {int(key[-2:])}{panel.published[-1]}, {label}"
        return best

    def _own(self, exhibit: Curves, panel: str | None, curve: Curve, run: str) -> Points:
        """The part of a digitised curve that shows one of its runs, x from where the run begins."""
        if not (panel and curve.published):
            return ()
        at, labels, (begin, length) = curve.runs.index(run), curve.published, self.span(exhibit, run)
        first, last = begin - JOINT, begin + length + JOINT
        if len(labels) == len(curve.runs):  # each run has its own piece
            labels = labels[at : at + 1]
            last = begin + length * 1.01  # some curves are longer than their printed lengths
        else:
            # At a joint, a point may belong to the run before or to the one after.
            first = begin + JOINT if at else first
            last = begin + length - JOINT if at < len(curve.runs) - 1 else last
        curves = self.study.digitised.panels[panel].curves
        points = sorted(point for label in labels for point in curves[label].points)
        return tuple((max(round(x - begin, 4), 0.0), value) for x, value in points if first <= x <= last)

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
