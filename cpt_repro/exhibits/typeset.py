"""The model of a table with published values beside reproduced ones, and its CSV, Markdown and LaTeX (pandas)."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cpt_repro.declarations.published import Value
from cpt_repro.files import whole_file, write_text
from cpt_repro.records.lookup import NO_COUNTERPART

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "∪": r"$\cup$", "→": r"$\rightarrow$", "±": r"$\pm$", "×": r"$\times$", "–": "--", "—": "---", "²": r"$^2$",
    "η": r"$\eta$", "α": r"$\alpha$", "β": r"$\beta$", "„": ",,", "“": "``", "”": "''", "‚": ",", "‘": "`", "’": "'",
    "…": r"\dots{}", "«": "``", "»": "''", "\u00a0": "~", "€": "EUR", "°": r"$^\circ$", "§": r"\S{}",
    "ᵈ": r"$^{\mathrm{d}}$", "ᶜ": r"$^{\mathrm{c}}$", "ᵃ": r"$^{\mathrm{a}}$",
    "ᵐ": r"$^{\mathrm{m}}$",
}  # fmt: skip
#: Characters across an upright page and across one on its side, at 5 points or more.
UPRIGHT, SIDEWAYS = 130, 270
#: Rows that a page has room for, with a caption and headings.
UPRIGHT_ROWS, SIDEWAYS_ROWS = 50, 38
#: Longest entry that is set in one line.
LINE = 60
NOT_PUBLISHED = "not published"
#: Behind a published value that is not printed as such.
MARKS = {"digitised": "ᵈ", "authors' code": "ᶜ", "derived": "ᵃ"}
#: Behind one that does not hold what its row and column say.
MISPRINT = "ᵐ"


class Measured(NamedTuple):
    """A value of this scale: mean over seeds, its standard error, the validation set's noise."""

    value: float | str
    text: str
    error: float | None = None
    noise: float | None = None
    seeds: int | None = None
    digits: int | None = None


@dataclass
class Cell:
    """One cell: both values, the state of the reproduced one, and what compares."""

    published: Value | None
    reproduced: Measured | None
    state: str
    #: published rank, rank here, of how many rows
    ranks: tuple[int, int, int] | None = None
    #: published and here, None where the anchors lie too close together
    effects: tuple[float | None, float | None] = (None, None)
    #: reproduced - published, or "equal" and "differs" for texts; at scale paper only
    difference: float | str | None = None
    misprint: bool = False

    @property
    def comparable(self) -> bool:
        """Whether both values are there and say the same thing."""
        return bool(self.published and self.reproduced and not self.misprint)


class Texts(NamedTuple):
    """A column that is not compared; `names` where it tells which row it is."""

    heading: str
    cells: list[str]
    names: bool = True


