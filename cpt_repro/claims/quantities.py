"""Values of declared quantities with their noise: from the records of a scale, or as published."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from itertools import product

import numpy as np

from cpt_repro.claims.grammar import Quantity, Reading, Test, corpora
from cpt_repro.declarations.published import Points, Value
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.records import uncertainty
from cpt_repro.records.lookup import Evidence, Trained
from cpt_repro.records.uncertainty import NORMAL, Effect, Sample, Samples, combined, rounded, spread

#: A quantity with a weight; None stands for 1.
Part = tuple[float, Quantity | None]
#: Half of the last digit that losses are printed with.
PRINTED = 0.005
#: Billions of tokens within which the first digitised point of a curve is its start.
STARTING = 0.1


class Missing(Exception):
    """A reading cannot be had; the message says why, of `run` if it is one's own."""

    def __init__(self, why: str, run: str = ""):
        self.why, self.run = why, run
        super().__init__(f"{run} {why}".strip())

    @staticmethod
    def together(each: Iterable[Missing]) -> Missing:
        """Several as one, runs that lack the same in one sentence."""
        runs: dict[str, dict[str, None]] = defaultdict(dict)
        for one in each:
            runs[one.why][one.run] = None
        told = []
        for why, names in runs.items():
            plural = why.replace("has ", "have ", 1).replace("was ", "were ", 1)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            told.append(f"{', '.join([*names][:3])}{more} {plural if len(names) > 1 else why}".strip())
        return Missing("; ".join(told))


def signed(effect: Effect) -> str:
    """An effect as it is printed: one within its noise without its own size."""
    noise = spread(rounded(effect.noise))
    return f"{rounded(effect.value):+.3f} {noise}" if effect.sign or not effect.noise else f"within {noise}"


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
        raise Missing(f"no evaluation that the compared runs share between {first:g}B and {last:g}B")
    return float(max(inside) if reading.when == "peak" else np.mean(inside))


