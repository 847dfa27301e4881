"""Draws one exhibit from receipts: the only entrance to figures and tables."""

from __future__ import annotations

from pathlib import Path

from cpt_repro.exhibits.declarations import Exhibit, find_exhibit
from cpt_repro.exhibits.records import Records
from cpt_repro.files import digest, write_json
from cpt_repro.plan import Plan


def caption(exhibit: Exhibit, records: Records) -> str:
    """What to see, then the scale, the seeds, and what is missing and why."""
    scale = records.scale
    parts = [exhibit.see]
    counts = sorted({len(records.plan.ids(records.paper, n)) for n in [*exhibit.runs, *exhibit.evaluations]} - {0})
    several = bool(counts) and counts[-1] > 1
    if exhibit.kind != "schedule":
        size = f"a billion of the paper's tokens is {scale.tokens_per_billion:,.0f} tokens"
        span = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else ""
        seeds = f"; {span} seed{'s' if several else ''} a run" if span else ""
        parts.append(f"Scale {scale.name}: {size}{seeds}.")
        if several and exhibit.kind == "curves":
            parts.append("Lines are means over seeds, bands reach from the lowest to the highest seed.")
    if exhibit.kind == "rows":
        if any(column.show in ("loss", "average_loss") for column in exhibit.columns):
            over = (
                "seeds where there are several, else over the closing evaluations"
                if several
                else "the closing evaluations"
            )
            parts.append(f"Losses in nats per token ± standard error over {over}; AVG is the mean of D0 and D1.")
        if any(column.suite for column in exhibit.columns):
            over = "seeds where there are several, else over documents" if several else "documents"
            parts.append(f"Scores in percent ± standard error over {over}.")
    for why in sorted(set(records.without.values())):
        names = [name for name, reason in records.without.items() if reason == why]
        parts.append(f"No counterpart at this scale ({why}): {', '.join(sorted(names))}.")
    missing = sorted(name for name in records.missing if not name.startswith("corpus "))
    if missing:
        parts.append(f"Not run: {len(missing)} of {len(missing) + len(records.digests)} records.")
    if records.stale:
        parts.append(f"{len(records.stale)} receipts are of an earlier state of the declarations.")
    return " ".join(parts)


def draw(plan: Plan, paper: str, key: str, results: Path, out: Path) -> list[Path]:
    """Writes `out/<scale>/<paper>/<key>.*` and returns the paths; what is missing is drawn as missing.

    A figure gives .png and .svg, a table .csv, .md and .tex; both give .json, which says what they were drawn from.
    An unknown paper or exhibit is a `UserError`.
    """
    exhibit = find_exhibit(paper, key)
    records = Records(plan, paper, results)
    for name in exhibit.runs:
        records.receipts(name)
    for name in exhibit.evaluations:
        records.evaluations(name)
    word, number = key.split("_")
    heading = f"{word.capitalize()} {int(number)}: {exhibit.title}"
    stem = Path(out) / plan.scale.name / paper / key
    if key.startswith("figure"):
        from cpt_repro.exhibits import figures, style

        with style.drawing():
            figure = figures.DRAWERS[exhibit.kind](exhibit, records)
            paths = style.save(figure, stem, f"{paper}, {heading} ({plan.scale.name} scale)", digest(records.digests))
    else:
        from cpt_repro.exhibits import tables

        table = tables.BUILDERS[exhibit.kind](exhibit, records)
        paths = [stem.with_suffix(suffix) for suffix in (".csv", ".md", ".tex")]
        text = caption(exhibit, records)
        tables.write_csv(table, paths[0])
        tables.write_markdown(table, paths[1], heading, text)
        tables.write_tex(table, paths[2], exhibit.title, text, f"tab:{paper}-{number}")
    about = {
        "number": f"{word.capitalize()} {int(number)}",
        "title": exhibit.title,
        "caption": caption(exhibit, records),
        "paper": paper,
        "scale": plan.scale.name,
        "seeds": {name: len(plan.ids(paper, name)) for name in sorted({*exhibit.runs, *exhibit.evaluations})},
        "runs": exhibit.runs,
        "evaluations": exhibit.evaluations,
        "sha256": dict(sorted(records.digests.items())),
        "missing": sorted(records.missing),
        "no_counterpart": dict(sorted(records.without.items())),
        "stale": sorted(records.stale),
    }
    write_json(stem.with_suffix(".json"), about)
    return [*paths, stem.with_suffix(".json")]
