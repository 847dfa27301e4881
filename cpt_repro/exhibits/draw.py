"""Draws one exhibit from records: the only entrance to figures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cpt_repro.declarations.strict import Strict
from cpt_repro.errors import plain
from cpt_repro.exhibits.agreement import Agreement, agreement
from cpt_repro.exhibits.base import FigureKind, View
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.typeset import PAGE, Part, write_csv, write_markdown, write_tex
from cpt_repro.files import digest, file_digest, write_json
from cpt_repro.records.lookup import Records

#: `<kind> <id>`; an id leads nowhere but down from its folder.
Record = Annotated[str, Field(pattern=r"^(receipt|losses|evaluation|corpus) [^/]+(/[^/]+)*$")]


class Drawn(Strict):
    """What an exhibit was drawn from, and what was made: the JSON beside its files."""

    #: such as: Figure 5
    number: str
    title: str
    #: what to see, in a sentence or a few
    caption: str
    #: what it is made of, how values are marked, what is missing
    notes: tuple[str, ...]
    paper: str
    scale: str
    #: run or merge -> how many seeds it has
    seeds: dict[str, int]
    runs: tuple[str, ...]
    evaluations: tuple[str, ...]
    #: record -> digest of its content
    sha256: dict[Record, str]
    #: run of whose plan something is shown -> identity of its training
    plans: dict[str, str]
    #: records that were wanted and are not there
    missing: tuple[Record, ...]
    #: run or merge -> why the scale has none
    no_counterpart: dict[str, str]
    #: ids of runs whose curves lack points that are wanted
    to_be_measured: tuple[str, ...]
    #: source of the published values
    published: str
    agreement: Agreement | None
    #: name -> SHA-256
    files: dict[str, str]
    tables: tuple[Part, ...] = ()


def notes(view: View) -> list[str]:
    """The scale, the seeds, what the kind says of its values; what is missing and why."""
    scale, exhibit, counts = view.scale, view.exhibit, view.seed_counts
    parts = []
    if scale.variants:
        parts.append(f"Variants of the papers' declarations: {', '.join(scale.variants)}.")
    if exhibit.scaled:
        span = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else ""
        seeds = f"; {span} seed{'s' * view.several_seeds} a run" if span else ""
        size = f"a billion of the paper's tokens is {scale.tokens_per_billion:,.0f} tokens"
        parts.append(f"Scale {scale.name}: {size}{seeds}.")
    parts += exhibit.notes(view)
    for why in sorted(set(view.without.values())):
        names = sorted(name for name, reason in view.without.items() if reason == why)
        parts.append(f"No counterpart at this scale ({why}): {', '.join(names)}.")
    if missing := sum(not name.startswith("corpus ") for name in view.missing):
        parts.append(f"Not run: {missing} of {missing + len(view.digests)} records.")
    if few := len(view.to_be_measured):
        runs = f"{few} run{'s' * (few > 1)}"
        parts.append(f"To be measured: wanted points of {runs}, which a new training would give.")
    return parts


def draw(catalogue: Catalogue, records: Records, paper: str, key: str, out: Path | None = None) -> list[Path]:
    """Writes `<out>/<scale>/<paper>/<key>.*` and returns the paths; what is missing is drawn as missing.

    A figure gives .png, .svg and .pdf, a table .csv, .md and .tex; both give .json (`Drawn`). `out` is the
    project's folder of figures where it is not given. An unknown paper or exhibit is a `UserError`.
    """
    view = View(catalogue, records, paper, key)
    exhibit, scale, (word, number) = view.exhibit, view.scale.name, key.split("_")
    for name in exhibit.runs:
        view.runs(name)
    for name in exhibit.evaluations:
        view.evaluations(name)
    heading = f"{word.capitalize()} {int(number)}"
    stem = Path(out or catalogue.plan.project.figures) / scale / paper / key
    parts: list[Part] = []
    if isinstance(exhibit, FigureKind):
        from cpt_repro.exhibits import style

        with style.drawing():
            title = plain(f"{paper}, {heading}: {exhibit.title} ({scale} scale)")
            paths = style.save(exhibit.draw(view), stem, title, digest(view.digests))
        below = notes(view)
    else:
        table = exhibit.table(view)
        parts = table.parts(scale)
        below = [*notes(view), *table.all_notes(view.study.published.source)]
        about = exhibit.see, " ".join(below)
        paths = [stem.with_suffix(suffix) for suffix in (".csv", ".md", ".tex")]
        write_csv(table, paths[0])
        write_markdown(parts, paths[1], f"{heading}: {exhibit.title}", *about)
        write_tex(table.parts(scale, PAGE), paths[2], exhibit.title, *about, f"tab:{paper}-{number}")
    drawn = Drawn(
        number=heading,
        title=exhibit.title,
        caption=exhibit.see,
        notes=tuple(below),
        paper=paper,
        scale=scale,
        seeds={n: len(view.plan.ids(paper, n)) for n in {*exhibit.runs, *exhibit.evaluations}},
        runs=tuple(exhibit.runs),
        evaluations=tuple(exhibit.evaluations),
        sha256=view.digests,
        plans=dict(sorted(view.plans.items())),
        missing=tuple(sorted(view.missing)),
        no_counterpart=view.without,
        to_be_measured=tuple(sorted(view.to_be_measured)),
        published=view.study.published.source,
        agreement=agreement(exhibit.pairs(view)),
        files={path.name: file_digest(path) for path in paths},
        tables=tuple(parts),
    )
    sidecar = stem.with_suffix(".json")
    write_json(sidecar, drawn.model_dump(mode="json"))
    return [*paths, sidecar]
