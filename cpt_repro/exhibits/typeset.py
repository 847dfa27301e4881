"""A table with published values beside reproduced ones, and its CSV, Markdown and LaTeX (pandas)."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import PlainSerializer

from cpt_repro.declarations.published import Value
from cpt_repro.declarations.strict import Strict
from cpt_repro.errors import plain
from cpt_repro.files import whole_file, write_text
from cpt_repro.records.lookup import NO_COUNTERPART
from cpt_repro.records.uncertainty import Effect, Samples, combined, spread

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "∪": r"$\cup$", "→": r"$\rightarrow$", "±": r"$\pm$",
    "×": r"$\times$", "°": r"$^\circ$", "η": r"$\eta$", "α": r"$\alpha$", "β": r"$\beta$", "–": "--",
    "—": "---", "„": ",,", "“": "``", "”": "''", "‚": ",", "‘": "`", "’": "'", "«": "``", "»": "''",
    "…": r"\dots{}", "\u00a0": "~", "€": "EUR", "§": r"\S{}", "²": r"$^2$", "ᵈ": r"$^{\mathrm{d}}$",
    "ᶜ": r"$^{\mathrm{c}}$", "ᵃ": r"$^{\mathrm{a}}$", "ᵐ": r"$^{\mathrm{m}}$",
}  # fmt: skip
#: Characters across a screen, and across the text of an upright page at 8 points.
SCREEN, PAGE = 270, 118
#: Lines that a page has room for, with a caption.
PAGE_LINES = 58
#: Longest entry that is set in one line.
LINE = 60
#: How a text begins that a spreadsheet computes, in its wide forms too.
FORMULAS = tuple("=+-@＝＋－＠")
NOT_PUBLISHED = "not published"
#: Behind a published value that is not printed as such.
MARKS = {"digitised": "ᵈ", "authors' code": "ᶜ", "derived": "ᵃ"}
#: Behind one that does not hold what its row and column say.
MISPRINT = "ᵐ"


class Measured(NamedTuple):
    """A value of this scale; of results the mean over seeds, and the half-width of its 95 % interval."""

    value: float | str
    text: str
    error: float | None = None
    seeds: int | None = None
    digits: int | None = None
    samples: Samples = {}


def over_seeds(samples: Samples, digits: int) -> Measured:
    """The mean over seeds with its noise; where that was not measured, the number of seeds alone."""
    effect, n = combined({"it": 1.0}, {"it": samples}), len(samples)
    noise = f"{spread(effect.noise, digits)} [{n}]" if effect.noise else f"[n = {n}]"
    return Measured(effect.value, f"{effect.value:.{digits}f} {noise}", effect.noise, n, digits, samples)


class Ranks(NamedTuple):
    """A row's place among those it compares with, 1 is best: published; here from its best to its worst."""

    published: int
    best: int
    worst: int
    rows: int

    @property
    def agree(self) -> str:
        """Whether the published place is among those that are left open here."""
        if self.best == 1 and self.worst == self.rows:
            return "open"
        if self.best <= self.published <= self.worst:
            return "yes"
        here = f"{self.best}" + f"–{self.worst}" * (self.best < self.worst)
        return f"no: {here}, not {self.published}"


@dataclass
class Cell:
    """One cell: both values, the state of the reproduced one, and what compares."""

    published: Value | None
    reproduced: Measured | None
    #: what happened to the reproduced value
    state: str
    #: run or merge, `<paper>/<name>`, whose records the reproduced value is from
    run: str | None = None
    misprint: bool = False
    ranks: Ranks | None = None
    #: published; here with its noise, None where the anchors lie too close together
    effects: tuple[float | None, Effect | None] = (None, None)
    #: reproduced - published, or "equal" and "differs" for texts; at scale paper only
    difference: float | str | None = None

    @property
    def comparable(self) -> bool:
        """Whether both values are there and say the same thing."""
        return bool(self.published and self.reproduced and not self.misprint)

    @property
    def sign(self) -> str:
        """What stands behind the published value."""
        return MARKS.get(self.published.mark, "") + MISPRINT * self.misprint if self.published else ""

    def printed(self, digits: int | None) -> str | None:
        """The published value as it was printed; None where there is none."""
        if self.published is None:
            return None
        value = self.published.value
        return str(value) if digits is None or isinstance(value, str) else f"{value:.{digits}f}"

    def compared(self, digits: int) -> str:
        """What compares, in print."""
        if self.difference is not None:
            return self.difference if isinstance(self.difference, str) else f"{self.difference:+.{digits}f}"
        return self.ranks.agree if self.ranks else ""


