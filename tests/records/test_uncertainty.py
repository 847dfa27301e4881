"""Noise of scores: paired over documents that two models answered, alone where the answers are unknown."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_repro.records.receipts import Evaluation, Score, SuiteScores
from cpt_repro.records.uncertainty import Sample, combined, difference, quotient, scores

NORMAL = 1.96


def evaluation(tasks, seed=0, known=True):
    """What a model answered: task -> 0 and 1."""

    def score(answers):
        n, value = len(answers), float(np.mean(answers))
        error = math.sqrt(value * (1 - value) / (n - 1))
        right = Score.packed(answers) if known else None
        return Score(metric="acc", value=value, stderr=error, documents=n, right=right, declaration="d")

    suites = {"english": SuiteScores(tasks={name: score(answers) for name, answers in tasks.items()})}
    about = {"identity": "0" * 64, "suites_fingerprint": "0" * 64, "environment": {}}
    return Evaluation(id=f"paper/run/seed-{seed}", suites=suites, **about)


@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=40))
def test_answers_are_kept_as_they_are(answers):
    score = Score(
        metric="m", value=0, stderr=0, documents=len(answers), right=Score.packed(answers), declaration="d"
    )
    assert [*score.answers] == answers
    assert Score.packed([*answers, 0.5]) is None


def test_models_that_fail_on_the_same_documents_are_compared_document_by_document():
    one, other = [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]
    first, second = (scores([evaluation({"a": of})], "english", "a") for of in (one, other))
    apart = np.array(one) - np.array(other)
    assert difference(first, second).value == pytest.approx(12.5)
    assert difference(first, second).noise == pytest.approx(NORMAL * 100 * apart.std(ddof=1) / math.sqrt(8))
    # Where the answers of one are not known, each score has the noise of its own documents.
    unknown = scores([evaluation({"a": other}, known=False)], "english", "a")
    alone = [NORMAL * sample[0].documents for sample in (first, unknown)]
    assert difference(first, unknown).noise == pytest.approx(math.hypot(*alone))
    assert combined({"it": 1}, {"it": first}).noise == pytest.approx(alone[0])


def test_a_share_of_a_fall_is_what_the_same_share_of_a_rise_is():
    """Tables tell losses on new data as shares of a distance that is negative; its size must be clear."""
    read = {"none": [0.0, 0.0, 0.0], "some": [0.5, 0.6, 0.7], "all": [1.0, 1.01, 0.99]}
    read = {name: dict(enumerate(Sample(value) for value in values)) for name, values in read.items()}
    rise = quotient({"some": 1.0, "none": -1.0}, {"all": 1.0, "none": -1.0}, read)
    fall = quotient({"none": 1.0, "some": -1.0}, {"none": 1.0, "all": -1.0}, read)
    assert (fall.value, fall.noise) == pytest.approx((rise.value, rise.noise)) and rise.noise > 0
    assert quotient({"some": 1.0}, {"all": 1.0, "some": -1.66}, read) is None  # 0 within its noise


def test_the_average_of_a_suite_has_the_noise_of_its_tasks():
    rng = np.random.default_rng(0)
    answers = [{name: rng.integers(0, 2, size) for name, size in (("a", 50), ("b", 70))} for _ in range(2)]
    first, second = (
        scores([evaluation({k: v.tolist() for k, v in of.items()})], "english") for of in answers
    )
    each = [answers[0][name] - answers[1][name] for name in ("a", "b")]
    errors = [100 * of.std(ddof=1) / math.sqrt(len(of)) / 2 for of in each]
    assert difference(first, second).noise == pytest.approx(NORMAL * math.hypot(*errors))


def test_seeds_answer_the_same_documents():
    """Of three seeds that agree on everything the noise of the documents is not divided by three."""
    answers = [1, 0, 1, 1, 0, 1]
    three = scores([evaluation({"a": answers}, seed) for seed in range(3)], "english", "a")
    single = scores([evaluation({"a": answers})], "english", "a")
    assert combined({"it": 1}, {"it": three}).noise == pytest.approx(
        combined({"it": 1}, {"it": single}).noise
    )
    assert difference(three, single).noise == pytest.approx(0, abs=1e-12)
