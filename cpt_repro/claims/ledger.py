"""The ledger: a verdict for every claim of the papers at one scale; as JSON, as Markdown, for the README."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import RootModel

from cpt_repro.claims import grammar
from cpt_repro.claims.grammar import FAILED, HELD, NOT_RUN, UNDECIDABLE, VERDICTS, Claim, Statement, Verdict
from cpt_repro.claims.quantities import Measured, number, signed
from cpt_repro.claims.verdicts import Outcome, as_published, evaluate, settle, share, values
from cpt_repro.claims.words import says_in_words
from cpt_repro.declarations.published import Value
from cpt_repro.declarations.strict import Strict, load, nearest
from cpt_repro.errors import UserError, plain
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.typeset import escape_markdown as md
from cpt_repro.files import write_json, write_text
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Evidence, Records
from cpt_repro.records.uncertainty import Effect, Number, rounded, spread

ABOUT = (
    "Each test asks whether effects are above zero by more than their noise: all are, it held; one is as "
    "clearly below, it failed; else it is inconclusive. A claim needs all its tests; parts that this "
    "scale cannot run, or cannot decide for a stated reason, do not count and are named. Noise joins "
    "seeds and documents in quadrature: the half-width of the 95 % t-interval over seeds, paired by seed, "
    "where three or more are common to all runs of a test; and 1.96 standard errors over the documents "
    "(validation sequences, paired where their losses are known; items of a suite). With fewer seeds, "
    "told as n, nothing is known of how trainings vary, and the jitter of the closing evaluations stands "
    "in for it. Curves are read only where all runs of a test were evaluated. Tests are not corrected for "
    "their number. Below scale paper losses do not compare with published ones: tolerances there are "
    "shares of an effect measured at the same scale. Published values are judged with half a printed "
    "digit, or what a plot can be read to, for noise."
)

PRESUPPOSED = (
    "How alike this scale is to the papers in what decides forgetting, whatever the claims then say: a "
    "regime is chosen by these windows alone. They count as no claims."
)


class Item(Strict):
    """A quantity that a test compares, measured and as published."""

    name: str
    unit: str
    value: Number | None
    noise: Number | None
    published: Number | None
    mark: str | None
    place: str | None


class TestRecord(Outcome):
    """One test of a claim with its outcome."""

    kind: str
    says: str
    only_at: str | None
    measured: tuple[Item, ...]
    #: Of the effect that decided.
    noise: Number | None
    #: What the published values say of the same test; None where they are not all published.
    published_verdict: Verdict | None
    #: Why these do not show it to hold, as declared.
    published_why: str
    missing: tuple[str, ...]


class ClaimRecord(Statement):
    """One claim with its verdict."""

    paper: str
    verdict: Verdict
    decided_by: str
    reason: str
    runs: tuple[str, ...]
    #: The fewest and the most seeds that a run of it has; None where it rests on none.
    seeds: tuple[int, int] | None
    tests: tuple[TestRecord, ...]
    analysis: str | None


class FindingRecord(Strict):
    """A main effect of a paper, as a share: measured and published."""

    paper: str
    says: str
    #: None where it is not measured, or what it would be a share of is not clearly above zero
    value: Number | None
    noise: Number | None
    published: Number | None
    mark: str | None
    place: str | None
    #: ids of claims -> their verdicts
    claims: dict[str, Verdict]
    #: runs and merges that it is worked out from
    runs: tuple[str, ...] = ()


class Ledger(Strict):
    """All claims at one scale, with the SHA-256 of the records behind them."""

    scale: str
    about: str
    counts: dict[Verdict, int]
    #: The same of single tests.
    test_counts: dict[Verdict, int]
    #: Whether the scale is like the papers in what the claims presuppose; they count as no claims.
    preconditions: tuple[ClaimRecord, ...] = ()
    findings: tuple[FindingRecord, ...] = ()
    claims: tuple[ClaimRecord, ...]
    sha256: dict[str, str]


def _compared(effect: Effect | None, there: Value | None) -> dict[str, Any]:
    """What was measured and what was published, as records have it."""
    return {
        "value": effect and effect.value,
        "noise": effect and effect.noise,
        "published": there and float(there.value),
        "mark": there and there.mark,
        "place": there and there.place,
    }


def _decisive(effects: Iterable[Effect]) -> Effect | None:
    """The effect with the least room above its noise."""
    return min(effects, key=lambda effect: effect.value - effect.noise, default=None)


def _test(test: grammar.Test, measured: Measured, catalogue: Catalogue) -> TestRecord:
    study = measured.study
    printed = as_published(test, catalogue, study.name)
    outcome, there = evaluate(test, measured), evaluate(test, printed).verdict
    decisive = _decisive(outcome.effects)
    items = [
        Item(name=quantity.text, unit=quantity.unit(study), **_compared(effect, printed.about(quantity)))
        for quantity, effect in values(test, measured)
    ]
    if test.kind == "ratio" and test.over:
        both = _compared(share(test, measured), printed.about(test.of, test.over))
        items.insert(0, Item(name=f"({test.of.text}) over ({test.over.text})", unit="", **both))
    return TestRecord(
        **test.model_dump(include={"kind", "only_at"}),
        says=says_in_words(study, test.says),
        **vars(outcome),
        measured=items,
        noise=decisive and decisive.noise,
        published_verdict=None if there == NOT_RUN else there,
        published_why=test.published.why if test.published else "",
        missing=(outcome.reason,) if outcome.verdict == NOT_RUN else (),
    )


def _claim(claim: Claim, measured: Measured, catalogue: Catalogue, analyses: dict[str, str]) -> ClaimRecord:
    tests = [_test(test, measured, catalogue) for test in claim.tests]
    here = [test for test in tests if test.only_at in (None, measured.scale)] or tests
    counting = [test for test in here if test.verdict != UNDECIDABLE] or here
    verdict = settle(test.verdict for test in counting)
    decisive = [test for test in counting if test.verdict == verdict]
    if verdict == HELD:
        reason = f"{'the test' if len(tests) == 1 else f'all {len(counting)} tests'} held"
    else:
        reason = "; ".join(_why(test, measured.scale) for test in decisive[:3])
        reason += f"; and {len(decisive) - 3} more" if len(decisive) > 3 else ""
        reason = f"{len(decisive)} of {len(counting)} tests {verdict}: {reason}" if counting[1:] else reason
    if left := [test.says for test in tests if test not in counting]:
        more = f" and {len(left) - 2} more" if len(left) > 2 else ""
        reason += f"; not at this scale: {'; '.join(left[:2])}{more}"
    readings = [reading for test in claim.tests for reading in test.readings()]
    seeds = [count for reading in readings if (count := measured.number_of_seeds(reading)) is not None]
    return ClaimRecord(
        **claim.model_dump(exclude={"tests"}),
        paper=measured.study.name,
        verdict=verdict,
        decided_by="; ".join(sorted({e.by for test in decisive for e in test.effects})) or "no measurement",
        reason=reason,
        runs=_runs(readings, measured),
        seeds=(min(seeds), max(seeds)) if seeds else None,
        tests=tests,
        analysis=analyses.get(f"{measured.study.name}/{claim.id}"),
    )


def _runs(readings: Iterable[grammar.Reading], measured: Measured) -> tuple[str, ...]:
    """The runs and merges that are read; of those without counterpart the first that was asked for."""
    return tuple(dict.fromkeys(measured.run(one) or one.runs[0] for one in readings))


def _finding(
    finding: grammar.Finding, measured: Measured, catalogue: Catalogue, verdicts: Mapping[str, Verdict]
) -> FindingRecord:
    paper = measured.study.name
    there = as_published(finding, catalogue, paper).about(finding.of, finding.over)
    return FindingRecord(
        paper=paper,
        says=finding.says,
        **_compared(share(finding, measured), there),
        claims={claim: verdicts[claim] for claim in finding.claims},
        runs=_runs(finding.readings(), measured),
    )


def _why(test: TestRecord, scale: str) -> str:
    if test.reason:
        return f"{test.says} ({test.reason})"
    effect, first = _decisive(test.effects), test.measured[0]
    if test.kind == "ratio" and first.value is not None and first.noise is not None:
        share = f"{number(first.value, first.unit)} ± {number(first.noise, first.unit)}"
        return f"{test.says} ({share}, wanted {effect.says}, at {scale})"
    return f"{test.says} ({effect.says}: {signed(effect)} at {scale})"


def _analyses(plan: Plan, known: set[str]) -> dict[str, str]:
    """`<paper>/<id>` -> why the claim failed, from the scale's `analysis.yaml`."""
    path = plan.project.results / plan.scale.name / "analysis.yaml"
    texts = load(RootModel[dict[str, str]], path).root if path.exists() else {}
    for key in texts:
        paper = key.partition("/")[0]
        if key not in known and (paper in plan.papers or paper not in plan.studies.names):
            do = "Write <paper>/<id> of a declared claim."
            raise UserError(f"the claim '{key}' is unknown.", where=str(path), do=do)
    return texts


