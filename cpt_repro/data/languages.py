"""Synthetic languages: made-up words, and for each topic a Markov chain over them whose entropy is known.

Only `random.Random(...).random()` and arithmetic in a fixed order decide about the text: that stream is
guaranteed to stay the same, numpy's generators are not.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

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
    """The vocabulary's pronounceable words, all different and none of `avoid`; too few: `UserError`."""
    rng = _random("words", vocabulary.seed)
    words: dict[str, None] = {}
    sizes = {"c": len(CONSONANTS), "v": len(VOWELS)}
    there_are = sum(math.prod(sizes[kind] for kind in shape) for shape in set(vocabulary.shapes))
    for _ in range(1000 * vocabulary.words if vocabulary.words <= there_are else 0):
        shape = vocabulary.shapes[_below(rng, len(vocabulary.shapes))]
        letters = (CONSONANTS if kind == "c" else VOWELS for kind in shape)
        word = "".join(some[_below(rng, len(some))] for some in letters)
        if word not in avoid:
            words[word] = None
        if len(words) == vocabulary.words:
            return list(words)
    fault = f"the shapes {', '.join(vocabulary.shapes)} do not give {vocabulary.words} words."
    raise UserError(fault, do="Give the vocabulary more or longer shapes.")


def _weights(manifest: Generated) -> list[float]:
    """Probabilities of a word's successors, by rank: the same for all words and topics."""
    zipf = [1 / rank for rank in range(1, manifest.successors + 1)]
    total = sum(zipf)
    return [weight / total for weight in zipf]


def entropy_rate(manifest: Generated) -> float:
    """Nats per word that no model can go below: the entropy of a word's successors, the same for all words.

    A lower bound of what can be reached: finding out the topic and the documents' ends costs a little more.
    """
    return -sum(weight * math.log(weight) for weight in _weights(manifest))


@dataclass(frozen=True)
class Topic:
    """One Markov chain. Word k of `words` is followed by one of `following[k]`, with Zipf's weights."""

    words: list[str]
    following: list[list[int]]
    #: Probability of each word in the long run.
    stationary: list[float]


def _stationary(following: list[list[int]], weights: list[float]) -> list[float]:
    """Long-run word probabilities by power iteration; added up in the order of words, so always the same."""
    successors, now = np.array(following).ravel(), np.full(len(following), 1 / len(following))
    for _ in range(500):
        before, now = now, np.bincount(successors, np.outer(now, weights).ravel(), len(following))
        if sum(np.abs(before - now).tolist()) < 1e-12:
            break
    return now.tolist()


def make_topics(manifest: Generated) -> list[Topic]:
    """The language's chains; the same for manifests that agree in vocabulary, topics and topic seed."""
    theirs = make_words(manifest.borrowed) if manifest.borrowed else []
    words = theirs[: manifest.borrowed.take] if theirs else []
    words += make_words(manifest.vocabulary, frozenset(theirs))
    topics = []
    for number in range(manifest.topics):
        rng = _random("topic", manifest.topic_seed, number)
        own = _sample(rng, words, manifest.topic_words)
        following = [_sample(rng, range(len(own)), manifest.successors) for _ in own]
        topics.append(Topic(own, following, _stationary(following, _weights(manifest))))
    return topics


def _draw(rng: random.Random, cumulative: list[float]) -> int:
    # The last bound may fall short of 1 by rounding.
    return min(bisect_right(cumulative, rng.random()), len(cumulative) - 1)


def make_documents(manifest: Generated, split: Split) -> Iterator[dict[str, str]]:
    """All documents of a split, domain by domain, as `{id, domain, text}`: words of one topic's chain each.

    A document depends on its number, domain and split only.
    """
    topics = [(topic, list(accumulate(topic.stationary))) for topic in make_topics(manifest)]
    successors = list(accumulate(_weights(manifest)))
    shortest, longest = manifest.document_words
    for domain, share in manifest.domains.items():
        mix = list(accumulate(manifest.mixes[domain]))
        made, number = 0, 0
        while made < manifest.words[split] * share:
            rng = _random("document", manifest.seed, split, domain, number)
            topic, start = topics[_draw(rng, mix)]
            length = shortest + _below(rng, longest - shortest + 1)
            word = _draw(rng, start)
            words = [topic.words[word]]
            for _ in range(length - 1):
                word = topic.following[word][_draw(rng, successors)]
                words.append(topic.words[word])
            identifier = f"{manifest.name}/{split}/{domain}/{number:06d}"
            yield {"id": identifier, "domain": domain, "text": " ".join(words)}
            made += length
            number += 1
