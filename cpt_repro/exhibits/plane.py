"""Paths of runs in the plane of two perplexities, coloured by tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import correlation, mean
from typing import Any, Literal

from cpt_repro.exhibits import style
from cpt_repro.exhibits.base import NOT_DIGITISED, CorpusRef, FigureKind, Result, View, unique, warmup_end
from cpt_repro.exhibits.curves import Curve
from cpt_repro.records.lookup import Trained

BEGUN = {"color": "#E31A1C", "marker": "o", "markersize": 6}
WARMED_UP = {
    "marker": "o", "markersize": 7,
    "markerfacecolor": "none", "markeredgecolor": "#00A000", "markeredgewidth": 1.3,
}  # fmt: skip


class Plane(FigureKind):
    """Paths of runs in the plane of two perplexities, coloured by tokens."""

    kind: Literal["plane"] = "plane"
    x: CorpusRef
    y: CorpusRef
    #: billions of the paper's tokens
    until: float
    #: print R² of the linear fit
    fit: bool = False
    curves: tuple[Curve, ...]

    @property
    def runs(self) -> list[str]:
        return unique(run for curve in self.curves for run in curve.runs)

    def notes(self, view: View) -> list[str]:
        paths = f"Paths are those of the mean losses over {view.common_seeds}."
        return [paths, NOT_DIGITISED] if view.several_seeds else [NOT_DIGITISED]

    def results(self, view: View) -> list[Result]:
        """The losses where each path ends."""
        out = []
        for corpus in (self.x, self.y):
            for line, curve in enumerate(self.curves, 1):
                x, ours = view.loss_at(curve.runs[0], corpus, self.until) or (self.until, None)
                row = f"{curve.called(view)}, at {x:.4g}B"
                out.append(Result(line, row, f"loss on {corpus}", None, ours, curve.runs[0]))
        return out

    def draw(self, view: View) -> style.Figure:
        figure, (axes,) = style.figure(style.DOUBLE * 0.62, 3.0, 1, 1)
        legend, scatter = style.Legend(), None
        legend.begin("")
        measured = [
            {one.seed: one for one in view.runs(curve.runs[0]) if one.curve(self.x) and one.curve(self.y)}
            for curve in self.curves
        ]
        for curve, runs in zip(self.curves, style.shared(measured), strict=True):
            name, look = view.here(curve.called(view), curve.runs[0]), view.declared.style(curve.runs[0])
            if runs:
                scatter, fit = self._draw_path(axes, look, runs)
                legend.add(name + fit, **style.line(look), marker=look.marker)
            else:
                legend.note(f"{name}: {view.why(curve.runs[0])}")
        if scatter is None:
            style.empty(axes, "not run")
            axes.set_xticks([])
        else:
            bar = figure.colorbar(scatter, ax=axes, pad=0.02, aspect=28, use_gridspec=False)
            bar.set_label(style.tokens_label(view.scale).replace("; ", ";\n"))
            bar.outline.set_linewidth(0.5)
            legend.add("before the first update", reference=True, **BEGUN, linestyle="none")
            legend.add("end of the warm-up", reference=True, **WARMED_UP, linestyle="none")
        axes.set_xlabel(f"validation perplexity, {view.corpus(self.x)}")
        axes.set_ylabel(f"validation perplexity\n{view.corpus(self.y)}")
        legend.draw(figure)
        return figure

    def _draw_path(self, axes: style.Axes, look: style.Style, runs: list[Trained]) -> tuple[Any, str]:
        """Its scatter and R². Of several seeds the path of the mean losses: one a seed cannot be read."""
        import numpy as np

        tokens = [t for t, _ in runs[0].curve(self.x) if t <= self.until]
        both = [[one.curve(corpus)[: len(tokens)] for corpus in (self.x, self.y)] for one in runs]
        # Seeds x axes x points; seeds that were measured elsewhere are left out.
        losses = np.array([np.array(one)[..., 1] for one in both if [t for t, _ in one[0]] == tokens])
        xs, ys = np.exp(losses.mean(axis=0))
        axes.plot(xs, ys, **style.line(look), linewidth=0.8, zorder=2)
        edge = {"linewidths": 0.9} if look.marker in "x+" else {"linewidths": 0.3, "edgecolors": "white"}
        # In a reading order that starts dark, so that grey print keeps the order of tokens too.
        colours = {"c": tokens, "cmap": "viridis", "vmin": 0, "vmax": self.until}
        scatter = axes.scatter(xs, ys, s=13, marker=look.marker, zorder=3, **colours, **edge)
        axes.plot(xs[0], ys[0], **BEGUN, linestyle="none", zorder=1.5)
        warm = warmup_end(runs[0].run)
        after = np.searchsorted(tokens, warm)
        if warm and after < len(tokens):
            axes.plot(xs[after], ys[after], **WARMED_UP, linestyle="none", zorder=6)
        fit = f" (R² = {mean(r_squared(*path) for path in np.exp(losses)):.2f})" if self.fit else ""
        return scatter, fit


def r_squared(xs: Sequence[float], ys: Sequence[float]) -> float:
    """R² of the straight line of least squares; NaN where one of both does not vary."""
    varied = len({*xs}) > 1 and len({*ys}) > 1
    return correlation(xs, ys) ** 2 if varied else math.nan