class Texts(NamedTuple):
    """A column that is not compared; `names` where it tells which row it is."""

    heading: str
    cells: list[str]
    names: bool = True
    #: places of those that are the best of what compares
    best: frozenset[int] = frozenset()
    #: place -> run or merge whose records a cell is from
    runs: dict[int, str] = {}


class Values(NamedTuple):
    """A column of compared values; `there` and `here`: what was measured in the paper and at this scale."""

    heading: str
    there: str
    here: str
    scale: str
    cells: list[Cell]
    #: decimals of the published column; None: shown as it is
    digits: int | None = None

    @property
    def published_only(self) -> bool:
        """Whether the scale has nothing of the kind."""
        return all(c.published and not c.reproduced and c.state == NO_COUNTERPART for c in self.cells)

    def _title(self, side: str, detail: str = "") -> str:
        return f"{self.heading} ({side}{': ' * bool(detail)}{detail})"

    def printed(self) -> list[Texts]:
        """The columns in print: published, reproduced, compared; those without anything fall away."""
        out, at = [], "reproduced" if self.scale == "paper" else f"{self.scale} scale"
        if any(cell.published for cell in self.cells):
            texts = [(c.printed(self.digits) or NOT_PUBLISHED) + c.sign for c in self.cells]
            best = frozenset(k for k, c in enumerate(self.cells) if c.ranks and c.ranks.published == 1)
            out.append(Texts(self._title("published", self.there), texts, best=best))
        if self.published_only:
            return out
        here = [cell.reproduced.text if cell.reproduced else cell.state for cell in self.cells]
        best = frozenset(k for k, c in enumerate(self.cells) if c.ranks and c.ranks.worst == 1)
        runs = {k: cell.run for k, cell in enumerate(self.cells) if cell.run and cell.reproduced}
        title = self._title(at if out else f"{at}; {NOT_PUBLISHED}", self.here)
        out.append(Texts(title, here, best=best, runs=runs))
        compared = [cell.compared(self.digits or 0) for cell in self.cells]
        if any(compared):
            title = self._title("difference" if self.scale == "paper" else "agrees")
            out.append(Texts(title, [text or "–" for text in compared]))
        return out

    def columns(self) -> dict[str, list[Any]]:
        """The columns of the CSV; those of numbers hold numbers and nothing else."""
        at = f"{self.scale} scale"
        inside = f"{self.here}, {at}" if self.here else at

        def row(cell: Cell) -> dict[str, Any]:
            measured = cell.reproduced or Measured(None, "")
            ranks = cell.ranks or Ranks(*[None] * 4)
            there, effect = cell.effects
            return {
                "published": cell.printed(self.digits),
                "mark": cell.published and cell.published.mark + "; misprint" * cell.misprint,
                f"reproduced ({inside})": measured.value,
                f"half-width of the 95 % interval ({at})": measured.error,
                f"seeds ({at})": measured.seeds,
                "state": cell.state if cell.published else f"{cell.state}; {NOT_PUBLISHED}",
                "published rank": ranks.published,
                f"best rank ({at})": ranks.best,
                f"worst rank ({at})": ranks.worst,
                "ranked rows": ranks.rows,
                "published effect": there,
                f"effect ({at})": effect and effect.value,
                f"half-width of the effect's 95 % interval ({at})": effect and effect.noise,
                f"difference ({at})": cell.difference,
            }

        rows = [row(cell) for cell in self.cells]
        kept = ("published", f"reproduced ({inside})", "state")
        chosen = [name for name in rows[0] if name in kept or any(row[name] is not None for row in rows)]
        return {f"{self.heading}, {name}": [row[name] for row in rows] for name in chosen}


