"""What a paper published: `published.yaml` (tables, facts) and `digitised.json` (curves) in its folder.

Every value carries its mark (printed in the paper, digitised from a plot, authors' code, derived by
arithmetic) and its place. They are facts to compare with, and never an input of a run. `discrepancies.yaml`
says where they contradict each other, what is taken, and how runs are switched to another reading.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cpt_repro.declarations.strict import Strict

Mark = Literal["printed", "digitised", "authors' code", "derived"]
Points = tuple[tuple[float, float], ...]


class Value(Strict):
    value: float | int | str
    mark: Mark
    place: str


class PublishedTable(Strict):
    """A table as published; None where a cell is empty."""

    mark: Mark
    place: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    #: column -> mark, where it is not the table's
    marks: dict[str, Mark] = {}

    def model_post_init(self, context: Any) -> None:
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells and not {len(self.columns)}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("a column stands twice")

    def cell(self, key: str, row: int, column: str) -> Value | None:
        """The value in a row (from 0) of a column; `key` (table_02) goes into its place."""
        value = self.rows[row][self.columns.index(column)]
        name = key.replace("_0", " ").replace("_", " ").capitalize()
        place, mark = f"{name} ({self.place}), row {row + 1}, {column}", self.marks.get(column, self.mark)
        return None if value is None else Value(value=value, mark=mark, place=place)


class Fact(Strict):
    """A published number outside tables: a hyperparameter, a length, a token count."""

    name: str
    value: float | int | str
    unit: str = ""
    mark: Mark
    place: str


class Published(Strict):
    source: str
    tables: dict[str, PublishedTable] = {}
    facts: tuple[Fact, ...] = ()


class DigitisedCurve(Strict):
    """A curve read off a plot: (x, y) in the plot's units."""

    points: Points = Field(min_length=1)


class DigitisedPanel(Strict):
    """Curves by legend label, horizontal lines by label."""

    x: str
    y: str
    curves: dict[str, DigitisedCurve]
    lines: dict[str, float] = {}


class Digitised(Strict):
    """One paper's digitised panels, by figure number and letter (4a)."""

    source: str
    #: what a y-value may be trusted to, in nats
    tolerance: float
    panels: dict[str, DigitisedPanel]


_REPOSITORY = r"^[\w-][\w.-]*/[\w-][\w.-]*$"


class Released(Strict):
    """Published weights of one run, and what is known of them."""

    repository: str = Field(pattern=_REPOSITORY)
    #: A commit; None takes the default branch and pins it at first use.
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    #: Whether the list of files was seen and has weights, was not seen, or was seen and has none.
    weights: Literal["seen", "named", "empty"]
    #: Another repository that should hold the same.
    also: str | None = Field(default=None, pattern=_REPOSITORY)
    note: str

    @property
    def model(self) -> str:
        """As `init_from` names it."""
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


class ReleasedWeights(Strict):
    """The weights that a paper's authors published (`released.yaml`), by the run that they are."""

    source: str
    models: dict[str, Released]


class Source(Strict):
    """One side of a discrepancy."""

    place: str
    mark: Mark
    says: str


class Change(Strict):
    """What another reading sets: patterns of run names, and dotted keys of `runs.yaml` with their values."""

    runs: tuple[str, ...] = Field(min_length=1)
    set: dict[str, Any] = Field(min_length=1)


class Variant(Strict):
    """Another reading, as a switch: the changes to the runs that it means."""

    says: str
    changes: tuple[Change, ...] = Field(min_length=1)


class Misprint(Strict):
    """Cells that do not hold what row (from 1) and column say: nothing is compared with them."""

    table: str
    row: int = Field(ge=1)
    columns: tuple[str, ...] = Field(min_length=1)


class Discrepancy(Strict):
    """A conflict between a paper and its code, or within it; without variants one of the print alone."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    what: str
    sources: tuple[Source, ...] = Field(min_length=2)
    #: what is taken, and why
    default: str
    variants: dict[str, Variant] = {}
    misprints: tuple[Misprint, ...] = ()


class Discrepancies(Strict):
    discrepancies: tuple[Discrepancy, ...]

    def model_post_init(self, context: Any) -> None:
        names = [found.id for found in self.discrepancies]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the id '{twice[0]}' stands twice")