def _counted(claims: Sequence[ClaimRecord]) -> dict[str, dict[Verdict, int]]:
    """The fields of a ledger that count its claims and their tests."""
    tests = [test for claim in claims for test in claim.tests]
    count = lambda of: dict.fromkeys(VERDICTS, 0) | Counter(one.verdict for one in of)  # noqa: E731
    return {"counts": count(claims), "test_counts": count(tests)}


def build_ledger(catalogue: Catalogue, records: Records) -> Ledger:
    """Every claim of the plan's papers with its verdict, from the records at hand.

    The same records and declarations give the same ledger. A fault in a `claims.yaml` or in
    `results/<scale>/analysis.yaml` is a `UserError`.
    """
    plan = records.plan
    declared = {paper: grammar.load_claims(catalogue, paper) for paper in plan.papers}
    analyses = _analyses(plan, {f"{paper}/{claim.id}" for paper in declared for claim in declared[paper]})
    claims, findings, digests = [], [], {}
    for paper in plan.papers:
        measured = Measured(Evidence(records, paper))
        own = [_claim(claim, measured, catalogue, analyses) for claim in declared[paper]]
        verdicts = {claim.id: claim.verdict for claim in own}
        found = grammar.load_findings(catalogue, paper)
        findings += [_finding(finding, measured, catalogue, verdicts) for finding in found]
        claims += own
        digests |= measured.evidence.digests
    before, claims = ([c for c in claims if c.precondition == which] for which in (True, False))
    return Ledger(
        scale=plan.scale.name,
        about=ABOUT,
        **_counted(claims),
        preconditions=before,
        findings=findings,
        claims=claims,
        sha256=dict(sorted(digests.items())),
    )


