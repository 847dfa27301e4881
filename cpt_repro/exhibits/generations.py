"""Prompts, or what models write after them."""

from __future__ import annotations

from typing import Literal

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
            return Table([Texts("Prompt", prompts), *self._published(view), Texts(f"Text{at}", [*asked])], [])
        rows = [(k, row, first[row.model]) for k in range(len(prompts)) for row in self.rows]
        told = [(one.generations[k:] if one else ()) or (view.why(row.model),) for k, row, one in rows]
        columns = [
            Texts("Prompt", [prompts[k] for k, _, _ in rows]),
            Texts("Training tokens", [view.called(row) for _, row, _ in rows]),
            *self._published(view),
            Texts(
                f"Generation{at}",
                [texts[0] for texts in told],
                runs={place: view.full_name(row.model) for place, (_, row, _) in enumerate(rows)},
            ),
        ]
        notes = ["The two columns continue different prompts (see the table before)."]
        return Table(columns, [] if view.full_size else notes)

    def _published(self, view: View) -> list[Texts]:
        """Columns of the published texts, and of what is printed beside them."""
        names, rows = self.published_table
        columns = []
        for name in names:
            values = view.published(name, rows)
            marks = ", ".join(sorted({value.mark for value in values if value}))
            head = f"Published ({marks})" if name == self.published else name.capitalize()
            columns.append(Texts(head, [str(one.value) if one else NOT_PUBLISHED for one in values]))
        return columns
