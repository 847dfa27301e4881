"""Tables from declarations, published values and receipts: both values of every cell, and what of them compares.

Below the scale `paper` losses and scores do not compare as they are; ranks and normalised effects do.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

from cpt_repro.declarations.exhibits import (
    COUNTED,
    Anchors,
    Column,
    Domains,
    Exhibit,
    Generations,
    Row,
    Rows,
    Settings,
)
from cpt_repro.declarations.published import Value, load_published
from cpt_repro.exhibits.typeset import MARKS, MISPRINT, NOT_PUBLISHED, Cell, Measured, Table, Texts, Values
from cpt_repro.planning.plan import domain_shares
from cpt_repro.records.counterparts import counterparts
from cpt_repro.records.lookup import NO_COUNTERPART, NOT_RUN, Records

#: A normalised effect stands on a denominator of at least so many standard errors.
SURE = 2


def _count(tokens: float) -> str:
    """1.5k, 8.0M, 299.3B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= unit:
            return f"{tokens / unit:.1f}{letter}"
    return f"{tokens:.0f}"


def _said(exhibit: Exhibit, records: Records, column: str | None, count: int) -> list[Value | None]:
    """The published values of a column, one a row."""
    table = load_published(records.paper).tables.get(key := _name(exhibit, records))
    if table is None or column is None:
        return [None] * count
    return [table.cell(key, number, column) for number in range(count)]


def _name(exhibit: Exhibit, records: Records) -> str:
    return next(key for key, other in records.declared.exhibits.items() if other == exhibit)


def _digits(said: list[Value | None]) -> int:
    """Decimals that a published column was printed with: YAML drops closing zeros, but not those of all rows."""
    floats = [repr(v.value) for v in said if v and isinstance(v.value, float)]
    return max((len(text.partition(".")[2]) for text in floats), default=0)


def _cell(said: Value | None, found: Measured | None, state: str) -> Cell:
    return Cell(said, found, state if said else f"{state}; {NOT_PUBLISHED}")


# -- one run or merge a row


def _key(row: Row, records: Records) -> tuple[str, str, str]:
    """A row's run or merge, its new corpus and its model: rows with the same two last are compared."""
    paper = records.plan.papers[records.paper]
    run = paper.runs[row.run or paper.merges[row.merge].task]
    return row.run or row.merge, row.new or run.validate_on[1], run.model


def _mean(values: list[float], errors: list[float], digits: int, noise: float | None = None) -> Measured:
    """Mean over seeds and its standard error: over seeds, or that of the only one."""
    n, error = len(values), errors[0]
    mean = math.fsum(values) / n
    if n > 1:
        error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return Measured(mean, f"{mean:.{digits}f} ± {error:.{digits}f} [{n}]", error, noise, n, digits)


def _loss(row: Row, corpora: list[str], records: Records) -> Measured | None:
    """The final loss on a corpus, or the plain mean over two; merges have none."""
    receipts = records.receipts(row.run) if row.run else []
    finals = [[r.final[c] for c in corpora] for r in receipts if set(corpora) <= set(r.final)]
    if not finals:
        return None
    n = len(corpora)
    return _mean(
        [math.fsum(final.loss for final in both) / n for both in finals],
        [math.hypot(*(final.stderr for final in both)) / n for both in finals],
        3,
        math.fsum(math.hypot(*(final.noise for final in both)) / n for both in finals) / len(finals),
    )


def _score(row: Row, suite: str, task: str | None, records: Records) -> Measured | None:
    """A task's value or the suite's average, in percent."""
    suites = [e.suites[suite] for e in records.evaluations(row.run or row.merge) if suite in e.suites]
    if task:
        found = [
            (s["tasks"][task]["value"], s["tasks"][task]["stderr"]) for s in suites if task in s["tasks"]
        ]
    else:
        found = [(s["average"], s["stderr"]) for s in suites]
    return _mean([100 * v for v, _ in found], [100 * (e or 0) for _, e in found], 2) if found else None


def _here(row: Row, records: Records) -> str:
    """What was trained at this scale: layers x width, tokens of this segment."""
    segment = records.segment(row.run or row.merge)
    if segment is None:
        return NO_COUNTERPART
    return (
        f"{segment.model.layers} × {segment.model.width}, {'merge' if row.merge else _count(segment.tokens)}"
    )


def _rate_text(rate: float) -> str:
    return re.sub(r"\.?0*e([+-])0?", r"e\1", f"{rate:.6e}")


def _rate(row: Row, records: Records) -> str:
    segment = records.segment(row.run)
    if segment is None:
        return NO_COUNTERPART
    return _rate_text(getattr(segment.schedule, "eta_max", None) or segment.schedule.eta_const)


