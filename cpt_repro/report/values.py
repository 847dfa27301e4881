"""Every result of every exhibit in one long table, for programs: `figures/<scale>/values.csv`."""

from __future__ import annotations

from pathlib import Path

from cpt_repro.exhibits.base import View
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.typeset import Table, Texts, write_csv
from cpt_repro.records.lookup import Records

#: lower, upper: ends of the 95 % interval; runs: whose receipts or evaluations a result is from.
HEADS = (
    "paper",
    "exhibit",
    "row",
    "column",
    "published",
    "mark",
    "place",
    "ours",
    "lower",
    "upper",
    "seeds",
    "runs",
)


def write_values(catalogue: Catalogue, records: Records, folder: Path) -> Path:
    """Writes `values.csv` into the scale's folder: a line for each value of a table of runs, and each bar."""
    rows = []
    for paper, key in catalogue.exhibits:
        view = View(catalogue, records, paper, key)
        for result in view.exhibit.results(view):
            there, ours = result.published, result.ours
            error = ours.error or 0.0 if ours else 0.0
            ends = (ours.value - error, ours.value + error) if ours else (None, None)
            published = (there.value, there.mark, there.place) if there else (None, None, None)
            ids = " ".join(records.plan.ids(paper, result.run))
            here = (ours and ours.value, *ends, ours and ours.seeds, ids)
            rows.append((paper, key, result.row, result.column, *published, *here))
    columns = zip(*rows, strict=True) if rows else [()] * len(HEADS)
    path = folder / "values.csv"
    write_csv(Table([Texts(head, [*cells]) for head, cells in zip(HEADS, columns, strict=True)], []), path)
    return path
