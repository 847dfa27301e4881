"""Learning-rate schedules: pure functions (iteration, total) -> learning rate, named and versioned.

`t` counts iterations of a phase from 0, the value that the authors' trainer passes before the step is taken,
so that a warm-up starts at exactly 0. Breakpoints are real numbers (1 % of 131,296 iterations is 1,312.96),
never rounded.

Sources: Ibrahim et al. 2024 sections 4.1 and 7.2 (Eq. 1-4); Gupta et al. 2023 section 2 with the trainer's
code of that time (GPT-NeoX before pull request 1008), which is version 1 of `cosine`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpt_repro.declarations.strict import Share, Strict

Rate = Annotated[float, Field(gt=0, lt=1)]


def _warmup(t: float, t_warmup: float, eta_max: float) -> float | None:
    """Linear warm-up from 0: eta_max * t / T_warmup for t < T_warmup, else None (Ibrahim Eq. 1)."""
    return eta_max * t / t_warmup if t < t_warmup else None


class _Schedule(Strict):
    def __call__(self, iteration: float, total: float) -> float:
        """Learning rate of the update after `iteration` of `total` iterations; past the end the last one."""
        return self._at(min(max(float(iteration), 0.0), float(total)), float(total))

    def _at(self, t: float, total: float) -> float:
        raise TypeError(f"{type(self).__name__} has no formula")

    def scaled(self, factor: float):
        """The same schedule with every rate multiplied by `factor`."""
        rates = {
            name: getattr(self, name) * factor for name in type(self).model_fields if name.startswith("eta_")
        }
        return self.model_copy(update=rates)


class Cosine(_Schedule):
    """Linear warm-up, then cosine decay from `eta_max` to `eta_min` at the end of the phase.

    Version 2 (Ibrahim Eq. 2): eta_min + (eta_max - eta_min)/2 * (1 + cos(pi (t - T_w)/(T - T_w))).
    Version 1 (Gupta's runs): max(eta_min, eta_max/2 * (1 + cos(pi (min(t, T - T_w) - T_w)/T))), a curve aimed
    at 0 and floored, which meets eta_min = 0.1 eta_max after 79.5 % of T beyond the warm-up.
    """

    kind: Literal["cosine"] = "cosine"
    version: Literal[1, 2] = 2
    eta_max: Rate
    eta_min: Rate
    warmup_frac: Share = 0.01

    @model_validator(mode="after")
    def _ordered(self):
        if self.eta_min > self.eta_max:
            raise ValueError(f"eta_min ({self.eta_min}) exceeds eta_max ({self.eta_max})")
        return self

    def _at(self, t: float, total: float) -> float:
        t_warmup = self.warmup_frac * total
        rate = _warmup(t, t_warmup, self.eta_max)
        if rate is not None:
            return rate
        if self.version == 1:
            progress = (min(t, total - t_warmup) - t_warmup) / total
            return max(self.eta_min, self.eta_max / 2 * (1 + math.cos(math.pi * progress)))
        progress = (t - t_warmup) / (total - t_warmup) if total > t_warmup else 1.0
        return self.eta_min + (self.eta_max - self.eta_min) / 2 * (1 + math.cos(math.pi * progress))


class Constant(_Schedule):
    """`eta_const`, after a linear warm-up where `warmup_frac` is above 0 (Ibrahim Fig. 4 and 8)."""

    kind: Literal["constant"] = "constant"
    version: Literal[1] = 1
    eta_const: Rate
    warmup_frac: Share = 0.0

    def _at(self, t: float, total: float) -> float:
        rate = _warmup(t, self.warmup_frac * total, self.eta_const)
        return self.eta_const if rate is None else rate


class Infinite(_Schedule):
    """Warm-up, cool-down to `eta_const`, constant phase, exponential annealing to `eta_min` (Ibrahim section
    7.2).

    Cool-down is cosine (Eq. 3) or inverse square root with timescale `alpha` (Eq. 4). The four fractions sum
    to 1; with `anneal_frac` 0 it is the constant-rate trunk from which annealed branches start.
    """

    kind: Literal["infinite"] = "infinite"
    version: Literal[1] = 1
    cooldown: Literal["cosine", "inverse_sqrt"]
    eta_max: Rate
    eta_const: Rate
    eta_min: Rate
    warmup_frac: Share = 0.01
    cooldown_frac: Share = 0.60
    constant_frac: Share = 0.25
    anneal_frac: Share = 0.14
    alpha: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _whole(self):
        total = self.warmup_frac + self.cooldown_frac + self.constant_frac + self.anneal_frac
        if abs(total - 1) > 1e-9:
            raise ValueError(f"warmup_frac + cooldown_frac + constant_frac + anneal_frac is {total:g}, not 1")
        if not self.eta_min <= self.eta_const <= self.eta_max:
            raise ValueError("the rates must be ordered eta_min <= eta_const <= eta_max")
        return self

    def _at(self, t: float, total: float) -> float:
        t_cooldown = self.warmup_frac * total
        t_const = t_cooldown + self.cooldown_frac * total
        t_anneal = t_const + self.constant_frac * total
        rate = _warmup(t, t_cooldown, self.eta_max)
        if rate is not None:
            return rate
        if t < t_const:
            x = (t - t_cooldown) / (t_const - t_cooldown)
            if self.cooldown == "cosine":
                return self.eta_const + (self.eta_max - self.eta_const) / 2 * (1 + math.cos(math.pi * x))

            def h(x: float) -> float:
                return 1 / math.sqrt(1 + self.alpha * x) - 1

            return self.eta_max + (self.eta_const - self.eta_max) / h(1) * h(x)
        if t <= t_anneal or self.anneal_frac == 0:
            return self.eta_const
        return self.eta_const * (self.eta_min / self.eta_const) ** ((t - t_anneal) / (total - t_anneal))


class Anneal(_Schedule):
    """The end of an infinite schedule alone: eta_const * (eta_min/eta_const)^(t/T) (Ibrahim section 7.2)."""

    kind: Literal["anneal"] = "anneal"
    version: Literal[1] = 1
    eta_const: Rate
    eta_min: Rate

    @model_validator(mode="after")
    def _ordered(self):
        if self.eta_min > self.eta_const:
            raise ValueError(f"eta_min ({self.eta_min}) exceeds eta_const ({self.eta_const})")
        return self

    def _at(self, t: float, total: float) -> float:
        return self.eta_const * (self.eta_min / self.eta_const) ** (t / total)


Schedule = Annotated[Cosine | Constant | Infinite | Anneal, Field(discriminator="kind")]