class Part(Strict):
    """A table as it is printed: below each other stand as many as a page can take."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    #: (row, column) of the best values
    best: Annotated[frozenset[tuple[int, int]], PlainSerializer(sorted)] = frozenset()
    #: run or merge -> (row, column) of what its records say
    cells: dict[str, tuple[tuple[int, int], ...]] = {}

    @classmethod
    def of(cls, title: str, columns: list[Texts]) -> Part:
        heads = [plain(column.heading) for column in columns]
        rows = tuple(zip(*(map(plain, column.cells) for column in columns), strict=True))
        best = frozenset((row, k) for k, column in enumerate(columns) for row in column.best)
        of_runs: dict[str, list[tuple[int, int]]] = {}
        for k, column in enumerate(columns):
            for row, run in column.runs.items():
                of_runs.setdefault(run, []).append((row, k))
        return cls(title=title, heads=heads, rows=rows, best=best, cells=dict(sorted(of_runs.items())))

    def marked(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        """The rows with each text escaped, and the best values put into `bold`, a format."""
        rows = [[*map(escape, row)] for row in self.rows]
        for row, k in self.best:
            rows[row][k] = bold.format(rows[row][k])
        return rows

    @property
    def columns(self) -> list[Texts]:
        return [Texts(*both) for both in zip(self.heads, zip(*self.rows, strict=True), strict=True)]


class Table(NamedTuple):
    """Columns, and what the notes below say of them."""

    columns: list[Texts | Values]
    notes: list[str]

    def all_notes(self, source: str) -> list[str]:
        """Where published values are from, how they are marked, and what compares."""
        values = [column for column in self.columns if isinstance(column, Values)]
        cells = [cell for column in values for cell in column.cells if cell.published]
        marks = {cell.published.mark for cell in cells}
        out = [f"Published values: {source}."] if marks else []
        out += [f"{sign}: {mark}." for mark, sign in MARKS.items() if mark in marks]
        if any(cell.misprint for cell in cells):
            out.append(f"{MISPRINT}: a misprint, not compared.")
        if any(cell.ranks for cell in cells):
            best = "the best published value of those that compare, and ours where noise leaves it first"
            out.append(f"Bold: {best}.")
        return [*out, *self.notes]

    def parts(self, scale: str, width: int = SCREEN) -> list[Part]:
        """Tables of `width` characters to print one below the other; what only the paper has comes last.

        On a screen each begins with the columns that name its rows; on a page the first has these, with
        numbers, which the others begin with.
        """
        values = [column for column in self.columns if isinstance(column, Values)]
        texts = [column for column in self.columns if isinstance(column, Texts)]
        if not values:
            return [Part.of("", texts)]
        lead = [column for column in texts if column.names]
        apart = [column for column in values if column.published_only]
        here = [[column] for column in texts if not column.names]
        here += [column.printed() for column in values if column not in apart]
        alone = f"Published columns that have no counterpart at scale {scale}:"
        blocks = [("", here), (alone, [column.printed() for column in apart])]
        parts = _split(blocks, lead, lead, width)
        if len(parts) > 1 and width < SCREEN:
            numbers = Texts("", [f"{row + 1}" for row in range(len(values[0].cells))])
            parts = _split(blocks, [numbers, *lead], [numbers], width)
        return parts


def _split(
    blocks: list[tuple[str, list[list[Texts]]]], first: list[Texts], others: list[Texts], width: int
) -> list[Part]:
    """Parts of a title's blocks of columns, as many in one as fit, behind columns that tell the rows."""
    out: list[Part] = []
    for title, of in blocks:
        lead = others if out else first
        part = list(lead)
        for block in of:
            if len(part) > len(lead) and _width([*part, *block]) > width:
                out.append(Part.of(title, part))
                lead = others
                part = list(lead)
            part += block
        if len(part) > len(lead):
            out.append(Part.of(title, part))
    return out


