"""Synthetic languages: made-up words, and for each topic a Markov chain over them whose entropy is known.

Only `random.Random(...).random()` and exact arithmetic decide about the text: that stream is guaranteed to stay
the same, numpy's generators are not.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from cpt_repro.declarations.manifests import Generated, Split, Vocabulary
from cpt_repro.errors import UserError

CONSONANTS = "bdfghklmnprstvz"
VOWELS = "aeiou"


def _random(*key: object) -> random.Random:
    """A generator of its own for every key, so that nothing depends on the order in which things are made."""
    text = "/".join(map(str, key))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def _below(rng: random.Random, n: int) -> int:
    return int(rng.random() * n)


def _sample(rng: random.Random, items: list, n: int) -> list:
    """`n` different items, in random order (partial Fisher-Yates)."""
    pool = list(items)
    for i in range(n):
        j = i + _below(rng, len(pool) - i)
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:n]


def make_words(vocabulary: Vocabulary, avoid: frozenset[str] = frozenset()) -> list[str]:
    """The vocabulary's pronounceable words, all different and none of `avoid`; too few possible: `UserError`."""
    rng = _random("words", vocabulary.seed)
    found: dict[str, None] = {}
    for _ in range(1000 * vocabulary.words):
        shape = vocabulary.shapes[_below(rng, len(vocabulary.shapes))]
        letters = (CONSONANTS if kind == "c" else VOWELS for kind in shape)
        word = "".join(some[_below(rng, len(some))] for some in letters)
        if word not in avoid:
            found[word] = None
        if len(found) == vocabulary.words:
            return list(found)
    fault = f"the shapes {', '.join(vocabulary.shapes)} do not give {vocabulary.words} words."
    raise UserError(fault, do="Give the vocabulary more or longer shapes.")


@dataclass(frozen=True)
class Topic:
    """One Markov chain. Word k of `words` is followed by one of `following[k]`, with the Zipf weights below."""

    words: list[str]
    following: list[list[int]]
    #: Cumulative probabilities of a word's successors; equal for all words.
    cumulative: list[float]
    #: Probability of each word in the long run, and the same cumulated.
    stationary: list[float]
    start: list[float]
    #: Entropy rate in nats per word.
    entropy: float


def _stationary(following: list[list[int]], weights: list[float]) -> list[float]:
    """Long-run word probabilities by power iteration (successors are few, so this is quick without matrices)."""
    n = len(following)
    now = [1 / n] * n
    for _ in range(500):
        new = [0.0] * n
        for mass, successors in zip(now, following, strict=True):
            for word, weight in zip(successors, weights, strict=True):
                new[word] += mass * weight
        change = sum(abs(a - b) for a, b in zip(now, new, strict=True))
        now = new
        if change < 1e-12:
            break
    return now


def _vocabulary(manifest: Generated) -> list[str]:
    if manifest.borrowed is None:
        return make_words(manifest.vocabulary)
    theirs = make_words(manifest.borrowed)
    return theirs[: manifest.borrowed.take] + make_words(manifest.vocabulary, frozenset(theirs))


def make_topics(manifest: Generated) -> list[Topic]:
    """The language's chains; the same for manifests that agree in vocabulary, topics and topic seed."""
    words = _vocabulary(manifest)
    zipf = [1 / rank for rank in range(1, manifest.successors + 1)]
    total = sum(zipf)
    weights = [weight / total for weight in zipf]
    bigram_entropy = -sum(weight * math.log(weight) for weight in weights)
    topics = []
    for number in range(manifest.topics):
        rng = _random("topic", manifest.topic_seed, number)
        own = _sample(rng, words, manifest.topic_words)
        following = [_sample(rng, range(len(own)), manifest.successors) for _ in own]
        stationary = _stationary(following, weights)
        # The entropy of every word's successors, weighted by the word's long-run probability. The successors' weights
        # are the same for all words here, so the weighting changes nothing; it is written out because it is the rule.
        entropy = math.fsum(probability * bigram_entropy for probability in stationary)
        cumulative = list(accumulate(weights))
        topics.append(Topic(own, following, cumulative, stationary, list(accumulate(stationary)), entropy))
    return topics


def topic_shares(manifest: Generated) -> list[float]:
    """Share of each topic in the corpus' words (documents of all topics are equally long on average)."""
    shares = [0.0] * manifest.topics
    for domain, share in manifest.domains.items():
        for topic, weight in enumerate(manifest.mixes[domain]):
            shares[topic] += share * weight
    return shares


def entropy_rate(manifest: Generated) -> float:
    """Nats per word that no model can go below: the chains' entropy rates, weighted by the topics' shares.

    A lower bound of what can be reached: finding out the topic and the documents' ends costs a little more.
    """
    rates = (topic.entropy for topic in make_topics(manifest))
    return math.fsum(share * rate for share, rate in zip(topic_shares(manifest), rates, strict=True))


def _draw(rng: random.Random, cumulative: list[float]) -> int:
    # The last bound may fall short of 1 by rounding.
    return min(bisect_right(cumulative, rng.random()), len(cumulative) - 1)


def make_document(manifest: Generated, topics: list[Topic], split: Split, domain: str, number: int) -> str:
    """Document `number` of a domain: words of one topic's chain, separated by spaces; depends on the arguments only."""
    rng = _random("document", manifest.seed, split, domain, number)
    topic = topics[_draw(rng, list(accumulate(manifest.mixes[domain])))]
    shortest, longest = manifest.document_words
    length = shortest + _below(rng, longest - shortest + 1)
    word = _draw(rng, topic.start)
    chosen = [topic.words[word]]
    for _ in range(length - 1):
        word = topic.following[word][_draw(rng, topic.cumulative)]
        chosen.append(topic.words[word])
    return " ".join(chosen)


def make_documents(manifest: Generated, split: Split) -> Iterator[dict[str, str]]:
    """All documents of a split, domain by domain, as `{id, domain, text}`."""
    topics = make_topics(manifest)
    for domain, share in manifest.domains.items():
        words, number = 0, 0
        while words < manifest.words[split] * share:
            text = make_document(manifest, topics, split, domain, number)
            yield {"id": f"{manifest.name}/{split}/{domain}/{number:06d}", "domain": domain, "text": text}
            words += text.count(" ") + 1
            number += 1
