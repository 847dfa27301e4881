"""Values of declared quantities with their noise: from the receipts of a scale, or as published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from cpt_repro.declarations.claims import Quantity, Reading
from cpt_repro.declarations.exhibits import absent
from cpt_repro.declarations.published import load_published
from cpt_repro.records.counterparts import Counterparts, counterparts
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Receipt

#: Readings with weights: every effect is linear in what was measured.
Linear = dict[Reading, float]
#: Half of the last digit that losses are printed with.
PRINTED = 0.005
#: Billions of tokens within which the first digitised point of a curve is its start.
STARTING = 0.1


class Missing(Exception):
    """A reading cannot be had; the message says why."""


@dataclass(frozen=True)
class Effect:
    """A value with the half-width of its 95 % interval, and what that was estimated from."""

    value: float
    noise: float
    by: str

    @property
    def sign(self) -> int:
        """1 or -1 where the value is clearly above or below zero, else 0."""
        return (self.value > self.noise) - (self.value < -self.noise)


def linear(*parts: tuple[float, Quantity]) -> Linear:
    """The sum of quantities with weights."""
    out: Linear = {}
    for weight, quantity in parts:
        for own, reading in quantity.terms:
            out[reading] = out.get(reading, 0.0) + weight * own
    return out


def _picked(points: list[tuple[float, float]], reading: Reading) -> float:
    """What a reading says of a curve [(billions, y)]."""
    import numpy as np

    first, last = reading.window or (0.0, math.inf)
    if reading.when == "at":
        return float(np.interp(first, *zip(*points, strict=True)))
    inside = [y for x, y in points if first <= x <= last * (1 + 1e-9) and x > 0]
    if not inside:
        raise Missing(f"no evaluation between {first:g}B and {last:g}B")
    return {"peak": max, "trough": min, "mean": lambda values: sum(values) / len(values)}[reading.when](
        inside
    )


def _at(reading: Reading, billions: float) -> Reading:
    return reading.model_copy(update={"when": "at", "window": (billions, billions)})


class Measured:
    """Quantities of one paper at one scale, seed by seed.

    Differences are paired by seed: initialisation and order of samples are those of the seed in every arm. The
    noise of an effect is, with three or more common seeds, the half-width of the two-sided 95 % t-interval of its
    values per seed (of suites at least that of evaluation too). With fewer it is that of evaluation: 1.96 standard
    errors over the validation sequences of the weighted difference (sequence by sequence on the same corpus;
    without losses per sequence, of each loss by itself) and over the jitter of the closing evaluations; of suites,
    their standard errors over documents. Sequence losses are those of the last evaluation and stand for other
    points of a curve too.
    """

    name = "measured"

    def __init__(self, records: Records):
        self.records, self.scale = records, records.scale.name
        self._values: dict[Reading, dict[int, float]] = {}

    def run(self, reading: Reading) -> str:
        """The run or merge that the reading is of at this scale."""
        whys = {name: absent(self.records.plan, self.records.paper, name) for name in reading.runs}
        for name, why in whys.items():
            if why is None:
                return name
        raise Missing(f"no counterpart: {whys[reading.runs[-1]]}")

    def _receipts(self, reading: Reading) -> dict[int, Receipt]:
        return {receipt.segment.seed: receipt for receipt in self.records.receipts(self.run(reading))}

    def _scores(self, reading: Reading) -> dict[int, tuple[float, float]]:
        """(score, standard error) in percent by seed."""
        name, suite = self.run(reading), self.records.scale.suites.get(reading.of[0])
        if suite is None:
            raise Missing(f"no counterpart: the scale {self.scale} has no {reading.of[0]} suite")
        task = None
        if reading.what == "task":
            task = next(
                (t for n in reading.of[1:] if (t := n.lower().replace("-", "_")) in suite.tasks), None
            )
            if task is None:
                raise Missing(
                    f"no counterpart: the {reading.of[0]} suite of {self.scale} has no {reading.of[1]}"
                )
        out = {}
        for evaluation in self.records.evaluations(name):
            told = evaluation.suites[reading.of[0]]
            value = (told["average"], told["stderr"]) if task is None else None
            value = value or (told["tasks"][task]["value"], told["tasks"][task]["stderr"])
            out[int(evaluation.id.rpartition("seed-")[2])] = (100 * value[0], 100 * value[1])
        return out

    def values(self, reading: Reading) -> dict[int, float]:
        """The reading by seed; `Missing` if there is none."""
        if reading not in self._values:
            self._values[reading] = self._read(reading)
        if not self._values[reading]:
            raise Missing(f"{self.run(reading)} was not {'run' if reading.what in _RUN else 'evaluated'}")
        return self._values[reading]

    def _read(self, reading: Reading) -> dict[int, float]:
        if reading.what == "compute":
            run = self.run(reading)
            return {s.seed: s.billions / 300 for s in self.records.plan.find(self.records.paper, run)}
        if reading.what in ("suite", "task"):
            return {seed: value for seed, (value, _) in self._scores(reading).items()}
        if reading.what == "r_squared":
            return {seed: _fit(receipt, reading)[0] for seed, receipt in self._receipts(reading).items()}
        out = {}
        for seed, receipt in self._receipts(reading).items():
            each = []
            for corpus in reading.of:
                if reading.when == "final":
                    each.append(receipt.final[corpus].loss)
                elif reading.when == "start":
                    each.append(receipt.curves[corpus][0][1])
                else:
                    each.append(_picked(receipt.curve(corpus), reading))
            out[seed] = sum(each) / len(each)
        return out

    def seeds(self, readings: list[Reading]) -> list[int]:
        """Seeds that all readings have; `Missing` if there are none."""
        common = set.intersection(*(set(self.values(reading)) for reading in readings))
        if not common:
            raise Missing("its runs have no seed in common")
        return sorted(common)

    def effect(self, weights: Linear, pool: list[Reading], constant: float = 0.0) -> Effect:
        """Value and noise of `constant + sum of weights * readings`, over the seeds common to `pool`."""
        import numpy as np
        from scipy import stats

        seeds = self.seeds(pool)
        each = [constant + sum(w * self.values(r)[seed] for r, w in weights.items()) for seed in seeds]
        value, count = float(np.mean(each)), len(seeds)
        if all(reading.what == "compute" for reading in weights):
            return Effect(value, 0.0, "exact")
        if count >= 3:
            half = float(stats.t.ppf(0.975, count - 1) * np.std(each, ddof=1) / math.sqrt(count))
            # The few documents of a suite are the same for every seed, so their noise does not show between seeds.
            if any(reading.what in ("suite", "task") for reading in weights):
                documents = 1.96 * self._evaluation_error(weights, seeds[:1])
                return Effect(value, max(half, documents), f"{count} seeds and the suite's documents")
            return Effect(value, half, f"{count} seeds")
        noise = 1.96 * self._evaluation_error(weights, seeds)
        return Effect(value, noise, f"evaluation noise, {count} seed{'s' if count > 1 else ''}")

    def _evaluation_error(self, weights: Linear, seeds: list[int]) -> float:
        """Standard error of a weighted sum of readings, averaged over `seeds`, from single evaluations."""
        import numpy as np

        alone: list[float] = []
        by_corpus: dict[str, list[tuple[float, Receipt, Reading, int]]] = {}
        for reading, weight in weights.items():
            for seed in seeds:
                share = weight / len(seeds)
                if reading.what in ("suite", "task"):
                    alone.append(share * self._scores(reading)[seed][1])
                elif reading.what == "r_squared":
                    alone.append(share * _fit(self._receipts(reading)[seed], reading)[1])
                elif reading.what == "loss":
                    receipt = self._receipts(reading)[seed]
                    for corpus in reading.of:
                        source = self._evaluated(receipt, corpus, reading)
                        own = share / len(reading.of)
                        by_corpus.setdefault(corpus, []).append((own, source, reading, seed))
                        alone.append(own * _jitter(source, corpus, reading))
        for corpus, parts in by_corpus.items():
            losses = [source.sequence_losses.get(corpus, ()) for _, source, _, _ in parts]
            if all(losses) and len({len(each) for each in losses}) == 1:
                total = sum(own * np.asarray(each) for (own, *_), each in zip(parts, losses, strict=True))
                alone.append(float(np.std(total, ddof=1)) / math.sqrt(len(total)))
            else:  # the sequences are the same for every seed: their noise does not average out
                together: dict[Reading, float] = {}
                for own, source, reading, _ in parts:
                    together[reading] = together.get(reading, 0.0) + own * source.final[corpus].noise
                alone.extend(together.values())
        return math.hypot(*alone)

    def _evaluated(self, receipt: Receipt, corpus: str, reading: Reading) -> Receipt:
        """The receipt whose last evaluation a reading resembles: at the start, that of the parent, if it has one."""
        if reading.when == "start" and (parent := receipt.segment.parent):
            name = parent.partition("/")[2].rpartition("/")[0]
            for other in self.records.receipts(name):
                if other.segment.id == parent and corpus in other.final:
                    return other
        return receipt


_RUN = ("loss", "compute", "r_squared")


def _jitter(receipt: Receipt, corpus: str, reading: Reading) -> float:
    """Standard error of a reading from the scatter of the closing evaluations."""
    final = receipt.final[corpus]
    if reading.when == "final":
        return final.stderr
    single = final.stderr * math.sqrt(final.evaluations)
    if reading.when != "mean":
        return single
    first, last = reading.window or (0.0, math.inf)
    inside = [x for x, _ in receipt.curve(corpus) if first <= x <= last and x > 0]
    return single / math.sqrt(max(len(inside), 1))


def _fit(receipt: Receipt, reading: Reading) -> tuple[float, float]:
    """R² of the straight line through (PPL(sp), PPL(pile)) along a run, and its standard error by the delta method."""
    import numpy as np

    first, last = reading.window or (0.0, math.inf)
    inside = [first <= x <= last * (1 + 1e-9) for x, _ in receipt.curve("pile")]
    old, new = (
        np.exp([y for (_, y), ok in zip(receipt.curve(c), inside, strict=True) if ok]) for c in ("pile", "sp")
    )
    if len(old) < 3:
        raise Missing("fewer than three evaluations in the window")
    r = float(np.corrcoef(new, old)[0, 1])
    return r * r, 2 * abs(r) * (1 - r * r) / math.sqrt(len(old) - 1)


class AsPublished:
    """The same quantities as the paper published them, without noise; a gain of half a printed digit is allowed.

    Curves come from the figure that shows most of the runs `beside` them, because figures do not always agree.
    """

    name, scale = "published", "paper"

    def __init__(self, paper: str, beside: tuple[str, ...] = (), slack: float = PRINTED):
        self.paper, self.beside, self.slack = paper, beside, slack
        self._found: dict[Reading, tuple[float, str, str]] = {}

    @cached_property
    def _counterparts(self) -> Counterparts:
        return counterparts(self.paper)

    def find(self, reading: Reading) -> tuple[float, str, str]:
        """(value, mark, place); `Missing` where nothing was published."""
        if reading not in self._found:
            found = next((f for run in reading.runs if (f := self._find(run, reading))), None)
            if found is None:
                raise Missing("not published")
            self._found[reading] = found
        return self._found[reading]

    def _find(self, run: str, reading: Reading) -> tuple[float, str, str] | None:
        told = self._counterparts
        value = None
        if reading.what == "suite":
            value = told.score(run, reading.of[0])
        elif reading.what == "task":
            value = told.score(run, reading.of[0], reading.of[1])
        elif reading.what == "compute":
            return self._compute(run)
        elif reading.what == "loss" and reading.when == "final":
            value = told.loss(run, reading.of)
        elif reading.what == "loss" and len(reading.of) == 1:
            curve = told.curve(run, reading.of[0], self.beside)
            if reading.when == "start":
                parent = told.runs.runs[run].init_from
                if curve and curve[0][0][0] <= STARTING:
                    return curve[0][0][1], "digitised", f"{curve[1]}, start"
                if parent is None or parent.run is None:
                    pass
                elif parent.iteration is None:
                    value = told.loss(parent.run, reading.of)
                elif above := told.curve(parent.run, reading.of[0]):
                    at = parent.iteration * told.runs.batch.tokens / 1e9
                    return _picked(list(above[0]), _at(reading, at)), "digitised", f"{above[1]} at {at:.0f}B"
            elif curve:
                points, place = curve
                if reading.when == "at":  # digitised curves may end a little before their plot does
                    first, last = points[0][0] - 0.5, points[-1][0] / 0.95
                    if not first <= reading.window[0] <= last:
                        return None
                try:
                    return _picked(list(points), reading), "digitised", place
                except Missing:
                    return None
        return (float(value.value), value.mark, value.place) if value else None

    def _compute(self, run: str) -> tuple[float, str, str] | None:
        """From the published table of a figure that shows compute, whose rows are the bars, group by group."""
        for key, exhibit in self._counterparts.declared.exhibits.items():
            table = load_published(self.paper).tables.get(key)
            panels = [
                p
                for p in getattr(exhibit, "panels", ())
                if getattr(p, "show", None) == "compute" and p.published
            ]
            bars = [name for group in getattr(exhibit, "groups", ()) for name in group.runs]
            if table and panels and run in bars:
                value = table.cell(key, bars.index(run), panels[0].published)
                return (float(value.value), value.mark, value.place) if value else None
        return None

    def values(self, reading: Reading) -> dict[int, float]:
        """The published value under one number."""
        return {0: self.find(reading)[0]}

    def seeds(self, readings: list[Reading]) -> list[int]:
        """One; `Missing` if a reading was not published."""
        for reading in readings:
            self.find(reading)
        return [0]

    def effect(self, weights: Linear, pool: list[Reading], constant: float = 0.0) -> Effect:
        """The value with the slack added in favour of the claim, and no noise."""
        self.seeds(list(weights))
        value = constant + sum(w * self.find(r)[0] for r, w in weights.items())
        return Effect(
            value + self.slack * max((abs(w) for w in weights.values()), default=0.0), 0.0, "as published"
        )

    def about(self, quantity: Quantity) -> tuple[float, str, str] | None:
        """A quantity's published value, its mark and place; None if a part of it was not published."""
        try:
            found = [(weight, *self.find(reading)) for weight, reading in quantity.terms]
        except Missing:
            return None
        marks = {mark for _, _, mark, _ in found}
        mark = found[0][2] if len(found) == 1 else "digitised" if "digitised" in marks else "derived"
        places = dict.fromkeys(place for *_, place in found)
        return sum(weight * value for weight, value, _, _ in found), mark, "; ".join(places)

    def quotient(self, of: Quantity, over: Quantity) -> tuple[float, str, str] | None:
        """Like `about`, of one quantity over another."""
        above, below = self.about(of), self.about(over)
        if not (above and below and below[0]):
            return None
        mark = "digitised" if "digitised" in (above[1], below[1]) else "derived"
        return (
            above[0] / below[0],
            mark,
            "; ".join(dict.fromkeys([*above[2].split("; "), *below[2].split("; ")])),
        )
