"""The ledger: pocket's as committed, what changes it, and how it is written."""

import json
import re

import pytest
import yaml

from cpt_repro.claims import ledger as ledgers
from cpt_repro.claims.grammar import FAILED, HELD, NOT_RUN, UNDECIDABLE
from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.files import between
from cpt_repro.records.lookup import Records

WEAK, OLD = "405m/pile--sp/replay-0", "405m/pile"
LOW, HIGH = "405m/pile--sp/eta_max-1.5e-4", "405m/pile--sp/eta_max-6e-4"
IDS = [("gupta2023", f"C{k}") for k in range(1, 17)] + [("ibrahim2024", str(k)) for k in range(1, 40)]


@pytest.fixture(scope="module")
def committed(plan_of):
    """The ledger of pocket from the committed receipts."""
    plan = plan_of("pocket")
    return ledgers.build_ledger(Catalogue(plan), Records(plan))


def claim_in(ledger, paper, name):
    return next(claim for claim in ledger.claims if (claim.paper, claim.id) == (paper, name))


def ledger_of(pocket, *papers):
    return ledgers.build_ledger(*pocket.read(*(papers or ("ibrahim2024",))))


# -- pocket


def test_pockets_ledger_is_the_committed_one(committed, repository, tmp_path):
    """All but the digests of records, which `verify` compares."""
    written = ledgers.write_ledger(committed, tmp_path / "pocket")
    folder = repository.figures / "pocket"
    assert [path.name for path in written] == ["claims.json", "claims.md"]
    new, old = (json.loads(path.read_text()) for path in (written[0], folder / "claims.json"))
    for key in ("scale", "about", "counts", "claims"):
        assert new[key] == old[key]
    assert [(claim["paper"], claim["id"]) for claim in new["claims"]] == IDS
    assert set(new["sha256"]) == set(old["sha256"])
    assert written[1].read_bytes() == (folder / "claims.md").read_bytes()


def test_preconditions_come_first_and_count_as_no_claims(committed):
    before = committed.preconditions
    assert [claim.id for claim in before] == ["P1", "P2", "P3"]
    assert all(one.published_verdict in (HELD, None) for claim in before for one in claim.tests)
    assert {claim.id for claim in before}.isdisjoint(claim.id for claim in committed.claims)
    assert sum(committed.counts.values()) == len(committed.claims) == len(IDS)
    text = ledgers.markdown(committed)
    assert text.index("## What the claims presuppose") < text.index("**P1**") < text.index("## gupta2023")
    assert [claim.id for claim in ledgers.selected(committed, "P2").claims] == ["P2"]


def test_failed_claims_of_pocket_are_analysed(committed):
    assert all(bool(claim.analysis) == (claim.verdict == FAILED) for claim in committed.claims)


def test_a_part_for_another_scale_is_named_and_does_not_count(committed):
    claim = claim_in(committed, "ibrahim2024", "19")
    assert {test.verdict for test in claim.tests if test.only_at} == {NOT_RUN} and claim.verdict != NOT_RUN
    assert "not at this scale: MMLU-DE" in claim.reason and "and 10 more" in claim.reason


def test_pages_are_current(committed, repository):
    """They say of pocket what the committed receipts say; `cpt-repro claims --into` renews them."""
    tables = ledgers.tables(committed)
    for name in ("README.md", "docs/results.md"):
        text = (repository.root / name).read_text(encoding="utf-8")
        assert between(text, tables, name) == text
    rows = [
        line for line in tables["claims pocket"].splitlines() if line.startswith(("| Gupta C", "| Ibrahim "))
    ]
    assert len(rows) == 55
    effects = [line for line in tables["findings pocket"].splitlines() if line.startswith("| ")]
    assert len(effects) == len(committed.findings) + 2 and all("not run" not in line for line in effects)
    with pytest.raises(UserError, match=r"README.md: marks .* <!-- claims pocket -->"):
        between("no marks", tables, "README.md")


def test_a_ratio_that_is_shown_is_the_one_that_decided(committed):
    """Points of a curve may be of fewer sequences than the ends; both parts are of the same ones."""
    seen = 0
    for claim in (*committed.preconditions, *committed.claims):
        for test in (
            test for test in claim.tests if test.kind == "ratio" and " over " in test.measured[0].name
        ):
            for effect in test.effects if test.measured[0].value is not None else ():
                word, _, bound = effect.says.rpartition(" ")
                if word in ("at least", "at most"):
                    above = test.measured[0].value - float(bound)
                    assert (above if word == "at least" else -above) * effect.value >= 0, (
                        claim.id,
                        test.says,
                    )
                    seen += 1
    assert seen > 10


