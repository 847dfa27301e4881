"""The one definition of uncertainty, for claims, tables and figures alike.

Differences are paired by seed: initialisation and order of samples are the seed's in every arm. The noise
of a value or a difference joins two parts in quadrature. That of the seeds is, with three or more common
ones, the half-width of the two-sided 95 % t-interval of the values per seed; with fewer it is not known, and
1.96 standard errors over the jitter of the closing evaluations stand for it. That of the documents is 1.96
standard errors over the validation sequences of the weighted difference, averaged over the seeds (sequence by
sequence on the same corpus; without losses per sequence, of each loss by itself), and of benchmark
tasks likewise over their documents (where the answers are not known, each score's standard error). Sequence
losses are those of the last evaluation and stand for other points of a curve too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

from pydantic import PlainSerializer

from cpt_repro.declarations.strict import Strict
from cpt_repro.records.lookup import Trained
from cpt_repro.records.receipts import Evaluation

#: Seeds from which on their scatter is taken for the noise.
ENOUGH_SEEDS = 3
#: Standard errors on either side of a 95 % interval, where they are known well.
NORMAL = 1.96


def rounded(value: float) -> float:
    """Six decimals, so that no digit that is written or printed depends on the order of a sum."""
    return round(value, 6) + 0.0


Number = Annotated[float, PlainSerializer(rounded)]


class Effect(Strict):
    """A value with the half-width of its 95 % interval, and what that was estimated from."""

    #: What it is, where it should be above zero.
    says: str = ""
    value: Number
    noise: Number
    by: str

    @property
    def sign(self) -> int:
        """1 or -1 where the value is clearly above or below zero, else 0."""
        value, noise = rounded(self.value), rounded(self.noise)
        return (value > noise) - (value < -noise)


def spread(noise: float, digits: int = 3) -> str:
    """A noise as it is printed: never as nothing where there is some."""
    return f"± {noise:.{digits}f}" if noise >= 0.5 * 10**-digits else f"± {noise:.1g}" if noise else "(exact)"


@dataclass(frozen=True)
class Sample:
    """A reading of one seed, and what its evaluation says of its noise."""

    value: float
    #: Standard error that it shares with no other reading: of the jitter of evaluations, or of a fit.
    error: float = 0.0
    #: Standard error over the documents of a suite, which are the same for every seed.
    documents: float = 0.0
    #: Task -> which of its documents were answered right, as 0 and 1; the value is a mean over tasks.
    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    #: Corpus -> whose losses per validation sequence it resembles; the value is a mean over corpora.
    losses: Mapping[str, Trained] = field(default_factory=dict)
    #: Of those sequences alone that curves are of.
    along: bool = False


#: What was read of one run or merge, by seed.
Samples = Mapping[int, Sample]


def scores(evaluations: Iterable[Evaluation], suite: str, task: str | None = None) -> dict[int, Sample]:
    """A task's value, or the average of a suite, in percent."""
    samples = {}
    for evaluation in evaluations:
        of = evaluation.suites.get(suite)
        if of and (score := of.tasks.get(task) if task else of):
            value = score.value if task else score.average
            answers = {name: one.answers for name, one in ({task: score} if task else of.tasks).items()}
            samples[evaluation.seed] = Sample(
                100 * value, documents=100 * score.stderr, answers=answers if all(answers.values()) else {}
            )
    return samples


def combined(
    weights: Mapping[Hashable, float], read: Mapping[Hashable, Samples], constant: float = 0.0
) -> Effect:
    """The weighted sum of readings, plus a constant, over the seeds (one or more) that all in `read` have."""
    seeds = sorted(set.intersection(*(set(samples) for samples in read.values())))
    samples = {(key, seed): read[key][seed] for key in weights for seed in seeds}
    each = [constant + sum(w * samples[key, seed].value for key, w in weights.items()) for seed in seeds]
    count, value = len(seeds), math.fsum(each) / len(seeds)
    shares = {both: weights[both[0]] / count for both in samples}
    documents = NORMAL * _document_error(samples, shares)
    if count >= ENOUGH_SEEDS:
        of_seeds, by = _half_width(count) * _error_of_mean(each), f"{count} seeds and the documents"
    else:
        of_seeds = NORMAL * math.hypot(*(shares[both] * sample.error for both, sample in samples.items()))
        by = f"the documents alone, n = {count}"
    return Effect(value=value, noise=math.hypot(of_seeds, documents), by=by)


def difference(one: Samples, other: Samples) -> Effect | None:
    """`one` minus `other`, paired; None where they have no seed in common."""
    both = {"one": one, "other": other}
    return combined({"one": 1.0, "other": -1.0}, both) if set(one) & set(other) else None


def quotient(
    above: Mapping[Hashable, float], below: Mapping[Hashable, float], read: Mapping[Hashable, Samples]
) -> Effect | None:
    """One weighted sum over another, with its noise (delta method), over the seeds that all in `read` have.

    None where they have none in common, or where the sum below is not clear of its noise.
    """
    if not set.intersection(*(set(samples) for samples in read.values())):
        return None
    whole = combined(below, read)
    if not whole.sign:
        return None
    value = combined(above, read).value / whole.value
    rest = {key: above.get(key, 0.0) - value * below.get(key, 0.0) for key in {**above, **below}}
    noise = combined(rest, read)
    return Effect(value=value, noise=abs(noise.noise / whole.value), by=noise.by)


@cache
def _half_width(count: int) -> float:
    """Of the 95 % t-interval of a mean, in standard errors."""
    from scipy import stats  # it takes long to import, and who shows a ledger only needs none of it

    return float(stats.t.ppf(0.975, count - 1))


def _error_of_mean(values: Sequence[float]) -> float:
    """scipy.stats.sem, whose checks take ten times as long."""
    import numpy as np

    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _document_error(
    samples: Mapping[tuple[Hashable, int], Sample], shares: Mapping[tuple[Hashable, int], float]
) -> float:
    """Standard error over documents of a weighted sum of readings of several seeds.

    The documents are the same for every seed: their noise does not average out over them.
    """
    import numpy as np

    together: dict[tuple[str, Hashable], float] = defaultdict(float)
    losses: dict[str, list[tuple[float, Trained, Hashable]]] = defaultdict(list)
    along = any(sample.along for sample in samples.values())
    of_tasks = [sample.answers for sample in samples.values() if sample.documents]
    lengths = {tuple((task, len(answers)) for task, answers in of.items()) for of in of_tasks}
    paired = len(lengths) == 1 and lengths != {()}
    rights: dict[str, list[Any]] = defaultdict(list)
    for both, sample in samples.items():
        if not paired:
            together["", both[0]] += shares[both] * sample.documents
        for task, answers in sample.answers.items() if paired else ():
            rights[task].append(100 * shares[both] / len(sample.answers) * np.array(answers))
        for corpus, source in sample.losses.items():
            losses[corpus].append((shares[both] / len(sample.losses), source, both[0]))
    errors = [_error_of_mean(np.sum(each, axis=0)) for each in rights.values()]
    for corpus, summed in losses.items():
        each = [trained.sequence_losses(corpus, along) for _, trained, _ in summed]
        sizes = set(map(len, each))
        if len(sizes) == 1 and min(sizes) > 1:
            errors.append(_error_of_mean(np.array([weight for weight, _, _ in summed]) @ np.array(each)))
            continue
        for weight, trained, key in summed:
            together[corpus, key] += weight * trained.final[corpus].noise
    return math.hypot(*errors, *together.values())
