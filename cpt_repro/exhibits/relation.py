"""Effects of runs against what may decide them: one point a run, published points beside ours."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from itertools import count as count_from
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field

from cpt_repro.declarations.published import Mark, Value
from cpt_repro.declarations.strict import Strict
from cpt_repro.exhibits import style
from cpt_repro.exhibits.base import INTERVAL, CorpusRef, FigureKind, Result, RunRef, View, unique
from cpt_repro.exhibits.typeset import Measured, count
from cpt_repro.planning.mixture import streams
from cpt_repro.records.lookup import Trained
from cpt_repro.records.uncertainty import Sample, Samples, quotient


class _OfLosses(Strict):
    """One weighted sum of final losses on a corpus over another, in percent."""

    corpus: CorpusRef
    #: on the text of its so many largest domains alone, as the last evaluation has it
    domains: int | None = Field(default=None, ge=1)

    @property
    @abstractmethod
    def sums(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Runs with weights, above and below; one may stand twice."""

    @property
    def runs(self) -> list[str]:
        return unique(name for parts in self.sums for name, _ in parts)

    def measure(self, view: View) -> Measured | None:
        """None where a run is missing, or where the sum below is not clear of its noise."""
        losses = {name: self._loss(view, name) for name in self.runs}
        if not all(losses.values()):
            return None
        weights = [Counter[str](), Counter[str]()]
        for of, parts in zip(weights, self.sums, strict=True):
            for name, weight in parts:
                of[name] += weight
        share = quotient(*weights, losses)
        return Measured(100 * share.value, f"{100 * share.value:.1f}", 100 * share.noise) if share else None

    def _loss(self, view: View, name: str) -> Samples:
        """A run's losses by seed."""
        if self.domains is None:
            loss = view.loss(name, self.corpus)
            return loss.samples if loss else {}
        built = view.fingerprint(self.corpus)
        largest = [*view.plan.shares(self.corpus)][: self.domains]
        samples = {}
        for run in view.runs(name) if built else ():
            draw = built.validation_draw(len(run.sequence_losses(self.corpus)))
            part = _OfSome(run, [row for row, (domain, _) in enumerate(draw) if domain in largest])
            if losses := part.sequence_losses(self.corpus):
                samples[run.seed] = Sample(fmean(losses), losses={self.corpus: part})
        return samples


class _OfSome(Trained):
    """A run's losses on some of the validation sequences."""

    def __init__(self, run: Trained, rows: list[int]):
        super().__init__(run.records, run.run, run.receipt)
        self._rows = rows

    def sequence_losses(self, corpus: str, along: bool = False) -> tuple[float, ...]:
        losses = super().sequence_losses(corpus)
        return tuple(losses[row] for row in self._rows)


