"""Token sequences in MDS shards: writing, merging, checking and random access. Only this module knows Streaming."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cpt_repro.config import Strict, parse
from cpt_repro.errors import UserError
from cpt_repro.files import read_json, write_json

COLUMN = "tokens"
HASH = "sha1"
#: Bytes of a shard before the next is begun.
SHARD_BYTES = 1 << 25
#: Memory maps kept open at once; each holds a file descriptor.
OPEN_SHARDS = 256

REBUILD = "Rebuild what is damaged: `cpt-repro corpus NAME --scale SCALE --rebuild`."


class _Raw(Strict):
    #: No name that leads out of the folder.
    basename: str = Field(pattern=r"^(part\.\d{5,}/)?shard\.\d{5,}\.mds$")
    bytes: int = Field(ge=1)
    hashes: dict[Literal["sha1"], Annotated[str, Field(pattern="^[0-9a-f]{40}$")]] = Field(min_length=1)


class _Shard(Strict):
    """An entry of an index, as `write_shards` makes it. Another column type could unpickle what stands in a shard."""

    column_encodings: tuple[Annotated[str, Field(pattern=r"^ndarray:uint16:\d+$")]]
    column_names: tuple[Literal["tokens"]]
    column_sizes: tuple[Annotated[int, Field(ge=2)]]
    compression: None
    format: Literal["mds"]
    hashes: tuple[Literal["sha1"]]
    raw_data: _Raw
    samples: int = Field(ge=1)
    size_limit: int | None
    version: Literal[2]
    zip_data: None


class _Index(Strict):
    shards: tuple[_Shard, ...]
    version: Literal[2]


def write_shards(folder: Path, sequences: np.ndarray, size_limit: int = SHARD_BYTES) -> None:
    """Writes sequences, shape (n, L+1) of uint16, as MDS shards and an `index.json` into a folder that is new or empty.

    The column has a fixed shape (`ndarray:uint16:<L+1>`), so that a shard is one array behind its header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not len(sequences):
        write_json(folder / "index.json", {"version": 2, "shards": []})
        return
    from streaming import MDSWriter

    columns = {COLUMN: f"ndarray:uint16:{sequences.shape[1]}"}
    with MDSWriter(out=str(folder), columns=columns, hashes=[HASH], size_limit=size_limit) as writer:
        for sequence in np.ascontiguousarray(sequences, dtype=np.uint16):
            writer.write({COLUMN: sequence})


def merge_indexes(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """Joins the indexes of sub-folders `parts`, in that order, into `folder/index.json`; returns {shard: hash}.

    Streaming's own `merge_index` gives the same, but not written whole, and with warnings for each call.
    """
    shards = []
    for part in parts:
        for shard in _index(folder / part)["shards"]:
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            shards.append(shard)
    write_json(folder / "index.json", {"version": 2, "shards": shards})
    return {shard["raw_data"]["basename"]: shard["raw_data"]["hashes"][HASH] for shard in shards}


def verify(folder: Path, built: dict[str, Any] | None = None) -> None:
    """Compares every shard's bytes with its hash, and `index.json` with the shards; Streaming never does so locally.

    `built`: the domain's entry in the corpus' fingerprint, whose hashes then count, so that shards and index of another
    build are found too; without it those of the index count. Raises a `UserError` that names the first file at fault.
    """
    folder = Path(folder)
    where = str(folder / "index.json")
    listed = {shard["raw_data"]["basename"]: shard for shard in _index(folder)["shards"]}
    named = {name: shard["raw_data"]["hashes"][HASH] for name, shard in listed.items()}
    hashes = built["shards"] if built else named
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"the shard is missing ({HASH} {expected} expected).", where=str(path), do=REBUILD)
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, HASH).hexdigest()
            stream.seek(0)
            samples = int.from_bytes(stream.read(4), "little")
        size = path.stat().st_size
        told = listed[name]["raw_data"]["bytes"] if name in listed else size
        if found != expected:
            other = next((other for other, value in hashes.items() if value == found), None)
            change = f"that of {other}" if other else "truncated" if size < told else "altered, or of another build"
            fault = f"the shard is {change}: {HASH} {expected} expected, {found} found in {size} bytes of {told}."
            raise UserError(fault, where=str(path), do=REBUILD)
        if name not in named or (named[name], told, listed[name]["samples"]) != (expected, size, samples):
            fault = f"the index does not fit the shard {name}: {HASH} {named.get(name)} is given, {expected} is right."
            raise UserError(fault, where=where, do=REBUILD)
    if list(named) != sorted(hashes, key=lambda name: [int(number) for number in re.findall(r"\d+", name)]):
        raise UserError("the index lists other shards than were built, or in another order.", where=where, do=REBUILD)


