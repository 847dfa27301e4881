"""Prompts, or what models write after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cpt_repro.declarations.published import Value
from cpt_repro.exhibits.base import CorpusRef, Row, TableKind, View, unique
from cpt_repro.exhibits.typeset import NOT_PUBLISHED, Table, Texts
from cpt_repro.records.lookup import NOT_RUN

#: How many there are, until a record says it.
PROMPTS = 5


class Generations(TableKind):
    """The prompts, or each model's continuation of each (of its first seed)."""

    kind: Literal["generations"] = "generations"
    layout: Literal["prompts", "generations"]
    #: the corpus from whose held-out text the prompts are taken, at a scale that is not the paper's
    corpus: CorpusRef
    rows: tuple[Row, ...]
    #: the column of the published table that holds the texts, and those that say more of each
    published: str | None = None
    about: tuple[str, ...] = ()

    @property
    def evaluations(self) -> list[str]:
        return unique(row.model for row in self.rows)

    @property
    def published_table(self) -> tuple[list[str], int]:
        columns = [self.published, *self.about] if self.published else []
        return columns, PROMPTS * (1 if self.layout == "prompts" else len(self.rows))

    def table(self, view: View) -> Table:
        at = "" if view.full_size else f" ({view.scale.name} scale)"
        first = {row.model: next(iter(view.evaluations(row.model)), None) for row in self.rows}
        asked = next((e.prompts for e in first.values() if e and e.prompts), (NOT_RUN,) * PROMPTS)
        prompts = [f"P{k + 1}" for k in range(len(asked))]
        if self.layout == "prompts":
            columns = {"Prompt": prompts, **self._as_published(view), f"Text{at}": list(asked)}
            return Table([Texts(heading, cells) for heading, cells in columns.items()], [])
        columns = {"Prompt": [], "Training tokens": [], **self._as_published(view), f"Generation{at}": []}
        runs = dict(enumerate(view.full_name(row.model) for _ in prompts for row in self.rows))
        for k, prompt in enumerate(prompts):
            for row in self.rows:
                texts = first[row.model].generations if first[row.model] else ()
                columns["Prompt"].append(prompt)
                columns["Training tokens"].append(view.called(row))
                columns[f"Generation{at}"].append(texts[k] if k < len(texts) else view.why(row.model))
        notes = (
            [] if view.full_size else ["The two columns continue different prompts (see the table before)."]
        )
        *texts, (heading, cells) = columns.items()
        return Table([*(Texts(*both) for both in texts), Texts(heading, cells, runs=runs)], notes)

    def _as_published(self, view: View) -> dict[str, list[str]]:
        """Columns of the published texts, and of what is printed beside them."""
        names, rows = self.published_table
        columns = {name: view.published(name, rows) for name in names}
        marks = {value.mark for value in columns.get(self.published or "", ()) if value}
        heads = {self.published: f"Published ({', '.join(sorted(marks))})"}
        return {heads.get(name, name.capitalize()): _texts(cells) for name, cells in columns.items()}


def _texts(cells: Sequence[Value | None]) -> list[str]:
    return [str(cell.value) if cell else NOT_PUBLISHED for cell in cells]
