"""Figures (curves, planes, bars, schedule diagrams) from declarations and receipts; matplotlib is imported on use.

Published curves and bars are drawn at scale paper in the axes of ours. Below it absolute losses do not compare, so they
get axes of their own beside ours, tinted, with the same x-limits and looks, so that shapes and orders compare.
"""

from __future__ import annotations

import math
from statistics import mean
from typing import Any

from cpt_repro.declarations.exhibits import (
    LEARNING_RATE,
    Curve,
    Curves,
    Exhibit,
    Panel,
    Plane,
    ScheduleDiagram,
)
from cpt_repro.declarations.published import load_digitised
from cpt_repro.exhibits import style
from cpt_repro.exhibits.bars import bar_pairs, bars
from cpt_repro.planning.plan import Segment
from cpt_repro.records.counterparts import counterparts
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Receipt

Points = tuple[list[float], list[float]]
PUBLISHED = "published (digitised)"


def _tokens_label(records: Records) -> str:
    if records.scale.name == "paper":
        return "tokens (B)"
    return f"tokens (B of the paper; 1 B = {records.scale.tokens_per_billion:,.0f} tokens here)"


# -- curves


def _origin(records: Records, segment: Segment, exhibit: Curves) -> float:
    """Where a run begins on the x-axis: after the tokens of its ancestors, or at 0."""
    x = 0.0
    while exhibit.lineage and segment.parent:
        parent = records.plan.segments[segment.parent]
        if parent.name == exhibit.after:
            break
        x += parent.position(segment.parent_iteration)
        segment = parent
    return x


def _pieces(records: Records, name: str, y: str, seed: int) -> tuple[Receipt, Points] | None:
    receipt = next((r for r in records.receipts(name) if r.segment.seed == seed), None)
    if receipt is None or (y != LEARNING_RATE and y not in receipt.curves):
        return None
    if y == LEARNING_RATE:
        points = [(receipt.segment.position(i), rate) for i, rate in receipt.learning_rate]
    else:
        points = receipt.curve(y)
    return receipt, ([x for x, _ in points], [value for _, value in points])


def curve_points(records: Records, curve: Curve, y: str, exhibit: Curves) -> dict[int, Points]:
    """A curve for each seed that has all its pieces, else what pieces there are; NaN where the pen is lifted."""
    seeds: dict[int, tuple[int, Points]] = {}
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
            seeds[seed] = (found, (xs, ys))
    most = max((found for found, _ in seeds.values()), default=0)
    return {seed: points for seed, (found, points) in seeds.items() if found == most}


def shared(seeded: list[dict[int, Any]]) -> list[list[Any]]:
    """What each has of the seeds that all have (those that have any); everything where they share none.

    Seeds differ by more than some runs do, so a mean over three seeds does not compare with a single one.
    """
    common = set.intersection(*(set(one) for one in seeded if one)) if any(seeded) else set()
    return [[value for seed, value in one.items() if seed in common or not common] for one in seeded]


def _published(records: Records, panel: Panel, curve: Curve) -> Points | None:
    """A curve's digitised points on the figure's axis; NaN where the pen is lifted between its pieces."""
    if not (panel.published and curve.published):
        return None
    paper = counterparts(records.paper)
    unit = 1e-4 if paper.digitised.panels[panel.published].y.endswith("x1e-4") else 1
    xs: list[float] = []
    ys: list[float] = []
    for points in sorted(paper.points(panel.published, (label,)) for label in curve.published):
        if xs and points[0][0] > xs[-1] + 0.5:
            xs.append(points[0][0])
            ys.append(math.nan)
        xs += [x for x, _ in points]
        ys += [y * unit for _, y in points]
    return xs, ys


def _published_level(records: Records, panel: Panel) -> float | None:
    """The published line of reference of a panel."""
    label = panel.reference.published if panel.reference else None
    return counterparts(records.paper).digitised.panels[panel.published].lines[label] if label else None