def test_one_claim_is_selected(committed):
    for name, claim in (("C1", "C1"), ("ibrahim2024/12", "12")):
        one = ledgers.selected(committed, name)
        assert [claim.id for claim in one.claims] == [claim] and sum(one.counts.values()) == 1
    with pytest.raises(UserError, match="'ibrahim2024/99' is unknown. Did you mean 'ibrahim2024/9'"):
        ledgers.selected(committed, "ibrahim2024/99")


def test_it_is_printed(committed, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    ledgers.print_ledger(ledgers.selected(committed, "ibrahim2024/7"))
    text = capsys.readouterr().out
    assert "1 claims at scale pocket: 0 held, 1 failed" in text and "strong shift" in text
    assert "The rate, under the strong shift" not in text


def test_a_claim_is_printed_whole_on_a_narrow_screen(committed, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    one = ledgers.selected(committed, "ibrahim2024/7")
    ledgers.print_ledger(one, details=True)
    text = " ".join(capsys.readouterr().out.split())
    (claim,) = one.claims
    parts = [claim.statement, claim.reason, claim.analysis, *claim.runs]
    for test in claim.tests:
        parts += [f"{test.verdict}: {test.says}", ledgers.measured_text(test), ledgers.published_text(test)]
    assert len(claim.tests) > 1 and [part for part in parts if " ".join(part.split()) not in text] == []


# -- other records


def test_two_swapped_receipts_turn_held_into_failed(pocket):
    runs = (LOW, WEAK, HIGH)
    pocket.bring(*(f"{run}/seed-0" for run in runs))
    for run, loss in zip(runs, (2.3, 2.4, 2.6), strict=True):
        pocket.change(run, loss=loss, of_sequences=(), noise=0.001)
    test = claim_in(ledger_of(pocket), "ibrahim2024", "8").tests[0]
    assert (test.verdict, [item.value for item in test.measured]) == (HELD, [2.3, 2.4, 2.6])
    assert [item.published for item in test.measured] == [2.43, 2.44, 2.48]
    assert {item.mark for item in test.measured} == {"printed"} and test.published_verdict == HELD
    pocket.change(LOW, loss=2.6)
    pocket.change(HIGH, loss=2.3)
    claim = claim_in(ledger_of(pocket), "ibrahim2024", "8")
    assert claim.tests[0].verdict == FAILED == claim.verdict and "at pocket" in claim.reason
    assert claim.decided_by == "the documents alone, n = 1"


def test_what_was_not_run_says_so(pocket):
    pocket.bring(f"{WEAK}/seed-0", "405m/pile--sp-100b/replay-0/seed-0")
    ledger = ledger_of(pocket)
    test = claim_in(ledger, "ibrahim2024", "30").tests[0]
    assert (test.verdict, test.missing) == (NOT_RUN, ("405m/pile--sp-200b/replay-0 was not run",))
    assert [item.value is None for item in test.measured] == [False, True, False]
    # Compute is known from the plan.
    assert {claim.id for claim in ledger.claims if claim.verdict != NOT_RUN} == {"3"}


def test_a_claim_on_a_run_of_another_paper(pocket):
    """The third paper's run with replay is a training of Ibrahim's under another name."""
    other, kept = "405m/pile--german/replay-0", "continued/replay-0.25"
    path = pocket.project.papers / "third2026" / "claims.yaml"
    path.write_text(path.read_text().replace("continued/replay-0.02", kept))
    pocket.bring(f"{other}/seed-0", "405m/pile--german/replay-0.25/seed-0")
    ledger = ledger_of(pocket, "third2026", "ibrahim2024")
    claim = claim_in(ledger, "third2026", "1")
    assert (claim.verdict, claim.decided_by) == (HELD, "the documents alone, n = 1")
    assert claim.runs == (kept, f"ibrahim2024/{other}")
    low, high = claim.tests[0].measured
    assert (low.published, high.published, high.mark) == (None, 3.56, "printed") and low.value < high.value
    assert {f"receipt third2026/{kept}/seed-0", f"receipt ibrahim2024/{other}/seed-0"} <= set(ledger.sha256)
    assert ledgers.markdown(ledger).count("\n## ") == 4 and "| Third 1 |" in ledgers.results_table(ledger)


def test_what_a_scale_cannot_decide_does_not_count(pocket):
    """A claim of one test is then undecidable; of two, the other decides, and the first is named."""
    other, kept = "405m/pile--german/replay-0", "continued/replay-0.25"
    path = pocket.project.papers / "third2026" / "claims.yaml"
    text = path.read_text().replace("continued/replay-0.02", kept)
    pocket.bring(f"{other}/seed-0", "405m/pile--german/replay-0.25/seed-0")
    declared = yaml.safe_load(text)
    (test,) = declared["claims"][0]["tests"]
    needs = {"iterations": 10**6, "why": "it is young"}
    for tests, verdict, reason in (
        ([test | {"needs": needs}], UNDECIDABLE, "are needed: it is young)"),
        ([test, test | {"needs": needs, "says": "later"}], HELD, "; not at this scale: later"),
    ):
        declared["claims"][0]["tests"] = tests
        path.write_text(yaml.safe_dump(declared))
        ledger = ledger_of(pocket, "third2026")
        assert (ledger.claims[0].verdict, ledger.counts[verdict]) == (verdict, 1)
        assert ledger.claims[0].reason.endswith(reason) and ledger.test_counts[UNDECIDABLE] == 1
        assert f"1 {UNDECIDABLE}" in ledgers.counts_line(ledger) and "it is young" in ledgers.markdown(ledger)


def test_a_claim_says_on_how_many_seeds_it_rests(committed, pocket):
    told = {name: ledgers.seeds_text(claim_in(committed, "ibrahim2024", name)) for name in ("3", "11", "28")}
    assert told == {"3": "no seed", "11": "3 seeds a run", "28": "3 seeds a run"}
    pocket.bring(LOW, WEAK)
    claim = claim_in(ledger_of(pocket), "ibrahim2024", "8")
    assert claim.seeds == (0, 3) and ledgers.seeds_text(claim) == "0 to 3 seeds a run"


def test_verdicts_are_counted_by_claim_and_by_test(committed):
    tests = [test for claim in committed.claims for test in claim.tests]
    assert sum(committed.counts.values()) == len(committed.claims) < len(tests)
    assert committed.test_counts[HELD] == sum(test.verdict == HELD for test in tests)
    line = ledgers.counts_line(committed)
    assert f"{committed.counts[HELD]} held" in line and f"{len(tests)} tests: " in line


def test_no_effect_is_printed_within_its_noise(committed):
    """Neither with a noise of nothing."""
    text = ledgers.markdown(committed)
    assert "± 0.000" not in text and "within ± " in text
    for test in (test for claim in committed.claims for test in claim.tests):
        for item in test.measured:
            if " - " in item.name and item.value is not None and abs(item.value) <= (item.noise or 0):
                assert not re.search(rf"(?<!± ){abs(item.value):.3f}", ledgers.measured_text(test)), test.says


def test_a_bar_and_a_line_end_stay_in_their_cell(pocket):
    path = pocket.project.papers / "third2026" / "claims.yaml"
    path.write_text(path.read_text().replace("Two percent of replay forget less than none.", '"A|B\\nC."'))
    for text in (ledgers.markdown, ledgers.results_table):
        (row,) = (line for line in text(ledger_of(pocket, "third2026")).splitlines() if "A\\|B C." in line)
        assert row.replace("\\|", "").count("|") == 6


# -- what is refused


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ibrahim2024/99: It is the regime.", "'ibrahim2024/99' is unknown"),
        ("8: It is the regime.", "the key '8.[key]' is wrong"),
        ("ibrahim2024/8: [no]", "the key 'ibrahim2024/8' is wrong"),
        ("- ibrahim2024/8", "the key '(top level)' is wrong"),
    ],
)
def test_a_bad_analysis_is_refused(pocket, text, says):
    path = pocket.project.results / "pocket" / "analysis.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        ledger_of(pocket)
    assert says in str(caught.value) and "pocket/analysis.yaml" in str(caught.value)


def test_an_analysis_of_a_paper_that_is_not_made_stays(pocket):
    path = pocket.project.results / "pocket" / "analysis.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("gupta2023/C4: Regime.\nibrahim2024/8: It is the regime.\n")
    assert claim_in(ledger_of(pocket), "ibrahim2024", "8").analysis == "It is the regime."
