"""Figures (curves, planes, bars, schedule diagrams) from declarations and receipts; matplotlib is imported on use."""

from __future__ import annotations

import math
from typing import Any

from cpt_repro.exhibits import style
from cpt_repro.exhibits.declarations import LEARNING_RATE, Bars, Curve, Curves, Panel, Plane, ScheduleDiagram
from cpt_repro.exhibits.records import Records
from cpt_repro.plan import Segment
from cpt_repro.receipts import Receipt

Points = tuple[list[float], list[float]]
LOSS = "validation loss (nats/token)"


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, list[Any]]:
    # Without pyplot, which would keep every figure and costs time to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05, wspace=0.03, hspace=0.04)
    return figure, list(axes.flat)


def _tokens_label(records: Records) -> str:
    if records.scale.name == "paper":
        return "tokens (B)"
    return f"tokens (B of the paper; 1 B = {records.scale.tokens_per_billion:,.0f} tokens here)"


def _letter(index: int, count: int, title: str) -> str:
    letter = f"({chr(ord('a') + index)})" if count > 1 else ""
    return " ".join(part for part in (letter, title) if part)


class _Legend:
    """One legend for all panels, below them; entries with the same label are one, lines of reference come last."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self._order: list[str] = []
        self._last: str | None = None
        self._panel = ""
        #: what is missing -> letters of the panels
        self._notes: dict[str, list[str]] = {}

    def begin(self, panel: str) -> None:
        """Starts a panel: its curves are put in among those of the panels before, in its order."""
        self._last, self._panel = None, panel

    def note(self, text: str) -> None:
        """What a panel lacks, named after all entries."""
        self._notes.setdefault(text, []).append(self._panel)

    def add(self, label: str, reference: bool = False, **look: Any) -> None:
        from matplotlib.lines import Line2D

        if label not in self.entries:
            self.entries[label] = Line2D([], [], **look)
            if not reference:
                self._order.insert(self._order.index(self._last) + 1 if self._last else len(self._order), label)
        if not reference:
            self._last = label

    def draw(self, figure: Any) -> None:
        for text, panels in self._notes.items():
            self.add(" ".join([*filter(None, panels), text]), reference=True, color="none")
        if not self.entries:
            return
        width, height = figure.get_size_inches()
        characters = width * 72 / (7 * 0.54)
        widest = max(len(label) for label in self.entries) + 8
        columns = max(1, min(len(self.entries), 6, int(characters / widest)))
        # Matplotlib fills columns downwards; equal columns read better than a full first row.
        rows = math.ceil(len(self.entries) / columns)
        columns = math.ceil(len(self.entries) / rows)
        figure.set_size_inches(width, height + 0.1 + 0.155 * rows)
        labels = self._order + [label for label in self.entries if label not in self._order]
        handles = [self.entries[label] for label in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2)


# -- curves


def _origin(records: Records, segment: Segment, exhibit: Curves) -> float:
    """Where a run begins on the x-axis: after the tokens of its ancestors, or at 0."""
    x = 0.0
    while exhibit.lineage and segment.parent:
        parent = records.plan.segments[segment.parent]
        if parent.name == exhibit.after:
            break
        x += records.scale.billions(segment.parent_iteration)
        segment = parent
    return x


def _pieces(records: Records, name: str, y: str, seed: int) -> tuple[Receipt, Points] | None:
    receipt = next((r for r in records.receipts(name) if r.segment.seed == seed), None)
    if receipt is None or (y != LEARNING_RATE and y not in receipt.curves):
        return None
    if y == LEARNING_RATE:
        points = [(records.scale.billions(i), rate) for i, rate in receipt.learning_rate]
    else:
        points = receipt.curve(y)
    return receipt, ([x for x, _ in points], [value for _, value in points])


def curve_points(records: Records, curve: Curve, y: str, exhibit: Curves) -> list[Points]:
    """A curve for each seed that has all its pieces, else what pieces there are; NaN where the pen is lifted."""
    seeds: list[tuple[int, Points]] = []
    for seed in records.plan.seeds:
        xs, ys, found = [], [], 0
        for name in curve.runs:
            piece = _pieces(records, name, y, seed)
            if piece is None:
                continue
            receipt, (piece_x, piece_y) = piece
            origin = _origin(records, receipt.segment, exhibit)
            if xs and origin > xs[-1] + 1e-6:
                xs.append(origin)
                ys.append(math.nan)
            xs += [origin + x for x in piece_x]
            ys += piece_y
            found += 1
        if found:
            seeds.append((found, (xs, ys)))
    most = max((found for found, _ in seeds), default=0)
    return [points for found, points in seeds if found == most]


def _limits(all_points: list[tuple[bool, Points]], panel: Panel, extra: list[float]) -> tuple[float, float] | None:
    """Limits of y that an early transient does not squash: above, what takes more than a third of the height is cut."""
    left, right = panel.xlim
    # Beside curves that go on from a trained model, those from scratch may come in from above the axes.
    mixed = len({scratch for scratch, _ in all_points}) > 1
    shown, settled = [], list(extra)
    for scratch, (xs, ys) in all_points:
        settle = 0 if panel.spike else max(panel.settle, 0.4) if mixed and scratch else panel.settle
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if x <= right and y == y]
        shown += points
        settled += [y for x, y in points if x >= left + settle * (right - left)]
    if not settled:
        settled = [y for _, y in shown]
    if not settled:
        return None
    low, high = min(settled), max(settled)
    span = max(high - low, 1e-3 * abs(high), 1e-12)
    high = max(y for _, y in [*shown, (0, high)] if y <= low + 1.5 * span)
    # Losses leap upwards only: what lies low, such as the loss before forgetting began, always counts.
    low = min(low, *(y for _, y in shown))
    pad = 0.06 * (high - low or span)
    return low - pad, high + pad


def _draw_panel(axes: Any, panel: Panel, exhibit: Curves, records: Records, legend: _Legend) -> None:
    import numpy as np

    everything: list[tuple[bool, Points]] = []
    apart: list[tuple[str, list[float], list[float]]] = []
    axes.set_xlim(*panel.xlim)
    runs = [name for curve in panel.curves for name in curve.runs]
    if not any(records.receipts(name) for name in runs):
        words = " / ".join(dict.fromkeys(records.why(name) for name in runs))
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#666666")
        axes.set_yticks([])
        return
    for index, curve in enumerate(panel.curves):
        look = records.declared.style(curve.runs[0])
        label = curve.label or look.label
        lines = curve_points(records, curve, panel.y, exhibit)
        gone = [name for name in curve.runs if not records.receipts(name)]
        if len(gone) == len(curve.runs):
            legend.note(f"{label}: {records.why(gone[0])}")
            continue
        if not lines:
            legend.note(f"{label}: not measured on {panel.y}")
            continue
        partly = f" ({len(gone)} of {len(curve.runs)} {records.why(gone[0])})" if gone else ""
        scratch = records.segment(curve.runs[0]).parent is None
        if curve.fits:
            everything += [(scratch, points) for points in lines]
        else:
            apart.append((label, *lines[0]))
        xs = np.array(lines[0][0])
        values = [np.array(ys) for other, ys in lines if len(other) == len(xs)]
        marks = {"marker": look.marker, "markevery": (0.02 + 0.13 * index / len(panel.curves), 0.13)}
        drawn = style.line(look)
        if len(values) > 1:
            stack = np.vstack(values)
            axes.fill_between(xs, stack.min(axis=0), stack.max(axis=0), color=drawn["color"], alpha=0.2, linewidth=0)
        if panel.y == LEARNING_RATE:
            marks = {}
        axes.plot(xs, np.mean(values, axis=0), **drawn, **marks, zorder=2 + 0.01 * index)
        legend.add(label + partly, **drawn, marker=look.marker)
        if panel.warmup_ends:
            segment = records.segment(curve.runs[0])
            end = records.scale.billions(getattr(segment.schedule, "warmup_frac", 0) * segment.schedule_iterations)
            axes.axvline(end, color=drawn["color"], linestyle=(0, (2, 2)), linewidth=0.7, zorder=1.5)
    extra: list[float] = []
    if panel.reference:
        look = records.declared.style(panel.reference.run)
        finals = [r.final[panel.y].loss for r in records.receipts(panel.reference.run) if panel.y in r.final]
        drawn = style.line(look) | {"linewidth": 0.8}
        if finals:
            extra.append(sum(finals) / len(finals))
            axes.axhline(extra[0], **drawn, zorder=1.6)
            legend.add(panel.reference.label, reference=True, **drawn)
        else:
            legend.note(f"{panel.reference.label}: {records.why(panel.reference.run)}")
    if panel.boundaries:
        _boundaries(axes, panel, exhibit, records)
    limits = _limits(everything or [(False, (xs, ys)) for _, xs, ys in apart], panel, extra)
    if panel.ylim and records.scale.name == "paper":
        limits = panel.ylim
    if limits is not None:
        if panel.y == LEARNING_RATE:
            limits = (0, limits[1])
        else:
            taken = [points for _, points in everything] + [(list(panel.xlim), [level, level]) for level in extra]
            limits = _entropy_floor(axes, panel, records, limits, legend, taken)
        axes.set_ylim(*limits)
        for label, xs, ys in apart:
            settled = [y for x, y in zip(xs, ys, strict=True) if x >= panel.xlim[0] + 0.5 * (xs[-1] - xs[0])]
            if min(settled) > limits[1]:
                legend.note(f"{label}: above the axes, ends at {ys[-1]:.2f}")


def _stages(panel: Panel, records: Records) -> dict[str, str]:
    """Run -> domain, where the first curve's pieces each read one domain of their own."""
    segments = [(name, records.segment(name)) for name in panel.curves[0].runs if panel.boundaries]
    return {name: s.mixture[-1].stream.domain for name, s in segments if s and s.mixture[-1].stream}


