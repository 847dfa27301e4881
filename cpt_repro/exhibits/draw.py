"""Draws one exhibit from receipts: the only entrance to figures and tables."""

from __future__ import annotations

from pathlib import Path

from cpt_repro.declarations.exhibits import Exhibit, find_exhibit
from cpt_repro.declarations.published import load_digitised, load_published
from cpt_repro.exhibits.agreement import agreement
from cpt_repro.files import digest, file_digest, write_json
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Records


def caption(exhibit: Exhibit, records: Records) -> str:
    """What to see, then the scale, the seeds, and what is missing and why."""
    scale = records.scale
    parts = [exhibit.see]
    if scale.variants:
        parts.append(f"Variants of the papers' declarations: {', '.join(scale.variants)}.")
    counts = sorted(
        {len(records.plan.ids(records.paper, n)) for n in [*exhibit.runs, *exhibit.evaluations]} - {0}
    )
    several = bool(counts) and counts[-1] > 1
    if exhibit.kind != "schedule":
        size = f"a billion of the paper's tokens is {scale.tokens_per_billion:,.0f} tokens"
        span = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else ""
        seeds = f"; {span} seed{'s' if several else ''} a run" if span else ""
        parts.append(f"Scale {scale.name}: {size}{seeds}.")
        of = "the seeds that all runs of a panel have" if span and counts[0] != counts[-1] else "seeds"
        if several and exhibit.kind == "curves":
            parts.append(f"Lines are means over {of}, bands reach from a run's lowest to its highest seed.")
        if several and exhibit.kind == "plane":
            parts.append(f"Paths are those of the mean losses over {of}.")
    if exhibit.kind in ("curves", "plane", "bars"):
        parts += _of_the_published(exhibit, records, several)
    if exhibit.kind == "rows":
        if any(column.show in ("loss", "average_loss") for column in exhibit.columns):
            over = (
                "seeds where there are several, else over the closing evaluations"
                if several
                else "the closing evaluations"
            )
            parts.append(
                f"Losses in nats per token ± standard error over {over}; AVG is the mean of D0 and D1."
            )
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


def _of_the_published(exhibit: Exhibit, records: Records, several: bool) -> list[str]:
    """What the published curves or bars of a figure are, and how they are drawn."""
    from cpt_repro.exhibits.figures import has_published

    told = []
    if exhibit.kind == "bars":
        over = "seeds where there are several, else over " if several else ""
        told.append(f"Error bars: standard error over {over}closing evaluations (loss) or documents (suite).")
    if not has_published(exhibit):
        return [*told, "The paper's curves could not be digitised; no published values are drawn."]
    together = records.scale.name == "paper"
    if exhibit.kind == "bars":
        return [
            *told,
            f"Published: {'the diamonds' if together else 'the outlined bars below'}, as printed or digitised.",
        ]
    where = (
        "thin lines"
        if together
        else "right, tinted, on the y-axis of the paper, as losses do not compare across scales"
    )
    tolerance = load_digitised(records.paper).tolerance
    return [
        *told,
        f"Published curves ({where}): digitised from the paper's plots, losses to about {tolerance:g}.",
    ]


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
            paths = style.save(
                figure, stem, f"{paper}, {heading} ({plan.scale.name} scale)", digest(records.digests)
            )
        text, pairs = caption(exhibit, records), figures.pairs(exhibit, records)
    else:
        from cpt_repro.exhibits import tables, typeset

        table = tables.BUILDERS[exhibit.kind](exhibit, records)
        paths = [stem.with_suffix(suffix) for suffix in (".csv", ".md", ".tex")]
        text = " ".join([caption(exhibit, records), *tables.notes(table, records)])
        typeset.write_csv(table, paths[0])
        typeset.write_markdown(table, paths[1], heading, text, plan.scale.name)
        typeset.write_tex(table, paths[2], exhibit.title, text, f"tab:{paper}-{number}", plan.scale.name)
        pairs = tables.pairs(exhibit, records)
    about = {
        "number": f"{word.capitalize()} {int(number)}",
        "title": exhibit.title,
        "caption": text,
        "paper": paper,
        "scale": plan.scale.name,
        "seeds": {name: len(plan.ids(paper, name)) for name in sorted({*exhibit.runs, *exhibit.evaluations})},
        "runs": exhibit.runs,
        "evaluations": exhibit.evaluations,
        "sha256": dict(sorted(records.digests.items())),
        "missing": sorted(records.missing),
        "no_counterpart": dict(sorted(records.without.items())),
        "stale": sorted(records.stale),
        "published": load_published(paper).source,
        "agreement": agreement(pairs),
        "files": {path.name: file_digest(path) for path in paths},
    }
    write_json(stem.with_suffix(".json"), about)
    return [*paths, stem.with_suffix(".json")]