def has_published(exhibit: Exhibit) -> bool:
    """Whether anything of a figure was printed or digitised."""
    return any(panel.published for panel in getattr(exhibit, "panels", ()))


def _is_scratch(records: Records, name: str) -> bool:
    return records.plan.papers[records.paper].runs[name].init_from is None


def _at(points: Points, x: float) -> float:
    """A curve's value at x, on the straight line between its points."""
    import numpy as np

    known = [(a, b) for a, b in zip(*points, strict=True) if b == b]
    return float(np.interp(x, *zip(*known, strict=True)))


def _finals(records: Records, panel: Panel) -> dict[int, float]:
    """Final losses of the panel's run of reference by seed."""
    receipts = records.receipts(panel.reference.run) if panel.reference else []
    return {r.segment.seed: r.final[panel.y].loss for r in receipts if panel.y in r.final}


def _curve_pairs(exhibit: Curves, records: Records) -> list[tuple[str, float, float]]:
    found = []
    for panel in exhibit.panels:
        if not panel.published or panel.y == LEARNING_RATE:
            continue
        seeded = [curve_points(records, curve, panel.y, exhibit) for curve in panel.curves]
        *everything, finals = shared([*seeded, _finals(records, panel)])
        for curve, lines in zip(panel.curves, everything, strict=True):
            published = _published(records, panel, curve)
            # Of a chain with a piece missing there is no end to compare.
            if published and lines and all(records.receipts(name) for name in curve.runs):
                end = min(published[0][-1], *(xs[-1] for xs, _ in lines))
                found.append(
                    (panel.published, _at(published, end), mean(_at(points, end) for points in lines))
                )
        if finals and (level := _published_level(records, panel)) is not None:
            found.append((panel.published, level, mean(finals)))
    return found


def _limits(
    all_points: list[tuple[bool, Points]], panel: Panel, extra: list[float]
) -> tuple[float, float] | None:
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


def _draw_published(
    axes: Any, panel: Panel, records: Records
) -> tuple[list[tuple[bool, Points]], list[float]]:
    """Draws a panel's published curves and line, thin; returns what the y-limits must have room for."""
    drawn: list[tuple[bool, Points]] = []
    for index, curve in enumerate(panel.curves):
        if points := _published(records, panel, curve):
            gid = f"published-{panel.published}-{index}"
            axes.plot(
                *points,
                **style.line(records.declared.style(curve.runs[0])),
                linewidth=0.7,
                zorder=1.8,
                gid=gid,
            )
            drawn += [(_is_scratch(records, curve.runs[0]), points)] if curve.fits else []
    level = _published_level(records, panel)
    if level is None:
        return drawn, []
    look = style.line(records.declared.style(panel.reference.run))
    axes.axhline(level, **look, linewidth=0.5, zorder=1.55, gid=f"published-{panel.published}-line")
    return drawn, [level]


def _draw_companion(axes: Any, panel: Panel, exhibit: Curves, records: Records) -> None:
    """The published curves of a panel by themselves, on the paper's y-axis."""
    axes.set(xlim=panel.xlim, facecolor=style.TINT)
    if not panel.published:
        axes.text(
            0.5, 0.5, "nothing published", transform=axes.transAxes, ha="center", va="center", color="#666666"
        )
        axes.set_yticks([])
        return
    drawn, levels = _draw_published(axes, panel, records)
    for curve in panel.curves if panel.warmup_ends else ():
        _warmup_end(axes, records, curve)
    _boundaries(axes, panel, _published_stages(panel, exhibit, records))
    limits = panel.ylim or _limits(drawn, panel, levels)
    if limits is not None:
        axes.set_ylim(*((0, limits[1]) if panel.y == LEARNING_RATE else limits))