class Values(NamedTuple):
    """A column of compared values; `said` and `here` tell what was measured in the paper and at this scale."""

    heading: str
    said: str
    here: str
    scale: str
    cells: list[Cell]
    #: decimals of the published column; None: shown as it is
    digits: int | None = None

    @property
    def at(self) -> str:
        """Under what heading values of this scale stand."""
        return "reproduced" if self.scale == "paper" else f"{self.scale} scale"

    @property
    def published_only(self) -> bool:
        """Whether the scale has nothing of the kind."""
        return all(cell.reproduced is None and cell.state == NO_COUNTERPART for cell in self.cells)

    def published(self, cell: Cell) -> str:
        """The published value as it was printed, or that there is none."""
        if cell.published is None:
            return NOT_PUBLISHED
        value = cell.published.value
        number = self.digits is not None and not isinstance(value, str)
        return f"{value:.{self.digits}f}" if number else str(value)

    def printed(self) -> list[Texts]:
        """The columns in print: published, reproduced, compared; the first or last two fall away where all empty."""
        out = []
        title = lambda side, detail="": f"{self.heading} ({side}{': ' * bool(detail)}{detail})"  # noqa: E731
        if any(cell.published for cell in self.cells):
            signs = [
                MARKS.get(c.published.mark, "") + MISPRINT * c.misprint if c.published else ""
                for c in self.cells
            ]
            texts = [self.published(cell) + sign for cell, sign in zip(self.cells, signs, strict=True)]
            out.append(Texts(title("published", self.said), texts))
        if self.published_only:
            return out
        here = [c.reproduced.text if c.reproduced else c.state.partition(";")[0] for c in self.cells]
        out.append(
            Texts(title(self.at, self.here) if out else title(f"{self.at}; {NOT_PUBLISHED}", self.here), here)
        )
        compared = [_compared(cell, self.digits or 0) for cell in self.cells]
        if any(compared):
            effects = any(cell.effects != (None, None) for cell in self.cells)
            what = "rank; effect" if effects else "rank"
            side = "difference" if self.scale == "paper" else f"{what}: published → {self.at}"
            out.append(Texts(title(side), [text or "–" for text in compared]))
        return out

    def columns(self) -> dict[str, list[Any]]:
        """The columns of the CSV; those of numbers hold numbers and nothing else."""
        at, measured = f"{self.scale} scale", [cell.reproduced or Measured(None, "") for cell in self.cells]
        effects, ranks = [c.effects for c in self.cells], [c.ranks or (None, None, None) for c in self.cells]
        inside = f"{self.here}, {at}" if self.here else at
        every = {
            "published": [self.published(c) if c.published else None for c in self.cells],
            "mark": [
                c.published.mark + "; misprint" * c.misprint if c.published else None for c in self.cells
            ],
            f"reproduced ({inside})": [m.value for m in measured],
            f"standard error ({at})": [m.error for m in measured],
            f"noise of the validation set ({at})": [m.noise for m in measured],
            f"seeds ({at})": [m.seeds for m in measured],
            "state": [c.state for c in self.cells],
            "published rank": [rank[0] for rank in ranks],
            f"rank ({at})": [rank[1] for rank in ranks],
            "ranked rows": [rank[2] for rank in ranks],
            "published effect": [effect[0] for effect in effects],
            f"effect ({at})": [effect[1] for effect in effects],
            f"difference ({at})": [c.difference for c in self.cells],
        }
        kept = ("published", "reproduced", "state")
        return {
            f"{self.heading}, {k}": v for k, v in every.items() if k.split(" (")[0] in kept or {*v} - {None}
        }


class Table(NamedTuple):
    """Columns, and what the caption says of them."""

    columns: list[Texts | Values]
    notes: list[str]


def _compared(cell: Cell, digits: int) -> str:
    if cell.difference is not None:
        return cell.difference if isinstance(cell.difference, str) else f"{cell.difference:+.{digits}f}"
    told = [f"{cell.ranks[0]} → {cell.ranks[1]} of {cell.ranks[2]}"] if cell.ranks else []
    if cell.effects != (None, None):
        told.append(" → ".join("–" if e is None else f"{round(e, 2) + 0.0:.2f}" for e in cell.effects))
    return "; ".join(told)


def _parts(table: Table, scale: str) -> list[tuple[str, list[Texts]]]:
    """(title, columns) of tables to print one below the other: what only the paper has comes last, by itself."""
    values = [column for column in table.columns if isinstance(column, Values)]
    texts = [column for column in table.columns if isinstance(column, Texts)]
    apart = [column for column in values if column.published_only]
    alone = f"Published columns that have no counterpart at scale {scale}:"
    out = []
    for title, chosen, lead in (
        ("", [column for column in values if column not in apart], texts),
        (alone, apart, [column for column in texts if column.names]),
    ):
        part = list(lead)
        for block in (column.printed() for column in chosen):
            if len(part) > len(lead) and _width([*part, *block]) > SIDEWAYS:
                out.append((title, part))
                part = list(lead)
            part += block
        if chosen or not (title or values):
            out.append((title, part))
    return out


def _wrapped(column: Texts) -> list[str]:
    """The heading in lines about as wide as the column."""
    widest = max(len(text) for text in column.cells)
    return textwrap.wrap(column.heading, max(min(widest, LINE), 10), break_long_words=False) or [""]


def _width(columns: list[Texts]) -> int:
    return sum(3 + max(len(text) for text in [*_wrapped(column), *column.cells]) for column in columns)


def escape_tex(text: str) -> str:
    """Text for LaTeX; a character that a Latin font lacks becomes a question mark."""
    plain = (" " if c.isspace() and c != "\u00a0" else c for c in text)
    known = (TEX.get(c) or (c if " " <= c <= "~" or "\u00c0" <= c <= "\u017f" else "?") for c in plain)
    return "".join(known)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(str(text).split()))