def _is_narrow(billions: float, panel: Panel) -> bool:
    return billions < 0.15 * (panel.xlim[1] - panel.xlim[0])


def _room_for_names(panel: Panel, records: Records) -> float:
    """Points between a panel and its title that upright names of stages take."""
    names = [
        (4.4 * len(name) if _is_narrow(records.segment(run).billions, panel) else 9)
        for run, name in _stages(panel, records).items()
    ]
    return max(names, default=0) + 4


def _boundaries(axes: Any, panel: Panel, exhibit: Curves, records: Records) -> None:
    """Vertical lines where the pieces of the first curve begin; the domain's name where a stage reads one alone."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(axes.transData, axes.transAxes)
    stages = _stages(panel, records)
    for name in panel.curves[0].runs:
        segment = records.segment(name)
        if segment is None:
            continue
        start, length = _origin(records, segment, exhibit), segment.billions
        if start > 0:
            axes.axvline(start, color="#777777", linewidth=0.6, linestyle=(0, (1, 2)), zorder=1.4)
        turn = 90 if _is_narrow(length, panel) else 0
        label = axes.text(start + length / 2, 1.015, stages.get(name, ""), transform=place, ha="center", va="bottom")
        label.set(fontsize=7, color="#444444", rotation=turn, in_layout=False)


def _empty_corner(panel: Panel, limits: tuple[float, float], lines: list[Points]) -> tuple[float, float] | None:
    """A corner (axes fractions) that no curve crosses."""
    import numpy as np

    low, high = limits
    for corner_x, corner_y in ((0.99, 0.98), (0.99, 0.02), (0.01, 0.98), (0.01, 0.02)):
        ends = (0.55, 1) if corner_x > 0.5 else (0, 0.45)
        first, last = (panel.xlim[0] + end * (panel.xlim[1] - panel.xlim[0]) for end in ends)
        even = np.linspace(first, last, 60)
        heights = [np.interp(even, *line) for line in lines]
        heights += [np.array([y for x, y in zip(*line, strict=True) if first <= x <= last]) for line in lines]
        if not any((abs((h - low) / (high - low) - corner_y) < 0.12).any() for h in heights):
            return corner_x, corner_y
    return None


def _entropy_floor(
    axes: Any, panel: Panel, records: Records, limits: tuple[float, float], legend: _Legend, lines: list[Points]
) -> tuple[float, float]:
    """The entropy rate of a generated language, as a line where it is near the curves, else as a note."""
    receipts = [r for curve in panel.curves for name in curve.runs for r in records.receipts(name)]
    floor = next((r.entropy_floor[panel.y] for r in receipts if r.entropy_floor.get(panel.y) is not None), None)
    if floor is None:
        return limits
    low, high = limits
    if low - 0.35 * (high - low) <= floor <= high:
        look = {"color": "#555555", "linestyle": (0, (1, 2.5)), "linewidth": 0.9}
        axes.axhline(floor, **look, zorder=1.5)
        legend.add("entropy rate", reference=True, **look)
        return min(low, floor - 0.04 * (high - floor)), high
    corner = _empty_corner(panel, limits, lines)
    if corner is None:
        corpus = records.scale.corpora[panel.y]
        legend.add(f"entropy rate of {corpus}: {floor:.2f}", reference=True, color="none")
    else:
        x, y = corner
        side, level = "right" if x > 0.5 else "left", "top" if y > 0.5 else "bottom"
        note = f"entropy rate: {floor:.2f}"
        axes.text(x, y, note, transform=axes.transAxes, ha=side, va=level, fontsize=7, color="#555555")
    return limits


def curves(exhibit: Curves, records: Records) -> Any:
    """Losses or learning rates against tokens."""
    count = len(exhibit.panels)
    columns = min(exhibit.columns, count)
    rows = math.ceil(count / columns)
    pad = max(_room_for_names(panel, records) for panel in exhibit.panels)
    width = style.SINGLE if columns == 1 else style.DOUBLE
    figure, axes = _figure(width, (2.2 + pad / 72) * rows + 0.1, rows, columns)
    legend = _Legend()
    for index, (panel, ax) in enumerate(zip(exhibit.panels, axes, strict=False)):
        legend.begin(_letter(index, count, ""))
        _draw_panel(ax, panel, exhibit, records, legend)
        title = _letter(index, count, panel.title)
        if panel.y == LEARNING_RATE:
            ax.set_ylabel("learning rate")
            ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        else:
            ax.set_ylabel(LOSS)
            ax.ticklabel_format(axis="y", useOffset=False)
            title = f"{title}{chr(10) if panel.title else ' '}{records.corpus(panel.y)}".strip()
        ax.set_title(title, loc="left", pad=pad)
        if index >= count - columns:
            ax.set_xlabel(_tokens_label(records))
    legend.draw(figure)
    return figure


# -- planes


def r_squared(xs: list[float], ys: list[float]) -> float:
    """R² of the straight line of least squares."""
    n = len(xs)
    mean_x, mean_y = sum(xs) / n, sum(ys) / n
    sxx = sum((x - mean_x) ** 2 for x in xs)
    syy = sum((y - mean_y) ** 2 for y in ys)
    sxy = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return sxy * sxy / (sxx * syy) if sxx and syy else math.nan


def plane(exhibit: Plane, records: Records) -> Any:
    """Paths in the plane of two perplexities."""
    figure, (axes,) = _figure(style.DOUBLE * 0.62, 3.0, 1, 1)
    legend, scatter = _Legend(), None
    for curve in exhibit.curves:
        look = records.declared.style(curve.runs[0])
        label = curve.label or look.label
        receipts = [r for r in records.receipts(curve.runs[0]) if {exhibit.x, exhibit.y} <= set(r.curves)]
        if not receipts:
            legend.note(f"{label}: {records.why(curve.runs[0])}")
            continue
        fits = []
        for receipt in receipts:
            tokens = [t for t, _ in receipt.curve(exhibit.x) if t <= exhibit.until]
            xs, ys = ([math.exp(v) for _, v in receipt.curve(c)[: len(tokens)]] for c in (exhibit.x, exhibit.y))
            fits.append(r_squared(xs, ys))
            axes.plot(xs, ys, **style.line(look), linewidth=0.8, zorder=2)
            edge = {"linewidths": 0.9} if look.marker in "x+" else {"linewidths": 0.3, "edgecolors": "white"}
            colours = {"c": tokens, "cmap": style.TOKENS_MAP, "vmin": 0, "vmax": exhibit.until}
            scatter = axes.scatter(xs, ys, s=13, marker=look.marker, zorder=3, **colours, **edge)
            axes.plot(xs[0], ys[0], "o", color=style.START, markersize=6, zorder=5)
            segment = receipt.segment
            warm = getattr(segment.schedule, "warmup_frac", 0) * segment.schedule_iterations
            after = next((k for k, t in enumerate(tokens) if t >= records.scale.billions(warm)), None)
            if warm and after is not None:
                axes.plot(xs[after], ys[after], "o", markerfacecolor="none", markeredgecolor=style.WARMED_UP,
                          markeredgewidth=1.3, markersize=7, zorder=6)  # fmt: skip
        fit = f" (R² = {sum(fits) / len(fits):.2f})" if exhibit.fit else ""
        legend.add(label + fit, **style.line(look), marker=look.marker)
    if scatter is None:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color="#666666")
        axes.set(xticks=[], yticks=[])
    else:
        bar = figure.colorbar(scatter, ax=axes, pad=0.02, aspect=28)
        bar.set_label(_tokens_label(records).replace("; ", ";\n"))
        bar.outline.set_linewidth(0.5)
        legend.add(
            "before the first update", reference=True, color=style.START, marker="o", markersize=6, linestyle="none"
        )
        legend.add(
            "end of the warm-up", reference=True, marker="o", markerfacecolor="none", markeredgecolor=style.WARMED_UP,
            markeredgewidth=1.3, markersize=7, linestyle="none",
        )  # fmt: skip
    axes.set_xlabel(f"validation perplexity, {records.corpus(exhibit.x)}")
    axes.set_ylabel(f"validation perplexity\n{records.corpus(exhibit.y)}")
    legend.draw(figure)
    return figure


# -- bars


def _bar(records: Records, panel: Any, group: Any, name: str) -> tuple[float, float] | None:
    """A bar's height and the half length of its error bar."""
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
    return sum(values) / len(values), math.hypot(*errors) / len(errors)