def _warmup_end(axes: Any, records: Records, curve: Curve) -> None:
    segment = records.segment(curve.runs[0])
    if segment is not None:
        colour = style.line(records.declared.style(curve.runs[0]))["color"]
        end = segment.position(getattr(segment.schedule, "warmup_frac", 0) * segment.schedule_iterations)
        axes.axvline(end, color=colour, linestyle=(0, (2, 2)), linewidth=0.7, zorder=1.5)


def _draw_panel(axes: Any, panel: Panel, exhibit: Curves, records: Records, legend: style.Legend) -> None:
    import numpy as np

    everything: list[tuple[bool, Points]] = []
    extra: list[float] = []
    apart: list[tuple[str, list[float], list[float]]] = []
    axes.set_xlim(*panel.xlim)
    together = bool(panel.published) and records.scale.name == "paper"
    if together:
        everything, extra = _draw_published(axes, panel, records)
        legend.add(PUBLISHED, reference=True, color="#555555", linewidth=0.7)
    runs = [name for curve in panel.curves for name in curve.runs]
    nothing = not any(records.receipts(name) for name in runs)
    if nothing and not together:
        words = " / ".join(dict.fromkeys(records.why(name) for name in runs))
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#666666")
        axes.set_yticks([])
    seeded = [curve_points(records, curve, panel.y, exhibit) for curve in panel.curves]
    *compared, finals = shared([*seeded, _finals(records, panel)])
    for index, curve in enumerate(panel.curves):
        look = records.declared.style(curve.runs[0])
        label = curve.label or look.label
        drawn = style.line(look)
        lines = list(seeded[index].values())
        gone = [name for name in curve.runs if not records.receipts(name)]
        if len(gone) == len(curve.runs):
            if panel.published and curve.published:  # its published curve is there to be named
                legend.add(f"{label}: {records.why(gone[0])}", **drawn, linewidth=0.7)
            elif not nothing:
                legend.note(f"{label}: {records.why(gone[0])}")
            continue
        if not lines:
            legend.note(f"{label}: not measured on {panel.y}")
            continue
        partly = f" ({len(gone)} of {len(curve.runs)} {records.why(gone[0])})" if gone else ""
        if curve.fits:
            everything += [(_is_scratch(records, curve.runs[0]), points) for points in lines]
        else:
            apart.append((label, *lines[0]))
        xs = np.array(compared[index][0][0])
        values = [np.array(ys) for other, ys in lines if len(other) == len(xs)]
        middle = np.mean([ys for other, ys in compared[index] if len(other) == len(xs)], axis=0)
        marks = {"marker": look.marker, "markevery": (0.02 + 0.13 * index / len(panel.curves), 0.13)}
        if len(values) > 1:
            stack = np.vstack(values)
            axes.fill_between(
                xs, stack.min(axis=0), stack.max(axis=0), color=drawn["color"], alpha=0.14, linewidth=0
            )
        if panel.y == LEARNING_RATE:
            marks = {}
        axes.plot(xs, middle, **drawn, **marks, zorder=2 + 0.01 * index)
        legend.add(label + partly, **drawn, marker=look.marker)
        if panel.warmup_ends:
            _warmup_end(axes, records, curve)
    if nothing and not together:
        return
    if panel.reference:
        drawn = style.line(records.declared.style(panel.reference.run)) | {"linewidth": 0.8}
        if finals:
            extra.append(mean(finals))
            axes.axhline(extra[-1], **drawn, zorder=1.6)
            legend.add(panel.reference.label, reference=True, **drawn)
        else:
            legend.note(f"{panel.reference.label}: {records.why(panel.reference.run)}")
    _boundaries(axes, panel, _stages(panel, exhibit, records))
    limits = _limits(everything or [(False, (xs, ys)) for _, xs, ys in apart], panel, extra)
    if panel.ylim and records.scale.name == "paper":
        limits = panel.ylim
    if limits is not None:
        if panel.y == LEARNING_RATE:
            limits = (0, limits[1])
        else:
            taken = [points for _, points in everything] + [
                (list(panel.xlim), [level, level]) for level in extra
            ]
            limits = _entropy_floor(axes, panel, records, limits, legend, taken)
        axes.set_ylim(*limits)
        for label, xs, ys in apart:
            settled = [y for x, y in zip(xs, ys, strict=True) if x >= panel.xlim[0] + 0.5 * (xs[-1] - xs[0])]
            if min(settled) > limits[1]:
                legend.note(f"{label}: above the axes, ends at {ys[-1]:.2f}")


