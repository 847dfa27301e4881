"""Values of declared quantities with their noise: from the records of a scale, or as published."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import PlainSerializer
from scipy import stats

from cpt_repro.claims.grammar import Quantity, Reading, corpora
from cpt_repro.declarations.published import Points, Value
from cpt_repro.declarations.strict import Strict
from cpt_repro.records.lookup import Evidence, Trained

if TYPE_CHECKING:
    from cpt_repro.exhibits.catalogue import Catalogue

#: A quantity with a weight; None stands for 1.
Part = tuple[float, Quantity | None]
#: Seeds from which on their scatter is taken for the noise.
ENOUGH_SEEDS = 3
#: Standard errors on either side of a 95 % interval, where they are known well.
NORMAL = 1.96
#: Half of the last digit that losses are printed with.
PRINTED = 0.005
#: Billions of tokens within which the first digitised point of a curve is its start.
STARTING = 0.1


def rounded(value: float) -> float:
    """Six decimals, so that no digit that is written or printed depends on the order of a sum."""
    return round(value, 6) + 0.0


Number = Annotated[float, PlainSerializer(rounded)]


class Missing(Exception):
    """A reading cannot be had; the message says why."""


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


def signed(effect: Effect) -> str:
    """An effect as it is printed."""
    return f"{rounded(effect.value):+.3f} ± {rounded(effect.noise):.3f}"


def number(value: float | None, unit: str, published: bool = False) -> str:
    """A value as it is printed: losses with three decimals (published ones with two, where so printed)."""
    if value is None:
        return "-"
    text = f"{rounded(value):.{ {'%': 1, 'nats': 3}.get(unit, 2) }f}"
    return text[:-1] if published and unit == "nats" and text.endswith("0") else text


def linear(parts: Iterable[Part]) -> tuple[dict[Reading, float], float]:
    """The sum of weighted quantities as (weights of readings, constant): every effect is linear in them."""
    weights: dict[Reading | None, float] = defaultdict(float)
    for weight, quantity in parts:
        for own, reading in quantity.terms if quantity else [(1.0, None)]:
            weights[reading] += weight * own
    constant = weights.pop(None, 0.0)
    return {reading: weight for reading, weight in weights.items() if weight}, constant


def _picked(points: Iterable[tuple[float, float]], reading: Reading) -> float:
    """What a reading says of a curve [(billions, y)]."""
    first, last = reading.window or (0.0, math.inf)
    if reading.when == "at":
        return float(np.interp(first, *zip(*points, strict=True)))
    inside = [y for x, y in points if first <= x <= last * (1 + 1e-9) and x > 0]
    if not inside:
        raise Missing(f"no evaluation between {first:g}B and {last:g}B")
    return float(max(inside) if reading.when == "peak" else np.mean(inside))


@dataclass(frozen=True)
class Sample:
    """A reading of one seed, and what its evaluation says of its noise."""

    value: float
    #: Standard error that it shares with no other reading.
    error: float = 0.0
    #: Corpus -> whose losses per validation sequence it resembles; the value is a mean over corpora.
    losses: Mapping[str, Trained] = field(default_factory=dict)


class Measured:
    """Quantities of one paper at one scale, seed by seed.

    Differences are paired by seed: initialisation and order of samples are the seed's in every arm. The
    noise of an effect is, with three or more common seeds, the half-width of the two-sided 95 % t-interval of
    its values per seed (of suites at least that of evaluation too). With fewer it is that of evaluation: 1.96
    standard errors over the validation sequences of the weighted difference (sequence by sequence on the same
    corpus; without losses per sequence, of each loss by itself) and over the jitter of the closing
    evaluations; of suites, their standard errors over documents. Sequence losses are those of the last
    evaluation and stand for other points of a curve too.
    """

    def __init__(self, evidence: Evidence):
        self.evidence, self.study, self.scale = evidence, evidence.study, evidence.scale.name
        self._trained: dict[str, dict[int, Trained]] = {}
        self._samples: dict[Reading, dict[int, Sample]] = {}

    def run(self, reading: Reading) -> str | None:
        """The run or merge that the reading is of at this scale."""
        plan, paper = self.evidence.plan, self.study.name
        return next((name for name in reading.runs if not plan.why_absent(paper, name)), None)

    def _seeds_of(self, run: str) -> dict[int, Trained]:
        if run not in self._trained:
            self._trained[run] = {trained.seed: trained for trained in self.evidence.runs(run)}
        return self._trained[run]

    def samples(self, reading: Reading) -> dict[int, Sample]:
        """The reading by seed; `Missing` if there is none."""
        run = self.run(reading)
        if run is None:
            why = self.evidence.plan.why_absent(self.study.name, reading.runs[-1])
            raise Missing(f"no counterpart: {why}")
        if reading not in self._samples:
            read = {"suite": self._scores, "task": self._scores, "compute": self._compute}
            self._samples[reading] = read.get(reading.what, self._losses)(run, reading)
        if not self._samples[reading]:
            raise Missing(f"{run} was not {'evaluated' if reading.what in ('suite', 'task') else 'run'}")
        return self._samples[reading]

    def _scores(self, run: str, reading: Reading) -> dict[int, Sample]:
        """Scores of a suite or a task, in percent."""
        suite, *names = reading.of
        declared = self.evidence.scale.suites.get(suite)
        if declared is None:
            raise Missing(f"no counterpart: the scale {self.scale} has no {suite} suite")
        tasks = [task for name in names if (task := name.lower().replace("-", "_")) in declared.tasks]
        if names and not tasks:
            raise Missing(f"no counterpart: the {suite} suite of {self.scale} has no {names[0]}")
        samples = {}
        for evaluation in self.evidence.evaluations(run):
            scores = evaluation.suites.get(suite)
            if scores and (score := scores.tasks.get(tasks[0]) if tasks else scores):
                value = score.value if tasks else score.average
                seed = int(evaluation.id.rpartition("seed-")[2])
                samples[seed] = Sample(100 * value, 100 * score.stderr)
        return samples

    def _compute(self, run: str, reading: Reading) -> dict[int, Sample]:
        """Lengths in the paper's unit, known from the plan."""
        planned, unit = self.evidence.plan.find(self.study.name, run), self.study.paper.unit.billions
        return {one.seed: Sample(one.billions / unit) for one in planned}

    def _losses(self, run: str, reading: Reading) -> dict[int, Sample]:
        """Losses (of several corpora their mean), or R² of two of them."""
        read = corpora(self.study, run, reading)
        if lacking := [corpus for corpus in read if corpus not in self.evidence.scale.corpora]:
            raise Missing(f"no counterpart: the scale {self.scale} has no corpus {lacking[0]}")
        all_seeds = self._seeds_of(run)
        there = {s: one for s, one in all_seeds.items() if all(one.curve(corpus) for corpus in read)}
        if all_seeds and not there:
            raise Missing(f"{run} was not measured on {' and '.join(read)}")
        if reading.what == "r_squared":
            return {seed: _fit(trained, read, reading) for seed, trained in there.items()}
        samples = {}
        for seed, trained in there.items():
            sources = {corpus: self._resembled(trained, corpus, reading) for corpus in read}
            jitter = math.hypot(*(_jitter(source, corpus, reading) for corpus, source in sources.items()))
            value = sum(_loss(trained, corpus, reading) for corpus in read) / len(read)
            samples[seed] = Sample(value, jitter / len(read), sources)
        return samples

    def _resembled(self, trained: Trained, corpus: str, reading: Reading) -> Trained:
        """Whose last evaluation a reading resembles: at the start, the parent's, if there is one."""
        if reading.when == "start" and (parent := trained.run.parent):
            above = self.evidence.plan.runs[parent]
            own = above.paper == self.study.name
            one = self._seeds_of(above.name if own else f"{above.paper}/{above.name}").get(above.seed)
            return one if one and corpus in one.final else trained
        return trained

    def seeds(self, readings: Iterable[Reading]) -> list[int]:
        """Seeds that all readings have; `Missing` if there are none."""
        common = set.intersection(*(set(self.samples(reading)) for reading in readings))
        if not common:
            raise Missing("its runs have no seed in common")
        return sorted(common)

    def effect(self, pool: Iterable[Reading], *parts: Part) -> Effect:
        """The sum of weighted quantities and its noise, over the seeds common to `pool`."""
        weights, constant = linear(parts)
        seeds = self.seeds(pool)
        each = [constant + sum(w * self.samples(r)[seed].value for r, w in weights.items()) for seed in seeds]
        count, kinds = len(seeds), {reading.what for reading in weights}
        if kinds <= {"compute"}:
            noise, by = 0.0, "exact"
        elif count < ENOUGH_SEEDS:
            noise = NORMAL * self._evaluation_error(weights, seeds)
            by = f"evaluation noise, {count} seed{'s' if count > 1 else ''}"
        else:
            noise, by = stats.t.ppf(0.975, count - 1) * stats.sem(each), f"{count} seeds"
            if kinds & {"suite", "task"}:  # whose few documents are the same for every seed
                noise = max(noise, NORMAL * self._evaluation_error(weights, seeds[:1]))
                by = f"{count} seeds and the suite's documents"
        return Effect(value=np.mean(each), noise=noise, by=by)

    def _evaluation_error(self, weights: dict[Reading, float], seeds: list[int]) -> float:
        """Standard error of a weighted sum of readings, averaged over `seeds`, from single evaluations."""
        errors, losses = [], defaultdict(list)
        for (reading, weight), seed in product(weights.items(), seeds):
            sample, share = self.samples(reading)[seed], weight / len(seeds)
            errors.append(share * sample.error)
            for corpus, source in sample.losses.items():
                losses[corpus].append((share / len(sample.losses), source, reading))
        for corpus, summed in losses.items():
            each = [trained.sequence_losses(corpus) for _, trained, _ in summed]
            lengths = set(map(len, each))
            if len(lengths) == 1 and min(lengths) > 1:
                errors.append(stats.sem(np.array([weight for weight, _, _ in summed]) @ np.array(each)))
                continue
            # The sequences are the same for every seed: their noise does not average out.
            together: dict[Reading, float] = defaultdict(float)
            for weight, trained, reading in summed:
                together[reading] += weight * trained.final[corpus].noise
            errors += together.values()
        return math.hypot(*errors)


