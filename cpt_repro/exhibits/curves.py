"""Losses or learning rates against tokens.

Published curves are drawn at scale paper in the axes of ours. Below it absolute losses do not compare, so
they get axes of their own beside ours, tinted, with the same x-limits and looks: shapes and orders compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, model_validator

from cpt_repro.declarations.published import Value
from cpt_repro.declarations.strict import Strict
from cpt_repro.exhibits import base, style
from cpt_repro.exhibits.agreement import Pair
from cpt_repro.exhibits.base import FigureKind, Result, RunRef, View, check_known, unique
from cpt_repro.planning.plan import PlannedRun

Range = tuple[float, float]
#: x and y; y is NaN where the pen is lifted.
Line = tuple[list[float], list[float]]
LEARNING_RATE = "learning_rate"
PUBLISHED = "published (digitised)"


class Curve(Strict):
    """One curve: a run, or runs one after another on one axis."""

    runs: tuple[RunRef, ...] = Field(min_length=1)
    label: str | None = None
    #: labels of the digitised curves of the panel that show these runs, in the order of their pieces
    published: tuple[str, ...] = ()
    #: whether the y-limits make room for it
    fits: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"runs": [value]} if isinstance(value, str) else value

    def called(self, view: View) -> str:
        """Its label, else that of its first run."""
        return self.label or view.declared.style(self.runs[0]).label


class Reference(Strict):
    """A run's final loss on the panel's corpus, from which effects are told; a horizontal line."""

    run: RunRef
    label: str
    #: whether there is a line, or effects are told from it and no more
    drawn: bool = True
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
    #: the paper's limits, for published curves and at scale paper
    ylim: Range | None = None
    #: first part of the x-range that the y-limits may cut off
    settle: float = Field(default=0.05, ge=0, le=1)
    #: the transient is the subject: effects are not told from a start that the paper's axes may cut off
    spike: bool = False
    warmup_ends: bool = False
    boundaries: bool = False
    reference: Reference | None = None
    curves: tuple[Curve, ...] = Field(min_length=1)

    @property
    def rates(self) -> bool:
        """Whether it shows learning rates."""
        return self.y == LEARNING_RATE

    @property
    def runs(self) -> list[str]:
        """Runs of its curves."""
        return unique(run for curve in self.curves for run in curve.runs)

    @property
    def line(self) -> str | None:
        """Label of the published line of reference."""
        return self.reference.published if self.reference else None

    @model_validator(mode="after")
    def _digitised(self, info: ValidationInfo) -> Panel:
        labels = [label for curve in self.curves for label in curve.published]
        if self.published is None and (self.line or labels):
            raise ValueError("a curve or line has 'published', and the panel none: name it, such as 4a")
        for curve in self.curves:
            if len(curve.published) not in (0, 1, many := len(curve.runs)):
                what = f"a curve has {many} runs and {len(curve.published)} published pieces"
                raise ValueError(f"{what}; name one piece for all runs, or one for each")
        if info.context:
            check_known(self.y, [*info.context.paper.corpora, LEARNING_RATE], "corpus")
        if info.context and self.published:
            check_known(self.published, panels := info.context.digitised.panels, "digitised panel")
            for label in labels:
                check_known(label, panels[self.published].curves, "digitised curve")
            if self.line:
                check_known(self.line, panels[self.published].lines, "published line")
        return self

    def published_line(self, view: View, curve: Curve) -> Line | None:
        """A curve's digitised points on the figure's axis."""
        if not (self.published and curve.published):
            return None
        panel = view.study.digitised.panels[self.published]
        pieces = sorted(tuple(sorted(panel.curves[label].points)) for label in curve.published)
        xs, ys = _joined(((points[0][0], points) for points in pieces), gap=0.5)
        return xs, [y * (1e-4 if panel.y.endswith("x1e-4") else 1) for y in ys]

    def published_level(self, view: View) -> float | None:
        """The published line of reference, or where none is drawn the published final loss."""
        if self.reference and not self.reference.drawn:
            value = view.counterparts.loss(self.reference.run, (self.y,))
            return value and float(value.value)
        return view.study.digitised.panels[self.published].lines[self.line] if self.line else None

    def finals(self, view: View) -> dict[int, float]:
        """Final losses of the run of reference by seed, of the sequences that curves are of."""
        runs = view.runs(self.reference.run) if self.reference else []
        return {one.seed: one.final_of_curve(self.y) for one in runs if self.y in one.final}


class Stage(NamedTuple):
    """Where a stage begins, how long it is (billions of the paper's tokens), and its name if it has one."""

    start: float
    billions: float
    name: str


class Curves(FigureKind):
    """Losses or learning rates against tokens."""

    kind: Literal["curves"] = "curves"
    columns: int = 2
    #: x counts the tokens of the ancestors too, those after the run `after` alone where it is given
    lineage: bool = False
    after: RunRef | None = None
    panels: tuple[Panel, ...] = Field(min_length=1)

    @property
    def runs(self) -> list[str]:
        references = (panel.reference.run for panel in self.panels if panel.reference)
        return unique([*(run for panel in self.panels for run in panel.runs), *references])

    @property
    def digitised(self) -> bool:
        """Whether anything of it was."""
        return any(panel.published for panel in self.panels)

    def notes(self, view: View) -> list[str]:
        bands = "bands reach from the lowest to the highest of them"
        out = [f"Lines are means over {view.common_seeds}, {bands}."] if view.several_seeds else []
        if not self.digitised:
            return [*out, base.NOT_DIGITISED]
        source = f"digitised from the paper's plots, losses to about {view.study.digitised.tolerance:g}"
        if view.full_size:
            return [*out, f"Published curves (thin lines): {source}."]
        beside = "right, tinted, on the y-axis of the paper, as losses do not compare across scales"
        span = "Where an axis in percent stands at the right, both have the same span in it."
        return [*out, f"Published curves ({beside}): {source}.", span]

    def results(self, view: View) -> list[Result]:
        """Each curve's last point that was measured and drawn, here and in the paper."""
        out = []
        for index, panel in enumerate(self.panels):
            for line, curve in enumerate(panel.curves if not panel.rates else (), 1):
                last, published = curve.runs[-1], panel.published_line(view, curve)
                planned, ends = view.planned(last), [panel.xlim[1], *(published[0][-1:] if published else ())]
                start = self.origin(view, planned) if planned else 0.0
                x, ours = view.loss_at(last, panel.y, min(ends) - start) or (min(ends) - start, None)
                value = None
                if published:
                    place = f"Figure {int(view.key[-2:])}{panel.published[-1]}, {curve.published[-1]}"
                    value = Value(value=_at(published, start + x), mark="digitised", place=place)
                title = style.letter(index, len(self.panels), f"{panel.title}: loss on {panel.y}").strip(": ")
                row = f"{curve.called(view)}, at {start + x:.4g}B"
                out.append(Result(line, row, title, value, ours, last))
        return out

    def pairs(self, view: View) -> list[Pair]:
        """Ends of curves and the line of reference, by panel.

        A curve ends where the published one or ours does, whichever is first; of several seeds the mean
        counts. Learning rates are declared, so they are left out; so is a panel whose published ends lie
        closer together than they could be read off, since their order says nothing.
        """
        out = []
        for panel in self.panels:
            ends = self.ends(view, panel) if panel.published and not panel.rates else []
            published = [end.published for end in ends]
            if ends and max(published) - min(published) >= view.study.digitised.tolerance:
                out += ends
        return out

    def ends(self, view: View, panel: Panel) -> list[Pair]:
        """Where the curves of a panel end, published and here."""
        *seeded, finals = self.comparable(view, panel)
        out = []
        for curve, lines in zip(panel.curves, seeded, strict=True):
            published = panel.published_line(view, curve)
            # Of a chain with a piece missing there is no end to compare.
            if published and lines and all(view.runs(name) for name in curve.runs):
                end = min(published[0][-1], *(xs[-1] for xs, _ in lines))
                here = mean(_at(line, end) for line in lines)
                out.append(Pair(panel.published, _at(published, end), here))
        drawn = panel.reference and panel.reference.drawn
        if finals and drawn and (level := panel.published_level(view)) is not None:
            out.append(Pair(panel.published, level, mean(finals)))
        return out

    def comparable(self, view: View, panel: Panel) -> list[list[Any]]:
        """The lines of each curve, then the final losses of reference, of the seeds that all have."""
        return style.shared([*(self.lines(view, c, panel.y) for c in panel.curves), panel.finals(view)])

    def lines(self, view: View, curve: Curve, y: str) -> dict[int, Line]:
        """A line for each seed that has all its pieces, else what pieces there are."""
        pieces: dict[int, list[tuple[float, Any]]] = {seed: [] for seed in view.plan.seeds}
        for one in (one for name in curve.runs for one in view.runs(name)):
            start = self.origin(view, one.run)
            if points := one.learning_rate if y == LEARNING_RATE else one.curve(y):
                pieces[one.seed].append((start, [(start + x, value) for x, value in points]))
        most = max(map(len, pieces.values()))
        return {seed: _joined(p, gap=1e-6) for seed, p in pieces.items() if p and len(p) == most}

    def origin(self, view: View, run: PlannedRun) -> float:
        """Where a run begins on the x-axis: after the tokens of its ancestors, or at 0."""
        x, stop = 0.0, self.after and view.study.resolve(self.after)
        while self.lineage and run.parent:
            parent = view.plan.runs[run.parent]
            if (parent.paper, parent.name) == stop:
                break
            x += parent.position(run.parent_iteration)
            run = parent
        return x

    def stages(self, view: View, panel: Panel) -> list[Stage]:
        """The pieces of the first curve at this scale; one that reads a single domain has its name."""
        planned = [view.planned(name) for name in panel.curves[0].runs if panel.boundaries]
        new = [(run, run.training.mixture[-1].stream) for run in planned if run]
        return [Stage(self.origin(view, r), r.billions, stream.domain if stream else "") for r, stream in new]

    def published_stages(self, view: View, panel: Panel) -> list[Stage]:
        """The same in the paper; named by the labels of their curves where each has its own."""
        first = panel.curves[0]
        own = len(first.published) == len(first.runs)
        names = [label.split()[0] for label in first.published] if own else [""] * len(first.runs)
        spans = [view.counterparts.span(self, run) for run in first.runs if panel.boundaries]
        return [Stage(*span, name) for span, name in zip(spans, names, strict=False)]

    def draw(self, view: View) -> style.Figure:
        """Below scale paper the published curves stand to the right of each panel."""
        count = len(self.panels)
        beside = self.digitised and not view.full_size
        columns = 1 if beside else min(self.columns, count)
        rows, halves = math.ceil(count / columns), (_Ours, _Axes) if beside else (_Ours,)
        of = (self.stages, self.published_stages)[: len(halves)]
        named = any(stage.name for panel in self.panels for stages in of for stage in stages(view, panel))
        width = style.DOUBLE if beside or columns > 1 else style.SINGLE
        height = 2.2 if not beside else 1.7 if count > 2 else 2.1
        figure, axes = style.figure(width, height * rows, rows, columns * len(halves))
        legend, places = style.Legend(), iter(axes)
        for index, panel in enumerate(self.panels):
            legend.begin(style.letter(index, count, ""))
            drawn = [half(next(places), panel, self, view, legend) for half in halves]
            for one in drawn:
                one.draw()
                title = one.title(style.letter(index, count, panel.title))
                one.axes.set_title(title, loc="left", pad=13 if named else 4)
                one.axes.set_xlabel(one.x_label if index >= count - columns else "")
                form = {"style": "sci", "scilimits": (0, 0)} if panel.rates else {"useOffset": False}
                one.axes.ticklabel_format(axis="y", **form)
            if beside and not panel.rates:
                _shared_span(*drawn)
        figure.align_ylabels(axes[:: len(halves)])
        legend.draw(figure)
        return figure


def _shared_span(ours: _Ours, there: _Axes) -> None:
    """Gives both halves the same span of effects, in percent of their lines of reference, or of their starts.

    Losses of different models and texts do not compare as they are; what the eye compares then does.
    """
    halves = [(one.axes, one.base) for one in (ours, there) if one.base]
    if len(halves) < 2:
        return
    ends = [[y / level for y in axes.get_ylim()] for axes, level in halves]
    low, high = min(end for end, _ in ends), max(end for _, end in ends)
    for axes, level in halves:
        axes.set_ylim(low * level, high * level)
    axes, level = halves[1]
    turned = (lambda y: 100 * (y / level - 1), lambda percent: level * (1 + percent / 100))
    percent = axes.secondary_yaxis("right", functions=turned)
    reference = there.panel.reference
    against = "start" if not reference else "line" if reference.drawn else reference.label
    percent.set_ylabel(f"against the {against} (%)")


def _joined(pieces: Iterable[tuple[float, Any]], gap: float) -> Line:
    """[(where it starts, points)] as one line; the pen is lifted where more than `gap` lies between two."""
    points: list[tuple[float, float]] = []
    for start, piece in pieces:
        lifted = [(start, math.nan)] if points and start > points[-1][0] + gap else []
        points += [*lifted, *piece]
    return [x for x, _ in points], [y for _, y in points]


def _at(line: Line, x: float) -> float:
    import numpy as np

    known = [(a, b) for a, b in zip(*line, strict=True) if not math.isnan(b)]
    return float(np.interp(x, *zip(*known, strict=True)))


class _Axes:
    """Axes while they are drawn: here those of the published curves alone, on the paper's y-axis."""

    x_label, where = "tokens (B)", "published"

    def __init__(self, axes: style.Axes, panel: Panel, exhibit: Curves, view: View, legend: style.Legend):
        self.axes, self.panel, self.exhibit, self.view, self.legend = axes, panel, exhibit, view, legend
        #: what the y-limits must have room for: (whether from scratch, line), and levels
        self.lines: list[tuple[bool, Line]] = []
        self.levels: list[float] = []
        #: the final loss of reference
        self.level: float | None = None
        axes.set_xlim(*panel.xlim)

    def look(self, run: str) -> dict[str, Any]:
        return style.line(self.view.declared.style(run))

    def title(self, title: str) -> str:
        corpus = "" if self.panel.rates else f": {self.view.study.paper.corpora[self.panel.y].stands_for}"
        paper, run = base.declaration(self.view.study, self.panel.curves[0].runs[0])
        return f"{PUBLISHED}, {paper.models[run.model]}{corpus}"

    def draw(self) -> None:
        self.axes.set(facecolor=style.TINT)
        if not self.panel.published:
            style.empty(self.axes, "nothing published")
            return
        self.draw_published()
        for curve in self.panel.curves:
            self.draw_warmup_end(curve)
        self.draw_boundaries(self.exhibit.published_stages(self.view, self.panel))
        if limits := self.panel.ylim or self.limits():
            self.axes.set_ylim(*((0, limits[1]) if self.panel.rates else limits))

    def draw_published(self) -> None:
        panel = self.panel
        for index, curve in enumerate(panel.curves):
            if line := panel.published_line(self.view, curve):
                look, gid = self.look(curve.runs[0]), f"published-{panel.published}-{index}"
                self.axes.plot(*line, **look, linewidth=0.7, zorder=1.8, gid=gid)
                self.make_room(curve, [line] if curve.fits else [])
        self.level = level = panel.published_level(self.view)
        if level is not None and panel.reference.drawn:
            look, gid = self.look(panel.reference.run), f"published-{panel.published}-line"
            self.axes.axhline(level, **look, linewidth=0.5, zorder=1.55, gid=gid)
            self.levels.append(level)

    @property
    def base(self) -> float | None:
        """The loss that effects are measured from: the line of reference, else where all curves start."""
        if self.panel.reference:
            return self.level
        if self.panel.spike:
            return None
        if any(scratch for scratch, _ in self.lines):
            return None
        early = 0.01 * (self.panel.xlim[1] - self.panel.xlim[0])
        return next((ys[0] for _, (xs, ys) in self.lines if xs and xs[0] <= early), None)

    def make_room(self, curve: Curve, lines: list[Line]) -> None:
        scratch = base.declaration(self.view.study, curve.runs[0])[1].init_from is None
        self.lines += [(scratch, line) for line in lines]

    def draw_warmup_end(self, curve: Curve) -> None:
        run = self.view.planned(curve.runs[0])
        if run and self.panel.warmup_ends:
            look = self.look(curve.runs[0]) | {"linestyle": (0, (2, 2)), "linewidth": 0.7}
            self.axes.axvline(base.warmup_end(run), **look, zorder=1.5)

    def draw_boundaries(self, stages: list[Stage]) -> None:
        """Where stages begin, above them their numbers, in the legend their names."""
        look = {"color": "#777777", "linewidth": 0.6, "linestyle": (0, (1, 2)), "zorder": 1.4}
        words = {"fontsize": 7, "color": "#444444", "in_layout": False, "ha": "center", "va": "bottom"}
        for number, (start, billions, name) in enumerate(stages, 1):
            if start > 0:
                self.axes.axvline(start, **look)
            if name:
                place = self.axes.get_xaxis_transform()
                self.axes.text(start + billions / 2, 1.015, str(number), transform=place, **words)
        if any(stage.name for stage in stages):
            names = ", ".join(f"{number} {stage.name}" for number, stage in enumerate(stages, 1))
            self.legend.note(f"{self.where}: {names}")

    def limits(self) -> Range | None:
        """Limits of y that an early transient does not squash: beyond 1.5 of the settled span it is cut."""
        panel, (left, right) = self.panel, self.panel.xlim
        # Beside curves that go on from a trained model, those from scratch may come in from above the axes.
        mixed = len({scratch for scratch, _ in self.lines}) > 1
        shown, settled = [], list(self.levels)
        for scratch, line in self.lines:
            settle = max(panel.settle, 0.4) if mixed and scratch else panel.settle
            points = [(x, y) for x, y in zip(*line, strict=True) if x <= right and y == y]
            shown += [y for _, y in points]
            settled += [y for x, y in points if x >= left + settle * (right - left)]
        if not (settled := settled or shown):
            return None
        low, high = min(settled), max(settled)
        span = max(high - low, 1e-3 * abs(high), 1e-12)
        high = max(y for y in [*shown, high] if y <= low + 1.5 * span)
        # Losses leap upwards only: what lies low, such as the loss before forgetting began, always counts.
        low = min([low, *shown])
        pad = 0.06 * (high - low or span)
        return low - pad, high + pad


class _Ours(_Axes):
    """The axes of this scale's curves."""

    def __init__(self, axes: style.Axes, panel: Panel, exhibit: Curves, view: View, legend: style.Legend):
        super().__init__(axes, panel, exhibit, view, legend)
        self.x_label, self.where = style.tokens_label(view.scale), "here"
        #: (label, colour, line) of curves that the limits leave no room for
        self.apart: list[tuple[str, str, Line]] = []
        self.nothing = not any(view.runs(name) for name in panel.runs)
        self.beside = exhibit.digitised and not view.full_size
        loss = style.LOSS.replace(" (", "\n(") if self.beside else style.LOSS
        axes.set_ylabel("learning rate" if panel.rates else loss)

    def title(self, title: str) -> str:
        panel, view, title = self.panel, self.view, self.view.here(title)
        if panel.rates:
            return title
        if self.beside:
            return f"{title}: {view.plan.corpus_title(panel.y)}"
        return f"{title}{chr(10) if panel.title else ' '}{view.corpus(panel.y)}".strip()

    def draw(self) -> None:
        """What there is of each curve, the line of reference, and in the legend what is missing."""
        panel, view, together = self.panel, self.view, self.panel.published and self.view.full_size
        if together:
            self.draw_published()
            self.legend.add(PUBLISHED, reference=True, color="#555555", linewidth=0.7)
        elif self.nothing:
            style.empty(self.axes, " / ".join(dict.fromkeys(view.why(name) for name in panel.runs)))
        *compared, finals = self.exhibit.comparable(view, panel)
        for index, curve in enumerate(panel.curves):
            self.draw_curve(index, curve, compared[index])
        if self.nothing and not together:
            return
        self.draw_reference(finals)
        self.draw_boundaries(self.exhibit.stages(view, panel))
        limits = panel.ylim if panel.ylim and view.full_size else self.limits()
        if limits is None:
            return
        limits = (0, limits[1]) if panel.rates else self.draw_entropy_rate(limits)
        self.axes.set_ylim(*limits)
        for label, colour, (xs, ys) in self.apart:
            late = [y for x, y in zip(xs, ys, strict=True) if x >= panel.xlim[0] + 0.5 * (xs[-1] - xs[0])]
            if min(late) > limits[1]:
                text = self.axes.text(0.98, 0.95, f"{label} ↑ {ys[-1]:.2f}", transform=self.axes.transAxes)
                text.set(ha="right", va="top", color=colour, fontsize=7)

    def draw_curve(self, index: int, curve: Curve, compared: list[Line]) -> None:
        """The mean over comparable seeds and a band over the same, or a note on what is missing."""
        import numpy as np

        view, panel, look = self.view, self.panel, self.view.declared.style(curve.runs[0])
        label, drawn = view.here(curve.called(view), curve.runs[0]), style.line(look)
        gone = [name for name in curve.runs if not view.runs(name)]
        if len(gone) == len(curve.runs):
            if panel.published and curve.published:  # its published curve is there to be named
                self.legend.add(f"{label}: {view.why(gone[0])}", **drawn, linewidth=0.7)
            elif not self.nothing:
                self.legend.note(f"{label}: {view.why(gone[0])}")
            return
        lines = list(self.exhibit.lines(view, curve, panel.y).values())
        if not lines:
            self.legend.note(f"{label}: not measured on {panel.y}")
            return
        if curve.fits:
            self.make_room(curve, lines)
        else:
            self.apart.append((label, drawn["color"], lines[0]))
        xs = compared[0][0]
        values = np.array([ys for other, ys in compared if len(other) == len(xs)])
        if len(values) > 1:
            band = {"color": drawn["color"], "alpha": 0.14, "linewidth": 0}
            self.axes.fill_between(xs, values.min(axis=0), values.max(axis=0), **band)
        marks = {"marker": look.marker, "markevery": (0.02 + 0.13 * index / len(panel.curves), 0.13)}
        marks = {} if panel.rates else marks
        self.axes.plot(xs, values.mean(axis=0), **drawn, **marks, zorder=2 + 0.01 * index)
        partly = f" ({len(gone)} of {len(curve.runs)} {view.why(gone[0])})" if gone else ""
        self.legend.add(label + partly, **drawn, marker=look.marker)
        self.draw_warmup_end(curve)

    def draw_reference(self, finals: list[float]) -> None:
        reference = self.panel.reference
        self.level = mean(finals) if finals else None
        if reference and reference.drawn and not finals:
            self.legend.note(f"{reference.label}: {self.view.why(reference.run)}")
        elif reference and reference.drawn:
            look = self.look(reference.run) | {"linewidth": 0.8}
            self.levels.append(self.level)
            self.axes.axhline(self.level, **look, zorder=1.6)
            self.legend.add(reference.label, reference=True, **look)

    def draw_entropy_rate(self, limits: Range) -> Range:
        """A generated language's entropy rate: a line near the curves, else a note; limits for it."""
        view, corpus, (low, high) = self.view, self.panel.y, limits
        rates = (one.entropy_floor(corpus) for run in self.panel.runs for one in view.runs(run))
        rate = next((rate for rate in rates if rate is not None), None)
        if rate is None:
            return limits
        if low - 0.35 * (high - low) <= rate <= high:
            look = {"color": "#555555", "linestyle": (0, (1, 2.5)), "linewidth": 0.9}
            self.axes.axhline(rate, **look, zorder=1.5)
            self.legend.add("entropy rate", reference=True, **look)
            return min(low, rate - 0.04 * (high - rate)), high
        # A legend without entries: matplotlib finds a place for it where no curve runs.
        note = {"handles": [], "loc": "best", "borderpad": 0.2, "title_fontsize": 7}
        self.axes.legend(title=f"entropy rate: {rate:.2f}", **note).get_title().set_color("#555555")
        return limits
