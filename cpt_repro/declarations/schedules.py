"""Learning-rate schedules: pure functions (iteration, total) -> learning rate, named and versioned.

`t` counts iterations of a phase from 0, the value that the authors' trainer passes before the step is taken,
so that a warm-up starts at exactly 0. Breakpoints are real numbers (1 % of 131,296 iterations is 1,312.96),
never rounded.

Sources: Ibrahim et al. 2024 sections 4.1 and 7.2 (Eq. 1-4); Gupta et al. 2023 section 2 with the trainer's
code of that time (GPT-NeoX before pull request 1008), which is version 1 of `cosine`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cpt_repro.declarations.strict import Share, Strict

Rate = Annotated[float, Field(gt=0, lt=1)]


class _Schedule(Strict):
    """Kinds tell in `_after` the rate at `t` of `total` when `warmup` iterations have passed."""

    #: The rate that the warm-up leads to.
    _peak: ClassVar[str] = "eta_max"

    def __call__(self, iteration: float, total: float) -> float:
        """Learning rate of the update after `iteration` of `total` iterations; past the end the last one."""
        total = float(total)
        t, warmup = min(max(float(iteration), 0.0), total), getattr(self, "warmup_frac", 0.0) * total
        # Linear from 0: eta_max * t / T_warmup (Ibrahim Eq. 1).
        return getattr(self, self._peak) * t / warmup if t < warmup else self._after(t, total, warmup)

    def model_post_init(self, context: Any) -> None:
        low, high = getattr(self, "eta_min", 0), getattr(self, self._peak)
        if low > high:
            raise ValueError(f"eta_min ({low}) exceeds {self._peak} ({high})")

    def scaled(self, factor: float):
        """The same schedule with every rate multiplied by `factor`."""
        rates = [name for name in type(self).model_fields if name.startswith("eta_")]
        return self.model_copy(update={name: getattr(self, name) * factor for name in rates})


def _cosine(high: float, low: float, x: float) -> float:
    """From `high` at x = 0 to `low` at 1 (Ibrahim Eq. 2 and 3)."""
    return low + (high - low) / 2 * (1 + math.cos(math.pi * x))


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

    def _after(self, t: float, total: float, warmup: float) -> float:
        if self.version == 1:
            progress = (min(t, total - warmup) - warmup) / total
            return max(self.eta_min, self.eta_max / 2 * (1 + math.cos(math.pi * progress)))
        return _cosine(self.eta_max, self.eta_min, (t - warmup) / (total - warmup) if total > warmup else 1.0)


class Constant(_Schedule):
    """`eta_const`, after a linear warm-up where `warmup_frac` is above 0 (Ibrahim Fig. 4 and 8)."""

    _peak = "eta_const"
    kind: Literal["constant"] = "constant"
    version: Literal[1] = 1
    eta_const: Rate
    warmup_frac: Share = 0.0

    def _after(self, t: float, total: float, warmup: float) -> float:
        return self.eta_const


class Infinite(_Schedule):
    """Warm-up, cool-down, constant phase, exponential annealing to `eta_min` (Ibrahim section 7.2).

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

    def model_post_init(self, context: Any) -> None:
        total = self.warmup_frac + self.cooldown_frac + self.constant_frac + self.anneal_frac
        if abs(total - 1) > 1e-9:
            raise ValueError(f"warmup_frac + cooldown_frac + constant_frac + anneal_frac is {total:g}, not 1")
        if not self.eta_min <= self.eta_const <= self.eta_max:
            raise ValueError("the rates must be ordered eta_min <= eta_const <= eta_max")

    def _after(self, t: float, total: float, warmup: float) -> float:
        t_const = warmup + self.cooldown_frac * total
        t_anneal = t_const + self.constant_frac * total
        if t < t_const:
            x = (t - warmup) / (t_const - warmup)
            if self.cooldown == "cosine":
                return _cosine(self.eta_max, self.eta_const, x)
            h, end = (1 / math.sqrt(1 + self.alpha * at) - 1 for at in (x, 1))
            return self.eta_max + (self.eta_const - self.eta_max) / end * h
        if t <= t_anneal or self.anneal_frac == 0:
            return self.eta_const
        return self.eta_const * (self.eta_min / self.eta_const) ** ((t - t_anneal) / (total - t_anneal))


class Anneal(_Schedule):
    """The end of an infinite schedule alone: eta_const * (eta_min/eta_const)^(t/T) (Ibrahim section 7.2)."""

    _peak = "eta_const"
    kind: Literal["anneal"] = "anneal"
    version: Literal[1] = 1
    eta_const: Rate
    eta_min: Rate

    def _after(self, t: float, total: float, warmup: float) -> float:
        return self.eta_const * (self.eta_min / self.eta_const) ** (t / total)


Schedule = Annotated[Cosine | Constant | Infinite | Anneal, Field(discriminator="kind")]