def _loss(trained: Trained, corpus: str, reading: Reading) -> float:
    if reading.when == "final":
        return trained.final[corpus].loss
    curve = trained.curve(corpus)
    begin = reading.window[0] if reading.when == "at" else 0.0
    if reading.when in ("start", "at") and not curve[0][0] <= begin <= 1.01 * curve[-1][0]:
        raise Missing(f"{trained.run.name} was not measured at {begin:g}B")
    return curve[0][1] if reading.when == "start" else _picked(curve, reading)


def _jitter(trained: Trained, corpus: str, reading: Reading) -> float:
    """Standard error of a loss from the scatter of the closing evaluations."""
    final = trained.final[corpus]
    if reading.when == "final":
        return final.stderr
    first, last = reading.window or (0.0, math.inf)
    averaged = sum(first <= x <= last and x > 0 for x, _ in trained.curve(corpus))
    return final.stderr * math.sqrt(final.evaluations / (averaged or 1 if reading.when == "mean" else 1))


def _fit(trained: Trained, read: tuple[str, ...], reading: Reading) -> Sample:
    """R² of the straight line through a run's perplexities on two corpora; its error by the delta method."""
    first, last = reading.window or (0.0, math.inf)
    one, other = (dict(trained.curve(corpus)) for corpus in read)
    inside = [x for x in one if x in other and first <= x <= last * (1 + 1e-9)]
    if len(inside) < 3:
        raise Missing("fewer than three evaluations in the window")
    both = [np.exp([curve[x] for x in inside]) for curve in (one, other)]
    if 0 in map(np.ptp, both):
        raise Missing("a loss does not vary in the window")
    r = float(np.corrcoef(*both)[0, 1])
    return Sample(r * r, 2 * abs(r) * (1 - r * r) / math.sqrt(len(inside) - 1))


