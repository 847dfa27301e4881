"""The look of all figures: bundled fonts, Okabe-Ito colours, a paper's column, files without dates."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cpt_repro.declarations.scale import Scale
from cpt_repro.declarations.strict import Strict
from cpt_repro.errors import plain
from cpt_repro.files import whole_file

if TYPE_CHECKING:  # for annotations of this room; matplotlib is imported when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.4, 6.9
LOSS = "validation loss (nats/token)"
#: Okabe and Ito's palette without its yellow, which is too light on white, with a grey and a brown.
COLOURS = {
    "black": "#000000", "grey": "#8C8C8C", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73",
    "blue": "#0072B2", "vermillion": "#D55E00", "purple": "#CC79A7", "brown": "#6B3A0E",
    # A share that grows: viridis, from its lighter half to its end.
    "ramp-1": "#5EC962", "ramp-2": "#28AE80", "ramp-3": "#20908D", "ramp-4": "#2C728E", "ramp-5": "#3B528B",
    "ramp-6": "#440154",
}  # fmt: skip
DASHES = {
    "solid": "-", "dashed": (0, (4, 1.5)), "dotted": (0, (1.2, 1.2)), "dashdot": (0, (5, 1.5, 1.2, 1.5)),
    "longdash": (0, (8, 2)), "dashdotdot": (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5)),
}  # fmt: skip
HATCHES = ("", "////", "xxxx", "....", "----")
#: Background of axes that show published values alone; words in place of values.
TINT, DIM = "#F7F4EA", "#666666"
RC = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.titlesize": 7.5, "axes.labelsize": 7.5,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.formatter.use_locale": False,
    "legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 3.2,
    "axes.linewidth": 0.6, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.5,
    "lines.linewidth": 1.1, "lines.markersize": 3, "hatch.linewidth": 0.5,
    "figure.dpi": 100, "savefig.dpi": 200,
    # Text as outlines: the same in every viewer, whatever fonts it has.
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    # What stands in declarations is text, whatever it holds.
    "text.parse_math": False,
}  # fmt: skip

#: Matplotlib's own fonts, read once a process.
_FONTS: list[Any] = []


class Style(Strict):
    """How a run looks in every figure."""

    label: str
    colour: Literal[*COLOURS]
    dash: Literal[*DASHES]
    marker: str


@contextmanager
def drawing() -> Iterator[None]:
    """Draws in seaborn's plain style, this look and matplotlib's own fonts; nothing of the user's."""
    import matplotlib

    matplotlib.use("Agg")
    import seaborn
    from matplotlib import font_manager

    # A system's DejaVu may be another version, with other outlines; and the list of fonts that matplotlib
    # keeps below the user's home is of whoever wrote it last.
    manager, everything = font_manager.fontManager, font_manager.fontManager.ttflist
    manager.ttflist = _FONTS
    if not _FONTS:
        for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf")):
            manager.addfont(path)
    manager._findfont_cached.cache_clear()
    # It tells of every font for mathematics that is not there; nothing here is typeset as that.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    try:
        with matplotlib.rc_context(defaults):
            matplotlib.rcParams.update(seaborn.plotting_context("paper") | seaborn.axes_style("ticks") | RC)
            yield
    finally:
        manager.ttflist = everything
        manager._findfont_cached.cache_clear()


def line(style: Style) -> dict[str, Any]:
    """Keyword arguments of a line in a run's look, without its marker."""
    return {"color": COLOURS[style.colour], "linestyle": DASHES[style.dash]}


def figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of a width and height in inches, and its axes row by row."""
    # Without pyplot, which would keep every figure and costs time to import.
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    return made, list(made.subplots(rows, columns, squeeze=False).flat)


def tokens_label(scale: Scale) -> str:
    """Label of an axis of tokens."""
    if scale.full_size:
        return "tokens (B)"
    return f"tokens (B of the paper; 1 B = {scale.tokens_per_billion:,.0f} tokens here)"


def empty(axes: Axes, words: str) -> None:
    """Axes that have nothing to show say why."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=DIM)
    axes.set_yticks([])


def shared(seeded: list[dict[int, Any]]) -> list[list[Any]]:
    """What each has of the seeds that all have (those that have any); everything where they share none.

    Seeds differ by more than some runs do, so a mean over three seeds does not compare with a single one.
    """
    common = set.intersection(*(set(one) for one in seeded if one)) if any(seeded) else set()
    return [[value for seed, value in one.items() if seed in common or not common] for one in seeded]


def letter(index: int, count: int, title: str) -> str:
    """A panel's title with its letter, where there are several."""
    return f"({chr(ord('a') + index)}) {title}".strip() if count > 1 else title


class Legend:
    """One legend for all panels, below them; equal labels are one entry, lines of reference come last."""

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}
        #: labels of curves
        self._order: list[str] = []
        #: what is missing -> letters of the panels
        self._notes: dict[str, list[str]] = {}

    def begin(self, panel: str) -> None:
        """Starts a panel: its curves are put in among those of the panels before, in its order."""
        self._panel, self._place = panel, len(self._order)

    def note(self, text: str) -> None:
        """What a panel lacks, named after all entries."""
        self._notes.setdefault(text, []).append(self._panel)

    def add(self, label: str, reference: bool = False, **look: Any) -> None:
        """An entry, if there is none of its label."""
        from matplotlib.lines import Line2D

        if not reference:
            if label not in self._order:
                self._order.insert(self._place, label)
            self._place = self._order.index(label) + 1
        self._entries.setdefault(label, Line2D([], [], **look))

    def draw(self, figure: Figure) -> None:
        """Puts it below all axes and lengthens the figure by it."""
        for text, panels in self._notes.items():
            self.add(" ".join([*filter(None, panels), text]), reference=True, color="none")
        labels = [*dict.fromkeys([*self._order, *self._entries])]
        if not labels:
            return
        width, height = figure.get_size_inches()
        characters = width * 72 / (7 * 0.54)
        columns = max(1, min(len(labels), 6, int(characters / (max(map(len, labels)) + 8))))
        # Matplotlib fills columns downwards; equal columns read better than a full first row.
        rows = math.ceil(len(labels) / columns)
        columns = math.ceil(len(labels) / rows)
        figure.set_size_inches(width, height + 0.1 + 0.155 * rows)
        place = {"loc": "outside lower center", "ncols": columns, "columnspacing": 1.2}
        figure.legend([self._entries[label] for label in labels], labels, **place)


def save(figure: Figure, stem: Path, title: str, receipts: str) -> list[Path]:
    """Writes PNG, SVG and PDF, whole; metadata: title and digest of the records, no date, no version."""
    import matplotlib
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if (shown := plain(text.get_text())) != text.get_text():
            text.set_text(shown)
    # Once for all three formats: an engine of the figure's own would draw it twice for each.
    figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
    ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, wspace=0.03, hspace=0.04).execute(figure)
    # Identifiers in the SVG are salted by exhibit, so that several can stand in one page.
    matplotlib.rcParams["svg.hashsalt"] = hashlib.sha256(title.encode()).hexdigest()
    formats = {
        "png": {"Receipts": receipts, "Software": None},
        "svg": {"Date": None, "Creator": None, "Source": receipts},
        "pdf": {"Subject": receipts, "Creator": None, "Producer": None, "CreationDate": None},
    }
    for form, about in formats.items():
        with whole_file(stem.with_suffix(f".{form}")) as aside:
            figure.savefig(aside, format=form, metadata={"Title": title} | about)
    return [stem.with_suffix(f".{form}") for form in formats]
