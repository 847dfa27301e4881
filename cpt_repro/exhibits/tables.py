"""Tables as CSV, Markdown and LaTeX, from declarations and receipts. Imports pandas when writing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from cpt_repro.exhibits.declarations import Column, Domains, Generations, Row, Rows, Settings
from cpt_repro.exhibits.records import NO_COUNTERPART, NOT_RUN, Records
from cpt_repro.files import whole_file, write_text
from cpt_repro.plan import domain_shares

ERROR = "standard error"


class Cell(NamedTuple):
    """What stands in print, and the columns of the CSV: suffix of the heading -> value."""

    text: str
    values: dict[str, Any]


def _text(text: Any) -> Cell:
    return Cell(str(text), {"": text})


class Table(NamedTuple):
    """Headings and rows of cells."""

    headings: list[str]
    rows: list[list[Cell]]


def _count(tokens: float) -> str:
    """1.5k, 8.0M, 299.3B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= unit:
            return f"{tokens / unit:.1f}{letter}"
    return f"{tokens:.0f}"


def _mean(values: list[float], errors: list[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error: over seeds, or that of the only one."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, errors[0]
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


# -- one run or merge a row


def _new_corpus(row: Row, records: Records) -> str:
    return row.new or records.plan.papers[records.paper].runs[row.run].validate_on[1]


def _loss(row: Row, corpora: list[str], records: Records) -> Cell:
    """The final loss on a corpus, or the plain mean over two; merges have none."""
    if row.run is None:
        return Cell("–", {"": None, ERROR: None, "noise of the validation set": None, "seeds": 0})
    finals = [[r.final[c] for c in corpora] for r in records.receipts(row.run) if set(corpora) <= set(r.final)]
    if not finals:
        word = records.why(row.run)
        return Cell(word, {"": word, ERROR: None, "noise of the validation set": None, "seeds": 0})
    n = len(corpora)
    mean, error = _mean(
        [sum(final.loss for final in both) / n for both in finals],
        [math.hypot(*(final.stderr for final in both)) / n for both in finals],
    )
    noise = sum(math.hypot(*(final.noise for final in both)) / n for both in finals) / len(finals)
    values = {"": mean, ERROR: error, "noise of the validation set": noise, "seeds": len(finals)}
    return Cell(f"{mean:.3f} ± {error:.3f}", values)


def _score(row: Row, suite: str, task: str | None, records: Records, brief: bool = False) -> Cell:
    """A task's value or the suite's average, in percent."""
    name = row.run or row.merge
    suites = [e.suites[suite] for e in records.evaluations(name) if suite in e.suites]
    if task:
        found = [(s["tasks"][task]["value"], s["tasks"][task]["stderr"]) for s in suites if task in s["tasks"]]
    else:
        found = [(s["average"], s["stderr"]) for s in suites]
    if not found:
        return Cell(records.why(name), {"": records.why(name), ERROR: None, "seeds": 0})
    mean, error = _mean([100 * value for value, _ in found], [100 * (error or 0) for _, error in found])
    text = f"{mean:.2f}" if brief else f"{mean:.2f} ± {error:.2f}"
    return Cell(text, {"": mean, ERROR: error, "seeds": len(found)})


def _here(row: Row, records: Records) -> Cell:
    """What was trained at this scale: layers x width, tokens of this segment."""
    segment = records.segment(row.run or row.merge)
    if segment is None:
        return _text(NO_COUNTERPART)
    size = f"{segment.model.layers} × {segment.model.width}"
    return _text(f"{size}, merge" if row.merge else f"{size}, {_count(segment.tokens)}")


def _rate_text(rate: float) -> str:
    return re.sub(r"\.?0*e([+-])0?", r"e\1", f"{rate:.6e}")


def _rate(row: Row, records: Records) -> Cell:
    segment = records.segment(row.run)
    if segment is None:
        return _text(NO_COUNTERPART)
    schedule = segment.schedule
    return _text(_rate_text(getattr(schedule, "eta_max", None) or schedule.eta_const))


def _columns(column: Column, records: Records, rows: tuple[Row, ...]) -> list[tuple[str, Any]]:
    """(heading, function of a row) of each column that a declaration stands for."""
    paper, scale = records.plan.papers[records.paper], records.scale
    suffix = "" if scale.name == "paper" else f"{scale.name} scale"

    def heading(text: str, detail: str = "") -> str:
        inside = ", ".join(part for part in (detail, suffix) if part)
        return f"{text} ({inside})" if inside else text

    match column.show:
        case "name":
            return [(column.heading, lambda row: _text(row.name or records.declared.names.get(row.run, row.run)))]
        case "size":
            model = lambda row: paper.runs[row.run or paper.merges[row.merge].base].model  # noqa: E731
            return [(column.heading, lambda row: _text(records.declared.sizes[model(row)]))]
        case "text":
            return [(column.heading, lambda row: _text(row.cells.get(column.key, "")))]
        case "here":
            return [(heading(column.heading, "layers × width, tokens"), lambda row: _here(row, records))]
        case "rate":
            return [(heading(column.heading), lambda row: _rate(row, records))]
        case "loss":
            new = column.corpus == "new"
            used = list(dict.fromkeys(_new_corpus(row, records) for row in rows)) if new else [column.corpus]
            told = [records.declared.corpora[corpus].stands_for for corpus in used]
            names = told if not suffix else [scale.corpora.get(corpus, corpus) for corpus in used]
            chosen = lambda row: [_new_corpus(row, records) if new else column.corpus]  # noqa: E731
            return [(heading(column.heading, " / ".join(names)), lambda row: _loss(row, chosen(row), records))]
        case "average_loss":
            both = lambda row: ["pile", _new_corpus(row, records)]  # noqa: E731
            return [(heading(column.heading), lambda row: _loss(row, both(row), records))]
    suite = scale.suites.get(column.suite)
    tasks = list(suite.tasks) if suite else []
    if column.show == "average":
        return [(heading(column.heading), lambda row: _score(row, column.suite, None, records))]
    if column.show == "tasks":
        return [
            (heading(task), lambda row, task=task: _score(row, column.suite, task, records, brief=len(tasks) > 6))
            for task in tasks
        ]
    task = next((name for name in column.task if name in tasks), None)
    if task is None:
        return [(column.heading, lambda row: _text(NO_COUNTERPART))]
    name = heading(task if task == column.task[0] else f"{task} for {column.heading}")
    return [(name, lambda row: _score(row, column.suite, task, records))]


def rows(exhibit: Rows, records: Records) -> Table:
    """A table with one run or merge a row."""
    columns = [pair for column in exhibit.columns for pair in _columns(column, records, exhibit.rows)]
    return Table([head for head, _ in columns], [[cell(row) for _, cell in columns] for row in exhibit.rows])


# -- corpora, generations, settings


def domains(exhibit: Domains, records: Records) -> Table:
    """Domains with their shares and tokens: built ones from the fingerprint, else shares of the manifest alone."""
    built, scale = records.fingerprint(exhibit.corpus), records.scale
    shares = built["shares"] if built else domain_shares(scale, exhibit.corpus)
    ranked = sorted(shares, key=lambda name: (-(shares[name] or 0), name))
    names = [name for name in exhibit.order if name in shares] + [name for name in ranked if name not in exhibit.order]
    at = "" if scale.name == "paper" else f" ({scale.name} scale)"
    headings = {
        "domain": f"Domain of {records.corpus(exhibit.corpus)}",
        "sampling": f"Sampling %{at}",
        "train": f"Train tokens{at}",
        "validation": f"Validation tokens{at}",
    }

    def tokens(names: list[str], split: str) -> Cell:
        if not built:
            return _text("not built")
        total = sum(built["splits"][split][name]["tokens"] for name in names)
        return Cell(_count(total), {"": total})

    def cells(label: str, names: list[str]) -> list[Cell]:
        known = [shares[name] for name in names if shares[name] is not None]
        share = 100 * sum(known)
        sampled = Cell(f"{share:.2f}", {"": round(share, 4)}) if known else _text("not built")
        every = {"domain": _text(label), "sampling": sampled}
        every |= {split: tokens(names, split) for split in ("train", "validation")}
        return [every[column] for column in exhibit.columns]

    body = [cells(name, [name]) for name in names]
    return Table([headings[column] for column in exhibit.columns], [*body, cells("Total", names)])


def generations(exhibit: Generations, records: Records) -> Table:
    """The prompts, or each model's continuation of each."""
    at = "" if records.scale.name == "paper" else f" ({records.scale.name} scale)"
    found = {row.run: records.evaluations(row.run)[:1] for row in exhibit.rows}
    asked = next((e.prompts for told in found.values() for e in told if e.prompts), [NOT_RUN] * 5)
    prompts = [f"P{k + 1}" for k in range(len(asked))]
    if exhibit.layout == "prompts":
        return Table(["Prompt", f"Text{at}"], [[_text(p), _text(text)] for p, text in zip(prompts, asked, strict=True)])
    out = []
    for k, prompt in enumerate(prompts):
        for row in exhibit.rows:
            told = [e.generations[k] for e in found[row.run] if k < len(e.generations)]
            name = row.name or records.declared.names.get(row.run, row.run)
            out.append([_text(prompt), _text(name), _text(told[0] if told else records.why(row.run))])
    return Table(["Prompt", "Training tokens", f"Generation{at}"], out)


def _setting(field: str, run: str, records: Records) -> str:
    segment = records.segment(run)
    if segment is None:
        return NO_COUNTERPART
    if field in ("parameters", "non_embedding"):
        receipts = records.receipts(run)
        if not receipts:
            return records.why(run)
        embeddings = 2 * segment.vocabulary * segment.model.width if field == "non_embedding" else 0
        return f"{receipts[0].parameters - embeddings:,}"
    if field == "schedule":
        return segment.schedule.kind.capitalize()
    for holder in (segment.model, segment.schedule, segment):
        value = getattr(holder, field, None)
        if value is not None:
            if field.startswith("eta_"):
                return _rate_text(value)
            return f"{100 * value:g}" if field.endswith("_frac") else f"{value:g}"
    return "–"


def settings(exhibit: Settings, records: Records) -> Table:
    """Hyperparameters as printed and as used."""
    at = "" if records.scale.name == "paper" else f", {records.scale.name} scale"
    grouped = any(row.group for row in exhibit.rows)
    labels = [column.label for column in exhibit.columns]
    headings = ["Group"] * grouped + ["Description"] + [f"{label} (the paper)".strip() for label in labels]
    headings += [f"{label} (here{at})".strip() for label in labels]
    out = []
    for row in exhibit.rows:
        here = [
            row.everywhere if row.field is None else _setting(row.field, row.run or column.run, records)
            for column in exhibit.columns
        ]
        out.append([_text(text) for text in [row.group] * grouped + [row.label, *row.paper, *here]])
    return Table(headings, out)


# -- writing

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "∪": r"$\cup$", "→": r"$\rightarrow$", "±": r"$\pm$", "×": r"$\times$", "–": "--", "—": "---", "²": r"$^2$",
    "η": r"$\eta$", "α": r"$\alpha$", "β": r"$\beta$", "„": ",,", "“": "``", "”": "''", "‚": ",", "‘": "`", "’": "'",
    "…": r"\dots{}", "«": "``", "»": "''", "\u00a0": "~", "€": "EUR", "°": r"$^\circ$", "§": r"\S{}",
}  # fmt: skip


def escape_tex(text: str) -> str:
    """Text for LaTeX; a character that a Latin font lacks becomes a question mark."""
    plain = (" " if c.isspace() and c != "\u00a0" else c for c in text)
    known = (TEX.get(c) or (c if " " <= c <= "~" or "\u00c0" <= c <= "\u017f" else "?") for c in plain)
    return "".join(known)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(str(text).split()))


