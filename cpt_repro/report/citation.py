"""How to cite an exhibit, or all of them: version, commit, digest of the records, the papers replicated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from cpt_repro.declarations.strict import Strict, load, parse
from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.draw import Drawn
from cpt_repro.exhibits.typeset import escape_tex
from cpt_repro.files import digest, read_json

Key = tuple[str, str]
REDRAW = "Draw it again: `cpt-repro draw`."


class Citation(Strict):
    """What to cite."""

    scale: str
    #: `<paper>/<exhibit>`; None of a whole scale
    exhibit: str | None
    version: str
    commit: str | None
    seeds: tuple[int, ...]
    #: the digest that the images carry; of a whole scale that of the digests of its exhibits
    receipts: str
    text: str
    bibtex: str


class _Author(BaseModel):
    name: str = ""
    family: str = Field("", alias="family-names")
    given: str = Field("", alias="given-names")


class _Cited(BaseModel):
    authors: tuple[_Author, ...]
    title: str
    year: int | None = None
    url: str = ""


class _Cff(_Cited):
    """What is read of CITATION.cff."""

    version: str = Field(coerce_numbers_to_str=True)
    references: tuple[_Cited, ...] = ()


def read_drawn(path: Path) -> Drawn | None:
    """What lies beside an exhibit's files; None where it is not drawn, a `UserError` where it is broken."""
    try:
        return parse(Drawn, read_json(path), str(path)) if path.exists() else None
    except UserError as error:
        raise UserError(error.what, where=str(path), do=REDRAW) from None


def _bibtex(kind: str, key: str, whole: tuple[str, ...] = (), **fields: Any) -> str:
    """An entry; of the fields in `whole` BibTeX leaves capitals and names as they are."""
    # It counts braces that LaTeX does not.
    braces = {r"\{": r"\textbraceleft{}", r"\}": r"\textbraceright{}"}
    lines: list[str] = []
    for name, value in fields.items():
        text = re.sub(r"\\[{}]", lambda match: braces[match[0]], escape_tex(str(value or "")))
        if text:
            lines.append(f"  {name} = {{{{{text}}}}}" if name in whole else f"  {name} = {{{text}}}")
    return ",\n".join([f"@{kind}{{{key}", *lines]) + "\n}"


def _paper(paper: str, reference: str, entries: tuple[_Cited, ...]) -> str:
    """BibTeX of a replicated paper, its entry in CITATION.cff found by the arXiv number."""
    arxiv = (re.search(r"arXiv[: ](\d{4}\.\d{4,5})", reference) or [None, None])[1]
    entry = next((one for one in entries if arxiv and arxiv in one.url), None)
    if entry is None:
        return _bibtex("misc", paper, note=reference)
    authors = " and ".join(f"{one.family}, {one.given}" for one in entry.authors)
    about = {"year": entry.year, "eprint": arxiv, "archiveprefix": "arXiv", "url": entry.url}
    return _bibtex("article", paper, ("title",), author=authors, title=entry.title, **about)


def citation(
    catalogue: Catalogue, exhibit: str | None = None, commit: str | None = None, figures: Path | None = None
) -> Citation:
    """What to cite for one exhibit (`<paper>/figure_05`), or all; one unknown or not drawn: `UserError`."""
    plan = catalogue.plan
    scale, folder = plan.scale.name, Path(figures or plan.project.figures) / plan.scale.name
    keys: list[Key] = list(catalogue.exhibits)
    if exhibit:
        paper, _, key = exhibit.partition("/")
        catalogue.find(paper, key)
        keys = [(paper, key)]
    paths = {key: folder / key[0] / f"{key[1]}.json" for key in keys}
    drawn = {key: one for key, path in paths.items() if (one := read_drawn(path))}
    if not drawn:
        name, where = (exhibit, paths[keys[0]]) if exhibit else ("all", folder)
        what = f"{name if exhibit else 'the replication'} is not drawn at the scale {scale} yet."
        raise UserError(what, where=str(where), do=f"Draw it: cpt-repro draw {name} --scale {scale}.")
    papers = {paper: plan.studies[paper].paper.reference for paper in plan.papers}
    records = {name for one in drawn.values() for name in one.sha256}
    if exhibit:
        (one,) = drawn.values()
        papers = {paper: plan.studies[paper].paper.reference}
        receipts, label = digest(one.sha256), f"_{paper}_{key}"
        what = f"{one.number} ({one.title}) of {papers[paper].split(',')[0]}"
    else:
        receipts, label = digest({"/".join(key): digest(one.sha256) for key, one in drawn.items()}), ""
        what = f"{'all' if len(drawn) == len(keys) else f'{len(drawn)} of'} {len(keys)} exhibits"
    seeds = sorted({int(match[1]) for name in records if (match := re.search(r"/seed-(\d+)$", name))})
    details = [f"scale {scale}"]
    details += [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"] if seeds else []
    details += [f"{len(records)} records, SHA-256 {receipts}"] if records else ["no records behind it"]
    details += [f"commit {commit}"] if commit else []
    own = load(_Cff, plan.project.citation)
    authors = ", ".join(one.name or f"{one.given} {one.family}" for one in own.authors)
    title = f"{own.title}: {what}, replicated at scale {scale}"
    about = {"version": own.version, "howpublished": "Software", "note": "; ".join(details)}
    whole = ("author", "title")
    entries = [_bibtex("misc", f"cpt_repro_{scale}{label}", whole, author=authors, title=title, **about)]
    entries += [_paper(name, reference, own.references) for name, reference in papers.items()]
    lines = [f"{authors}: {own.title} {own.version}, {what}, replicated ({'; '.join(details)})."]
    return Citation(
        scale=scale,
        exhibit=exhibit,
        version=own.version,
        commit=commit,
        seeds=tuple(seeds),
        receipts=receipts,
        text="\n".join(lines + [f"It replicates {reference}." for reference in papers.values()]),
        bibtex="\n\n".join(entries),
    )
