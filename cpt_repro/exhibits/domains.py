"""The domains of a corpus: their shares and sizes, published and built."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import model_validator

from cpt_repro.exhibits.base import CorpusRef, Result, TableKind, View
from cpt_repro.exhibits.typeset import Cell, Measured, Table, Texts, Values, count, decimals
from cpt_repro.records.lookup import NO_COUNTERPART

NOT_BUILT = "not built"
HEADINGS = {"sampling": "Sampling %", "train": "Train tokens", "validation": "Validation tokens"}
#: Unit in the heading of a published column -> its tokens and its name.
UNITS = {"B": (1e9, "billions"), "M": (1e6, "millions"), "": (1, "")}


class Domains(TableKind):
    """Domains of the paper, then those of this scale alone; as built, else the planned shares."""

    kind: Literal["domains"] = "domains"
    corpus: CorpusRef
    columns: tuple[Literal["domain", "sampling", "train", "validation"], ...]
    #: columns of the published table, in the order of `columns`; its rows are `order` and the total
    published: tuple[str, ...] = ()
    #: order of domains that the paper has; others follow
    order: tuple[str, ...] = ()

    @property
    def corpora(self) -> list[str]:
        return [self.corpus]

    @property
    def published_table(self) -> tuple[list[str], int]:
        return list(self.published), len(self.order) + 1

    @model_validator(mode="after")
    def _one_for_each(self) -> Domains:
        if len(self.published) not in (0, len(self.columns)):
            raise ValueError("'published' is not as long as 'columns'; name one for each, or none")
        return self

    def results(self, view: View) -> list[Result]:
        """Shares and sizes."""
        columns = self.table(view).columns
        names = next(column.cells for column in columns if isinstance(column, Texts))
        return [
            Result(line, name, column.heading, cell.published, cell.reproduced, None, "corpus")
            for column in columns
            for line, (name, cell) in enumerate(zip(names, column.cells, strict=True), 1)
            if isinstance(cell, Cell)
        ]

    def table(self, view: View) -> Table:
        here = self.corpus in view.scale.corpora
        built = view.fingerprint(self.corpus) if here else None
        shares = built.shares if built else view.plan.shares(self.corpus) if here else {}
        own = [name for name in sorted(shares, key=lambda n: (-shares[n], n)) if name not in self.order]
        rows = [[name] if name in shares else [] for name in (*self.order, *own)] + [list(shares)]
        heads = dict(zip(self.columns, self.published, strict=False))

        def measured(kind: str, names: list[str]) -> tuple[Measured | None, str]:
            if not names:
                return None, NO_COUNTERPART
            if kind == "sampling":
                share = round(100 * math.fsum(shares[name] for name in names), 4)
                state = f"{'built' if built else 'planned'} at scale {view.scale.name}"
                return Measured(share, f"{share:.2f}"), state
            if not built:
                return None, NOT_BUILT
            total = sum(built.splits[kind][name].tokens for name in names)
            return Measured(total, count(total)), f"built at scale {view.scale.name}"

        columns: list[Texts | Values] = []
        for kind in self.columns:
            *printed, total = view.published(heads.get(kind), len(self.order) + 1)
            printed = [*printed, *([None] * len(own)), total]
            if kind == "domain":
                names = zip(printed, [*self.order, *own, "Total"], strict=True)
                columns.append(Texts("Domain", [value.value if value else name for value, name in names]))
                continue
            unit, there = UNITS[next(iter(re.findall(r"\(([BM])\)", heads.get(kind, ""))), "")]
            cells = [Cell(value, *measured(kind, names)) for value, names in zip(printed, rows, strict=True)]
            for cell in cells if view.full_size else ():
                if cell.comparable:
                    cell.difference = cell.reproduced.value / unit - cell.published.value
            name = "" if view.full_size or not here else view.plan.corpus_title(self.corpus)
            columns.append(Values(HEADINGS[kind], there, name, view.scale.name, cells, decimals(printed)))
        return Table(columns, [])
