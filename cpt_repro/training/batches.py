"""Batches of a training in their one global order, of which every rank reads its own rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from cpt_repro.data.order import Order
from cpt_repro.planning.mixture import streams
from cpt_repro.planning.training import Training
from cpt_repro.training.corpora import Corpora

#: Batches read together, and tokens in them at most: looking up costs more than reading small ones.
AHEAD, AHEAD_TOKENS = 64, 1 << 20


class Batches(Dataset):
    """A rank's rows alone of global batch k, (batch / ranks, L + 1) int64; the ranks divide the batch."""

    def __init__(self, training: Training, corpora: Corpora, rank: int = 0, ranks: int = 1):
        keys = {(stream.corpus, stream.domain) for stream in streams(training.mixture)}
        self._sequences = {key: corpora.sequences(*key) for key in sorted(keys)}
        sizes = {key: len(sequences) for key, sequences in self._sequences.items()}
        batch, offset = training.batch_sequences, training.batch_offset
        self.order = Order(training.mixture, sizes, batch, training.seed, offset)
        self.length, rows = training.iterations, batch // ranks
        self._own = slice(rank * rows, (rank + 1) * rows)
        self._ahead = min(AHEAD, AHEAD_TOKENS // (rows * (training.sequence_length + 1))) or 1
        self._ready: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, iteration: int) -> torch.Tensor:
        if iteration not in self._ready:
            # A process that only reads is not given those that follow.
            ahead = self._ahead if get_worker_info() is None else 1
            read = self._read(iteration, min(iteration + ahead, self.length))
            self._ready = dict(enumerate(read, iteration))
        return self._ready.pop(iteration)

    def _read(self, first: int, end: int) -> torch.Tensor:
        """The batches from `first` to before `end`: (batches, rows, L + 1) int64."""
        keys, sources, indices = list(self._sequences), [], []
        for parts in self.order.batches(first, end):
            numbers = [keys.index((stream.corpus, stream.domain)) for stream, _ in parts]
            sources.append(np.repeat(numbers, [len(part) for _, part in parts])[self._own])
            indices.append(np.concatenate([part for _, part in parts])[self._own])
        source, index = np.array(sources), np.array(indices)
        used = np.unique(source)
        taken = np.concatenate([self._sequences[keys[n]].take(index[source == n]) for n in used])
        places = np.argsort(source, axis=None, kind="stable")  # where each of those taken belongs
        out = np.empty(taken.shape, dtype=np.int64)
        out[places] = taken
        return torch.from_numpy(out.reshape(*source.shape, -1))

    def described(self, iteration: int) -> str:
        """The sequences of a global batch, for a message."""
        streams_of_batch = self.order.batch(iteration)
        return "; ".join(f"{s.corpus}/{s.domain} {', '.join(map(str, i))}" for s, i in streams_of_batch)


class _Iterations(DistributedSampler):
    """The numbers of the batches still to come; of its type, trainers know that ranks read different rows."""

    def __init__(self, first: int, end: int):
        self._range = range(first, end)

    def __iter__(self) -> Iterator[int]:
        return iter(self._range)

    def __len__(self) -> int:
        return len(self._range)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: there is one pass."""


def batch_loader(
    batches: Batches, seed: int, first: int = 0, workers: int = 0, pinned: bool = False
) -> DataLoader:
    """Loader of a rank's rows from batch `first` on; `seed`: of its own generator."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=_Iterations(first, len(batches)),
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=pinned,
    )