def selected(ledger: Ledger, claim: str) -> Ledger:
    """The ledger with the claims of one id alone (`12`, or `<paper>/12`); an unknown id is a `UserError`."""
    known = {f"{one.paper}/{one.id}": one for one in (*ledger.preconditions, *ledger.claims)}
    claims = tuple(one for name, one in known.items() if claim in (one.id, name))
    if not claims:
        raise UserError(f"the claim '{claim}' is unknown.", do=nearest(claim, known))
    parts = {"preconditions": (), "findings": (), "claims": claims}
    return ledger.model_copy(update=parts | _counted(claims))


def write_ledger(ledger: Ledger, folder: Path) -> list[Path]:
    """Writes `claims.json` and `claims.md` into the scale's folder; their paths."""
    paths = [folder / "claims.json", folder / "claims.md"]
    write_json(paths[0], ledger.model_dump(mode="json"))
    write_text(paths[1], markdown(ledger))
    return paths


# -- text


def exhibits_of(claim: ClaimRecord) -> list[str]:
    """The exhibits that a claim's source names (`Figs 2 and 3`, `Table 12`), as figure_02."""
    named = re.findall(r"(Fig|Table)(?:ures?|s)?\.? ((?:\d+[a-d]?(?:, | and )?)+)", claim.source)
    word = {"Fig": "figure", "Table": "table"}
    keys = (f"{word[kind]}_{int(n):02d}" for kind, numbers in named for n in re.findall(r"\d+", numbers))
    return list(dict.fromkeys(keys))


def _value(item: Item, published: bool) -> str:
    """An item as it is printed: a difference within its noise without its own size."""
    value, noise = item.published if published else item.value, rounded(item.noise or 0)
    if published or value is None or not re.search(r" [-+] ", item.name) or abs(rounded(value)) > noise:
        return number(value, item.unit, published)
    return f"within {spread(noise)}" if noise else number(value, item.unit)


