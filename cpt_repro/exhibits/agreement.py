"""Agreement of published and reproduced values: rank correlation and signs of differences, within groups."""

from __future__ import annotations

from typing import Any, NamedTuple

from cpt_repro.declarations.strict import Strict

SEED = 20240313
#: Percent of the resamples below and above the interval.
INTERVAL = (2.5, 97.5)


class Pair(NamedTuple):
    """A published and a reproduced value; those of one group compare."""

    group: str
    published: float
    reproduced: float


class Agreement(Strict):
    """Two measures of agreement, each with the 95 % interval of a bootstrap; None: nothing can be said."""

    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    signs: float | None
    signs_low: float | None
    signs_high: float | None
    #: values compared, and in how many groups
    pairs: int
    groups: int


def _spearman(published: list[Any], reproduced: list[Any]) -> Any:
    """Pearson correlation, per resample, of ranks within groups; each group: resamples x items."""
    import numpy as np
    from scipy.stats import rankdata

    def ranks(groups: list[Any]) -> Any:
        scaled = [(rankdata(g, axis=1) - (g.shape[1] + 1) / 2) / (g.shape[1] - 1) for g in groups]
        return np.concatenate(scaled, axis=1)  # of mean 0 in every group

    x, y = ranks(published), ranks(reproduced)
    spread = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.where(spread > 0, (x * y).sum(axis=1) / np.where(spread > 0, spread, 1), np.nan)


def _signs(published: list[Any], reproduced: list[Any]) -> Any:
    """Share, per resample, of pairs with different published values whose reproduced order is the same."""
    import numpy as np

    same, pairs = 0, 0
    for x, y in zip(published, reproduced, strict=True):
        first, second = np.triu_indices(x.shape[1], 1)
        wanted, here = np.sign(x[:, first] - x[:, second]), np.sign(y[:, first] - y[:, second])
        same = same + ((1 + wanted * here) / 2 * (wanted != 0)).sum(axis=1)
        pairs = pairs + (wanted != 0).sum(axis=1)
    return np.where(pairs > 0, same / np.maximum(pairs, 1), np.nan)


def agreement(pairs: list[Pair], resamples: int = 2000) -> Agreement | None:
    """How far reproduced values are in the order of the published ones.

    Groups of one are dropped; None where nothing is left. `spearman`: Pearson correlation of the ranks within
    groups, scaled to mean 0 and unit range and pooled; of one group the plain Spearman correlation. `signs`:
    of all pairs of items in a group whose published values differ, the share whose reproduced values differ
    the same way; ties of ours count half. The bootstrap is over the items of each group, with a fixed seed.
    What cannot be said is None: a value where all are tied, an interval where the resamples do not vary.

    It says whether an exhibit shows the same order, not whether sizes agree. Few values, and those of related
    runs not independent: the interval is rough, and of two or three values it says next to nothing.
    Published values have two printed decimals, or are digitised to about 0.01: an order among values closer
    than that is chance in the paper already, and lowers both numbers without anything being wrong.
    """
    import numpy as np

    groups: dict[str, list[tuple[float, float]]] = {}
    for group, *values in pairs:
        groups.setdefault(group, []).append(tuple(values))
    arrays = [np.array(values, dtype=float).T for values in groups.values() if len(values) > 1]
    if not arrays:
        return None
    generator = np.random.Generator(np.random.PCG64(SEED))
    chosen = [generator.integers(0, a.shape[1], (resamples, a.shape[1])) for a in arrays]
    out: dict[str, float | None] = {}
    for name, measure in (("spearman", _spearman), ("signs", _signs)):
        value = measure([a[0][None] for a in arrays], [a[1][None] for a in arrays])[0]
        samples = [[a[side][pick] for a, pick in zip(arrays, chosen, strict=True)] for side in (0, 1)]
        resampled = measure(*samples)
        known = resampled[~np.isnan(resampled)]
        varied = len(known) and np.ptp(known) > 1e-9
        low, high = np.percentile(known, INTERVAL) if varied else (np.nan, np.nan)
        for key, number in ((name, value), (f"{name}_low", low), (f"{name}_high", high)):
            out[key] = None if np.isnan(number) else round(float(number), 4) + 0.0
    return Agreement(**out, pairs=sum(a.shape[1] for a in arrays), groups=len(arrays))
