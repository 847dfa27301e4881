"""How to cite an exhibit, or all of them: version, commit, digest of the receipts, and the paper replicated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cpt_repro.declarations.exhibits import load_exhibits
from cpt_repro.declarations.strict import read_yaml
from cpt_repro.errors import UserError
from cpt_repro.files import digest, read_json
from cpt_repro.planning.plan import Plan
from cpt_repro.project import ROOT

Key = tuple[str, str]


def exhibit_keys(plan: Plan) -> list[Key]:
    """(paper, exhibit) of every declared exhibit."""
    return [(paper, key) for paper in plan.papers for key in load_exhibits(paper)]


def _find(plan: Plan, exhibit: str) -> Key:
    """The exhibit that a user names, with its paper or without where that is plain."""
    keys = exhibit_keys(plan)
    paper, _, key = exhibit.rpartition("/")
    found = [k for k in keys if k[1] == key and paper in ("", k[0])]
    if len(found) == 1:
        return found[0]
    if found:
        both = " or ".join("/".join(k) for k in found)
        raise UserError(f"several papers have the exhibit '{exhibit}'.", do=f"Say {both}.")
    import difflib

    names = ["/".join(k) for k in keys]
    near = difflib.get_close_matches(exhibit, [*names, *dict.fromkeys(k for _, k in keys)], n=1)
    do = f"Did you mean '{near[0]}'?" if near else f"Write it like {names[0]}."
    raise UserError(f"the exhibit '{exhibit}' is unknown.", do=do)


def _bibtex(kind: str, key: str, fields: dict[str, Any]) -> str:
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return f"@{kind}{{{key},\n{body}\n}}"


def _paper(plan: Plan, paper: str, references: list[dict[str, Any]]) -> dict[str, str]:
    """A replicated paper as text and BibTeX, its entry in CITATION.cff found by the arXiv number."""
    from cpt_repro.exhibits.typeset import escape_tex

    reference = plan.papers[paper].reference
    arxiv = (re.search(r"arXiv[: ](\d{4}\.\d{4,5})", reference) or [None, None])[1]
    entry = next((r for r in references if arxiv and arxiv in str(r.get("url"))), None)
    if entry is None:
        return {"text": reference, "bibtex": _bibtex("misc", paper, {"note": escape_tex(reference)})}
    authors = [f"{a['family-names']}, {a['given-names']}" for a in entry["authors"]]
    fields = {
        "author": " and ".join(map(escape_tex, authors)),
        "title": f"{{{escape_tex(entry['title'])}}}",
        "year": entry["year"],
        "eprint": arxiv,
        "archiveprefix": "arXiv",
        "url": entry["url"],
    }
    return {"text": reference, "bibtex": _bibtex("article", paper, fields)}


def citation(plan: Plan, figures: Path, exhibit: str | None, commit: str | None) -> dict[str, Any]:
    """What to cite for one exhibit (`ibrahim2024/figure_05`, or `figure_05` where one paper has it), or for a scale.

    Keys: scale, exhibit, version, commit, seeds, receipts (the digest that the images carry; of a whole scale, that of
    the digests of its exhibits), text, bibtex. An unknown, ambiguous or undrawn exhibit is a `UserError`.
    """
    from cpt_repro.exhibits.typeset import escape_tex

    scale = plan.scale.name
    keys = [_find(plan, exhibit)] if exhibit else exhibit_keys(plan)
    paths = {key: Path(figures) / scale / key[0] / f"{key[1]}.json" for key in keys}
    drawn = {key: read_json(path) for key, path in paths.items() if path.exists()}
    if not drawn:
        name = "/".join(keys[0]) if exhibit else "all"
        raise UserError(
            f"{name if exhibit else 'the replication'} is not drawn at the scale {scale} yet.",
            where=str(next(iter(paths.values())) if exhibit else Path(figures) / scale),
            do=f"Draw it: cpt-repro draw {name} --scale {scale}.",
        )
    if exhibit:
        ((paper, key), about), papers = next(iter(drawn.items())), [keys[0][0]]
        receipts = digest(about["sha256"])
        what = f"{about['number']} ({about['title']}) of {plan.papers[paper].reference.split(',')[0]}"
        label = f"cpt_repro_{scale}_{paper}_{key}"
    else:
        papers = list(plan.papers)
        receipts = digest({"/".join(key): digest(about["sha256"]) for key, about in drawn.items()})
        what = (
            f"{len(drawn)} of {len(keys)} exhibits" if len(drawn) < len(keys) else f"all {len(keys)} exhibits"
        )
        label = f"cpt_repro_{scale}"
    records = {name for about in drawn.values() for name in about["sha256"]}
    seeds = sorted({int(m[1]) for name in records if (m := re.search(r"/seed-(\d+)$", name))})
    project = read_yaml(ROOT / "CITATION.cff")
    authors = ", ".join(
        a.get("name") or f"{a['given-names']} {a['family-names']}" for a in project["authors"]
    )
    told = [f"scale {scale}"]
    told += [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"] if seeds else []
    told += [f"{len(records)} records, SHA-256 {receipts}"] if records else ["no records behind it"]
    told += [f"commit {commit}"] if commit else []
    details = "; ".join(told)
    references = [_paper(plan, name, project.get("references", [])) for name in papers]
    own = {
        "author": f"{{{escape_tex(authors)}}}",
        "title": f"{{{escape_tex(project['title'])}: {escape_tex(what)}, replicated at scale {scale}}}",
        "version": project["version"],
        "howpublished": "Software",
        "note": escape_tex(details),
    }
    return {
        "scale": scale,
        "exhibit": "/".join(keys[0]) if exhibit else None,
        "version": str(project["version"]),
        "commit": commit,
        "seeds": seeds,
        "receipts": receipts,
        "text": "\n".join(
            [
                f"{authors}: {project['title']} {project['version']}, {what}, replicated ({details}).",
                *(f"It replicates {reference['text']}." for reference in references),
            ]
        ),
        "bibtex": "\n\n".join(
            [_bibtex("misc", label, own), *(reference["bibtex"] for reference in references)]
        ),
    }