def _texts(column: Column, rows: tuple[Row, ...], records: Records) -> Texts | None:
    paper, scale = records.plan.papers[records.paper], records.scale.name
    at = f"({scale} scale)" if scale != "paper" else ""
    match column.show:
        case "name":
            names = records.declared.names
            return Texts(column.heading, [row.name or names.get(row.run, row.run) for row in rows])
        case "size":
            models = [paper.runs[row.run or paper.merges[row.merge].base].model for row in rows]
            return Texts(column.heading, [records.declared.sizes[model] for model in models])
        case "text":
            return Texts(column.heading, [row.cells.get(column.key, "") for row in rows])
        case "here":
            head = f"{column.heading}: layers × width, tokens {at}".strip()
            return Texts(head, [_here(row, records) for row in rows], False)
        case "rate":
            return Texts(f"{column.heading} {at}".strip(), [_rate(row, records) for row in rows], False)
    return None


def _values(exhibit: Rows, column: Column, records: Records) -> list[Values]:
    """The columns that a declaration of losses or scores stands for, not yet compared."""
    scale, rows, keys = records.scale, exhibit.rows, [_key(row, records) for row in exhibit.rows]
    misprints, heads = (
        counterparts(records.paper).misprints,
        [h for c in exhibit.columns for h in c.published],
    )
    digits = max((_digits(_said(exhibit, records, head, len(rows))) for head in heads), default=0)

    def made(heading: str, published: str | None, find: Any, said: str = "", here: str = "") -> Values:
        values = _said(exhibit, records, published, len(rows))
        wrong = [(_name(exhibit, records), n, published) in misprints for n in range(len(rows))]
        cells = []
        for row, (name, *_), value in zip(rows, keys, values, strict=True):
            found, state = (find(row), records.why(name)) if find else (None, NO_COUNTERPART)
            if row.merge and column.show in ("loss", "average_loss"):
                state = "not measured"  # losses are taken in training, and a merge has none
            if found:
                planned = len(records.plan.ids(records.paper, name))
                of = f" of {planned}" * (found.seeds < planned)
                state = f"reproduced at scale {scale.name} with {found.seeds}{of} seed{'s' * (planned > 1)}"
            cells.append(_cell(value, found, state))
        for cell, misprint in zip(cells, wrong, strict=True):
            cell.misprint = misprint
        return Values(heading, said, here, scale.name, cells, digits)

    first = column.published[0] if column.published else None
    if column.show in ("loss", "average_loss"):
        corpora = {k: (k[1] if column.corpus == "new" else column.corpus,) for k in keys}
        if column.show == "average_loss":
            corpora = {k: ("pile", k[1]) for k in keys}
        told = list(dict.fromkeys(c[0] for c in corpora.values())) if column.show == "loss" else []
        stands_for = " / ".join(records.declared.corpora[c].stands_for for c in told)
        named = stands_for if scale.name == "paper" else " / ".join(scale.corpora.get(c, c) for c in told)
        find = lambda row: _loss(row, list(corpora[_key(row, records)]), records)  # noqa: E731
        return [made(column.heading, first, find, stands_for, named)]
    tasks = list(scale.suites[column.suite].tasks) if column.suite in scale.suites else []
    score = lambda task: lambda row: _score(row, column.suite, task, records)  # noqa: E731
    if column.show == "average":
        return [made(column.heading, first, score(None))]
    if column.show == "task":
        task = next((name for name in column.task if name in tasks), None)
        return [made(column.heading, first, score(task) if task else None, here=task or "")]
    # A task of this scale is the published one of the same letters and digits: arc_c is ARC-c.
    slug = lambda text: re.sub(r"[^a-z0-9]", "", text.lower())  # noqa: E731
    own = {slug(task): task for task in tasks}
    out = []
    for head in column.published:
        task = own.pop(slug(head), None)
        out.append(made(head, head, score(task) if task else None))
    return out + [made(task, None, score(task)) for task in own.values()]