def count(tokens: float) -> str:
    """1.5k, 8.0M, 299.3B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= unit:
            return f"{tokens / unit:.1f}{letter}"
    return f"{tokens:.0f}"


def rate_text(rate: float) -> str:
    """A learning rate: 3e-4, 1.65e-3."""
    return re.sub(r"\.?0*e([+-])0?", r"e\1", f"{rate:.6e}")


def decimals(values: list[Value | None]) -> int:
    """Decimals that a published column was printed with: YAML drops closing zeros, not those of all rows."""
    floats = [repr(v.value) for v in values if v and isinstance(v.value, float)]
    return max((len(text.partition(".")[2]) for text in floats), default=0)


def escape_tex(text: str) -> str:
    """Text for LaTeX; a character that a Latin font lacks becomes a question mark."""
    plain = (" " if c.isspace() and c != "\u00a0" else c for c in text)
    return "".join(TEX.get(c) or (c if re.match("[ -~\u00c0-\u017f]", c) else "?") for c in plain)


def escape_markdown(text: str) -> str:
    """Text for Markdown, in one line, without emphasis, tags or links of its own."""
    return re.sub(r"([\\|*_~`&<>]|\](?=[(\[:]))", r"\\\1", " ".join(plain(text).split()))


def _csv_value(value: Any) -> Any:
    """Ten digits of a number; a text that a spreadsheet would compute is marked as text."""
    if isinstance(value, float):
        return f"{value:.10g}"
    if not isinstance(value, str):
        return value
    number = re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?", value)
    return "'" * (value.lstrip("\t\r\n")[:1] in FORMULAS and not number) + plain(value)


def write_csv(table: Table, path: Path) -> None:
    """All values with ten digits, and their marks, errors, states and comparisons in columns of their own."""
    import pandas as pd

    columns: dict[str, list[Any]] = {}
    for column in table.columns:
        columns |= {column.heading: column.cells} if isinstance(column, Texts) else column.columns()
    headed = {_csv_value(head): [*map(_csv_value, cells)] for head, cells in columns.items()}
    with whole_file(path) as aside:
        frame = pd.DataFrame(headed, dtype=object)
        frame.to_csv(aside, index=False, lineterminator="\n", encoding="utf-8")


def write_markdown(parts: list[Part], path: Path, title: str, caption: str, notes: str) -> None:
    """Pipe tables under their caption, above their notes."""
    lines = [f"**{escape_markdown(title)}.** {escape_markdown(caption)}"]
    for part in parts:
        lines += ["", *([f"*{escape_markdown(part.title)}*", ""] if part.title else [])]
        lines.append("| " + " | ".join(escape_markdown(head) or " " for head in part.heads) + " |")
        lines.append("|" + " --- |" * len(part.heads))
        lines += ["| " + " | ".join(row) + " |" for row in part.marked(escape_markdown, "**{}**")]
    lines += ["", escape_markdown(notes)] if notes else []
    write_text(path, "\n".join(lines) + "\n")


def _wrapped(column: Texts) -> list[str]:
    """The heading in lines about as wide as its column."""
    widest = max(len(text) for text in column.cells)
    return textwrap.wrap(column.heading, max(min(widest, LINE), 10), break_long_words=False) or [""]


def _longest(column: Texts) -> int:
    return max(len(text) for text in [*_wrapped(column), *column.cells])


def _width(columns: list[Texts]) -> int:
    return sum(3 + _longest(column) for column in columns)


def _breaks(part: Part) -> bool:
    """Whether it has texts too long, or too many columns, for one line a row."""
    return max(map(_longest, part.columns)) > LINE or _width(part.columns) > PAGE


def _shares(part: Part) -> list[float]:
    """Shares of the page's width that columns have where lines are broken."""
    weights = [min(max(_longest(column), 4), 45) ** 0.7 for column in part.columns]
    return [weight / sum(weights) * (1 - 0.014 * len(weights)) for weight in weights]


