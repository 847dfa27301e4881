"""Published counterparts of runs: which printed cell or digitised curve says the same thing as a receipt.

Rows of a declared table are the rows of the published one in order, and a declared curve names the labels of the
digitised curves; so a run's published values are found by where the exhibits show it. Misprints are no counterparts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from cpt_repro.declarations.exhibits import Column, Curve, Curves, Exhibits, Row, Rows, load_declarations
from cpt_repro.declarations.published import Points, Value, load_digitised, load_discrepancies, load_published
from cpt_repro.declarations.runs import Paper, load_paper

#: A curve's end counts as a final loss if it shows at least this share of the run.
WHOLE = 0.9
#: Billions of tokens at the joint of two runs whose digitised points belong to neither.
JOINT = 0.1


class Counterparts:
    """What one paper published of its runs."""

    def __init__(self, paper: str):
        self.declared: Exhibits = load_declarations(paper)
        self.runs: Paper = load_paper(paper)
        self.published, self.digitised = load_published(paper), load_digitised(paper)
        self.misprints = {
            (wrong.table, wrong.row - 1, name)
            for found in load_discrepancies(paper)
            for wrong in found.misprints
            for name in wrong.columns
        }

    def _cells(self, name: str, show: str) -> Iterator[tuple[str, Column, Row, Value]]:
        """Every printed cell in a row of the run or merge `name`, most complete table first; the str is its heading."""
        tables = [(key, e) for key, e in self.declared.exhibits.items() if isinstance(e, Rows)]
        for key, exhibit in sorted(tables, key=lambda pair: -len(pair[1].rows)):
            table = self.published.tables.get(key)
            for number, row in enumerate(exhibit.rows if table else ()):
                for column in exhibit.columns:
                    for head in (
                        column.published if name == (row.run or row.merge) and column.show == show else ()
                    ):
                        value = table.cell(key, number, head)
                        if value is not None and (key, number, head) not in self.misprints:
                            yield head, column, row, value

    def loss(self, run: str, corpora: tuple[str, ...]) -> Value | None:
        """Final loss printed for a run on one corpus, or on the average of two; else the end of its digitised curve."""
        for _, column, row, value in self._cells(run, "average_loss" if len(corpora) == 2 else "loss"):
            new = row.new or self.runs.runs[row.run].validate_on[1]
            one = new if column.corpus == "new" else column.corpus
            if tuple(corpora) == (("pile", new) if len(corpora) == 2 else (one,)):
                return value
        if len(corpora) == 1 and (curve := self.curve(run, corpora[0])):
            points, place = curve
            if points[-1][0] >= WHOLE * self._length(run):
                return Value(value=points[-1][1], mark="digitised", place=f"{place}, end")
        return None

    def score(self, name: str, suite: str, task: str | None = None) -> Value | None:
        """Percent printed for a run or merge: the average of a suite, or one of its published columns (`HellaSwag`)."""
        for show in ("average",) if task is None else ("tasks", "task"):
            for head, column, _, value in self._cells(name, show):
                if column.suite == suite and task in (None, head):
                    return value
        return None

    def curve(self, run: str, y: str, beside: tuple[str, ...] = ()) -> tuple[Points, str] | None:
        """The run's digitised curve on its own axis (billions of tokens since the run began, y), and its place.

        Of several figures the one that shows most of the run, among those that show the runs `beside` it if there are
        any. A curve of several runs is cut where they begin. The learning rate is in the unit of its panel.
        """
        best: tuple[Points, str] | None = None
        most = -1
        for key, exhibit in self.declared.exhibits.items():
            for panel in exhibit.panels if isinstance(exhibit, Curves) else ():
                for curve in panel.curves if panel.published and panel.y == y else ():
                    if run not in curve.runs or not curve.published:
                        continue
                    own = self._own(exhibit, panel.published, curve, run)
                    shown = len({*beside} & {name for other in panel.curves for name in other.runs})
                    if own and (shown > most or (shown == most and own[-1][0] > best[0][-1][0] + 1)):
                        most = shown
                        figure = (
                            f"{key.replace('_0', ' ').replace('_', ' ').capitalize()}{panel.published[-1]}"
                        )
                        label = curve.published[-1 if len(curve.published) == 1 else curve.runs.index(run)]
                        best = own, f"{figure}, {label}"
        return best

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
        found = self.digitised.panels[panel].curves
        return tuple(sorted(point for label in labels for point in found[label].points))

    def _length(self, run: str, iterations: int | None = None) -> float:
        """Billions of the paper's tokens in a run, or in its first iterations."""
        declared = self.runs.runs[run]
        tokens = (iterations or declared.iterations) * (declared.batch or self.runs.batch).tokens / 1e9
        return tokens if iterations else declared.until or tokens

    def span(self, exhibit: Curves, run: str) -> tuple[float, float]:
        """Where a run begins on the figure's axis and how long it is, in billions of the paper's tokens."""
        begin, above = 0.0, self.runs.runs[run].init_from
        while exhibit.lineage and above and above.run not in (None, exhibit.after):
            begin += self._length(above.run, above.iteration)
            above = self.runs.runs[above.run].init_from
        return begin, self._length(run)


@cache
def counterparts(paper: str) -> Counterparts:
    """A paper's counterparts, made once."""
    return Counterparts(paper)
