"""Hyperparameters beside those of the paper."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from pydantic import model_validator

from cpt_repro.declarations.strict import Strict
from cpt_repro.exhibits.base import Result, RunRef, TableKind, View, unique
from cpt_repro.exhibits.typeset import Cell, Measured, Table, Texts, Values, rate_text
from cpt_repro.records.lookup import NO_COUNTERPART

#: Settings that the receipt knows and the plan does not.
COUNTED = ("parameters", "non_embedding")


class SettingColumn(Strict):
    """A model of the paper."""

    label: str
    run: RunRef | None = None
    #: column of the published table
    published: str


class Setting(Strict):
    """A setting: a field of the planned training, or the same `everywhere`; the published table has its."""

    group: str = ""
    label: str
    run: RunRef | None = None
    field: str | None = None
    everywhere: str | None = None


class Settings(TableKind):
    """Hyperparameters as published and as used."""

    kind: Literal["settings"] = "settings"
    columns: tuple[SettingColumn, ...]
    rows: tuple[Setting, ...]

    @property
    def runs(self) -> list[str]:
        counted = any(row.field in COUNTED for row in self.rows)
        return unique(column.run for column in self.columns) if counted else []

    @property
    def published_table(self) -> tuple[list[str], int]:
        return [column.published for column in self.columns], len(self.rows)

    @model_validator(mode="after")
    def _of_a_run(self) -> Settings:
        for row in self.rows:
            if row.field and not (row.run or all(column.run for column in self.columns)):
                raise ValueError(f"the row '{row.label}' has a 'field' and no 'run', nor have the columns")
        return self

    def table(self, view: View) -> Table:
        columns: list[Texts | Values] = [Texts("Description", [row.label for row in self.rows])]
        if any(row.group for row in self.rows):
            columns.insert(0, Texts("Group", [row.group for row in self.rows]))
        for column in self.columns:
            printed = view.published(column.published, len(self.rows))
            rows = zip(self.rows, printed, strict=True)
            cells = [self._cell(view, row, row.run or column.run, value) for row, value in rows]
            columns.append(Values(column.label or column.published, "", "", view.scale.name, cells))
        return Table(columns, [])

    def results(self, view: View) -> list[Result]:
        """Every setting that is a number."""
        out, columns = [], [column for column in self.table(view).columns if isinstance(column, Values)]
        for of, column in zip(self.columns, columns, strict=True):
            for line, (row, cell) in enumerate(zip(self.rows, column.cells, strict=True), 1):
                there, text = cell.published, cell.reproduced.text if cell.reproduced else ""
                ours, printed = _number(text), _number(str(there.value)) if there else None
                if ours is not None:
                    published = there.model_copy(update={"value": printed}) if printed is not None else None
                    both = published, Measured(ours, text)
                    out.append(Result(line, row.label, column.heading, *both, row.run or of.run))
        return out

    def _cell(self, view: View, row: Setting, run: str | None, value) -> Cell:
        text = _setting(row.field, run, view) if row.field else row.everywhere
        if text is None:
            state = view.why(run) if row.field in COUNTED else NO_COUNTERPART
            return Cell(value, None, state)
        of = view.full_name(run) if row.field else None
        cell = Cell(value, Measured(text, text), f"used at scale {view.scale.name}", of)
        if view.full_size and value:
            same = str(value.value).replace(",", "") == text.replace(",", "")
            cell.difference = "equal" if same else "differs"
        return cell


def _number(text: str) -> float | None:
    with suppress(ValueError):
        return float(text.replace(",", ""))
    return None


def _setting(field: str, name: str, view: View) -> str | None:
    """A setting as text; None where it is not known."""
    if not (run := view.planned(name)):
        return None
    training = run.training
    if field in COUNTED:
        runs = view.runs(name)
        embeddings = 2 * training.vocabulary * training.model.width if field == "non_embedding" else 0
        return f"{runs[0].parameters - embeddings:,}" if runs else None
    if field == "schedule":
        return training.schedule.kind.capitalize()
    holders = (training.model, training.schedule, training)
    value = next((v for holder in holders if (v := getattr(holder, field, None)) is not None), None)
    if value is None:
        return None
    if field.startswith("eta_"):
        return rate_text(value)
    return f"{100 * value:g}" if field.endswith("_frac") else f"{value:g}"
