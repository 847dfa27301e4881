"""Published counterparts of runs: which printed cell or digitised curve says the same thing as a receipt.

Rows of a declared table are the rows of the published one in order, and a declared curve names the labels of the
digitised curves; so a run's published values are found by where the exhibits show it.
"""

from __future__ import annotations

from functools import cache

from cpt_repro.exhibits.declarations import Curves, Exhibits, Rows, load_declarations
from cpt_repro.papers import Paper, load_paper
from cpt_repro.published import Points, Value, load_digitised, load_published


class Counterparts:
    """What one paper published of its runs."""

    def __init__(self, paper: str):
        self.declared: Exhibits = load_declarations(paper)
        self.runs: Paper = load_paper(paper)
        self.published, self.digitised = load_published(paper), load_digitised(paper)

    def _cells(self, name: str, show: str):
        """(column, row, value) of every printed cell in a row of the run or merge `name`, most complete table first."""
        tables = [(key, e) for key, e in self.declared.exhibits.items() if isinstance(e, Rows)]
        for key, exhibit in sorted(tables, key=lambda pair: -len(pair[1].rows)):
            table = self.published.tables.get(key)
            for number, row in enumerate(exhibit.rows if table else ()):
                for column in exhibit.columns:
                    if name == (row.run or row.merge) and column.published and column.show == show:
                        for head in column.published:
                            if (value := table.cell(key, number, head)) is not None:
                                yield column, row, value

    def loss(self, run: str, corpora: tuple[str, ...]) -> Value | None:
        """Final loss printed for a run on one corpus, or on the average of two; else the end of its digitised curve."""
        new = lambda row: row.new or self.runs.runs[row.run].validate_on[1]  # noqa: E731
        for column, row, value in self._cells(run, "average_loss" if len(corpora) == 2 else "loss"):
            shown = (
                ("pile", new(row)) if len(corpora) == 2 else (new(row) if column.corpus == "new" else column.corpus,)
            )
            if shown == tuple(corpora):
                return value
        if len(corpora) == 1 and (curve := self.curve(run, corpora[0])):
            points, place = curve
            return Value(value=points[-1][1], mark="digitised", place=f"{place}, end")
        return None

    def score(self, name: str, suite: str, task: str | None = None) -> Value | None:
        """Percent printed for a run or merge: the average of a suite, or one of its published columns (`HellaSwag`)."""
        for show in ("average",) if task is None else ("tasks", "task"):
            for column, _, value in self._cells(name, show):
                if column.suite == suite and (task is None or value.place.endswith(f", {task}")):
                    return value
        return None

    def curve(self, run: str, y: str) -> tuple[Points, str] | None:
        """The run's digitised curve on its own axis (billions of tokens since the run began, y), and its place.

        Of several figures the one that shows most of the run. A curve of several runs is cut where they begin.
        """
        best: tuple[float, Points, str] | None = None
        for key, exhibit in self.declared.exhibits.items():
            for panel in exhibit.panels if isinstance(exhibit, Curves) else ():
                if panel.published is None or panel.y != y:
                    continue
                for curve in panel.curves:
                    if run not in curve.runs or not curve.published:
                        continue
                    points = self.points(panel.published, curve.published)
                    begin, length = self._span(exhibit, run)
                    own = tuple((x - begin, v) for x, v in points if begin - 1e-6 <= x <= begin + length * 1.01)
                    if own and (best is None or own[-1][0] > best[0] + 1):
                        figure = f"{key.replace('_0', ' ').replace('_', ' ').capitalize()}{panel.published[-1]}"
                        best = (own[-1][0], own, f"{figure}, {curve.published[0]}")
        return best and best[1:]

    def points(self, panel: str, labels: tuple[str, ...]) -> Points:
        """The points of one curve, its pieces joined in the order of x."""
        found = self.digitised.panels[panel].curves
        return tuple(sorted(point for label in labels for point in found[label].points))

    def _span(self, exhibit: Curves, run: str) -> tuple[float, float]:
        """Where a run begins on the figure's axis and how long it is, in billions of the paper's tokens."""
        runs, begin = self.runs.runs, 0.0
        length = lambda r, n=None: (n or r.iterations) * (r.batch or self.runs.batch).tokens / 1e9  # noqa: E731
        own = runs[run]
        at = own
        while exhibit.lineage and at.init_from and at.init_from.run != exhibit.after:
            begin += length(runs[at.init_from.run], at.init_from.iteration)
            at = runs[at.init_from.run]
        return begin, own.until or length(own)


@cache
def counterparts(paper: str) -> Counterparts:
    """A paper's counterparts, made once."""
    return Counterparts(paper)
