"""Prompts, or what models write after them."""

from __future__ import annotations

from typing import Literal

from cpt_repro.exhibits.base import CorpusRef, Row, TableKind, View, unique
from cpt_repro.exhibits.typeset import Table, Texts
from cpt_repro.records.lookup import NOT_RUN

#: How many there are, until a record says it.
PROMPTS = 5


class Generations(TableKind):
    """The prompts, or each model's continuation of each (of its first seed)."""

    kind: Literal["generations"] = "generations"
    layout: Literal["prompts", "generations"]
    #: the corpus from whose held-out text the prompts are taken
    corpus: CorpusRef
    rows: tuple[Row, ...]

    @property
    def evaluations(self) -> list[str]:
        return unique(row.model for row in self.rows)

    def table(self, view: View) -> Table:
        at = "" if view.full_size else f" ({view.scale.name} scale)"
        first = {row.model: next(iter(view.evaluations(row.model)), None) for row in self.rows}
        asked = next((e.prompts for e in first.values() if e and e.prompts), (NOT_RUN,) * PROMPTS)
        prompts = [f"P{k + 1}" for k in range(len(asked))]
        notes = ["The texts that the paper prints are not carried over."]
        if self.layout == "prompts":
            return Table([Texts("Prompt", prompts), Texts(f"Text{at}", list(asked))], notes)
        columns = {"Prompt": [], "Training tokens": [], f"Generation{at}": []}
        for k, prompt in enumerate(prompts):
            for row in self.rows:
                texts = first[row.model].generations if first[row.model] else ()
                cells = (prompt, view.called(row), texts[k] if k < len(texts) else view.why(row.model))
                for column, cell in zip(columns.values(), cells, strict=True):
                    column.append(cell)
        return Table([Texts(heading, cells) for heading, cells in columns.items()], notes)
