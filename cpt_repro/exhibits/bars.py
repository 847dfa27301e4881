"""Bar figures, with the published bars below ours, at scale paper as markers on ours."""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import Any

from cpt_repro.declarations.exhibits import BarPanel, Bars
from cpt_repro.declarations.published import Value
from cpt_repro.exhibits import style
from cpt_repro.records.counterparts import counterparts
from cpt_repro.records.lookup import Records

MARK = {
    "marker": "D", "linestyle": "none", "markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.8,
    "markersize": 3.5,
}  # fmt: skip


def _bar(records: Records, panel: BarPanel, group: Any, name: str) -> tuple[float, float] | None:
    """A bar's height and its standard error: over seeds where there are several, else of the value itself."""
    if panel.show == "compute":
        segment = records.segment(name)
        return (segment.billions / 300, 0.0) if segment else None
    if panel.show == "suite":
        averages = [e.suites[panel.suite] for e in records.evaluations(name) if panel.suite in e.suites]
        values = [100 * entry["average"] for entry in averages]
        errors = [100 * entry["stderr"] for entry in averages]
    else:
        both = [[r.final[c] for c in (panel.corpus, group.new)] for r in records.receipts(name)
                if {panel.corpus, group.new} <= set(r.final)]  # fmt: skip
        values = [sum(final.loss for final in pair) / 2 for pair in both]
        errors = [math.hypot(*(final.stderr for final in pair)) / 2 for pair in both]
    if not values:
        return None
    return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else errors[0]


def _published_bar(exhibit: Bars, records: Records, panel: BarPanel, group: int, place: int) -> Value | None:
    """What the paper's figure says of a bar; the rows of its values are the bars, group by group."""
    key = next(name for name, declared in records.declared.exhibits.items() if declared == exhibit)
    table = counterparts(records.paper).published.tables.get(key)
    row = sum(len(before.runs) for before in exhibit.groups[:group]) + place
    return table.cell(key, row, panel.published) if table and panel.published else None


def bar_pairs(exhibit: Bars, records: Records) -> list[tuple[str, float, float]]:
    """(panel and group, published, reproduced) of every bar that was measured."""
    found = []
    for panel in exhibit.panels:
        for number, group in enumerate(exhibit.groups):
            for place, name in enumerate(group.runs):
                ours = _bar(records, panel, group, name)
                published = _published_bar(exhibit, records, panel, number, place)
                # What an update costs is declared and not found.
                if panel.show != "compute" and ours and published:
                    found.append((f"{panel.title}, {group.label}", float(published.value), ours[0]))
    return found


def _draw_bars(axes: Any, exhibit: Bars, panel: BarPanel, records: Records, published: bool) -> set[str]:
    """The bars of one panel, ours or the published ones; returns the marks of the latter."""
    marks, width = set(), 0.8 / len(exhibit.bars)
    together = not published and records.scale.name == "paper"
    for number, group in enumerate(exhibit.groups):
        for place, name in enumerate(group.runs):
            x = number + (place - (len(group.runs) - 1) / 2) * width
            printed = (
                _published_bar(exhibit, records, panel, number, place) if published or together else None
            )
            marks |= {printed.mark} if printed else set()
            if published:
                value, word = printed and (float(printed.value), 0.0), "–"
            else:
                value, word = _bar(records, panel, group, name), records.why(name)
            if together and printed:
                axes.plot(
                    x, float(printed.value), **MARK, zorder=4, gid=f"published-{panel.published}-{x:.2f}"
                )
            if value is None:
                axes.text(x, 0.02, word, rotation=90, ha="center", va="bottom", fontsize=7, color="#666666",
                          transform=axes.get_xaxis_transform())  # fmt: skip
                continue
            colour = style.COLOURS[records.declared.style(name).colour]
            look = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.4}
            if published:
                look = {"facecolor": "none", "edgecolor": colour, "linewidth": 0.7}
            error = {"yerr": value[1] or None, "error_kw": {"linewidth": 0.8, "ecolor": "#333333"}}
            axes.bar(
                x,
                value[0],
                width * (0.86 if published else 0.94),
                hatch=style.HATCHES[place],
                **look,
                **error,
            )
            top = max(value[0] + value[1], float(printed.value) if printed else 0)
            text = f"{value[0]:.1f}" if panel.show == "suite" else f"{value[0]:.2f}"
            axes.annotate(text, (x, top), xytext=(0, 2 + 2 * together), textcoords="offset points", ha="center",
                          va="bottom", fontsize=7, rotation=90)  # fmt: skip
    axes.set_xticks(range(len(exhibit.groups)), [group.label for group in exhibit.groups])
    axes.set_xlim(-0.55, len(exhibit.groups) - 0.45)
    axes.margins(y=0.25)
    axes.grid(axis="x", visible=False)
    word = {
        "compute": "units of 300B tokens\nof the paper",
        "loss": style.LOSS.replace(" (", "\n("),
        "suite": f"average of the\n{str(panel.suite).capitalize()} suite (%)",
    }
    axes.set_ylabel(word[panel.show])
    return marks


def bars(exhibit: Bars, records: Records) -> Any:
    """Grouped bars: colour by run, hatch by place in the group; published ones below, at scale paper as markers."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    together = records.scale.name == "paper"
    count, below = len(exhibit.panels), any(panel.published for panel in exhibit.panels) and not together
    figure, axes = style.figure(style.DOUBLE, 4.4 if below else 2.6, 1 + below, count)
    for index, panel in enumerate(exhibit.panels):
        _draw_bars(axes[index], exhibit, panel, records, published=False)
        axes[index].set_title(style.letter(index, count, panel.title), loc="left")
        if below:
            ax = axes[count + index]
            marks = _draw_bars(ax, exhibit, panel, records, published=True)
            ax.set(facecolor=style.TINT)
            ax.set_title(f"published ({', '.join(sorted(marks)) or 'nothing'})", loc="left")
    looks = [
        Patch(facecolor="#777777", edgecolor="white", hatch=hatch)
        for hatch in style.HATCHES[: len(exhibit.bars)]
    ]
    labels = list(exhibit.bars)
    if together and any(panel.published for panel in exhibit.panels):
        looks.append(Line2D([], [], **MARK))
        labels.append("published")
    figure.legend(looks, labels, loc="outside lower center", ncols=len(looks))
    return figure