def bars(exhibit: Bars, records: Records) -> Any:
    """Grouped bars: colour by run, hatch by place in the group."""
    from matplotlib.patches import Patch

    figure, axes = _figure(style.DOUBLE, 2.6, 1, len(exhibit.panels))
    width = 0.8 / len(exhibit.bars)
    for index, (panel, ax) in enumerate(zip(exhibit.panels, axes, strict=True)):
        for place, group in enumerate(exhibit.groups):
            for k, name in enumerate(group.runs):
                x = place + (k - (len(group.runs) - 1) / 2) * width
                value = _bar(records, panel, group, name)
                if value is None:
                    ax.text(x, 0.02, records.why(name), rotation=90, ha="center", va="bottom", fontsize=7,
                            color="#666666", transform=ax.get_xaxis_transform())  # fmt: skip
                    continue
                fill = {"color": style.COLOURS[records.declared.style(name).colour], "hatch": style.HATCHES[k]}
                error = {"yerr": value[1] or None, "error_kw": {"linewidth": 0.8, "ecolor": "#333333"}}
                ax.bar(x, value[0], width * 0.94, edgecolor="white", linewidth=0.4, **fill, **error)
                text = f"{value[0]:.1f}" if panel.show == "suite" else f"{value[0]:.2f}"
                ax.annotate(text, (x, value[0] + value[1]), xytext=(0, 2), textcoords="offset points", ha="center",
                            va="bottom", fontsize=7, rotation=90)  # fmt: skip
        ax.set_title(_letter(index, len(axes), panel.title), loc="left")
        ax.set_xticks(range(len(exhibit.groups)), [group.label for group in exhibit.groups])
        ax.set_xlim(-0.55, len(exhibit.groups) - 0.45)
        ax.margins(y=0.22)
        ax.grid(axis="x", visible=False)
        word = {
            "compute": "units of 300B tokens of the paper",
            "loss": LOSS,
            "suite": f"average of the {str(panel.suite).capitalize()} suite (%)",
        }
        ax.set_ylabel(word[panel.show])
    patches = [
        Patch(facecolor="#777777", edgecolor="white", hatch=hatch) for hatch in style.HATCHES[: len(exhibit.bars)]
    ]
    figure.legend(patches, exhibit.bars, loc="outside lower center", ncols=len(patches))
    return figure