def _index(folder: Path) -> dict:
    path = folder / "index.json"
    if not path.is_file():
        raise UserError("the index of the shards is missing.", where=str(path), do=REBUILD)
    value = read_json(path)
    names = [shard.raw_data.basename for shard in parse(_Index, value, str(path)).shards]
    if len(set(names)) < len(names):
        raise UserError("a shard stands twice.", where=str(path), do=REBUILD)
    return value


class Sequences:
    """Random access to the token sequences below a folder with an `index.json`.

    Reads with Streaming's shard readers rather than a `StreamingDataset`: that one registers shared memory and
    barriers by name for every process group, which a killed run leaves behind and two runs on one folder compete for.
    It also decodes one sample a call. Here every shard is mapped into memory once, as one array of its sequences, after
    the reader has decoded its first and last sample to the same values.
    """

    def __init__(self, folder: Path):
        from streaming.base.format import reader_from_json

        self.folder = Path(folder)
        self._readers = [reader_from_json(str(self.folder), None, shard) for shard in _index(self.folder)["shards"]]
        for reader in self._readers:
            path = self._path(reader)
            size = path.stat().st_size if path.is_file() else None
            if size != reader.raw_data.bytes:
                change = "missing" if size is None else f"{size} bytes long"
                fault = f"the shard is {change}, {reader.raw_data.bytes} bytes were expected."
                raise UserError(fault, where=str(path), do=REBUILD)
        widths = {tuple(reader.column_sizes) for reader in self._readers}
        if len(widths) != 1 or None in (width := widths.pop()) or len(width) != 1:
            raise UserError("not sequences of tokens of one length.", where=str(self.folder), do=REBUILD)
        #: L+1, the tokens of a sequence.
        self.width = width[0] // 2
        self._ends = np.cumsum([reader.samples for reader in self._readers])
        self._open: dict[int, np.ndarray] = {}

    @staticmethod
    def _path(reader) -> Path:
        return Path(reader.dirname) / reader.raw_data.basename

    def _shard(self, number: int) -> np.ndarray:
        """All sequences of a shard, shape (samples, L+1), mapped and not copied."""
        if number not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            reader = self._readers[number]
            # The samples lie behind the header without gaps, and at the end of the file.
            offset = reader.raw_data.bytes - reader.samples * self.width * 2
            shape = (reader.samples, self.width)
            rows = np.memmap(self._path(reader), dtype="<u2", mode="r", offset=offset, shape=shape).view(np.ndarray)
            for row in (0, reader.samples - 1):
                if not np.array_equal(reader[row][COLUMN], rows[row]):
                    raise UserError("the shard is not laid out as expected.", where=str(self._path(reader)), do=REBUILD)
            self._open[number] = rows
        return self._open[number]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence `index`, shape (L+1,) of uint16; `IndexError` outside 0 <= index < len."""
        return self.take([index])[0]

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The sequences `indices`, in that order, as a new array of shape (n, L+1) and dtype uint16."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self._ends[-1]):
            raise IndexError(f"sequence outside 0..{self._ends[-1] - 1} in {self.folder}")
        out = np.empty((len(indices), self.width), dtype=np.uint16)
        shards = np.searchsorted(self._ends, indices, side="right")
        for number in set(shards.tolist()):
            chosen = shards == number
            rows = self._shard(number)
            out[chosen] = rows[indices[chosen] - (self._ends[number] - len(rows))]
        return out


def preload() -> None:
    """Imports Streaming (10 s), so that processes forked later have it."""
    import streaming  # noqa: F401
