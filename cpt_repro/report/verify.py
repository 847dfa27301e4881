"""Whether what lies in `figures/` is what the receipts say."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cpt_repro.declarations.exhibits import load_exhibits, needs
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, read_json
from cpt_repro.planning.evaluation_identity import evaluation_identity
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import evaluation_path, read_evaluation, read_receipt, receipt_path
from cpt_repro.report.citation import Key, exhibit_keys


def check_receipts(plan: Plan, results: Path) -> dict[str, Any]:
    """Reads every receipt and evaluation of the plan: counts, and lists of those that are missing, stale, unreadable.

    `unplanned` are receipts that no declaration asks for any more; they do no harm.
    """
    scale = plan.scale.name
    models = {
        model
        for paper in plan.papers
        for exhibit in load_exhibits(paper).values()
        for model in needs(plan, paper, exhibit)[1]
    }
    wanted = [
        (receipt_path(results, scale, name), f"receipt {name}", read_receipt, segment.identity)
        for name, segment in plan.segments.items()
    ] + [
        (
            evaluation_path(results, scale, m),
            f"evaluation {m}",
            read_evaluation,
            evaluation_identity(plan, m)[0],
        )
        for m in sorted(models)
    ]
    found: dict[str, Any] = {"read": 0, "missing": [], "stale": [], "unreadable": {}}
    for path, name, reader, identity in wanted:
        if not path.exists():
            found["missing"].append(name)
            continue
        try:
            record = reader(path)
        except UserError as error:
            found["unreadable"][name] = error.what
            continue
        found["read"] += 1
        if record.identity != identity:
            found["stale"].append(name)
    known = {path for path, *_ in wanted}
    root = Path(results) / scale / "runs"
    found["unplanned"] = sorted(
        path.relative_to(root).as_posix() for path in root.rglob("receipt.json") if path not in known
    )
    return found


def _compare(there: Path, drawn: Path, recorded: dict[str, str]) -> dict[str, Any]:
    """One file as it lies and as it was made again; a file that is not there by the hash that its sidecar recorded."""
    new = file_digest(drawn)
    old = file_digest(there) if there.exists() else recorded.get(drawn.name)
    state = "missing" if old is None else "equal" if old == new else "differs"
    return {"state": state, "there": old, "again": new, "by": "bytes" if there.exists() else "recorded hash"}


def verify(
    plan: Plan,
    results: Path,
    figures: Path,
    keys: Iterable[Key] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Makes exhibits, ledger and report again from the receipts and compares them with what lies in `figures`.

    `keys` are the exhibits to draw, all by default. Returns {"ok", "scale", "files": {file: {"state": equal, differs or
    missing; "there", "again": SHA-256; "by"}}, "failed": {what: why}, "changed": {exhibit: records whose digest is not
    the sidecar's}, "receipts": see `check_receipts`}. `ok` needs all files equal, and no stale or unreadable receipt.
    """
    from cpt_repro.claims.ledger import build_ledger, write_ledger
    from cpt_repro.exhibits.draw import draw
    from cpt_repro.report.page import write_report

    folder = Path(figures) / plan.scale.name
    keys = exhibit_keys(plan) if keys is None else list(keys)
    files: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    changed: dict[str, list[str]] = {}

    receipts = check_receipts(plan, results)
    say(
        f"receipts: {receipts['read']} read, {len(receipts['stale'])} stale, {len(receipts['unreadable'])} unreadable"
    )
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / plan.scale.name

        def make(what: str, work: Callable[[], Any], recorded: dict[str, str]) -> None:
            try:
                made = work()
            except UserError as error:
                failed[what] = str(error)
                say(f"{what}: not made ({error})")
                return
            paths = [made] if isinstance(made, Path) else list(made)
            told = {p.relative_to(again).as_posix(): p for p in paths}
            files.update({name: _compare(folder / name, path, recorded) for name, path in told.items()})
            states = sorted({files[name]["state"] for name in told})
            say(f"{what}: {', '.join(states)}")

        for paper, key in keys:
            name, sidecar = f"{paper}/{key}", folder / paper / f"{key}.json"
            about = {}
            if sidecar.exists():
                try:
                    about = read_json(sidecar)
                except UserError as error:
                    failed[f"{name}.json"] = str(error)
            make(name, lambda p=paper, k=key: draw(plan, p, k, results, Path(place)), about.get("files", {}))
            if about and (again / paper / f"{key}.json").exists():
                old, new = about.get("sha256", {}), read_json(again / paper / f"{key}.json")["sha256"]
                if differing := sorted(n for n in {*old, *new} if old.get(n) != new.get(n)):
                    changed[name] = differing
        make("claims", lambda: write_ledger(build_ledger(plan, results), Path(place)), {})
        recorded = folder / "index.json"
        hashes = read_json(recorded)["files"] if recorded.exists() else {}
        make("report", lambda: write_report(plan, results, Path(place)), hashes)
    equal = all(file["state"] == "equal" for file in files.values())
    ok = equal and not (failed or changed or receipts["stale"] or receipts["unreadable"])
    return {
        "ok": ok,
        "scale": plan.scale.name,
        "files": files,
        "failed": failed,
        "changed": changed,
        "receipts": receipts,
    }


def summary(found: dict[str, Any]) -> list[str]:
    """The result of `verify` in lines: what is wrong, then the counts."""
    receipts = found["receipts"]
    lines = [f"stale: {name} (its identity is not the plan's)" for name in receipts["stale"]]
    lines += [f"unreadable: {name} ({why})" for name, why in receipts["unreadable"].items()]
    lines += [f"not planned any more: {name}" for name in receipts["unplanned"]]
    for exhibit, names in found["changed"].items():
        lines.append(f"{exhibit}: drawn from other records than those there now: {', '.join(names)}")
    lines += [f"not made: {what}: {why}" for what, why in found["failed"].items()]
    states = [file["state"] for file in found["files"].values()]
    for name, file in found["files"].items():
        if file["state"] == "differs":
            lines.append(
                f"differs: {name}: {file['there']} there ({file['by']}), {file['again']} from the receipts"
            )
        elif file["state"] == "missing":
            lines.append(f"missing: {name}: {file['again']} from the receipts")
    counts = " ".join(
        f"{states.count(state)} {word}," for state, word in (("equal", "files equal"), ("differs", "differ"))
    )
    lines.append(f"{counts} {states.count('missing')} missing")
    if receipts["missing"]:
        lines.append(f"{len(receipts['missing'])} records are not run yet; the exhibits name them.")
    return lines