# -- diagrams


def schedule(exhibit: ScheduleDiagram, records: Records) -> Any:
    """Warm-up and decay without numbers."""
    figure, (axes,) = _figure(style.SINGLE, 2.2, 1, 1)
    rule, total = exhibit.schedule, 1000
    axes.plot(
        range(total + 1), [rule(t, total) for t in range(total + 1)], color=style.COLOURS["vermillion"], linewidth=1.6
    )
    warm = rule.warmup_frac * total
    axes.axvline(warm, color="#777777", linestyle=(0, (2, 2)), linewidth=0.7)
    axes.set_xticks([0, warm, total], ["0", "$T_{warmup}$", "$t_{end}$"])
    axes.set_yticks([rule.eta_min, rule.eta_max], [r"$\eta_{min}$", r"$\eta_{max}$"])
    arrow = {"arrowstyle": "-", "linewidth": 0.6, "color": "#777777"}
    half = rule.eta_max / 2
    axes.annotate("linear warm-up", (warm / 2, half), (warm * 1.6, half * 0.9), arrowprops=arrow, va="center")
    axes.text(0.62 * total, rule(0.5 * total, total) * 1.1, "cosine decay")
    axes.set(xlim=(-20, total + 20), ylim=(0, rule.eta_max * 1.1), xlabel="iterations", ylabel="learning rate")
    return figure


DRAWERS = {"curves": curves, "plane": plane, "bars": bars, "schedule": schedule}
