"""Synthetic languages: fixed for ever, and of the entropy that is said."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
import yaml
from tiny_corpora import refused

from cpt_repro.data.languages import entropy_rate, make_documents, make_topics, make_words
from cpt_repro.data.tokenizer import load_tokenizer
from cpt_repro.declarations.manifests import Generated, load_manifest
from cpt_repro.declarations.strict import parse

LANGUAGE = "b28151e49a0d447942e204a9666fbe2edcee2893a573c68b7b3640f18648698a"


def language(**more):
    value = {
        "kind": "generated", "name": "toy", "title": "toy", "about": "a test's", "licence": "CC0", "seed": 3,
        "domains": {"a": 0.75, "b": 0.25}, "mixes": {"a": [1, 0], "b": [0.5, 0.5]},
        "vocabulary": {"seed": 1, "words": 60, "shapes": ["cvcv", "cvccv"]},
        "topics": 2, "topic_words": 40, "topic_seed": 2, "successors": 12,
        "document_words": [60, 200], "words": {"train": 100_000, "validation": 2000},
    }  # fmt: skip
    return parse(Generated, value | more, "a test")


def test_the_text_does_not_change_with_versions_of_python_or_numpy():
    text = "\n".join(document["text"] for document in make_documents(language(), "validation"))
    assert hashlib.sha256(text.encode()).hexdigest() == LANGUAGE
    other = language(seed=4)
    assert make_topics(other) == make_topics(language())
    assert list(make_documents(other, "validation")) != list(make_documents(language(), "validation"))


def test_languages_of_the_smoke_scale(repository):
    upstream, weak, strong = (
        load_manifest(repository, f"smoke_{name}") for name in ("upstream", "weak", "strong")
    )
    assert make_topics(weak) == make_topics(upstream)
    words = make_words(upstream.vocabulary)
    assert len(set(words)) == len(words) == 148
    others = {word for topic in make_topics(strong) for word in topic.words}
    assert 20 <= len(others & set(words)) <= 30 < 100 <= len(others)


def test_the_entropy_rate_equals_an_empirical_estimate():
    toy = language(domains={"b": 1.0}, mixes={"b": [0, 1]})
    pairs, firsts = Counter(), Counter()
    for document in make_documents(toy, "train"):
        words = document["text"].split()
        assert 60 <= len(words) <= 200
        pairs.update(zip(words, words[1:], strict=False))
        firsts.update(words[:-1])
    total = sum(pairs.values())
    estimate = -sum(n / total * math.log(n / firsts[a]) for (a, _), n in pairs.items())
    estimate += (len(pairs) - len(firsts)) / (2 * total)  # Miller-Madow, for the bias of counted frequencies
    assert estimate == pytest.approx(entropy_rate(toy), abs=0.01)
    # The long-run probabilities of the words are met as well.
    topic = make_topics(toy)[1]
    seen = np.array([firsts[word] for word in topic.words]) / total
    assert np.abs(seen - topic.stationary).sum() < 0.05


def test_the_entropy_floor_of_a_built_language(local):
    path = local.project.manifests / "toy.yaml"
    path.write_text(yaml.safe_dump(language().model_dump(mode="json")))
    local.scale = local.scale.model_copy(update={"corpora": {"pile": "toy"}})
    local.build()
    tokenizer = load_tokenizer(local.root / "tokenizer")
    texts = [document["text"] for document in make_documents(language(), "validation")]
    tokens = sum(len(tokenizer.encode(text).ids) + 1 for text in texts)
    floor = entropy_rate(language()) * sum(len(text.split()) for text in texts) / tokens
    assert local.fingerprint().entropy_floor == pytest.approx(floor, abs=1e-6)
    assert local.fingerprint().shares == {"a": 0.75, "b": 0.25}


def test_too_few_words_are_told():
    toy = language(vocabulary={"seed": 1, "words": 60, "shapes": ["cv"]}).vocabulary
    assert "the shapes cv do not give" in refused(lambda: make_words(toy.model_copy(update={"words": 76})))
    # At once, and not after a thousand draws a word.
    assert "the shapes cv do not give" in refused(lambda: make_words(toy.model_copy(update={"words": 10**9})))