def _shown(test: TestRecord, published: bool) -> tuple[tuple[Item, ...], str]:
    """The items to print (of a quotient that alone, where it is known), and their values or ""."""
    items, first = test.measured, test.measured[0]
    if " over " in first.name:
        items = items[1:] if (first.published if published else first.value) is None else items[:1]
    texts = [_value(item, published) for item in items]
    unit = items[0].unit if items[0].unit != "nats" else ""
    return items, "" if set(texts) == {"-"} else f"{', '.join(texts)} {unit}".rstrip()


def measured_text(test: TestRecord) -> str:
    """What was measured in a test: items, then the noise that decided, the tolerance, and what is missing."""
    (first, *_), text = _shown(test, published=False)
    more = list(test.missing)
    if text and not test.missing:
        noise = first.noise if " over " in first.name else test.noise
        more += [f"noise {number(noise, first.unit)}"] if noise else []
        more += [f"tolerance {number(test.tolerance, first.unit)}"] if test.tolerance is not None else []
    return (text or NOT_RUN) + (f" ({', '.join(more)})" if more else "")


def published_text(test: TestRecord) -> str:
    """What was published of the items of a test, with the marks."""
    items, text = _shown(test, published=True)
    why = f"; {test.published_verdict}: {test.published_why}" if test.published_why else ""
    return f"{text} ({', '.join(sorted({item.mark for item in items if item.mark}))}{why})" if text else "-"


def counts_line(ledger: Ledger) -> str:
    """How many claims, and how many tests, held at the scale, and so on."""
    claims, tests = (
        f"{sum(of.values())} {word}{{}}: {', '.join(f'{count} {verdict}' for verdict, count in of.items())}"
        for word, of in (("claims", ledger.counts), ("tests", ledger.test_counts))
    )
    return f"{claims.format(f' at scale {ledger.scale}')}. {tests.format('')}."


def seeds_text(claim: ClaimRecord) -> str:
    """On how many seeds a claim rests."""
    if claim.seeds is None:
        return "no seed"
    least, most = claim.seeds
    return f"{least if least == most else f'{least} to {most}'} seed{'s' * (most != 1)} a run"


def _table(heads: str, rows: Iterable[list[str]], scale: str | None = None) -> list[str]:
    """The lines of a Markdown table; with `scale` its last columns are the measured and the published."""
    heads += f" | measured (scale {scale}) | published (scale paper)" if scale else ""
    rule = " | ".join(["---"] * (heads.count("|") + 1))
    return [f"| {line} |" for line in (heads, rule, *map(" | ".join, rows))]


def _by_test(claims: Iterable[ClaimRecord]) -> Iterator[list[str]]:
    for claim in claims:
        first = [
            f"**{md(claim.id)}** {md(claim.statement)} *{md(claim.source)}*",
            f"**{claim.verdict}**, {md(claim.decided_by)}; {seeds_text(claim)}",
        ]
        for test in claim.tests:
            measured = measured_text(test) + (f" {test.reason}" if test.reason and not test.missing else "")
            yield [*first, *map(md, (f"{test.says}: {test.verdict}", measured, published_text(test)))]
            first = ["", ""]


def _by_claim(claims: Iterable[ClaimRecord]) -> Iterator[list[str]]:
    """Of its tests the first that gave its verdict."""
    for claim in claims:
        more = f" (and {len(claim.tests) - 1} more)" if len(claim.tests) > 1 else ""
        test = next((test for test in claim.tests if test.verdict == claim.verdict), claim.tests[0])
        measured, called = f"{test.says}: {measured_text(test)}{more}", _called(claim.paper, claim.id)
        yield [*map(md, (called, claim.statement, claim.verdict, measured, published_text(test)))]


def _called(paper: str, claim: str) -> str:
    """A claim by its paper without the year, and its id."""
    return f"{re.sub('[0-9]+$', '', paper).capitalize()} {claim}"


