"""Grouped bars, with the published ones below ours, at scale paper as markers on ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from cpt_repro.declarations.published import Value
from cpt_repro.declarations.strict import Strict
from cpt_repro.exhibits import base, style
from cpt_repro.exhibits.base import CorpusRef, FigureKind, Result, RunRef, View, unique
from cpt_repro.exhibits.typeset import Measured

MARK = {
    "marker": "D", "markersize": 3.5, "linestyle": "none",
    "markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.8,
}  # fmt: skip


class BarGroup(Strict):
    """Bars side by side; `new` is the corpus averaged with that of the panel."""

    label: str
    new: CorpusRef
    runs: tuple[RunRef, ...]


class BarPanel(Strict):
    """What the bars of a panel show."""

    title: str
    show: Literal["compute", "loss", "suite"]
    corpus: CorpusRef | None = None
    suite: str | None = None
    #: column of the published values of this figure; their rows are the bars, group by group
    published: str | None = None

    def label(self, view: View) -> str:
        """Label of its y-axis."""
        return {
            "compute": f"units of {view.study.paper.unit.name}\nof the paper",
            "loss": style.LOSS.replace(" (", "\n(").replace(")", "; axis cut)"),
            "suite": f"average of the\n{str(self.suite).capitalize()} suite (%)",
        }[self.show]

    def height(self, view: View, group: BarGroup, name: str) -> Measured | None:
        """A bar's height."""
        if self.show == "suite":
            return view.score(name, self.suite)
        if self.show == "loss":
            return view.loss(name, self.corpus, group.new)
        run = view.planned(name)
        return Measured(run.billions / view.study.paper.unit.billions, "", 0.0) if run else None


class Bar(NamedTuple):
    """One bar of a panel: where it stands, its group and place there, its run and what was published."""

    x: float
    group: BarGroup
    place: int
    run: str
    colour: str
    published: Value | None