class Rise(_OfLosses):
    """A run's final loss over that of another, less one, in percent."""

    rise_of: RunRef
    over: RunRef

    @property
    def sums(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        return [(self.rise_of, 1), (self.over, -1)], [(self.over, 1)]


class Removed(_OfLosses):
    """How much of a rise of the final loss replay removes, in percent."""

    removed_by: RunRef
    of: RunRef
    over: RunRef

    @property
    def sums(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        return [(self.removed_by, -1), (self.of, 1)], [(self.of, 1), (self.over, -1)]


class Planned(Strict):
    """What the plan says of a run: its parameters, the tokens each of them saw, its highest rate, domains."""

    run: RunRef
    what: Literal["parameters", "tokens per parameter", "highest rate", "domains"]

    @property
    def runs(self) -> list[str]:
        return []

    def measure(self, view: View) -> Measured | None:
        """None where the scale has no such run."""
        planned = view.planned(self.run)
        if planned is None:
            return None
        training = planned.training
        if self.what == "highest rate":
            rate = max(value for name, value in training.schedule if name.startswith("eta_"))
            return Measured(rate, f"{rate:g}", 0.0)
        if self.what == "domains":
            read = len({(stream.corpus, stream.domain) for stream in streams(training.mixture)})
            return Measured(read, str(read), 0.0)
        value = training.parameters
        if self.what == "tokens per parameter":
            value = view.plan.lineage_tokens(planned.id) / value
        return Measured(value, count(value), 0.0)


Coordinate = Rise | Removed | Planned


class Point(Strict):
    """One run."""

    x: Coordinate
    y: Coordinate


class PublishedPoint(Strict):
    """The same as published, in the units of the axes."""

    x: float
    y: float
    mark: Mark
    place: str


class Series(Strict):
    """Points of one look."""

    label: str
    colour: str
    marker: str
    points: tuple[Point, ...] = ()
    published: tuple[PublishedPoint, ...] = ()


class RelationPanel(Strict):
    """One pair of axes."""

    title: str = ""
    x: str
    y: str
    log: bool = False
    series: tuple[Series, ...] = Field(min_length=1)


class Relation(FigureKind):
    """Effects against what may decide them."""

    styled: ClassVar[bool] = False
    kind: Literal["relation"] = "relation"
    panels: tuple[RelationPanel, ...] = Field(min_length=1)

    @property
    def runs(self) -> list[str]:
        return unique(run for coordinate in self._coordinates for run in coordinate.runs)

    @property
    def corpora(self) -> list[str]:
        return unique(c.corpus for c in self._coordinates if isinstance(c, _OfLosses) and c.domains)

    @property
    def _coordinates(self) -> list[Coordinate]:
        points = [point for panel in self.panels for series in panel.series for point in series.points]
        return [coordinate for point in points for coordinate in (point.x, point.y)]

    def notes(self, view: View) -> list[str]:
        marks = {p.mark for panel in self.panels for series in panel.series for p in series.published}
        published = f"Hollow: published ({', '.join(sorted(marks))})." if marks else ""
        return [text for text in (f"Bars: {INTERVAL}.", published) if text]

    def results(self, view: View) -> list[Result]:
        """Where the points stand, then the published ones."""
        out, lines = [], count_from(1)
        for index, panel in enumerate(self.panels):
            x, y = (style.letter(index, len(self.panels), name) for name in (panel.x, panel.y))
            for series in panel.series:
                for point in series.points:
                    line, run = next(lines), (*point.y.runs, *point.x.runs)[0]
                    for axis, of in ((x, point.x), (y, point.y)):
                        out.append(Result(line, series.label, axis, None, of.measure(view), run))
                for there in series.published:
                    line = next(lines)
                    for axis, value in ((x, there.x), (y, there.y)):
                        value = Value(value=value, mark=there.mark, place=there.place)
                        out.append(Result(line, series.label, axis, value, None, None))
        return out

    def draw(self, view: View) -> style.Figure:
        panels = len(self.panels)
        columns, rows = min(panels, 2), (panels + 1) // 2
        width = style.DOUBLE if columns > 1 else style.SINGLE
        figure, axes = style.figure(width, 2.3 * rows, rows, columns)
        legend = style.Legend()
        for index, (ax, panel) in enumerate(zip(axes, self.panels, strict=False)):
            legend.begin(style.letter(index, panels, ""))
            ax.set_title(style.letter(index, panels, panel.title), loc="left")
            ax.set(xlabel=panel.x, ylabel=panel.y)
            for series in panel.series:
                self._draw(ax, view, series, legend)
            if panel.log:
                _logarithmic(ax)
        for unused in axes[panels:]:
            unused.set_axis_off()
        legend.draw(figure)
        return figure

    def _draw(self, axes: style.Axes, view: View, series: Series, legend: style.Legend) -> None:
        look = {"color": style.COLOURS[series.colour], "marker": series.marker, "linestyle": "none"}
        places = [(point.x.measure(view), point.y.measure(view)) for point in series.points]
        there = [(x, y) for x, y in places if x and y]
        if there:
            xs, ys = zip(*there, strict=True)
            bars = {"xerr": [x.error for x in xs], "yerr": [y.error for y in ys], "elinewidth": 0.7}
            axes.errorbar([x.value for x in xs], [y.value for y in ys], **look, **bars)
            legend.add(series.label, **look)
        if series.published:
            hollow = look | {"markerfacecolor": "none", "markersize": 6}
            axes.plot([p.x for p in series.published], [p.y for p in series.published], **hollow)
            legend.add(f"{series.label}, published", **hollow)
        if lacking := len(places) - len(there):
            legend.note(f"{series.label}: {lacking} of {len(places)} not run")


def _logarithmic(axes: style.Axes) -> None:
    """A logarithmic x-axis with plain numbers: 0.005, 50, 1k, 10M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
    plain = FuncFormatter(lambda value, _: f"{value:g}" if value < 1 else count(value).replace(".0", ""))
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(NullFormatter())
