"""Curves to be explored in the page: losses of every run, and those of a figure together, by seed.

`page.js` draws them with D3, which is taken from the installed package `mpld3`. Both travel in the page
compressed by zopfli, whose bytes are the same everywhere.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from cpt_repro.exhibits import style
from cpt_repro.exhibits.base import View
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.curves import Curves, Panel
from cpt_repro.planning.plan import PlannedRun
from cpt_repro.records.lookup import Records, Trained

#: Decimals of a loss in nats, and of billions of tokens.
DIGITS = 4
#: Of the corpora of one run, in turn.
HUES = ("blue", "vermillion", "green", "purple")


def library() -> str:
    """The source of D3."""
    (folder,) = find_spec("mpld3").submodule_search_locations
    return (Path(folder) / "js" / "d3.v5.min.js").read_text(encoding="utf-8")


def packed(text: str) -> str:
    """A text as the page's script inflates it: zlib's format in base64."""
    import zopfli.zlib

    return base64.b64encode(zopfli.zlib.compress(text.encode(), numiterations=1)).decode("ascii")


class Charts:
    """Charts by the id of their place in the page; each is a list of panels."""

    def __init__(self, catalogue: Catalogue, records: Records):
        self.catalogue, self.records = catalogue, records
        #: Equal lists of numbers, of which there are many, are kept once.
        self._arrays: dict[tuple[float | None, ...], int] = {}
        self.charts: dict[str, list[dict[str, Any]]] = {}

    def add_figure(self, place: str, paper: str, key: str) -> None:
        """A figure's losses, if it shows any."""
        exhibit = self.catalogue.find(paper, key)
        if not isinstance(exhibit, Curves):
            return
        view = View(self.catalogue, self.records, paper, key)
        panels = [self._panel(exhibit, view, panel) for panel in exhibit.panels if not panel.rates]
        if panels := [panel for panel in panels if panel["curves"]]:
            self.charts[place] = panels

    def add_run(self, place: str, runs: Iterable[PlannedRun]) -> None:
        """A run's losses on every corpus, if it has left any."""
        receipts = ((run, self.records.receipt(run)) for run in runs)
        seeds = [Trained(self.records, run, receipt) for run, receipt in receipts if receipt]
        curves = []
        plan = self.records.plan
        for hue, corpus in zip(HUES * 3, plan.scale.corpora, strict=False):
            points = {one.seed: one.curve(corpus) for one in seeds}
            if lines := {seed: tuple(zip(*of, strict=True)) for seed, of in points.items() if of}:
                look = {"colour": style.COLOURS[hue], "dash": ""}
                curves.append(self._curve(plan.corpus_title(corpus), look, lines))
        if curves:
            self.charts[place] = [{"title": "validation losses", "base": None, "curves": curves}]

    def text(self) -> str:
        """All of it as JSON."""
        arrays = [list(array) for array in self._arrays]
        return json.dumps({"arrays": arrays, "charts": self.charts}, separators=(",", ":"))

    def _panel(self, exhibit: Curves, view: View, panel: Panel) -> dict[str, Any]:
        curves = []
        for curve in panel.curves:
            look = view.declared.style(curve.runs[0])
            dash = style.DASHES[look.dash]
            drawn = {
                "colour": style.COLOURS[look.colour],
                "dash": "" if isinstance(dash, str) else " ".join(f"{2 * part:g}" for part in dash[1]),
            }
            if lines := exhibit.lines(view, curve, panel.y):
                label = view.here(curve.label or look.label, curve.runs[0])
                curves.append(self._curve(label, drawn, lines))
        finals = panel.finals(view).values()
        title = f"{view.here(panel.title)}: {view.plan.corpus_title(panel.y)}".removeprefix(": ")
        base = {"label": panel.reference.label, "y": round(mean(finals), DIGITS)} if finals else None
        return {"title": title, "base": base, "curves": curves}

    def _curve(self, label: str, look: dict[str, str], lines: dict[int, Any]) -> dict[str, Any]:
        seeds = {seed: [self._kept(xs), self._kept(ys)] for seed, (xs, ys) in sorted(lines.items())}
        return {"label": label, **look, "seeds": seeds}

    def _kept(self, values: Iterable[float]) -> int:
        array = tuple(None if math.isnan(value) else round(value, DIGITS) for value in values)
        return self._arrays.setdefault(array, len(self._arrays))
