"""The ledger: a verdict for every claim of the papers at one scale, as JSON, as Markdown and for the README."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from cpt_repro.claims.quantities import AsPublished, Effect, Measured, Missing
from cpt_repro.claims.verdicts import FAILED, HELD, NOT_RUN, VERDICTS, evaluate, items, quotient, settle
from cpt_repro.declarations.claims import Claim, load_claims, readings
from cpt_repro.declarations.strict import Strict, read_yaml
from cpt_repro.errors import UserError
from cpt_repro.files import write_json, write_text
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Records

Verdict = Literal["held", "failed", "inconclusive", "not run"]
ABOUT = (
    "Each test asks whether effects are above zero by more than their noise: all are, it held; one is as clearly "
    "below, it failed; else it is inconclusive. A claim needs all its tests; parts that only another scale can run "
    "do not count and are named. Noise is the half-width of the 95 % t-interval over seeds, paired by seed, where "
    "three or more are common to all runs of a test (of suites no less than that of their documents); otherwise "
    "1.96 standard errors of evaluation (validation sequences, paired where their losses are known; jitter of the "
    "closing evaluations; documents of a suite), which leaves out how training itself varies with the seed. Tests "
    "are not corrected for their number. Below scale paper losses do not compare with published ones: tolerances "
    "there are shares of an effect measured at the same scale."
)


class Item(Strict):
    """A quantity that a test compares, measured and as published."""

    name: str
    unit: str
    value: float | None
    noise: float | None
    published: float | None
    mark: str | None
    place: str | None


class EffectRecord(Strict):
    """What a test wants to be above zero."""

    says: str
    value: float
    noise: float
    by: str


class TestRecord(Strict):
    """One test of a claim."""

    kind: str
    says: str
    verdict: Verdict
    only_at: str | None
    measured: tuple[Item, ...]
    effects: tuple[EffectRecord, ...]
    #: noise of the effect that decided
    noise: float | None
    #: in the unit of the items
    tolerance: float | None
    #: what the published values say of the same test; None where they are not all published
    published_verdict: Verdict | None
    missing: tuple[str, ...]
    reason: str


class ClaimRecord(Strict):
    """One claim with its verdict."""

    paper: str
    id: str
    statement: str
    source: str
    note: str
    verdict: Verdict
    decided_by: str
    reason: str
    runs: tuple[str, ...]
    tests: tuple[TestRecord, ...]
    analysis: str | None


class Ledger(Strict):
    """All claims at one scale."""

    scale: str
    about: str
    counts: dict[str, int]
    claims: tuple[ClaimRecord, ...]
    sha256: dict[str, str]
    #: receipts of an earlier state of the declarations, used all the same
    stale: tuple[str, ...]


def _round(value: float) -> float:
    """Six decimals, so that no digit depends on the order of a sum."""
    return round(float(value), 6) + 0.0


def _item(name: str, unit: str, effect: Effect | None, about: tuple[float, str, str] | None) -> Item:
    value, mark, place = about or (None, None, None)
    return Item(
        name=name,
        unit=unit,
        value=None if effect is None else _round(effect.value),
        noise=None if effect is None else _round(effect.noise),
        published=None if value is None else _round(value),
        mark=mark,
        place=place,
    )


def _test(test, measured: Measured, paper: str) -> TestRecord:
    published = AsPublished(
        paper, tuple(dict.fromkeys(run for reading in readings(test) for run in reading.runs))
    )
    outcome, printed = evaluate(test, measured), evaluate(test, published)
    told = [_item(q.text, q.unit, effect, published.about(q)) for q, effect in items(test, measured)]
    if test.kind == "ratio" and test.over:
        name = f"({test.of.text}) over ({test.over.text})"
        told = [_item(name, "", quotient(test, measured), published.quotient(test.of, test.over)), *told]
    effects = tuple(
        EffectRecord(says=says, value=_round(e.value), noise=_round(e.noise), by=e.by)
        for says, e in outcome.effects
    )
    return TestRecord(
        kind=test.kind,
        says=test.says,
        verdict=outcome.verdict,
        only_at=test.only_at,
        measured=tuple(told),
        effects=effects,
        noise=_tightest(effects).noise if effects else None,
        tolerance=None if outcome.tolerance is None else _round(outcome.tolerance),
        published_verdict=None if printed.verdict == NOT_RUN else printed.verdict,
        missing=(outcome.reason,) if outcome.verdict == NOT_RUN else (),
        reason=outcome.reason,
    )


def _tightest(effects: tuple[EffectRecord, ...]) -> EffectRecord:
    """The effect with the least room above its noise: the one that decided."""
    return min(effects, key=lambda effect: effect.value - effect.noise)


def _runs(claim: Claim, measured: Measured) -> tuple[str, ...]:
    names = []
    for test in claim.tests:
        for reading in readings(test):
            try:
                names.append(measured.run(reading))
            except Missing:
                names.append(reading.runs[0])
    return tuple(dict.fromkeys(names))


def _claim(claim: Claim, paper: str, measured: Measured, analysis: str | None) -> ClaimRecord:
    tests = tuple(_test(test, measured, paper) for test in claim.tests)
    counting = [t for t in tests if t.only_at in (None, measured.scale)] or list(tests)
    verdict = settle([test.verdict for test in counting])
    decisive = [test for test in counting if test.verdict == verdict]
    by = dict.fromkeys(effect.by for test in decisive for effect in test.effects)
    if verdict == HELD:
        reason = f"{'the test' if len(tests) == 1 else f'all {len(counting)} tests'} held"
    else:
        reason = "; ".join(_why(test, measured.scale) for test in decisive[:3])
        reason += f"; and {len(decisive) - 3} more" if len(decisive) > 3 else ""
        if len(counting) > 1:
            reason = f"{len(decisive)} of {len(counting)} tests {verdict}: {reason}"
    if left := [test.says for test in tests if test not in counting]:
        reason += f"; not at this scale: {'; '.join(left[:2])}" + (
            f" and {len(left) - 2} more" if len(left) > 2 else ""
        )
    return ClaimRecord(
        paper=paper,
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        note=claim.note,
        verdict=verdict,
        decided_by="; ".join(sorted(by)) or "no measurement",
        reason=reason,
        runs=_runs(claim, measured),
        tests=tests,
        analysis=analysis,
    )


def _why(test: TestRecord, scale: str) -> str:
    if test.reason:
        return f"{test.says} ({test.reason})"
    effect, first = _tightest(test.effects), test.measured[0]
    if test.kind == "ratio" and first.value is not None and first.noise is not None:
        told = f"{number(first.value, first.unit)} ± {number(first.noise, first.unit)}, wanted {effect.says}"
        return f"{test.says} ({told}, at {scale})"
    return f"{test.says} ({effect.says}: {effect.value:+.3f} ± {effect.noise:.3f} at {scale})"


def _analyses(path: Path, known: set[str]) -> dict[str, str]:
    told = (read_yaml(path) or {}) if path.exists() else {}
    if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
        raise UserError("it must map <paper>/<id> to a sentence.", where=str(path), do="Correct it.")
    for key in told:
        if key not in known:
            do = "Write <paper>/<id> of a declared claim, such as ibrahim2024/12."
            raise UserError(f"the claim '{key}' is unknown.", where=str(path), do=do)
    return told


def build_ledger(plan: Plan, results: Path, papers: Iterable[str] | None = None) -> Ledger:
    """Every claim of the plan's papers (or of `papers`) with its verdict, from the receipts at hand.

    Deterministic: the same receipts and declarations give the same ledger. An unknown paper, a fault in a `claims.yaml`
    or in `results/<scale>/analysis.yaml` is a `UserError`.
    """
    wanted = list(plan.papers if papers is None else papers)
    for paper in wanted:
        if paper not in plan.papers:
            raise UserError(
                f"the paper '{paper}' is unknown.", do=f"Known: {', '.join(sorted(plan.papers))}."
            )
    known = {f"{paper}/{claim.id}" for paper in plan.papers for claim in load_claims(paper)}
    analyses = _analyses(Path(results) / plan.scale.name / "analysis.yaml", known)
    claims: list[ClaimRecord] = []
    digests: dict[str, str] = {}
    stale: set[str] = set()
    for paper in wanted:
        records = Records(plan, paper, Path(results))
        measured = Measured(records)
        for claim in load_claims(paper):
            claims.append(_claim(claim, paper, measured, analyses.get(f"{paper}/{claim.id}")))
        digests |= records.digests
        stale |= records.stale
    return Ledger(
        scale=plan.scale.name,
        about=ABOUT,
        counts={verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS},
        claims=tuple(claims),
        sha256=dict(sorted(digests.items())),
        stale=tuple(sorted(stale)),
    )


# -- text


def number(value: float | None, unit: str, published: bool = False) -> str:
    """A value as it is printed: losses with three decimals (published ones with two, where so printed)."""
    if value is None:
        return "-"
    text = f"{value + 0.0:.{1 if unit == '%' else 3 if unit == 'nats' else 2}f}"
    return text[:-1] if published and unit == "nats" and text.endswith("0") else text


def _shown(test: TestRecord, published: bool) -> tuple[Item, ...]:
    """The items to print: of a quotient that alone, where it is known."""
    first, *rest = test.measured
    if " over " not in first.name:
        return test.measured
    return tuple(rest) if (first.published if published else first.value) is None else (first,)


def _listed(shown: tuple[Item, ...], published: bool) -> str | None:
    """The values of items; None where there are none."""
    told = [number(item.published if published else item.value, item.unit, published) for item in shown]
    unit = {"nats": "", "": ""}.get(shown[0].unit, " " + shown[0].unit)
    return None if all(text == "-" for text in told) else ", ".join(told) + unit


def measured_text(test: TestRecord) -> str:
    """What was measured in a test: items, then the noise that decided, the tolerance, and what is missing."""
    shown = _shown(test, published=False)
    text, unit = _listed(shown, published=False), shown[0].unit
    extra = [*test.missing]
    if text and not test.missing:
        noise = shown[0].noise if " over " in shown[0].name else test.noise
        extra += [f"noise {number(noise, unit)}"] if noise else []
        extra += [f"tolerance {number(test.tolerance, unit)}"] if test.tolerance is not None else []
    return (text or NOT_RUN) + (f" ({', '.join(extra)})" if extra else "")


def published_text(test: TestRecord) -> str:
    """What was published of the items of a test, with the marks."""
    shown = _shown(test, published=True)
    marks = sorted({item.mark for item in shown if item.mark})
    return f"{text} ({', '.join(marks)})" if (text := _listed(shown, published=True)) else "-"


def key_test(claim: ClaimRecord) -> TestRecord:
    """The test that stands for a claim where there is room for one: the first that gave its verdict."""
    return next((test for test in claim.tests if test.verdict == claim.verdict), claim.tests[0])


def selected(ledger: Ledger, claim: str) -> Ledger:
    """The ledger with the claims of one id alone (`12`, or `ibrahim2024/12`); an unknown id is a `UserError`."""
    found = tuple(c for c in ledger.claims if claim in (c.id, f"{c.paper}/{c.id}"))
    if not found:
        do = f"Known: {', '.join(f'{c.paper}/{c.id}' for c in ledger.claims)}."
        raise UserError(f"the claim '{claim}' is unknown.", do=do)
    counts = {verdict: sum(c.verdict == verdict for c in found) for verdict in VERDICTS}
    return ledger.model_copy(update={"claims": found, "counts": counts})


def counts_line(ledger: Ledger) -> str:
    """How many claims held at the scale, and so on."""
    told = ", ".join(f"{count} {verdict}" for verdict, count in ledger.counts.items())
    return f"{len(ledger.claims)} claims at scale {ledger.scale}: {told}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def markdown(ledger: Ledger) -> str:
    """The whole ledger: per paper a table with every test of every claim."""
    lines = [f"# Claims at scale {ledger.scale}", "", counts_line(ledger), "", ledger.about, ""]
    if ledger.stale:
        lines += [f"Of an earlier state of the declarations: {', '.join(ledger.stale)}.", ""]
    for paper in dict.fromkeys(claim.paper for claim in ledger.claims):
        lines += [
            f"## {paper}",
            "",
            f"| claim | verdict | test | measured (scale {ledger.scale}) | published (scale paper) |",
            "| --- | --- | --- | --- | --- |",
        ]
        for claim in (c for c in ledger.claims if c.paper == paper):
            first = f"**{claim.id}** {claim.statement} *{claim.source}*"
            verdict = f"**{claim.verdict}**, {claim.decided_by}"
            for k, test in enumerate(claim.tests):
                row = [first if not k else "", verdict if not k else "", f"{test.says}: {test.verdict}"]
                row += [measured_text(test) + (f" {test.reason}" if test.reason and not test.missing else "")]
                lines.append("| " + " | ".join(_cell(text) for text in [*row, published_text(test)]) + " |")
        notes = [claim for claim in ledger.claims if claim.paper == paper and (claim.note or claim.analysis)]
        lines += ["", "Notes:", ""] if notes else [""]
        for claim in notes:
            analysis = f" **{claim.verdict.capitalize()}:** {claim.analysis}" if claim.analysis else ""
            lines.append(f"- {claim.id}: {claim.note}{analysis}")
        lines += [""] if notes else []
    return "\n".join(lines)


def readme_table(ledger: Ledger) -> str:
    """The counts, a folded table with a row per claim and its key test, and the analyses of the claims that failed."""
    lines = [
        counts_line(ledger),
        "",
        f"<details><summary>All {len(ledger.claims)} claims, measured and published</summary>",
        "",
        f"| claim | | verdict | measured (scale {ledger.scale}) | published (scale paper) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for claim in ledger.claims:
        test = key_test(claim)
        more = f" (and {len(claim.tests) - 1} more)" if len(claim.tests) > 1 else ""
        row = [f"{claim.paper.capitalize()[:-4]} {claim.id}", claim.statement, claim.verdict]
        row += [f"{test.says}: {measured_text(test)}{more}", published_text(test)]
        lines.append("| " + " | ".join(_cell(text) for text in row) + " |")
    lines += ["", "</details>"]
    failed = [claim for claim in ledger.claims if claim.verdict == FAILED]
    if failed:
        lines += ["", f"Why {len(failed)} failed at scale {ledger.scale}:", ""]
        for claim in failed:
            lines.append(
                f"- {claim.paper.capitalize()[:-4]} {claim.id}: {claim.analysis or claim.reason + '.'}"
            )
    return "\n".join(lines) + "\n"


def in_readme(ledger: Ledger, text: str, where: str) -> str:
    """`text` with `readme_table` between the marks of this scale; a text without them is a `UserError`."""
    begin, end = f"<!-- claims {ledger.scale} -->\n", f"<!-- end of claims {ledger.scale} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(
            "the marks of the claims are missing.", where=where, do=f"Put in {begin.strip()} and {end}."
        )
    return before + begin + readme_table(ledger) + end + after


def write_ledger(ledger: Ledger, out: Path) -> list[Path]:
    """Writes `out/<scale>/claims.json` and `claims.md`; their paths."""
    stem = Path(out) / ledger.scale / "claims"
    write_json(stem.with_suffix(".json"), ledger.model_dump(mode="json"))
    write_text(stem.with_suffix(".md"), markdown(ledger))
    return [stem.with_suffix(".json"), stem.with_suffix(".md")]


COLOURS = {"held": "green", "failed": "red", "inconclusive": "yellow", "not run": "dim"}


def print_ledger(ledger: Ledger, details: bool = False) -> None:
    """Prints the ledger as a table, one row per claim; with `details` one row per test."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title=counts_line(ledger), title_justify="left", show_lines=True)
    for name in (
        "claim",
        "statement",
        "verdict",
        f"measured (scale {ledger.scale})",
        "published (scale paper)",
        "decided by",
    ):
        table.add_column(name)
    for claim in ledger.claims:
        for k, test in enumerate(claim.tests if details else [key_test(claim)]):
            verdict = test.verdict if details else claim.verdict
            row = [f"{claim.paper} {claim.id}", test.says if details and k else claim.statement]
            told = f"{test.says}: {measured_text(test)}"
            by = "; ".join(sorted({effect.by for effect in test.effects})) if details else claim.decided_by
            cells = [*(escape(text) for text in row), f"[{COLOURS[verdict]}]{verdict}[/]"]
            table.add_row(*cells, *(escape(text) for text in (told, published_text(test), by)))
    console.print(table)
    for claim in ledger.claims if details else ():
        told = (claim.source, claim.note, f"{claim.verdict}: {claim.reason}.", claim.analysis)
        console.print(escape(f"{claim.paper} {claim.id}: " + "\n".join(text for text in told if text)))
