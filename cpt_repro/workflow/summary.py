"""A scale's work in a few lines: what is left while a job runs, and what was made at its end."""

from __future__ import annotations

from cpt_repro.claims.grammar import VERDICTS
from cpt_repro.files import read_json
from cpt_repro.processes import cores
from cpt_repro.workflow.cost import Options, estimate
from cpt_repro.workflow.jobs import Workflow


def progress(work: Workflow) -> str:
    """How much is trained, and how long the rest takes at the speed measured; for one more terminal."""
    cost = estimate(work, Options())
    done, whole = (f"{tokens / 1e6:,.0f}M" for tokens in (cost.done.tokens, cost.all.tokens))
    line = f"tokens trained: {done} of {whole}"
    hours = cost.left.device_hours
    if not cost.left.trainings:
        return line
    if hours is None:
        return f"{line}; how long the rest takes is not known before something is measured"
    if cost.device == "gpu":
        return f"{line}; the rest takes {hours:,.0f} GPU-hours at the speed that `cpt-repro plan` tells"
    there_are, minutes = cores(), 60 * hours
    return f"{line}; the rest takes about {minutes / there_are:,.0f} minutes on {there_are} cores"


def made(work: Workflow) -> list[str]:
    """What there is now and what to do with it; [] before there is a ledger."""
    ledger, page = work.figures / "claims.json", work.figures / "index.html"
    if not ledger.is_file():
        return []
    record, scale = read_json(ledger), work.scale.name
    claims, tests = (
        ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts.get(verdict))
        for counts in (record["counts"], record["test_counts"])
    )
    exhibits = ["/".join(key) for key in work.catalogue.exhibits]
    lines = [
        f"{len(work.plan.trainings)} trainings, {len(work.models)} evaluations, {len(exhibits)} exhibits "
        f"of scale {scale}, in {work.figures}/",
        f"{len(record['claims'])} claims: {claims} (tests: {tests})",
    ]
    there = page.resolve().as_uri() if page.is_file() else f"`cpt-repro report --scale {scale}` makes it"
    lines.append(f"report: {there}")
    if record["claims"]:
        first = next((one for one in record["claims"] if one["verdict"] != "held"), record["claims"][0])
        name = f"{first['paper']}/{first['id']}"
        lines.append(f"one claim in full: cpt-repro claims --scale {scale} --claim {name}")
    return [*lines, f"to cite: cpt-repro cite {exhibits[0]} --scale {scale}"]