def _lines(part: Part) -> int:
    """About how many lines it takes."""
    if _breaks(part):
        room = [0.9 * PAGE * share for share in _shares(part)]
        deep = [max(len(text) / wide for text, wide in zip(row, room, strict=True)) for row in part.rows]
        return 6 + sum(max(2, math.ceil(lines)) for lines in deep)
    return 3 + max(len(_wrapped(column)) for column in part.columns) + len(part.rows)


def _tabular(part: Part, whole: Part) -> str:
    """Columns as wide as the texts of the whole part; too wide for the page, they break their lines."""
    import pandas as pd

    if _breaks(whole):
        widths = [rf"p{{{share:.3f}\linewidth}}" for share in _shares(whole)]
        form = "".join(rf">{{\raggedright\arraybackslash}}{width}" for width in widths)
        heads = [escape_tex(heading) for heading in part.heads]
    else:
        form, stacked = "l" * len(part.heads), (map(escape_tex, _wrapped(one)) for one in part.columns)
        lines = (r"\\".join(heading) for heading in stacked)
        heads = [rf"\begin{{tabular}}[b]{{@{{}}l@{{}}}}{of}\end{{tabular}}" for of in lines]
    marked = part.marked(lambda text: escape_tex(text).replace(r"\_", r"\_\allowbreak{}"), r"\textbf{{{}}}")
    frame = pd.DataFrame(marked, columns=heads)
    return frame.style.hide(axis="index").to_latex(hrules=True, column_format=form)


def _pages(part: Part) -> list[Part]:
    """The part, halved until each piece has room on a page."""
    half = len(part.rows) // 2
    if not half or _lines(part) <= PAGE_LINES:
        return [part]
    upper = {(row, column) for row, column in part.best if row < half}
    lower = {(row - half, column) for row, column in part.best - upper}
    first = part.model_copy(update={"rows": part.rows[:half], "best": frozenset(upper), "cells": {}})
    rest = part.model_copy(update={"rows": part.rows[half:], "best": frozenset(lower), "cells": {}})
    return [*_pages(first), *_pages(rest)]


def write_tex(parts: list[Part], path: Path, title: str, caption: str, notes: str, label: str) -> None:
    """Booktabs tables at 8 points on an upright page, in one float, in one each where they are long.

    The caption stands above the first, the notes below the last.
    """
    floats = [[(part, part) for part in parts]]
    if sum(map(_lines, parts)) > PAGE_LINES:
        floats = [[(page, part)] for part in parts for page in _pages(part)]
    title, caption, notes = map(escape_tex, (title, caption, notes))
    lines = [r"% needs \usepackage{booktabs,array} and, before them, \usepackage[T1]{fontenc}"]
    for number, inside in enumerate(floats):
        lines += [r"\begin{table*}[t]", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}"]
        if number:
            lines.append(f"\\textbf{{{title}}} (Table~\\ref{{{label}}}), continued.\\par\\medskip")
        else:
            lines.append(f"\\caption{{\\textbf{{{title}.}} {caption}}}\n\\label{{{label}}}\\smallskip")
        above = [f"{escape_tex(part.title)}\\par\\smallskip\n" if part.title else "" for part, _ in inside]
        tabulars = [head + _tabular(*both) for head, both in zip(above, inside, strict=True)]
        lines.append("\\par\\medskip\n".join(tabulars))
        if notes and number == len(floats) - 1:
            lines.append(f"\\par\\medskip\\parbox{{\\linewidth}}{{{notes}}}")
        lines.append(r"\end{table*}")
    write_text(path, "\n".join(lines) + "\n")
