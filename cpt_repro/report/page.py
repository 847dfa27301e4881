"""The report: one self-contained page from what lies in `figures/<scale>/`, the plan and the receipts."""

from __future__ import annotations

import base64
import re
import struct
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from cpt_repro.declarations.exhibits import Exhibit, load_exhibits, needs
from cpt_repro.declarations.published import load_discrepancies
from cpt_repro.files import digest, file_digest, read_json, write_json, write_text
from cpt_repro.planning.plan import Plan, Segment
from cpt_repro.records.receipts import evaluation_path, receipt_path
from cpt_repro.report.citation import citation

#: Pixels of a drawn PNG per CSS pixel: figures come at 200 dots per inch, and so their letters have the size of text.
DENSITY = 1.45
VERDICTS = ("held", "failed", "inconclusive", "not run")


def _number(value: Any, digits: int = 4) -> str:
    """A measured or published value as text, with so many significant digits; None is a dash."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def pipe_tables(text: str) -> list[dict[str, Any]]:
    """The pipe tables of a Markdown text: {"title": line above, "heads": [...], "rows": [[...], ...]}, escapes undone.

    The first has no title of its own: above it stands the exhibit's caption.
    """

    def plain(part: str) -> str:
        return re.sub(r"\\(.)", r"\1", part.strip())

    def cells(line: str) -> list[str]:
        return [plain(part) for part in re.findall(r"((?:\\.|[^\\|])*)\|", line.strip()[1:])]

    tables: list[dict[str, Any]] = []
    above = ""
    for pipes, block in groupby(filter(None, text.splitlines()), key=lambda line: line.startswith("|")):
        lines = list(block)
        if pipes:
            # The second line only rules off the head.
            head, _, *rows = lines
            title = plain(above.strip("*")) if tables else ""
            tables.append({"title": title, "heads": cells(head), "rows": [*map(cells, rows)]})
        else:
            above = lines[-1]
    return tables


def _image(path: Path) -> dict[str, Any]:
    """A PNG as a data URI, with its size on the page in CSS pixels."""
    raw = path.read_bytes()
    width, height = struct.unpack(">II", raw[16:24])
    size = {"width": round(width / DENSITY), "height": round(height / DENSITY)}
    return {"uri": "data:image/png;base64," + base64.b64encode(raw).decode("ascii"), **size}


def _link(plan: Plan, record: str) -> str:
    """Where the page finds a receipt, evaluation or corpus record: it lies beside `figures`, in `results`."""
    kind, _, what = record.partition(" ")
    file = f"corpora/{what}.json" if kind == "corpus" else f"runs/{what}/{kind}.json"
    return f"../../results/{plan.scale.name}/{file}"


def _exhibit(plan: Plan, paper: str, key: str, exhibit: Exhibit, folder: Path) -> dict[str, Any]:
    """All that the page says of one exhibit; `about` is None where it was not drawn."""
    word, number = key.split("_")
    figure = word == "figure"
    picture, name, scale = (
        folder / paper / f"{key}.{'png' if figure else 'md'}",
        f"{paper}/{key}",
        plan.scale.name,
    )
    sidecar = folder / paper / f"{key}.json"
    out: dict[str, Any] = {
        "id": f"{paper}-{key}",
        "name": name,
        "number": f"{word.capitalize()} {int(number)}",
        "title": exhibit.title,
        "see": exhibit.see,
        "figure": figure,
        "commands": [
            f"snakemake --cores all figures/{scale}/{name}.{'png' if figure else 'md'} --config scale={scale}",
            f"cpt-repro draw {name} --scale {scale}",
        ],
        "about": None,
    }
    if not sidecar.exists() or not picture.exists():
        return out
    about = out["about"] = {"published": None} | read_json(sidecar)
    out["alt"] = f"{out['number']}, {exhibit.title}: {re.split(r'(?<=[.!?]) ', about['caption'])[0]}"
    out["picture"] = f"{name}{picture.suffix}"
    if figure:
        out["image"] = _image(picture)
    else:
        out["tables"] = pipe_tables(picture.read_text(encoding="utf-8"))
    out["digest"] = digest(about["sha256"])
    hashes = about["sha256"] | dict.fromkeys(about["missing"])
    out["records"] = [{"name": n, "link": _link(plan, n), "sha256": sha256} for n, sha256 in hashes.items()]
    if agreement := about.get("agreement"):
        out["agreement"] = {
            "pairs": agreement["pairs"],
            "groups": agreement["groups"],
            "spearman": _interval(*(agreement[k] for k in ("spearman", "spearman_low", "spearman_high"))),
            "signs": _interval(*(agreement[k] for k in ("signs", "signs_low", "signs_high"))),
        }
    return out


def _receipts(plan: Plan, results: Path) -> dict[str, dict[str, Any]]:
    """The receipts of the plan's segments that are there, as they lie."""
    paths = {segment: receipt_path(results, plan.scale.name, segment) for segment in plan.segments}
    return {segment: read_json(path) for segment, path in paths.items() if path.exists()}