#: where a stage begins and how long it is (billions of the paper's tokens), and the domain it reads, if it is one
Stage = tuple[float, float, str]


def _stages(panel: Panel, exhibit: Curves, records: Records) -> list[Stage]:
    """The pieces of the first curve at this scale."""
    pieces = [(name, records.segment(name)) for name in panel.curves[0].runs if panel.boundaries]
    return [
        (_origin(records, piece, exhibit), piece.billions, part.stream.domain if part.stream else "")
        for _, piece in pieces
        if piece
        for part in piece.mixture[-1:]
    ]


def _published_stages(panel: Panel, exhibit: Curves, records: Records) -> list[Stage]:
    """The pieces of the first curve in the paper; named by the labels of their curves where each has its own."""
    first = panel.curves[0]
    if not panel.boundaries:
        return []
    own = len(first.published) == len(first.runs)
    names = [label.split()[0] if own else "" for label in (first.published if own else first.runs)]
    spans = [counterparts(records.paper).span(exhibit, run) for run in first.runs]
    return [(*span, name) for span, name in zip(spans, names, strict=True)]


def _is_narrow(billions: float, panel: Panel) -> bool:
    return billions < 0.15 * (panel.xlim[1] - panel.xlim[0])


def _room_for_names(panel: Panel, stages: list[Stage]) -> tuple[float, float]:
    """Points above a panel that names of stages take: level ones, below the title, and upright ones, beside it."""
    names = [(name, _is_narrow(length, panel)) for _, length, name in stages if name]
    level = 13 if any(not narrow for _, narrow in names) else 4
    return level, max((4.4 * len(name) for name, narrow in names if narrow), default=0)