def write_csv(table: Table, path: Path) -> None:
    """All values at full precision, with their errors in columns of their own."""
    import pandas as pd

    names = [
        list(dict.fromkeys(key for row in table.rows for key in row[k].values)) for k in range(len(table.headings))
    ]
    data = [[row[k].values.get(name) for k, wanted in enumerate(names) for name in wanted] for row in table.rows]
    heads = [", ".join(p for p in (table.headings[k], name) if p) for k, wanted in enumerate(names) for name in wanted]
    frame = pd.DataFrame(data, columns=heads, dtype=object)
    frame = frame.map(lambda value: f"{value:.6g}" if isinstance(value, float) else value)
    with whole_file(path) as aside:
        frame.to_csv(aside, index=False, lineterminator="\n", encoding="utf-8")


def write_markdown(table: Table, path: Path, title: str, caption: str) -> None:
    """A pipe table under its caption."""
    lines = [f"**{_escape_markdown(title)}.** {_escape_markdown(caption)}", ""]
    lines.append("| " + " | ".join(_escape_markdown(head) or " " for head in table.headings) + " |")
    lines.append("|" + " --- |" * len(table.headings))
    lines += ["| " + " | ".join(_escape_markdown(cell.text) for cell in row) + " |" for row in table.rows]
    write_text(path, "\n".join(lines) + "\n")