class AsPublished:
    """The same quantities as published, without noise; a gain of half a printed digit is allowed.

    Curves come from the figure that shows most of the runs `beside` them: figures do not always agree.
    """

    scale = "paper"

    def __init__(self, catalogue: Catalogue, paper: str, beside: Iterable[str] = ()):
        self.catalogue, self.study = catalogue, catalogue.plan.studies[paper]
        self.beside = [self.study.resolve(name) for name in beside]

    def value(self, reading: Reading) -> Value:
        """The value with mark and place; `Missing` where nothing was published."""
        for run in reading.runs:
            if value := self._find(run, reading):
                return value
        raise Missing("not published")

    def _find(self, run: str, reading: Reading) -> Value | None:
        paper, name = self.study.resolve(run)
        published = self.catalogue.counterparts(paper)
        if reading.what in ("suite", "task"):
            return published.score(name, *reading.of[:2])
        if reading.what == "compute":
            return published.compute(name)
        if reading.what == "r_squared":
            return None
        read = corpora(self.study, run, reading)
        if reading.when == "final":
            return published.loss(name, read)
        beside = tuple(other for of, other in self.beside if of == paper)
        curve = published.curve(name, read[0], beside) if len(read) == 1 else None
        if reading.when == "start":
            return self._start(paper, name, read[0], curve)
        if curve is None:
            return None
        points, place = curve
        # Digitised curves may end a little before their plot does.
        if reading.when == "at" and not points[0][0] - 0.5 <= reading.window[0] <= points[-1][0] / 0.95:
            return None
        try:
            return Value(value=_picked(points, reading), mark="digitised", place=place)
        except Missing:
            return None

    def _start(self, paper: str, name: str, corpus: str, curve: tuple[Points, str] | None) -> Value | None:
        """The start of a run's own curve, else its parent's loss there."""
        if curve and curve[0][0][0] <= STARTING:
            return Value(value=curve[0][0][1], mark="digitised", place=f"{curve[1]}, start")
        study = self.catalogue.plan.studies[paper]
        parent = study.paper.runs[name].init_from
        if parent is None or parent.run is None:
            return None
        paper, name = study.resolve(parent.run)
        published = self.catalogue.counterparts(paper)
        if parent.iteration is None:
            return published.loss(name, (corpus,))
        if not (curve := published.curve(name, corpus)):
            return None
        points, place = curve
        begin = study.studies[paper].paper.billions(name, parent.iteration)
        value = float(np.interp(begin, *zip(*points, strict=True)))
        return Value(value=value, mark="digitised", place=f"{place} at {begin:.0f}B")

    def seeds(self, readings: Iterable[Reading]) -> list[int]:
        """One; `Missing` if a reading was not published."""
        return [0 for reading in readings if self.value(reading)][:1]

    def effect(self, pool: Iterable[Reading], *parts: Part) -> Effect:
        """The value with half a digit added in favour of the claim, and no noise."""
        weights, value = linear(parts)
        value += sum(weight * float(self.value(reading).value) for reading, weight in weights.items())
        value += PRINTED * max(map(abs, weights.values()), default=0.0)
        return Effect(value=value, noise=0, by="as published")

    def about(self, of: Quantity, over: Quantity | None = None) -> Value | None:
        """A published quantity, or its quotient over another; None if a part of it was not published."""
        try:
            sides = [[(w, self.value(r)) for w, r in side.terms] for side in (of, over) if side]
        except Missing:
            return None
        above, *below = [sum(weight * float(value.value) for weight, value in side) for side in sides]
        if 0 in below:
            return None
        values = [value for side in sides for _, value in side]
        marks = {value.mark for value in values}
        mark = "digitised" if "digitised" in marks else "derived" if len(values) > 1 else marks.pop()
        place = "; ".join(dict.fromkeys(value.place for value in values))
        return Value(value=above / below[0] if below else above, mark=mark, place=place)