def percent(value: float | None, noise: float | None = None) -> str:
    """A share as it is printed, with its noise if it has any."""
    if value is None:
        return "-"
    return f"{round(100 * value, 1) + 0.0:.1f}" + (f" ± {100 * noise:.1f}" if noise else "") + " %"


def findings_table(ledger: Ledger) -> list[str]:
    """The lines of a table with the main effects: measured, published, and what became of the claims."""

    def row(one: FindingRecord) -> list[str]:
        verdicts = ", ".join(f"{_called(one.paper, of)} {verdict}" for of, verdict in one.claims.items())
        published = percent(one.published) + f" ({one.mark})" * (one.mark is not None)
        return [*map(md, (one.says, percent(one.value, one.noise), published, verdicts))]

    return _table(f"| scale {ledger.scale} | published | claims", map(row, ledger.findings))


def markdown(ledger: Ledger) -> str:
    """The whole ledger: the main effects, and per paper a table with every test of every claim."""
    lines = [f"# Claims at scale {ledger.scale}", "", counts_line(ledger), "", ledger.about, ""]
    if ledger.findings:
        lines += ["## Main effects", "", *findings_table(ledger), ""]
    if ledger.preconditions:
        table = _table("precondition | verdict | test", _by_test(ledger.preconditions), ledger.scale)
        lines += ["## What the claims presuppose", "", PRESUPPOSED, "", *table, ""]
    for paper in dict.fromkeys(claim.paper for claim in ledger.claims):
        claims = [claim for claim in ledger.claims if claim.paper == paper]
        table = _table("claim | verdict | test", _by_test(claims), ledger.scale)
        lines += [f"## {paper}", "", *table, ""]
        notes = []
        for claim in (claim for claim in claims if claim.note or claim.analysis):
            analysis = f" **{claim.verdict.capitalize()}:** {md(claim.analysis)}" if claim.analysis else ""
            notes.append(f"- {md(claim.id)}: {md(claim.note)}{analysis}")
        lines += ["Notes:", "", *notes, ""] if notes else []
    return "\n".join(lines)


def results_table(ledger: Ledger) -> str:
    """The counts, a table with a row per claim and its key test, and why claims failed."""
    table = _table("claim | | verdict", _by_claim(ledger.claims), ledger.scale)
    lines = [counts_line(ledger), "", *table]
    if failed := [claim for claim in ledger.claims if claim.verdict == FAILED]:
        lines += ["", f"Why {len(failed)} failed at scale {ledger.scale}:", ""]
    for claim in failed:
        lines += [f"- {md(_called(claim.paper, claim.id))}: {md(claim.analysis or claim.reason + '.')}"]
    return "\n".join(lines) + "\n"


def tables(ledger: Ledger) -> dict[str, str]:
    """What pages show between marks: all claims, and the main effects with how many claims held."""
    findings = "\n".join([*findings_table(ledger), "", counts_line(ledger), ""])
    return {f"claims {ledger.scale}": results_table(ledger), f"findings {ledger.scale}": findings}


def claim_text(claim: ClaimRecord, scale: str) -> str:
    """A claim with all its tests, as lines for a terminal."""
    lines = [
        f"{_called(claim.paper, claim.id)}: {claim.statement} ({claim.source})",
        f"{claim.verdict} at scale {scale}: {claim.reason}.",
        f"Decided by {claim.decided_by}; {seeds_text(claim)}.",
        *filter(None, (claim.analysis, claim.note)),
    ]
    for test in claim.tests:
        lines += ["", f"- {test.verdict}: {test.says}", f"    measured: {measured_text(test)}"]
        lines += [f"    published: {published_text(test)}"]
        lines += [f"    {test.reason}"] if test.reason and not test.missing else []
    return "\n".join([*lines, "", f"Runs: {', '.join(claim.runs) or 'none'}"])


def print_ledger(ledger: Ledger, details: bool = False) -> None:
    """Prints a row per claim; with `details` each in full."""
    from rich.console import Console
    from rich.markdown import Markdown

    if details:
        for claim in ledger.claims:
            Console().print(plain(claim_text(claim, ledger.scale)), markup=False, highlight=False)
        return
    table = _table("claim | statement | verdict", _by_claim(ledger.claims), ledger.scale)
    Console().print(Markdown("\n".join([counts_line(ledger), "", *table])))