def write_tex(table: Table, path: Path, title: str, caption: str, label: str) -> None:
    """A booktabs table; headings and long texts are set in columns of a width that fits the page."""
    import pandas as pd

    longest = [
        max([len(cell.text) for cell in column] + [max(map(len, head.split() or [""]))])
        for head, column in zip(table.headings, zip(*table.rows, strict=True), strict=True)
    ]
    # Every column breaks its lines, at a share of the text width that grows with its longest entry.
    weights = [min(max(length, 4), 45) ** 0.7 for length in longest]
    columns = "".join(
        rf">{{\raggedright\arraybackslash}}p{{{weight / sum(weights) * (1 - 0.014 * len(weights)):.3f}\linewidth}}"
        for weight in weights
    )
    heads = [escape_tex(head) for head in table.headings]
    frame = pd.DataFrame([[escape_tex(cell.text) for cell in row] for row in table.rows], columns=heads)
    body = frame.style.hide(axis="index").to_latex(hrules=True, column_format=columns)
    size = r"\scriptsize" if len(table.headings) > 5 else r"\footnotesize"
    write_text(
        path,
        "% needs \\usepackage{booktabs,array} and, before it, \\usepackage[T1]{fontenc}\n"
        "\\begin{table*}[t]\n\\centering\n" + size + "\n\\setlength{\\tabcolsep}{3pt}\n"
        f"\\caption{{\\textbf{{{escape_tex(title)}.}} {escape_tex(caption)}}}\n\\label{{{label}}}\n"
        + body
        + "\\end{table*}\n",
    )


BUILDERS = {"rows": rows, "domains": domains, "generations": generations, "settings": settings}