def write_csv(table: Table, path: Path) -> None:
    """All values with ten digits, and their marks, errors, states and comparisons in columns of their own."""
    import pandas as pd

    columns: dict[str, list[Any]] = {}
    for column in table.columns:
        columns |= {column.heading: column.cells} if isinstance(column, Texts) else column.columns()
    frame = pd.DataFrame(columns, dtype=object)
    frame = frame.map(lambda value: f"{value:.10g}" if isinstance(value, float) else value)
    with whole_file(path) as aside:
        frame.to_csv(aside, index=False, lineterminator="\n", encoding="utf-8")


def write_markdown(table: Table, path: Path, title: str, caption: str, scale: str) -> None:
    """Pipe tables under their caption."""
    lines = [f"**{_escape_markdown(title)}.** {_escape_markdown(caption)}"]
    for above, columns in _parts(table, scale):
        lines += ["", *([f"*{_escape_markdown(above)}*", ""] if above else [])]
        lines.append("| " + " | ".join(_escape_markdown(column.heading) or " " for column in columns) + " |")
        lines.append("|" + " --- |" * len(columns))
        body = zip(*(column.cells for column in columns), strict=True)
        lines += ["| " + " | ".join(map(_escape_markdown, row)) + " |" for row in body]
    write_text(path, "\n".join(lines) + "\n")


def _tabular(columns: list[Texts]) -> str:
    """Columns as wide as their texts, shrunk to the page; long texts break their lines at a share of its width."""
    import pandas as pd

    longest = [max(len(text) for text in [*_wrapped(column), *column.cells]) for column in columns]
    breaks = max(longest) > LINE
    weights = [min(max(length, 4), 45) ** 0.7 for length in longest]
    shares = [weight / sum(weights) * (1 - 0.014 * len(weights)) for weight in weights]
    long = "".join(rf">{{\raggedright\arraybackslash}}p{{{share:.3f}\linewidth}}" for share in shares)
    stacked = [r"\\".join(map(escape_tex, _wrapped(column))) for column in columns]
    heads = [rf"\begin{{tabular}}[b]{{@{{}}l@{{}}}}{lines}\end{{tabular}}" for lines in stacked]
    heads = [escape_tex(column.heading) for column in columns] if breaks else heads
    body = [
        [escape_tex(text) for text in row] for row in zip(*(column.cells for column in columns), strict=True)
    ]
    frame = pd.DataFrame(body, columns=heads)
    text = frame.style.hide(axis="index").to_latex(
        hrules=True, column_format=long if breaks else "l" * len(columns)
    )
    fitting = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
    return text if breaks else f"{fitting}{{%\n{text}}}\n"


def write_tex(table: Table, path: Path, title: str, caption: str, label: str, scale: str) -> None:
    """Booktabs tables in one float, or in one float each where they are long; on their side where they are wide."""
    parts, told = _parts(table, scale), escape_tex(title)
    texts = [len(text) for _, columns in parts for column in columns for text in column.cells]
    wide = max(texts) <= LINE and max(_width(columns) for _, columns in parts) > UPRIGHT
    name, place, high = ("sidewaystable*", "", SIDEWAYS_ROWS) if wide else ("table*", "[t]", UPRIGHT_ROWS)
    rows = len(parts[0][1][0].cells) * len(parts)
    floats = [[part] for part in parts] if rows > high else [parts]
    text = (
        "% needs \\usepackage{booktabs,array,graphicx,rotating} and, before them, \\usepackage[T1]{fontenc}\n"
    )
    for number, inside in enumerate(floats):
        text += f"\\begin{{{name}}}{place}\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n"
        if number:
            text += f"\\textbf{{{told}}} (Table~\\ref{{{label}}}), continued.\\par\\medskip\n"
        else:
            text += f"\\caption{{\\textbf{{{told}.}} {escape_tex(caption)}}}\n\\label{{{label}}}\\smallskip\n"
        text += "\\par\\medskip\n".join(
            (f"{escape_tex(above)}\\par\\smallskip\n" if above else "") + _tabular(columns)
            for above, columns in inside
        )
        text += f"\\end{{{name}}}\n"
    write_text(path, text)