class Measured:
    """Quantities of one paper at one scale, seed by seed.

    Their noise is that of `records.uncertainty`. Curves are read only at points that were measured, and of
    several runs only at those that all have.
    """

    def __init__(self, evidence: Evidence):
        self.evidence, self.study, self.scale = evidence, evidence.study, evidence.scale.name
        self._seeds_of = cache(self._by_seed)
        self._samples: dict[tuple[bool | Reading, ...], Samples] = {}

    def run(self, reading: Reading) -> str | None:
        """The run or merge that the reading is of at this scale."""
        plan, paper = self.evidence.plan, self.study.name
        return next((name for name in reading.runs if not plan.why_absent(paper, name)), None)

    def _by_seed(self, run: str) -> dict[int, Trained]:
        return {trained.seed: trained for trained in self.evidence.runs(run)}

    def samples(self, reading: Reading, pool: Iterable[Reading] = (), along: bool = False) -> Samples:
        """The reading by seed, beside the others of a test; `Missing` if there is none.

        `along`: as beside a point of a curve, which may be of fewer validation sequences than the ends.
        """
        run = self.run(reading)
        if run is None:
            why = self.evidence.plan.why_absent(self.study.name, reading.runs[-1])
            raise Missing(f"no counterpart: {why}")
        points = (reading.what, reading.when, reading.window)
        alike = (one for one in pool if reading.along and (one.what, one.when, one.window) == points)
        beside = tuple(dict.fromkeys(alike))
        if (asked := (along, reading, *beside)) not in self._samples:
            if reading.what in ("suite", "task"):
                self._samples[asked] = self._scores(run, reading)
            elif reading.what == "compute":
                planned, unit = self.evidence.plan.find(self.study.name, run), self.study.paper.unit.billions
                self._samples[asked] = {one.seed: Sample(one.billions / unit) for one in planned}
            else:
                self._samples[asked] = self._losses(run, reading, beside, along)
        if not self._samples[asked]:
            raise Missing(f"was not {'evaluated' if reading.what in ('suite', 'task') else 'run'}", run)
        return self._samples[asked]

    def _scores(self, run: str, reading: Reading) -> Samples:
        """Scores of a suite or a task, in percent."""
        suite, *names = reading.of
        declared = self.evidence.scale.suites.get(suite)
        if declared is None:
            raise Missing(f"no counterpart: the scale {self.scale} has no {suite} suite")
        tasks = [task for name in names if (task := name.lower().replace("-", "_")) in declared.tasks]
        if names and not tasks:
            raise Missing(f"no counterpart: the {suite} suite of {self.scale} has no {names[0]}")
        return uncertainty.scores(self.evidence.evaluations(run), suite, tasks[0] if tasks else None)

    def _losses(self, run: str, reading: Reading, beside: tuple[Reading, ...], along: bool) -> Samples:
        """Losses (of several corpora their mean), or the slope of one against the other."""
        read = corpora(self.study, run, reading)
        if lacking := [corpus for corpus in read if corpus not in self.evidence.scale.corpora]:
            raise Missing(f"no counterpart: the scale {self.scale} has no corpus {lacking[0]}")
        all_seeds = self._seeds_of(run)
        there = {s: one for s, one in all_seeds.items() if all(one.curve(corpus) for corpus in read)}
        if all_seeds and not there:
            raise Missing(f"was not measured on {' and '.join(read)}", run)
        others = [curve for one in beside if (other := self.run(one)) for curve in self._curves(other, one)]
        samples = {}
        for seed, trained in there.items():
            shared = partial(_shared, others=others, within=trained.run.position(0.5))
            if reading.what == "slope":
                samples[seed] = _slope(*(shared(trained.curve(corpus)) for corpus in read), reading)
                continue
            sources = {corpus: self._resembled(trained, corpus, reading) for corpus in read}
            jitter = math.hypot(*(_jitter(source, corpus, reading) for corpus, source in sources.items()))
            value = sum(_loss(trained, corpus, reading, shared, along) for corpus in read) / len(read)
            samples[seed] = Sample(value, error=jitter / len(read), losses=sources, along=along)
        return samples

    def _curves(self, run: str, reading: Reading) -> list[list[float]]:
        """Where the curves that a reading is made of have points, in billions."""
        every = product(self._seeds_of(run).values(), corpora(self.study, run, reading))
        return [[x for x, _ in curve] for trained, corpus in every if (curve := trained.curve(corpus))]

    def _resembled(self, trained: Trained, corpus: str, reading: Reading) -> Trained:
        """Whose last evaluation a reading resembles: at the start, the parent's, if there is one."""
        if reading.when != "start" or not trained.run.parent:
            return trained
        above = self.evidence.plan.runs[trained.run.parent]
        name = above.name if above.paper == self.study.name else f"{above.paper}/{above.name}"
        one = self._seeds_of(name).get(above.seed)
        return one if one and corpus in one.final else trained

    def number_of_seeds(self, reading: Reading) -> int | None:
        """On how many seeds a reading rests; None of what is known without any run."""
        if reading.what == "compute" or (run := self.run(reading)) is None:
            return None
        if reading.what in ("suite", "task"):
            return len(self.evidence.evaluations(run))
        return len(self._seeds_of(run))

    def lacks(self, test: Test) -> str | None:
        """Why the scale cannot decide a test, by what that says it needs."""
        needs = test.needs
        runs = {run for reading in test.readings() if (run := self.run(reading))} if needs else ()
        for planned in (one for run in sorted(runs) if (one := self.evidence.planned(run))):
            training = planned.training
            warmup = round(getattr(training.schedule, "warmup_frac", 0) * training.schedule_iterations)
            before = sum(run.parent_iteration or 0 for run in self.evidence.plan.lineage(planned.id))
            for count, what, least in (
                (before + training.iterations, "iterations with what it starts from", needs.iterations),
                (warmup, "iterations of warm-up", warmup and needs.warmup_iterations),
            ):
                if least and count < least:
                    return f"{planned.name} has {count} {what}, {least} are needed: {needs.why}"
        return None

    def seeds(self, readings: Iterable[Reading]) -> list[int]:
        """Seeds that all readings have; `Missing` if there are none."""
        readings, each, missing = list(readings), [], []
        for reading in readings:
            try:
                each.append(set(self.samples(reading, readings)))
            except Missing as one:
                missing.append(one)
        if missing:
            raise Missing.together(missing)
        if not (common := set.intersection(*each)):
            raise Missing("its runs have no seed in common")
        return sorted(common)

    def effect(self, pool: Iterable[Reading], *parts: Part) -> Effect:
        """The sum of weighted quantities and its noise, over the seeds common to `pool`."""
        weights, constant = linear(parts)
        effect = combined(weights, self._read(pool, weights), constant)
        exact = {reading.what for reading in weights} <= {"compute"}
        return effect.model_copy(update={"noise": 0.0, "by": "exact"}) if exact else effect

    def quotient(self, pool: Iterable[Reading], of: Quantity, over: Quantity) -> Effect | None:
        """One quantity over another with its noise; None where the latter is not clearly above zero."""
        (above, _), (below, _) = linear([(1, of)]), linear([(1, over)])
        read = self._read(pool, {**above, **below})
        return uncertainty.quotient(above, below, read) if combined(below, read).sign > 0 else None

    def _read(self, pool: Iterable[Reading], readings: Iterable[Reading]) -> dict[Reading | None, Samples]:
        """Readings by the seeds common to `pool`; beside a point of a curve all are of its sequences."""
        pool, readings = tuple(pool), tuple(readings)
        seeds = self.seeds(pool)
        along = any(r.what == "loss" and r.when in ("at", "peak", "mean") for r in readings)
        read = {r: {seed: self.samples(r, pool, along)[seed] for seed in seeds} for r in readings}
        return read or {None: dict.fromkeys(seeds)}


Curve = list[tuple[float, float]]


def _shared(curve: Curve, others: list[list[float]], within: float) -> Curve:
    """The points of a curve that all others have too, up to half an iteration of its own."""
    near = [np.array(points) for points in others]
    return [p for p in curve if all(np.min(np.abs(points - p[0])) <= 1.01 * within for points in near)]


