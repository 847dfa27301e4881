"""Grouped bars, with the published ones below ours, at scale paper as markers on ours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean, stdev
from typing import TYPE_CHECKING, Literal, NamedTuple

from cpt_repro.declarations.published import Value
from cpt_repro.declarations.strict import Strict
from cpt_repro.exhibits import style
from cpt_repro.exhibits.agreement import Pair
from cpt_repro.exhibits.base import NOT_DIGITISED, Checks, FigureKind, View, unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARK = {
    "marker": "D", "markersize": 3.5, "linestyle": "none", "markerfacecolor": "white", "markeredgecolor": "black",
    "markeredgewidth": 0.8,
}  # fmt: skip


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

    def label(self, view: View) -> str:
        """Label of its y-axis."""
        if self.show == "compute":
            return f"units of {view.study.paper.unit.name}\nof the paper"
        if self.show == "loss":
            return style.LOSS.replace(" (", "\n(")
        return f"average of the\n{str(self.suite).capitalize()} suite (%)"

    def height(self, view: View, group: BarGroup, name: str) -> tuple[float, float] | None:
        """A bar's height and its standard error: over seeds if there are several, else of the value itself."""
        if self.show == "compute":
            run = view.planned(name)
            return (run.billions / view.study.paper.unit.billions, 0.0) if run else None
        if self.show == "suite":
            scores = [e.suites[self.suite] for e in view.evaluations(name) if self.suite in e.suites]
            values, errors = [100 * one.average for one in scores], [100 * one.stderr for one in scores]
        else:
            corpora = (self.corpus, group.new)
            finals = [[r.final[c] for c in corpora] for r in view.runs(name) if {*corpora} <= set(r.final)]
            values = [sum(final.loss for final in both) / 2 for both in finals]
            errors = [math.hypot(*(final.stderr for final in both)) / 2 for both in finals]
        if not values:
            return None
        return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else errors[0]


class Bar(NamedTuple):
    """One bar of a panel: its group, its place there, its run and what was published."""

    number: int
    group: BarGroup
    place: int
    run: str
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

    def check(self, checks: Checks) -> None:
        super().check(checks)
        columns = [panel.published for panel in self.panels if panel.published]
        checks.table(columns, sum(len(group.runs) for group in self.groups))
        checks.corpora(*(group.new for group in self.groups), *(panel.corpus for panel in self.panels))

    def caption(self, view: View) -> list[str]:
        over = "seeds where there are several, else over " if view.several_seeds else ""
        error = f"Error bars: standard error over {over}closing evaluations (loss) or documents (suite)."
        if not any(panel.published for panel in self.panels):
            return [error, NOT_DIGITISED]
        where = "the diamonds" if view.full_size else "the outlined bars below"
        return [error, f"Published: {where}, as printed or digitised."]

    def pairs(self, view: View) -> list[Pair]:
        """Every bar that was measured, by panel and group; what an update costs is declared."""
        out = []
        for panel in self.panels:
            for bar in self.of(view, panel) if panel.show != "compute" else ():
                ours = panel.height(view, bar.group, bar.run)
                if ours and bar.published:
                    out.append(Pair(f"{panel.title}, {bar.group.label}", float(bar.published.value), ours[0]))
        return out

    def of(self, view: View, panel: BarPanel) -> Iterator[Bar]:
        """The bars of a panel, group by group."""
        published = iter(view.published(panel.published, sum(len(group.runs) for group in self.groups)))
        for number, group in enumerate(self.groups):
            for place, run in enumerate(group.runs):
                yield Bar(number, group, place, run, next(published))

    def draw(self, view: View) -> Figure:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        any_published = any(panel.published for panel in self.panels)
        count, below = len(self.panels), any_published and not view.full_size
        figure, axes = style.figure(style.DOUBLE, 4.4 if below else 2.6, 1 + below, count)
        for index, panel in enumerate(self.panels):
            self._draw_panel(axes[index], panel, view)
            axes[index].set_title(style.letter(index, count, panel.title), loc="left")
            if below:
                self._draw_published(axes[count + index], panel, view)
        hatches = style.HATCHES[: len(self.bars)]
        looks = [Patch(facecolor="#777777", edgecolor="white", hatch=hatch) for hatch in hatches]
        labels = list(self.bars)
        if any_published and view.full_size:
            looks.append(Line2D([], [], **MARK))
            labels.append("published")
        figure.legend(looks, labels, loc="outside lower center", ncols=len(looks))
        return figure

    def _draw_panel(self, axes: Axes, panel: BarPanel, view: View) -> None:
        """Our bars, at scale paper with the published values on them."""
        for bar in self.of(view, panel):
            ours, x, mark = panel.height(view, bar.group, bar.run), self._x(bar), None
            if view.full_size and bar.published:
                mark, gid = float(bar.published.value), f"published-{panel.published}-{x:.2f}"
                axes.plot(x, mark, **MARK, zorder=4, gid=gid)
            if ours is None:
                self._draw_word(axes, x, view.why(bar.run))
                continue
            look = {"facecolor": self._colour(bar, view), "edgecolor": "white", "linewidth": 0.4}
            error = {"yerr": ours[1] or None, "error_kw": {"linewidth": 0.8, "ecolor": "#333333"}}
            axes.bar(x, ours[0], self._width * 0.94, hatch=style.HATCHES[bar.place], **look, **error)
            self._draw_value(axes, panel, x, ours[0], max(sum(ours), mark or 0), 4 if view.full_size else 2)
        self._finish(axes, panel, view)

    def _draw_published(self, axes: Axes, panel: BarPanel, view: View) -> None:
        """The published bars by themselves."""
        marks = set()
        for bar in self.of(view, panel):
            x = self._x(bar)
            if bar.published is None:
                self._draw_word(axes, x, "–")
                continue
            marks.add(bar.published.mark)
            height, look = (
                float(bar.published.value),
                {"facecolor": "none", "edgecolor": self._colour(bar, view)},
            )
            axes.bar(x, height, self._width * 0.86, hatch=style.HATCHES[bar.place], **look, linewidth=0.7)
            self._draw_value(axes, panel, x, height, height, 2)
        self._finish(axes, panel, view)
        axes.set(facecolor=style.TINT)
        axes.set_title(f"published ({', '.join(sorted(marks)) or 'nothing'})", loc="left")

    @property
    def _width(self) -> float:
        return 0.8 / len(self.bars)

    def _x(self, bar: Bar) -> float:
        return bar.number + (bar.place - (len(bar.group.runs) - 1) / 2) * self._width

    def _colour(self, bar: Bar, view: View) -> str:
        return style.COLOURS[view.declared.style(bar.run).colour]

    def _draw_word(self, axes: Axes, x: float, word: str) -> None:
        place = {"ha": "center", "va": "bottom", "transform": axes.get_xaxis_transform()}
        axes.text(x, 0.02, word, rotation=90, **place, fontsize=7, color=style.DIM)

    def _draw_value(
        self, axes: Axes, panel: BarPanel, x: float, value: float, top: float, above: int
    ) -> None:
        text = f"{value:.1f}" if panel.show == "suite" else f"{value:.2f}"
        place = {"xytext": (0, above), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(text, (x, top), **place, fontsize=7, rotation=90)

    def _finish(self, axes: Axes, panel: BarPanel, view: View) -> None:
        axes.set_xticks(range(len(self.groups)), [group.label for group in self.groups])
        axes.set_xlim(-0.55, len(self.groups) - 0.45)
        axes.margins(y=0.25)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(panel.label(view))
