"""A schedule's shape, without data."""

from __future__ import annotations

from typing import ClassVar, Literal

from cpt_repro.declarations.schedules import Cosine
from cpt_repro.exhibits import style
from cpt_repro.exhibits.base import FigureKind, View


class ScheduleDiagram(FigureKind):
    """Warm-up and decay without numbers."""

    kind: Literal["schedule"] = "schedule"
    scaled: ClassVar[bool] = False
    schedule: Cosine

    def draw(self, view: View) -> style.Figure:
        figure, (axes,) = style.figure(style.SINGLE, 2.2, 1, 1)
        rule, total = self.schedule, 1000
        rates = [rule(t, total) for t in range(total + 1)]
        axes.plot(range(total + 1), rates, color=style.COLOURS["vermillion"], linewidth=1.6)
        warm, half = rule.warmup_frac * total, rule.eta_max / 2
        axes.axvline(warm, color="#777777", linestyle=(0, (2, 2)), linewidth=0.7)
        axes.set_xticks([0, warm, total], ["0", "$T_{warmup}$", "$t_{end}$"])
        axes.set_yticks([rule.eta_min, rule.eta_max], [r"$\eta_{min}$", r"$\eta_{max}$"])
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_parse_math(True)
        arrow = {"arrowstyle": "-", "linewidth": 0.6, "color": "#777777"}
        axes.annotate(
            "linear warm-up", (warm / 2, half), (warm * 1.6, half * 0.9), arrowprops=arrow, va="center"
        )
        axes.text(0.62 * total, rule(0.5 * total, total) * 1.1, "cosine decay")
        axes.set(xlim=(-20, total + 20), ylim=(0, rule.eta_max * 1.1))
        axes.set(xlabel="iterations", ylabel="learning rate")
        return figure
