"""Texts of quantities, short forms, and what is refused."""

import pytest

from cpt_repro.claims.grammar import Quantity, Reading, corpora, load_claims
from cpt_repro.errors import UserError

LOW, WEAK, HIGH = "405m/pile--sp/eta_max-1.5e-4", "405m/pile--sp/replay-0", "405m/pile--sp/eta_max-6e-4"
OLD, MERGE = "405m/pile", "405m/ties/sp-0.25"
GOOD = {"kind": "ordering", "rising": [f"{LOW} pile", f"{WEAK} pile"]}
WITHIN = {"kind": "within", "items": [f"{LOW} pile", f"{WEAK} pile"]}


@pytest.mark.parametrize(
    ("text", "what", "of", "when", "window"),
    [
        ("r pile", "loss", ("pile",), "final", None),
        ("r average", "loss", ("average",), "final", None),
        ("r pile @50", "loss", ("pile",), "at", (50, 50)),
        ("r pile @0.5", "loss", ("pile",), "at", (0.5, 0.5)),
        ("r pile start", "loss", ("pile",), "start", None),
        ("r pile peak", "loss", ("pile",), "peak", None),
        ("r pile peak[0,1.5]", "loss", ("pile",), "peak", (0, 1.5)),
        ("r pile mean[205,240]", "loss", ("pile",), "mean", (205, 240)),
        ("r compute", "compute", (), "final", None),
        ("r slope", "slope", (), "final", None),
        ("r slope [0,50]", "slope", (), "final", (0, 50)),
        ("r suite:english", "suite", ("english",), "final", None),
        ("r task:german/HellaSwag-DE|next_de", "task", ("german", "HellaSwag-DE", "next_de"), "final", None),
    ],
)
def test_a_reading_from_its_text(text, what, of, when, window):
    assert Reading.of_text(text) == Reading(runs=("r",), what=what, of=of, when=when, window=window)


def test_a_sum_from_its_text():
    quantity = Quantity.model_validate("a/x|a/y  pile + third2026/b sp @50 - c-1 average")
    terms = [(1, ("a/x", "a/y")), (1, ("third2026/b",)), (-1, ("c-1",))]
    assert [(weight, reading.runs) for weight, reading in quantity.terms] == terms
    assert quantity.text == "a/x..y pile + third2026/b sp @50 - c-1 average"


def test_short_forms_are_spelled_out(declared):
    each = {"d": ["pile", "sp"], "t": [10, 2]}
    rising = ["405m/pile--sp/replay-{0.5, 0} {d} @{t}", ["w {d}", "w {d} - w sp"], "last {d}"]
    test = {"kind": "ordering", "each": each, "says": "{d} at {t}", "rising": rising}
    tests = declared.tests(test, names={"w": HIGH, "last": ["405m/sp", "405m/pile"]})
    assert [test.says for test in tests] == ["pile at 10", "pile at 2", "sp at 10", "sp at 2"]
    assert [quantity.text for quantity in tests[3].compared()] == [
        "405m/pile--sp/replay-0.5 sp @2",
        "405m/pile--sp/replay-0 sp @2",
        f"{HIGH} sp",
        f"{HIGH} sp - {HIGH} sp",
        "405m/sp..pile sp",
    ]
    falling = declared.tests({"kind": "ordering", "falling": GOOD["rising"]})[0]
    assert [group[0].text for group in falling.groups()] == GOOD["rising"][::-1]
    assert [quantity.text for quantity in falling.compared()] == GOOD["rising"]


@pytest.mark.parametrize(
    ("paper", "text", "read"),
    [
        ("ibrahim2024", f"{WEAK} average", ("pile", "sp")),
        ("ibrahim2024", "405m/pile--german/replay-0 average", ("pile", "german")),
        ("ibrahim2024", f"{WEAK} sp", ("sp",)),
        ("gupta2023", "410m/pile--pile/eta_max-3e-4 slope", ("pile", "sp")),
        ("third2026", "continued/replay-0.25 average", ("pile", "german")),
        ("third2026", f"ibrahim2024/{WEAK} average", ("pile", "sp")),
    ],
)
def test_averages_and_fits_are_of_the_old_and_the_new_corpus(declared, paper, text, read):
    study, reading = declared.catalogue.plan.studies[paper], declared.quantity(text, paper).terms[0][1]
    assert corpora(study, reading.runs[0], reading) == read


def test_a_reference_is_read_after_what_is_compared(declared):
    reference = {"paper": 1, "share": 1, "of": f"{OLD} pile - {WEAK} pile"}
    (test,) = declared.tests({**WITHIN, "tolerance": reference})
    assert [reading.runs[0] for reading in test.readings()] == [LOW, WEAK, OLD]
    assert [reading.runs[0] for reading in test.readings(references=False)] == [LOW, WEAK]