def _loss(
    trained: Trained, corpus: str, reading: Reading, shared: Callable[[Curve], Curve], along: bool
) -> float:
    """What a reading says of one corpus; no point is made up where none was measured."""
    curve, all_at_start = trained.curve(corpus), trained.start(corpus)
    if reading.when == "final":
        return trained.final_of_curve(corpus) if along else trained.final[corpus].loss
    if reading.when == "start" and all_at_start and not along:
        return all_at_start
    if reading.along:
        return _picked(shared(curve), reading)
    at = reading.window[0] if reading.when == "at" else 0.0
    x, loss = min(curve, key=lambda point: abs(point[0] - at))
    if abs(x - at) > 1.01 * trained.run.position(0.5):
        raise Missing(f"has no point at {at:g}B", trained.run.name)
    return loss


def _jitter(trained: Trained, corpus: str, reading: Reading) -> float:
    """Standard error of a loss from the scatter of the closing evaluations."""
    final = trained.final[corpus]
    if reading.when == "final":
        return final.stderr
    first, last = reading.window or (0.0, math.inf)
    averaged = sum(first <= x <= last and x > 0 for x, _ in trained.curve(corpus))
    return final.stderr * math.sqrt(final.evaluations / (averaged or 1 if reading.when == "mean" else 1))


def _slope(old: Curve, new: Curve, reading: Reading) -> Sample:
    """Slope of the straight line through a run's perplexities, old over new; its error that of the fit."""
    from scipy import stats

    first, last = reading.window or (0.0, math.inf)
    new = dict(new)
    inside = [(loss, new[x]) for x, loss in old if x in new and first <= x <= last * (1 + 1e-9)]
    if len(inside) < 3:
        raise Missing("fewer than three evaluations in the window")
    ys, xs = np.exp(inside).T
    if np.ptp(xs) == 0:
        raise Missing("a loss does not vary in the window")
    fit = stats.linregress(xs, ys)
    return Sample(float(fit.slope), error=float(fit.stderr))


class AsPublished:
    """The same quantities as published, with what their digits leave open.

    The noise of an effect is that of its readings in quadrature: half a printed digit, of what was digitised
    what its plots may be trusted to, of scores also 1.96 standard errors over the items of their tasks, where
    those are declared (which items a model got right was not published, so nothing is paired).
    Curves come from the figure that shows most of the runs `beside` them: figures do not always agree. They
    are read anywhere along the drawn line, which is all that a plot has.
    """

    scale = "paper"

    def __init__(self, catalogue: Catalogue, paper: str, beside: Iterable[str] = ()):
        self.catalogue, self.study = catalogue, catalogue.plan.studies[paper]
        self.beside = [self.study.resolve(name) for name in beside]

    def lacks(self, test: Test) -> str | None:
        """Nothing: the papers' own scale is what tests are made for."""

    def value(self, reading: Reading) -> Value:
        """The value with mark and place; `Missing` where nothing was published."""
        return self._read(reading)[0]

    def _read(self, reading: Reading) -> tuple[Value, float]:
        for paper, name in map(self.study.resolve, reading.runs):
            if value := self._find(paper, name, reading):
                plotted = self.catalogue.plan.studies[paper].digitised.tolerance
                error = plotted if value.mark == "digitised" else PRINTED
                return value, math.hypot(error, NORMAL * self._of_items(paper, name, reading))
        raise Missing(f"{reading.runs[0]}: not published")

    def _of_items(self, paper: str, name: str, reading: Reading) -> float:
        """Standard error of a score over the items of its tasks, in percent; 0 where these are not known."""
        if reading.what not in ("suite", "task"):
            return 0.0
        items = self.study.documents.get(reading.of[0], {})
        published = self.catalogue.counterparts(paper)
        tasks = [task for task in items if reading.what == "suite" or task == reading.of[1]]
        scores = [(published.score(name, reading.of[0], task), items[task]) for task in tasks]
        errors = [math.sqrt(s.value * (100 - s.value) / count) for s, count in scores if s]
        return math.hypot(*errors) / len(errors) if errors else 0.0

    def _find(self, paper: str, name: str, reading: Reading) -> Value | None:
        published = self.catalogue.counterparts(paper)
        if reading.what in ("suite", "task"):
            return published.score(name, *reading.of[:2])
        if reading.what == "compute":
            return published.compute(name)
        if reading.what == "slope":
            return None
        read = corpora(self.catalogue.plan.studies[paper], name, reading)
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
        with suppress(Missing):
            return Value(value=_picked(points, reading), mark="digitised", place=place)
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
        """The value, and what the digits that it is made from leave open."""
        weights, value = linear(parts)
        errors = []
        for reading, weight in weights.items():
            read, error = self._read(reading)
            value += weight * float(read.value)
            errors.append(weight * error)
        return Effect(value=value, noise=math.hypot(*errors), by="as published")

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
