"""Runs and quantities in words."""

from functools import partial

import pytest

from cpt_repro.claims.words import quantity_in_words, run_in_words, says_in_words
from cpt_repro.declarations.scale import load_scale
from cpt_repro.planning.plan import Plan


@pytest.fixture(scope="module")
def studies(repository):
    return Plan(repository, load_scale(repository, "pocket"), ("gupta2023", "ibrahim2024")).studies


@pytest.mark.parametrize(
    ("paper", "run", "words"),
    [
        ("ibrahim2024", "405m/pile", "405M: the Pile"),
        ("ibrahim2024", "10b/pile+sp", "10B: the Pile ∪ SlimPajama"),
        ("ibrahim2024", "405m/pile--sp/replay-0.05", "405M: the Pile → SlimPajama, replay 0.05"),
        ("ibrahim2024", "405m/pile--sp/constant-3e-5", "405M: the Pile → SlimPajama, constant 3e-5"),
        ("ibrahim2024", "405m/sp-3x100/cosine/split-2", "405M: SlimPajama 3x100, cosine, split 2"),
        (
            "gupta2023",
            "410m/pile@10000--sp/warmup-0",
            "410M: the Pile at iteration 10000 → SlimPajama, warmup 0",
        ),
        ("gupta2023", "ibrahim2024/405m/pile", "Ibrahim et al. 2024: 405M: the Pile"),
    ],
)
def test_runs_are_told_by_model_data_and_variant(studies, paper, run, words):
    assert run_in_words(studies[paper], run) == words


PILE, REPLAY = "405M: the Pile", "405M: the Pile → SlimPajama, replay 0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("405m/pile sp", f"loss on SlimPajama of {PILE}"),
        ("405m/pile pile @50", f"loss on the Pile of {PILE} at 50B"),
        ("405m/pile pile start", f"loss on the Pile of {PILE} at its start"),
        ("405m/pile pile peak[0,4]", f"loss on the Pile of {PILE}, peak from 0B to 4B"),
        ("405m/pile average", f"average loss of {PILE}"),
        ("405m/pile suite:english", f"english suite of {PILE}"),
        ("405m/pile task:german/HellaSwag-DE", f"HellaSwag-DE of {PILE}"),
        ("405m/pile slope [0,50]", f"slope of {PILE} from 0B to 50B"),
        (
            "405m/pile--sp/replay-0 pile - 405m/pile pile",
            f"loss on the Pile of {REPLAY} - loss on the Pile of {PILE}",
        ),
        (
            "(405m/pile--sp/replay-0 compute) over (405m/pile compute @2)",
            f"(compute of {REPLAY}) over (compute of {PILE} at 2B)",
        ),
        ("tolerance over spread", "tolerance over spread"),
        ("at least 0.45", "at least 0.45"),
        ("", ""),
    ],
)
def test_quantities_are_told_in_words(studies, text, words):
    assert quantity_in_words(studies["ibrahim2024"], text) == words


def test_sentences_have_no_ids(studies):
    says = partial(says_in_words, studies["ibrahim2024"])
    assert says("sp loss of 405m/pile: larger model, smaller model") == (
        f"SlimPajama loss of {PILE}: larger model, smaller model"
    )
    assert says("Pile to Pile, constant-3e-4: rises") == "Pile to Pile, constant-3e-4: rises"
    assert says("MMLU of 10b/no-run (x)") == "MMLU of 10b/no-run (x)"