class Bars(FigureKind):
    """Grouped bars: colour by run, hatch by place in the group."""

    kind: Literal["bars"] = "bars"
    bars: tuple[str, ...]
    groups: tuple[BarGroup, ...]
    panels: tuple[BarPanel, ...]

    @property
    def runs(self) -> list[str]:
        return unique(run for group in self.groups for run in group.runs)

    @property
    def evaluations(self) -> list[str]:
        return self.runs if self.suites else []

    @property
    def suites(self) -> list[str]:
        return unique(panel.suite for panel in self.panels if panel.show == "suite")

    @property
    def published_table(self) -> tuple[list[str], int]:
        return unique(panel.published for panel in self.panels), sum(len(group.runs) for group in self.groups)

    def notes(self, view: View) -> list[str]:
        where = "the diamonds" if view.full_size else "the outlined bars below"
        published = f"Published: {where}, as printed or digitised."
        return [f"Error bars: {base.INTERVAL}.", published if self.published_table[0] else base.NOT_DIGITISED]

    def results(self, view: View) -> list[Result]:
        """Every bar; what an update costs is declared, so it is compared with nothing."""
        return [
            Result(
                line=line,
                row=f"{bar.group.label}, {self.bars[bar.place]}",
                column=panel.title,
                published=bar.published,
                ours=panel.height(view, bar.group, bar.run),
                run=bar.run,
                record="evaluation" if panel.show == "suite" else "receipt",
                group=None if panel.show == "compute" else f"{panel.title}, {bar.group.label}",
            )
            for panel in self.panels
            for line, bar in enumerate(self.of(view, panel), 1)
        ]

    def of(self, view: View, panel: BarPanel) -> Iterator[Bar]:
        """The bars of a panel, group by group."""
        published = iter(view.published(panel.published, self.published_table[1]))
        for number, group in enumerate(self.groups):
            for place, run in enumerate(group.runs):
                x = number + (place - (len(group.runs) - 1) / 2) * self._width
                colour = style.COLOURS[view.declared.style(run).colour]
                yield Bar(x, group, place, run, colour, next(published))

    @property
    def _width(self) -> float:
        return 0.8 / len(self.bars)

    def draw(self, view: View) -> style.Figure:
        from matplotlib.legend_handler import HandlerTuple
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        published = bool(self.published_table[0])
        count, below = len(self.panels), published and not view.full_size
        figure, axes = style.figure(style.DOUBLE, 4.4 if below else 2.6, 1 + below, count)
        for index, panel in enumerate(self.panels):
            self._draw_panel(axes[index], panel, view)
            axes[index].set_title(style.letter(index, count, panel.title), loc="left")
            if below:
                self._draw_published(axes[count + index], panel, view)
        for index, ax in enumerate(axes):
            panel = self.panels[index % count]
            names = [group.label if index >= count else view.here(group.label) for group in self.groups]
            ax.set_xticks(range(len(names)), [re.sub(r" (?=\()|(?<=\)) ", "\n", name) for name in names])
            ax.set_xlim(-0.55, len(names) - 0.45)
            ax.margins(y=0.25)
            if panel.show == "loss":
                _cut(ax)
            ax.grid(axis="x", visible=False)
            ax.set_ylabel(panel.label(view))
        looks: list[Any] = []
        for place, hatch in enumerate(style.HATCHES[: len(self.bars)]):
            colours = unique(bar.colour for bar in self.of(view, self.panels[0]) if bar.place == place)
            looks.append(tuple(Patch(facecolor=one, edgecolor="white", hatch=hatch) for one in colours))
        both = published and view.full_size
        looks, labels = looks + [Line2D([], [], **MARK)] * both, [*self.bars, *["published"] * both]
        beside = {tuple: HandlerTuple(ndivide=None, pad=0)}
        figure.legend(looks, labels, handler_map=beside, loc="outside lower center", ncols=len(looks))
        return figure

    def _draw_panel(self, axes: style.Axes, panel: BarPanel, view: View) -> None:
        for bar in self.of(view, panel):
            ours, mark = panel.height(view, bar.group, bar.run), 0.0
            if view.full_size and bar.published:
                mark, gid = float(bar.published.value), f"published-{panel.published}-{bar.x:.2f}"
                axes.plot(bar.x, mark, **MARK, zorder=4, gid=gid)
            if ours is None:
                _word(axes, bar.x, view.why(bar.run))
                continue
            look = {"facecolor": bar.colour, "edgecolor": "white", "linewidth": 0.4}
            error = {"yerr": ours.error or None, "error_kw": {"linewidth": 0.8, "ecolor": "#333333"}}
            axes.bar(bar.x, ours.value, self._width * 0.94, hatch=style.HATCHES[bar.place], **look, **error)
            top = max(ours.value + ours.error, mark)
            _value(axes, panel, bar.x, ours.value, top, 4 if view.full_size else 2)

    def _draw_published(self, axes: style.Axes, panel: BarPanel, view: View) -> None:
        marks = set()
        for bar in self.of(view, panel):
            if bar.published is None:
                _word(axes, bar.x, "–")
                continue
            marks.add(bar.published.mark)
            height = float(bar.published.value)
            look = {"facecolor": "none", "edgecolor": bar.colour, "linewidth": 0.7}
            axes.bar(bar.x, height, self._width * 0.86, hatch=style.HATCHES[bar.place], **look)
            _value(axes, panel, bar.x, height, height, 2)
        axes.set(facecolor=style.TINT)
        axes.set_title(f"published ({', '.join(sorted(marks)) or 'nothing'})", loc="left")


def _cut(axes: style.Axes) -> None:
    """Cuts the axis below the bars: losses are far from zero, and their differences are what is shown."""
    if tops := [bar.get_height() for bar in axes.patches]:
        low, high = min(tops), max(tops)
        span = high - low
        axes.set_ylim(low - 0.5 * span - 0.02 * low, high + 0.45 * span + 0.02 * low)


def _word(axes: style.Axes, x: float, word: str) -> None:
    place = {"ha": "center", "va": "bottom", "transform": axes.get_xaxis_transform()}
    axes.text(x, 0.02, word, rotation=90, **place, fontsize=7, color=style.DIM)


def _value(axes: style.Axes, panel: BarPanel, x: float, value: float, top: float, above: int) -> None:
    text = f"{value:.1f}" if panel.show == "suite" else f"{value:.2f}"
    place = {"xytext": (0, above), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate(text, (x, top), **place, fontsize=7, rotation=90)