def _compare(
    column: Values, keys: list[tuple[str, str, str]], anchors: tuple[Anchors, ...], losses: bool
) -> None:
    """Fills in ranks (1 is best; ties of printed digits share the better one), effects and differences.

    Only rows that have both values count, and a run that stands in two rows counts once.
    """
    groups: dict[tuple, dict[str, Cell]] = defaultdict(dict)
    for (name, *group), cell in zip(keys, column.cells, strict=True):
        if cell.comparable:
            groups[tuple(group)].setdefault(name, cell)
            if column.scale == "paper":
                cell.difference = cell.reproduced.value - cell.published.value
    for (name, *group), cell in zip(keys, column.cells, strict=True):
        found = groups[tuple(group)]
        if name not in found or not cell.comparable:
            continue
        sign = 1 if losses else -1
        sides = (
            {other: sign * c.published.value for other, c in found.items()},
            {other: sign * round(c.reproduced.value, c.reproduced.digits) for other, c in found.items()},
        )
        if len(found) > 1:
            cell.ranks = (*(1 + sum(v < side[name] for v in side.values()) for side in sides), len(found))
        anchor = next((a for a in anchors if [a.new, a.model] == group), None) if losses else None
        if anchor and {anchor.zero, anchor.one} <= set(found):
            zero, one = found[anchor.zero], found[anchor.one]
            span = one.published.value - zero.published.value
            known = round(span, column.digits) != 0
            here = one.reproduced.value - zero.reproduced.value
            sure = abs(here) > SURE * math.hypot(one.reproduced.error, zero.reproduced.error)
            cell.effects = (
                (cell.published.value - zero.published.value) / span if known else None,
                (cell.reproduced.value - zero.reproduced.value) / here if sure else None,
            )


def rows(exhibit: Rows, records: Records) -> Table:
    """A table with one run or merge a row."""
    keys = [_key(row, records) for row in exhibit.rows]
    columns: list[Texts | Values] = []
    for column in exhibit.columns:
        if texts := _texts(column, exhibit.rows, records):
            columns.append(texts)
            continue
        for values in _values(exhibit, column, records):
            _compare(values, keys, exhibit.anchors, losses=column.suite is None)
            columns.append(values)
    cells = [cell for column in columns if isinstance(column, Values) for cell in column.cells]
    notes = ["In square brackets: the number of seeds."] if any(cell.reproduced for cell in cells) else []
    if records.scale.name == "paper":
        notes.append("Difference: reproduced - published.")
    elif any(cell.ranks for cell in cells):
        notes.append("At this scale absolute values do not compare with the published ones.")
        notes.append("Rank: 1 is best, among rows with the same new data and model that have both values.")
        if any(cell.effects != (None, None) for cell in cells):
            says = " or ".join(dict.fromkeys(anchor.says for anchor in exhibit.anchors))
            notes.append(
                f"Effect: {says}; – where that gap is 0 in print or within {SURE} standard errors here."
            )
    return Table(columns, notes)


def pairs(exhibit: Exhibit, records: Records) -> list[tuple[str, float, float]]:
    """(group, published, reproduced) of every result in a table that has both; a run in two rows counts once.

    A group is a column, a new corpus and a model. Domains and settings are inputs, and left out.
    """
    if not isinstance(exhibit, Rows):
        return []
    out = {}
    for column in rows(exhibit, records).columns:
        for row, cell in zip(exhibit.rows, column.cells, strict=True):
            if isinstance(cell, Cell) and cell.comparable:
                name, new, model = _key(row, records)
                group = f"{column.heading}, {new}, {model}"
                out.setdefault((group, name), (group, float(cell.published.value), cell.reproduced.value))
    return list(out.values())


# -- corpora, generations, settings


def domains(exhibit: Domains, records: Records) -> Table:
    """Domains of the paper, then those of this scale alone; built ones from the fingerprint, else planned shares."""
    built, scale = records.fingerprint(exhibit.corpus), records.scale
    shares = built["shares"] if built else domain_shares(scale, exhibit.corpus)
    own = [name for name in sorted(shares, key=lambda n: (-(shares[n] or 0), n)) if name not in exhibit.order]
    heads = dict(zip(exhibit.columns, exhibit.published, strict=False))

    def found(kind: str, names: list[str]) -> tuple[Measured | None, str]:
        if not names:
            return None, NO_COUNTERPART
        if kind == "sampling":
            known = [shares[name] for name in names if shares[name] is not None]
            share = round(100 * math.fsum(known), 4)
            state = f"{'built' if built else 'planned'} at scale {scale.name}"
            return (Measured(share, f"{share:.2f}"), state) if known else (None, "not built")
        if not built:
            return None, "not built"
        total = sum(built["splits"][kind][name]["tokens"] for name in names)
        return Measured(total, _count(total)), f"built at scale {scale.name}"

    columns: list[Texts | Values] = []
    chosen = [[name] if name in shares else [] for name in (*exhibit.order, *own)] + [list(shares)]
    for kind in exhibit.columns:
        *said, total = _said(exhibit, records, heads.get(kind), len(exhibit.order) + 1)
        said = [*said, *([None] * len(own)), total]
        if kind == "domain":
            names = [*exhibit.order, *own, "Total"]
            columns.append(Texts("Domain", [v.value if v else n for v, n in zip(said, names, strict=True)]))
            continue
        letter = (re.findall(r"\(([BM])\)", heads.get(kind, "")) or [""])[0]
        unit, told = {"B": (1e9, "billions"), "M": (1e6, "millions")}.get(letter, (1, ""))
        cells = [_cell(v, *found(kind, names)) for v, names in zip(said, chosen, strict=True)]
        for cell in cells:
            if scale.name == "paper" and cell.published and cell.reproduced:
                cell.difference = cell.reproduced.value / unit - cell.published.value
        heading = {"sampling": "Sampling %", "train": "Train tokens", "validation": "Validation tokens"}[kind]
        here = "" if scale.name == "paper" else scale.corpora[exhibit.corpus]
        columns.append(Values(heading, told, here, scale.name, cells, _digits(said)))
    return Table(columns, [])