def _boundaries(axes: Any, panel: Panel, stages: list[Stage]) -> None:
    """Vertical lines where stages begin; the domain's name where a stage reads one alone."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(axes.transData, axes.transAxes)
    for start, length, name in stages:
        if start > 0:
            axes.axvline(start, color="#777777", linewidth=0.6, linestyle=(0, (1, 2)), zorder=1.4)
        turn = 90 if _is_narrow(length, panel) else 0
        label = axes.text(start + length / 2, 1.015, name, transform=place, ha="center", va="bottom")
        label.set(fontsize=6.5 if turn else 7, color="#444444", rotation=turn, in_layout=bool(turn))


def _empty_corner(
    panel: Panel, limits: tuple[float, float], lines: list[Points]
) -> tuple[float, float] | None:
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
    axes: Any,
    panel: Panel,
    records: Records,
    limits: tuple[float, float],
    legend: style.Legend,
    lines: list[Points],
) -> tuple[float, float]:
    """The entropy rate of a generated language, as a line where it is near the curves, else as a note."""
    receipts = [r for curve in panel.curves for name in curve.runs for r in records.receipts(name)]
    floor = next(
        (r.entropy_floor[panel.y] for r in receipts if r.entropy_floor.get(panel.y) is not None), None
    )
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
    """Losses or learning rates against tokens; below scale paper the published ones to the right of each panel."""
    count = len(exhibit.panels)
    beside = has_published(exhibit) and records.scale.name != "paper"
    columns = 1 if beside else min(exhibit.columns, count)
    rows = math.ceil(count / columns)
    stages = (_stages, _published_stages) if beside else (_stages,)
    rooms = [_room_for_names(panel, of(panel, exhibit, records)) for panel in exhibit.panels for of in stages]
    pad, room = max(level for level, _ in rooms), max(max(both) for both in rooms)
    width = style.DOUBLE if beside or columns > 1 else style.SINGLE
    height = 2.2 if not beside else 1.7 if count > 2 else 2.1
    figure, axes = style.figure(width, (height + room / 72) * rows, rows, 2 if beside else columns)
    legend = style.Legend()
    for index, panel in enumerate(exhibit.panels):
        ax = axes[2 * index if beside else index]
        legend.begin(style.letter(index, count, ""))
        _draw_panel(ax, panel, exhibit, records, legend)
        title = style.letter(index, count, panel.title)
        rates = panel.y == LEARNING_RATE
        if rates:
            ax.set_ylabel("learning rate")
        elif beside:
            ax.set_ylabel(style.LOSS.replace(" (", "\n("))
            title = f"{title}: {records.scale.corpora[panel.y]}"
        else:
            ax.set_ylabel(style.LOSS)
            title = f"{title}{chr(10) if panel.title else ' '}{records.corpus(panel.y)}".strip()
        ax.set_title(title, loc="left", pad=pad)
        _number_format(ax, rates)
        if last := index >= count - columns:
            ax.set_xlabel(_tokens_label(records))
        if beside:
            right = axes[2 * index + 1]
            _draw_companion(right, panel, exhibit, records)
            _number_format(right, rates)
            run = records.plan.papers[records.paper].runs[panel.curves[0].runs[0]]
            corpus = "" if rates else f": {records.declared.corpora[panel.y].stands_for}"
            right.set_title(f"{PUBLISHED}, {records.declared.sizes[run.model]}{corpus}", loc="left", pad=pad)
            if last:
                right.set_xlabel("tokens (B)")
    figure.align_ylabels(axes[:: 2 if beside else 1])
    legend.draw(figure)
    return figure


def _number_format(axes: Any, rates: bool) -> None:
    if rates:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


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
    figure, (axes,) = style.figure(style.DOUBLE * 0.62, 3.0, 1, 1)
    legend, scatter = style.Legend(), None
    measured = [
        {
            r.segment.seed: r
            for r in records.receipts(curve.runs[0])
            if {exhibit.x, exhibit.y} <= set(r.curves)
        }
        for curve in exhibit.curves
    ]
    for curve, receipts in zip(exhibit.curves, shared(measured), strict=True):
        look = records.declared.style(curve.runs[0])
        label = curve.label or look.label
        if not receipts:
            legend.note(f"{label}: {records.why(curve.runs[0])}")
            continue
        tokens = [t for t, _ in receipts[0].curve(exhibit.x) if t <= exhibit.until]
        receipts = [r for r in receipts if [t for t, _ in r.curve(exhibit.x)][: len(tokens)] == tokens]
        # Of several seeds the path of the mean losses: one path a seed cannot be read.
        seeds = [
            [[loss for _, loss in r.curve(c)[: len(tokens)]] for c in (exhibit.x, exhibit.y)]
            for r in receipts
        ]
        middle = [[mean(losses) for losses in zip(*axis, strict=True)] for axis in zip(*seeds, strict=True)]
        paths = [[[math.exp(loss) for loss in losses] for losses in path] for path in [*seeds, middle]]
        fits = [r_squared(*path) for path in paths[:-1]]
        xs, ys = paths[-1]
        axes.plot(xs, ys, **style.line(look), linewidth=0.8, zorder=2)
        edge = {"linewidths": 0.9} if look.marker in "x+" else {"linewidths": 0.3, "edgecolors": "white"}
        colours = {"c": tokens, "cmap": style.TOKENS_MAP, "vmin": 0, "vmax": exhibit.until}
        scatter = axes.scatter(xs, ys, s=13, marker=look.marker, zorder=3, **colours, **edge)
        axes.plot(xs[0], ys[0], "o", color=style.START, markersize=6, zorder=5)
        segment = receipts[0].segment
        warm = getattr(segment.schedule, "warmup_frac", 0) * segment.schedule_iterations
        after = next((k for k, t in enumerate(tokens) if t >= segment.position(warm)), None)
        if warm and after is not None:
            axes.plot(xs[after], ys[after], "o", markerfacecolor="none", markeredgecolor=style.WARMED_UP,
                      markeredgewidth=1.3, markersize=7, zorder=6)  # fmt: skip
        fit = f" (R² = {mean(fits):.2f})" if exhibit.fit else ""
        legend.add(label + fit, **style.line(look), marker=look.marker)
    if scatter is None:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color="#666666")
        axes.set(xticks=[], yticks=[])
    else:
        bar = figure.colorbar(scatter, ax=axes, pad=0.02, aspect=28)
        bar.set_label(_tokens_label(records).replace("; ", ";\n"))
        bar.outline.set_linewidth(0.5)
        legend.add(
            "before the first update",
            reference=True,
            color=style.START,
            marker="o",
            markersize=6,
            linestyle="none",
        )
        legend.add(
            "end of the warm-up", reference=True, marker="o", markerfacecolor="none", markeredgecolor=style.WARMED_UP,
            markeredgewidth=1.3, markersize=7, linestyle="none",
        )  # fmt: skip
    axes.set_xlabel(f"validation perplexity, {records.corpus(exhibit.x)}")
    axes.set_ylabel(f"validation perplexity\n{records.corpus(exhibit.y)}")
    legend.draw(figure)
    return figure


# -- diagrams


def schedule(exhibit: ScheduleDiagram, records: Records) -> Any:
    """Warm-up and decay without numbers."""
    figure, (axes,) = style.figure(style.SINGLE, 2.2, 1, 1)
    rule, total = exhibit.schedule, 1000
    axes.plot(
        range(total + 1),
        [rule(t, total) for t in range(total + 1)],
        color=style.COLOURS["vermillion"],
        linewidth=1.6,
    )
    warm = rule.warmup_frac * total
    axes.axvline(warm, color="#777777", linestyle=(0, (2, 2)), linewidth=0.7)
    axes.set_xticks([0, warm, total], ["0", "$T_{warmup}$", "$t_{end}$"])
    axes.set_yticks([rule.eta_min, rule.eta_max], [r"$\eta_{min}$", r"$\eta_{max}$"])
    arrow = {"arrowstyle": "-", "linewidth": 0.6, "color": "#777777"}
    half = rule.eta_max / 2
    axes.annotate("linear warm-up", (warm / 2, half), (warm * 1.6, half * 0.9), arrowprops=arrow, va="center")
    axes.text(0.62 * total, rule(0.5 * total, total) * 1.1, "cosine decay")
    axes.set(
        xlim=(-20, total + 20), ylim=(0, rule.eta_max * 1.1), xlabel="iterations", ylabel="learning rate"
    )
    return figure


def pairs(exhibit: Exhibit, records: Records) -> list[tuple[str, float, float]]:
    """(group, published, reproduced): ends of curves and the line of reference by panel, bars by panel and group.

    A curve ends where the published one or ours does, whichever is first; of several seeds the mean counts. Learning
    rates and the compute of bars are declared, so they are left out; so is what misses a receipt, and a panel whose
    published ends lie closer together than they could be read off, since their order says nothing.
    """
    makers = {"curves": _curve_pairs, "bars": bar_pairs}
    found = makers[exhibit.kind](exhibit, records) if exhibit.kind in makers else []
    spread: dict[str, list[float]] = {}
    for group, published, _ in found:
        spread.setdefault(group, []).append(published)
    tolerance = load_digitised(records.paper).tolerance if exhibit.kind == "curves" else 0
    return [pair for pair in found if max(spread[pair[0]]) - min(spread[pair[0]]) >= tolerance]


DRAWERS = {"curves": curves, "plane": plane, "bars": bars, "schedule": schedule}
