"""Every number of every exhibit in one long table, for programs: `figures/<scale>/values.csv`."""

from __future__ import annotations

from pathlib import Path

from cpt_repro.exhibits.base import Result, View
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.typeset import Table, Texts, write_csv
from cpt_repro.records.lookup import Records

#: The first four tell a value from all others. `lower`, `upper`: ends of the 95 % interval; `run`: whose it
#: is; `records`: the files below `results/<scale>/` that tell it, one a seed.
HEADS = (
    *("paper", "exhibit", "line", "column", "row", "published", "mark", "place"),
    *("ours", "lower", "upper", "seeds", "run", "records"),
)


def write_values(catalogue: Catalogue, records: Records, folder: Path) -> Path:
    """Writes `values.csv` into the scale's folder: a line for each number that an exhibit shows."""
    rows = []
    for paper, key in catalogue.exhibits:
        view = View(catalogue, records, paper, key)
        for one in view.exhibit.results(view):
            there, ours = one.published, one.ours
            published = (there.value, there.mark, there.place) if there else (None,) * 3
            here: tuple = (None,) * 4
            if ours:
                ends = () if ours.error is None else (ours.value - ours.error, ours.value + ours.error)
                here = (ours.value, *(ends or (None, None)), ours.seeds)
            name = view.full_name(one.run) if one.run else None
            files = " ".join(str(path.relative_to(records.folder)) for path in _records(view, one))
            rows.append((paper, key, one.line, one.column, one.row, *published, *here, name, files))
    columns = zip(*rows, strict=True) if rows else [()] * len(HEADS)
    path = folder / "values.csv"
    write_csv(Table([Texts(head, [*cells]) for head, cells in zip(HEADS, columns, strict=True)], []), path)
    return path


def _records(view: View, result: Result) -> list[Path]:
    """The records of a result that are there."""
    records, plan = view.records, view.plan
    ids = plan.ids(view.paper, result.run) if result.run else ()
    if result.record == "corpus":
        paths = [records.corpus_path(corpus) for corpus in view.exhibit.corpora]
    elif result.record == "evaluation":
        paths = [records.evaluation_path(model) for model in ids]
    else:  # a merge has none
        paths = [records.receipt_path(plan.runs[one]) for one in ids if one in plan.runs]
    return [path for path in paths if path.is_file()]