def generations(exhibit: Generations, records: Records) -> Table:
    """The prompts, or each model's continuation of each."""
    at = "" if records.scale.name == "paper" else f" ({records.scale.name} scale)"
    found = {row.run: records.evaluations(row.run)[:1] for row in exhibit.rows}
    asked = next((e.prompts for told in found.values() for e in told if e.prompts), [NOT_RUN] * 5)
    prompts = [f"P{k + 1}" for k in range(len(asked))]
    notes = ["The texts that the paper prints are not carried over."]
    if exhibit.layout == "prompts":
        return Table([Texts("Prompt", prompts), Texts(f"Text{at}", list(asked))], notes)
    out = []
    for k, prompt in enumerate(prompts):
        for row in exhibit.rows:
            told = [e.generations[k] for e in found[row.run] if k < len(e.generations)]
            name = row.name or records.declared.names.get(row.run, row.run)
            out.append((prompt, name, told[0] if told else records.why(row.run)))
    heads = ("Prompt", "Training tokens", f"Generation{at}")
    return Table(
        [Texts(head, list(cells)) for head, cells in zip(heads, zip(*out, strict=True), strict=True)], notes
    )


def _setting(field: str, run: str, records: Records) -> tuple[str | None, str]:
    """A setting as text, and its state."""
    segment, state = records.segment(run), f"used at scale {records.scale.name}"
    if segment is None:
        return None, NO_COUNTERPART
    if field in COUNTED:
        receipts = records.receipts(run)
        if not receipts:
            return None, records.why(run)
        embeddings = 2 * segment.vocabulary * segment.model.width if field == "non_embedding" else 0
        return f"{receipts[0].parameters - embeddings:,}", state
    if field == "schedule":
        return segment.schedule.kind.capitalize(), state
    for holder in (segment.model, segment.schedule, segment):
        value = getattr(holder, field, None)
        if value is not None:
            if field.startswith("eta_"):
                return _rate_text(value), state
            return (f"{100 * value:g}" if field.endswith("_frac") else f"{value:g}"), state
    return None, NO_COUNTERPART


def settings(exhibit: Settings, records: Records) -> Table:
    """Hyperparameters as published and as used."""
    scale = records.scale.name
    columns: list[Texts | Values] = [Texts("Description", [row.label for row in exhibit.rows])]
    if any(row.group for row in exhibit.rows):
        columns.insert(0, Texts("Group", [row.group for row in exhibit.rows]))
    for column in exhibit.columns:
        cells = []
        said = _said(exhibit, records, column.published, len(exhibit.rows))
        for row, value in zip(exhibit.rows, said, strict=True):
            everywhere = (row.everywhere, f"used at scale {scale}")
            text, state = _setting(row.field, row.run or column.run, records) if row.field else everywhere
            cell = _cell(value, Measured(text, text) if text else None, state)
            if scale == "paper" and value and text:
                cell.difference = (
                    "equal" if str(value.value).replace(",", "") == text.replace(",", "") else "differs"
                )
            cells.append(cell)
        columns.append(Values(column.label or column.published, "", "", scale, cells))
    return Table(columns, [])


def notes(table: Table, records: Records) -> list[str]:
    """Sentences for the caption: where published values are from, how they are marked, and what compares."""
    values = [column for column in table.columns if isinstance(column, Values)]
    marks = {cell.published.mark for column in values for cell in column.cells if cell.published}
    told = [f"Published values: {load_published(records.paper).source}."] if marks else []
    told += [f"{sign}: {mark}." for mark, sign in MARKS.items() if mark in marks]
    if any(cell.misprint for column in values for cell in column.cells):
        told.append(f"{MISPRINT}: a misprint, not compared.")
    return [*told, *table.notes]


BUILDERS = {"rows": rows, "domains": domains, "generations": generations, "settings": settings}
