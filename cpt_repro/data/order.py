"""Which sample comes when: a pure function of mixture, sizes, seed and iteration.

Nothing is drawn and nothing is stored, so a resumed run, any number of workers and any number of ranks see
the same global order, and a replayed dataset comes back in the order first seen (Ibrahim et al. section 4.2).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from cpt_repro.planning.mixture import Mixture, Stream, streams


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser, on uint64 with wrap-around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """A keyed permutation of range(size) with random access: a four-round Feistel network with cycle walking.

    Numpy's own are not promised to stay the same across versions, and need the whole array in memory.
    """

    def __init__(self, size: int, key: str):
        self.size = size
        half = max(1, math.ceil((size - 1).bit_length() / 2))
        self._half, self._mask = np.uint64(half), np.uint64((1 << half) - 1)
        self._keys = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype="<u8")

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Elements at `positions`, int64 of the same shape; positions must lie in [0, size)."""
        x = np.asarray(positions, dtype=np.uint64)
        out = self._round_trip(x)
        while (outside := out >= self.size).any():
            out = np.where(outside, self._round_trip(out), out)
        return out.astype(np.int64)

    def _round_trip(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half) | right


def cumulative_counts(parts: Mixture, n: int) -> list[int]:
    """How many of the first `n` samples each leaf stream gave, in the order of `streams`.

    The first part gets round(share * n), the rest is split on in the same way. Every count is monotone in
    `n`, they sum to `n`, and the first part (the replayed one) has its share of every batch to one sample.
    """
    out: list[int] = []
    rest, rest_share = n, 1.0
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        # Once the shares given out reach 1 nothing is left, and the shares to come are 0.
        ratio = part.share / rest_share if rest_share > 0 else 0.0
        own = rest if last else min(rest, math.floor(ratio * rest + 0.5))
        out += [own] if part.stream else cumulative_counts(part.parts, own)
        rest, rest_share = rest - own, rest_share - part.share
    return out


class Order:
    """The global sample order of one training; `sizes`: (corpus, domain) -> number of its sequences.

    A domain shorter than what is asked of it starts another epoch in another order.
    """

    def __init__(
        self, mixture: Mixture, sizes: dict[tuple[str, str], int], batch: int, seed: int, offset: int
    ):
        self.mixture, self.batch_size, self.seed, self.offset = mixture, batch, seed, offset
        self.streams = [(stream, sizes[stream.corpus, stream.domain]) for stream in streams(mixture)]

    def _elements(self, stream: Stream, size: int, positions: np.ndarray) -> np.ndarray:
        out = np.empty(len(positions), dtype=np.int64)
        epochs = positions // size
        for epoch in np.unique(epochs):
            key = f"{stream.corpus}/{stream.domain}/seed-{self.seed}/epoch-{epoch}"
            chosen = epochs == epoch
            out[chosen] = Permutation(size, key)(positions[chosen] % size)
        return out

    def batch(self, iteration: int) -> list[tuple[Stream, np.ndarray]]:
        """The samples of one global batch: per stream its sequence indices (int64), `batch_size` in all."""
        return self.batches(iteration, iteration + 1)[0]

    def batches(self, first: int, end: int) -> list[list[tuple[Stream, np.ndarray]]]:
        """`batch` of each iteration from `first` to before `end`, permuted together, which costs less."""
        bounds = range(first + self.offset, end + self.offset + 1)
        counts = [cumulative_counts(self.mixture, bound * self.batch_size) for bound in bounds]
        out: list[list[tuple[Stream, np.ndarray]]] = [[] for _ in range(first, end)]
        for number, (stream, size) in enumerate(self.streams):
            ends = [count[number] for count in counts]
            elements = self._elements(stream, size, np.arange(ends[0], ends[-1]) + stream.start)
            for batch, low, high in zip(out, ends[:-1], ends[1:], strict=True):
                if high > low:
                    batch.append((stream, elements[low - ends[0] : high - ends[0]]))
        return out