FORM, NOT_CLEAR = "is not '<run> <what> [<when>]'; of a loss <when> is @50", "of '{}' is not clear"


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ({**GOOD, "kind": "orderin"}, "orderin"),
        ({**GOOD, "risin": []}, "Did you mean 'rising'"),
        ({**GOOD, "weekly": {}}, "Did you mean 'weakly'"),
        ({**WITHIN, "tolerance": {"paper": 1, "share": 1, "of": f"{LOW} sp"}, "itms": 1}, "mean 'items'"),
        ({**GOOD, "falling": GOOD["rising"]}, "not both"),
        ({**GOOD, "rising": [f"{LOW} pile"]}, "at least 2"),
        ({**GOOD, "only_at": "papers"}, "Did you mean 'paper'"),
        ({**GOOD, "each": {"x": 1}}, "each"),
        ({**WITHIN, "tolerance": {"paper": 0.1}}, "share"),
        ({**WITHIN, "tolerance": {"paper": 0.1, "share": 0.1, "of": "nobody pile"}}, "nobody"),
        ({"kind": "ratio", "of": f"{LOW} pile"}, "at_least"),
        # a quantity
        ("405m/pile--sp/replay-00 pile", "Did you mean '405m/pile--sp/replay-0'"),
        ("gupta2023/410m/pole pile", "Did you mean 'gupta2023/410m/pile'"),
        ("gupta2023/410m/pile pil", "Did you mean 'pile'"),
        (f"{LOW} pil", "Did you mean 'pile'"),
        (f"{LOW} german", "not validated on 'german'"),
        (f"{LOW} pile @500", "299B tokens long"),
        (f"{LOW} pile mean[400,500]", "299B tokens long"),
        (f"{LOW} pile @51", "not evaluated at 51B, which is not among the points of ibrahim2024"),
        ("gupta2023/410m/sp pile @40", "not evaluated at 40B, which is not among the points of gupta2023"),
        ({**GOOD, "published": {"verdict": "held", "why": "x"}}, "published.verdict"),
        ({**GOOD, "published": {"verdict": "failed"}}, "published.why"),
        ({**GOOD, "needs": {"warmup_iteration": 3, "why": "x"}}, "Did you mean 'warmup_iterations'"),
        (f"{LOW} pile peak[9,3]", "is empty"),
        (f"{LOW} pile pek", FORM),
        (f"{LOW} pile start[0,5]", FORM),
        (f"{LOW} pile -", FORM),
        (f"{LOW} pile - + {LOW} pile", FORM),
        (f"{LOW} pile @50 @60", FORM),
        (f"{LOW}", FORM),
        ("", FORM),
        (f"{LOW} compute @50", FORM),
        (f"{LOW} slope @50", FORM),
        (3, "rising.0"),
        (f"{OLD} average", NOT_CLEAR.format(OLD)),
        ("405m/pile--pile/constant-3e-5 slope", NOT_CLEAR.format("405m/pile--pile/constant-3e-5")),
        (f"{MERGE} pile", "is a merge"),
        (f"{MERGE} compute", "is a merge"),
        (f"{LOW} suite:englich", "Did you mean 'english'"),
    ],
)
def test_bad_declarations_are_refused_with_file_and_claim(declared, test, says):
    with pytest.raises(UserError) as caught:
        declared.tests(test if isinstance(test, dict) else {**GOOD, "rising": [test, f"{WEAK} pile"]})
    assert says in str(caught.value) and "ibrahim2024/claims.yaml, claim x" in str(caught.value)


ONE = {"id": 1, "statement": "s", "source": "p", "tests": [{**GOOD, "says": ""}]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "claims.yaml: the key '(top level)' is wrong"),
        ("", "claims.yaml: the key '(top level)' is wrong"),
        ({"paper": "gupta2023", "claims": []}, "Make it 'ibrahim2024'"),
        ({"paper": "ibrahim2024", "claim": [], "claims": []}, "Did you mean 'claims'"),
        ({"paper": "ibrahim2024", "claims": {}}, "'claims' is wrong"),
        ({"paper": "ibrahim2024", "claims": ["x"]}, "claim 1"),
        ({"paper": "ibrahim2024", "names": ["w"], "claims": []}, "'names' is wrong"),
        ({"paper": "ibrahim2024", "claims": [ONE | {"tests": []}]}, "claim 1: the key 'tests'"),
        ({"paper": "ibrahim2024", "claims": [ONE | {"tests": ["x"]}]}, "claim 1: the key 'tests.0'"),
        ({"paper": "ibrahim2024", "claims": [{**ONE, "id": ""}]}, "'id'"),
        ({"paper": "ibrahim2024", "claims": [{k: ONE[k] for k in ("id", "source", "tests")}]}, "'statement'"),
        ({"paper": "ibrahim2024", "claims": [ONE, ONE]}, "stands twice"),
    ],
)
def test_bad_files_are_refused(declared, content, says):
    with pytest.raises(UserError) as caught:
        declared.file(content)
    assert says in str(caught.value) and "ibrahim2024/claims.yaml" in str(caught.value)


def test_a_paper_without_claims_has_none(declared):
    declared.project.papers.joinpath("gupta2023", "claims.yaml").unlink()
    assert load_claims(declared.catalogue, "gupta2023") == ()