def _tree(plan: Plan, paper: str, receipts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of a paper as a tree of what starts from what; each node has its seeds with their state."""
    children: dict[str | None, dict[str, list[Segment]]] = {}
    for segment in plan.segments.values():
        if segment.paper == paper:
            parent = plan.segments[segment.parent].name if segment.parent else None
            children.setdefault(parent, {}).setdefault(segment.name, []).append(segment)

    def state(segment: Segment) -> str:
        receipt = receipts.get(segment.id)
        if receipt is None:
            return "not run"
        return "done" if receipt.get("identity") == segment.identity else "stale"

    def nodes(parent: str | None) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "tokens": f"{segments[0].tokens:,}",
                "billions": f"{segments[0].billions:.0f}",
                "seeds": [
                    {"seed": s.seed, "state": state(s), "link": _link(plan, f"receipt {s.id}")}
                    for s in segments
                ],
                "children": nodes(name),
            }
            for name, segments in children.get(parent, {}).items()
        ]

    return nodes(None)


def _environment(
    plan: Plan, results: Path, receipts: dict[str, dict[str, Any]], models: list[str]
) -> dict[str, Any]:
    """Versions and hardware over all receipts and evaluations, with how many have each, and the time they took."""
    found = [evaluation_path(results, plan.scale.name, model) for model in models]
    evaluations = [read_json(path) for path in found if path.exists()]
    seen: dict[str, Counter[str]] = {}
    for record in [*receipts.values(), *evaluations]:
        for name, version in {**record.get("environment", {}), **record.get("code", {})}.items():
            seen.setdefault(name, Counter())[str(version)] += 1
    measured = [receipt.get("measured", {}) for receipt in receipts.values()]
    seconds = sum(told.get("seconds", 0) for told in measured)
    sizes = {plan.segments[name].model_name: receipt["parameters"] for name, receipt in receipts.items()}
    return {
        "rows": [(name, sorted(counts.items())) for name, counts in sorted(seen.items())],
        "hours": f"{seconds / 3600:.1f}",
        "tokens": f"{sum(plan.segments[name].tokens for name in receipts):,}",
        "commits": sorted({str(told["commit"]) for told in measured if told.get("commit")}),
        "parameters": [(name, f"{count:,}") for name, count in sorted(sizes.items())],
        "evaluations": len(evaluations),
    }


def render(plan: Plan, results: Path, figures: Path) -> str:
    """The page of a scale as text: the same files and receipts give the same text."""
    import jinja2

    folder = Path(figures) / plan.scale.name
    declared = {paper: load_exhibits(paper) for paper in plan.papers}
    exhibits = {
        paper: [_exhibit(plan, paper, key, exhibit, folder) for key, exhibit in of.items()]
        for paper, of in declared.items()
    }
    models = [
        m for paper, of in declared.items() for exhibit in of.values() for m in needs(plan, paper, exhibit)[1]
    ]
    models = list(dict.fromkeys(models))
    receipts = _receipts(plan, results)
    claims = read_json(folder / "claims.json") if (folder / "claims.json").exists() else None
    verdicts = list(dict.fromkeys([*VERDICTS, *(claims or {"counts": ()})["counts"]]))
    drawn = [exhibit for of in exhibits.values() for exhibit in of if exhibit["about"]]
    current = sum(
        receipt.get("identity") == plan.segments[name].identity for name, receipt in receipts.items()
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = _number
    environment.filters["capitalised"] = lambda text: text[:1].upper() + text[1:].rstrip(".")
    return environment.get_template("page.html.j2").render(
        plan=plan,
        scale=plan.scale,
        papers=plan.papers,
        short={name: paper.reference.split(",")[0] for name, paper in plan.papers.items()},
        exhibits=exhibits,
        drawn=drawn,
        declared=sum(map(len, exhibits.values())),
        agreements=[exhibit for exhibit in drawn if "agreement" in exhibit],
        claims=claims,
        verdicts=verdicts,
        trees={paper: _tree(plan, paper, receipts) for paper in plan.papers},
        segments={"done": current, "stale": len(receipts) - current, "all": len(plan.segments)},
        models=len(models),
        environment=_environment(plan, results, receipts, models),
        discrepancies={paper: list(load_discrepancies(paper)) for paper in plan.papers},
        citation=citation(plan, figures, None, commit=None) if drawn else None,
    )


def write_report(plan: Plan, results: Path, figures: Path) -> Path:
    """Writes `figures/<scale>/index.html` and returns its path; what is not drawn, run or judged is named so.

    `index.json` beside it records its hash, so that the page can be verified where it is too large to be kept.
    """
    path = Path(figures) / plan.scale.name / "index.html"
    write_text(path, render(plan, results, figures))
    write_json(path.with_suffix(".json"), {"files": {path.name: file_digest(path)}})
    return path
