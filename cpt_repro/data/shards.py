"""Token sequences in MDS shards: writing, merging, checking and random access. Only this module knows Streaming.

`$CPT_REPRO_SHARDS_REMOTE` may name an object store or a folder, `s3://bucket/prefix` or a path, with shards below
`<scale>/<corpus>/<split>/<domain>/` (as `upload` puts them there): those that are not here are fetched from it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import resource
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cpt_repro.declarations.strict import Strict, parse
from cpt_repro.errors import UserError
from cpt_repro.files import locked, read_json, whole_file, write_json

COLUMN = "tokens"
HASH = "sha1"
#: Bytes of a shard before the next is begun.
SHARD_BYTES = 1 << 25
#: Files that are hashed at once.
HASHING_THREADS = 8
REMOTE_VARIABLE = "CPT_REPRO_SHARDS_REMOTE"

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


@contextmanager
def writer(folder: Path, width: int, size_limit: int = SHARD_BYTES) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that adds sequences, shape (n, width) of uint16, to MDS shards in a folder, new or empty.

    Shards hold up to `size_limit` bytes; `index.json` is written at the end. The column has a fixed shape
    (`ndarray:uint16:<L+1>`), so that a shard is one array behind its header.
    """
    from streaming import MDSWriter

    folder.mkdir(parents=True, exist_ok=True)
    opened: list[MDSWriter] = []  # none without sequences

    def write(sequences: np.ndarray) -> None:
        if len(sequences) and not opened:
            columns = {COLUMN: f"ndarray:uint16:{width}"}
            opened.append(MDSWriter(out=str(folder), columns=columns, hashes=[HASH], size_limit=size_limit))
        for sequence in np.ascontiguousarray(sequences, dtype=np.uint16):
            opened[0].write({COLUMN: sequence})

    yield write
    if opened:
        opened[0].finish()
    else:
        write_json(folder / "index.json", {"version": 2, "shards": []})


def write_shards(folder: Path, sequences: np.ndarray, size_limit: int = SHARD_BYTES) -> None:
    """Writes sequences, shape (n, L+1) of uint16, as MDS shards and an `index.json` into a folder, new or empty."""
    with writer(folder, sequences.shape[1], size_limit) as write:
        write(sequences)


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


def verify(folder: Path, built: dict[str, Any] | None = None, partial: bool = False) -> None:
    """Compares every shard's bytes with its hash, and `index.json` with the shards; Streaming never does so locally.

    `built`: the domain's entry in the corpus' fingerprint, whose hashes then count, so that shards and index of another
    build are found too; without it those of the index count. With `partial`, shards may be missing, to be fetched and
    checked later. Raises a `UserError` that names the first file at fault.
    """
    folder = Path(folder)
    where = str(folder / "index.json")
    listed = {shard["raw_data"]["basename"]: shard for shard in _index(folder)["shards"]}
    named = {name: shard["raw_data"]["hashes"][HASH] for name, shard in listed.items()}
    hashes = built["shards"] if built else named

    def read(name: str) -> tuple[str, int] | None:
        """(hash, samples) of a shard, None where it is not there."""
        if not (folder / name).is_file():
            return None
        with open(folder / name, "rb") as stream:
            found = hashlib.file_digest(stream, HASH).hexdigest()
            stream.seek(0)
            return found, int.from_bytes(stream.read(4), "little")

    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        for (name, expected), there in zip(hashes.items(), threads.map(read, hashes), strict=True):
            path = folder / name
            told = listed[name]["raw_data"]["bytes"] if name in listed else None
            if there is None and not partial:
                raise UserError(
                    f"the shard is missing ({HASH} {expected} expected).", where=str(path), do=REBUILD
                )
            size = path.stat().st_size if there else told
            found, samples = there or (expected, listed[name]["samples"] if name in listed else None)
            told = size if told is None else told
            if found != expected:
                other = next((other for other, value in hashes.items() if value == found), None)
                change = (
                    f"that of {other}"
                    if other
                    else "truncated"
                    if size < told
                    else "altered, or of another build"
                )
                fault = f"the shard is {change}: {HASH} {expected} expected, {found} found in {size} bytes of {told}."
                raise UserError(fault, where=str(path), do=REBUILD)
            if name not in named or (named[name], told, listed[name]["samples"]) != (expected, size, samples):
                given = f"{HASH} {named.get(name)} is given, {expected} is right."
                raise UserError(f"the index does not fit the shard {name}: {given}", where=where, do=REBUILD)
    if list(named) != sorted(hashes, key=lambda name: [int(number) for number in re.findall(r"\d+", name)]):
        raise UserError(
            "the index lists other shards than were built, or in another order.", where=where, do=REBUILD
        )


def _index(folder: Path) -> dict:
    path = folder / "index.json"
    if not path.is_file():
        raise UserError("the index of the shards is missing.", where=str(path), do=REBUILD)
    value = read_json(path)
    names = [shard.raw_data.basename for shard in parse(_Index, value, str(path)).shards]
    if len(set(names)) < len(names):
        raise UserError("a shard stands twice.", where=str(path), do=REBUILD)
    return value


def remote_folder(scale: str, corpus: str, split: str, domain: str) -> str | None:
    """Where a domain's shards may be fetched from."""
    root = os.environ.get(REMOTE_VARIABLE)
    return f"{root.rstrip('/')}/{scale}/{corpus}/{split}/{domain}" if root else None


def _fetch(remote: str, path: Path, expected: str) -> None:
    """Downloads one shard by Streaming's own means; it appears whole and with the expected hash, or not at all."""
    from streaming.base.storage import CloudDownloader
    from streaming.base.util import retry

    # Ranks and loader workers of a node want the same shard at the same time.
    with locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return
        try:
            with whole_file(path) as aside:
                retry(num_attempts=3)(CloudDownloader.direct_download)(remote, str(aside))
                with open(aside, "rb") as stream:
                    found = hashlib.file_digest(stream, HASH).hexdigest()
                if found != expected:
                    fault = f"the remote shard is of another build, or damaged: {HASH} {expected} expected, {found} found."
                    raise UserError(
                        fault, where=remote, do="Upload it again: `cpt-repro corpus NAME --upload REMOTE`."
                    )
        except UserError:
            raise
        except Exception as error:  # every store has errors of its own
            told = " ".join(str(error).split())[:200]
            do = f"Look at ${REMOTE_VARIABLE} and the rights of access, or copy the shard to {path}."
            raise UserError(f"the shard cannot be fetched ({told}).", where=remote, do=do) from error


def upload(folder: Path, names: Iterable[str], remote: str) -> None:
    """Copies files below `folder` to the same places below `remote`, by Streaming's own means."""
    from streaming.base.storage import CloudUploader

    logging.getLogger("streaming").setLevel(logging.ERROR)  # it warns of every folder that is not empty
    uploaders: dict[Path, Any] = {}
    for name in names:
        place = Path(name).parent
        try:
            if place not in uploaders:
                out = (str(folder / place), f"{remote.rstrip('/')}/{place}".removesuffix("/."))
                uploaders = {place: CloudUploader.get(out, keep_local=True, exist_ok=True)}
            uploaders[place].upload_file(Path(name).name)
        except Exception as error:  # every store has errors of its own
            told = " ".join(str(error).split())[:200]
            do = "Look at the address and the rights of access, and run the same command again."
            raise UserError(f"{name} cannot be uploaded ({told}).", where=remote, do=do) from error


@cache
def _most_open() -> int:
    """Memory maps that this process may hold: each takes a file descriptor, and Linux allows 65,530 maps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max((65_536 if soft == resource.RLIM_INFINITY else soft) // 2, 16)


#: All `Sequences` of this process, which share its memory maps.
_alive: weakref.WeakSet[Sequences] = weakref.WeakSet()


class Sequences:
    """Random access to the token sequences below a folder with an `index.json`.

    Reads with Streaming's shard readers rather than a `StreamingDataset`: that one registers shared memory and
    barriers by name for every process group, which a killed run leaves behind and two runs on one folder compete for.
    It also decodes one sample a call. Here every shard is mapped into memory once, as one array of its sequences, after
    the reader has decoded its first and last sample to the same values.

    `remote`: where shards that are not here are fetched from at their first use; `hashes`: what they then must have.
    """

    def __init__(self, folder: Path, remote: str | None = None, hashes: dict[str, str] | None = None):
        from streaming.base.format import reader_from_json

        self.folder, self.remote, self.hashes = Path(folder), remote, hashes or {}
        self._readers = [
            reader_from_json(str(self.folder), None, shard) for shard in _index(self.folder)["shards"]
        ]
        for reader in self._readers:
            self._check_size(reader)
        widths = {tuple(reader.column_sizes) for reader in self._readers}
        if len(widths) != 1 or None in (width := widths.pop()) or len(width) != 1:
            raise UserError("not sequences of tokens of one length.", where=str(self.folder), do=REBUILD)
        #: L+1, the tokens of a sequence.
        self.width = width[0] // 2
        self._ends = np.cumsum([reader.samples for reader in self._readers])
        self._open: dict[int, np.ndarray] = {}
        _alive.add(self)

    def _check_size(self, reader) -> None:
        path = self._path(reader)
        size = path.stat().st_size if path.is_file() else None
        if size is None and self.remote:
            return
        if size != reader.raw_data.bytes:
            change = "missing" if size is None else f"{size} bytes long"
            fault = f"the shard is {change}, {reader.raw_data.bytes} bytes were expected."
            raise UserError(fault, where=str(path), do=REBUILD)

    @staticmethod
    def _path(reader) -> Path:
        return Path(reader.dirname) / reader.raw_data.basename

    def _shard(self, number: int) -> np.ndarray:
        """All sequences of a shard, shape (samples, L+1), mapped and not copied."""
        rows = self._open.pop(number, None)
        if rows is None:
            while len(self._open) >= max(_most_open() // len(_alive), 1):
                del self._open[next(iter(self._open))]
            rows = self._map(self._readers[number])
        self._open[number] = rows  # the latest used is the last
        return rows

    def _map(self, reader) -> np.ndarray:
        path, name = self._path(reader), reader.raw_data.basename
        if self.remote and not path.is_file():
            _fetch(
                f"{self.remote}/{name}",
                path,
                (self.hashes or reader.raw_data.hashes)[name if self.hashes else HASH],
            )
            self._check_size(reader)
        # The samples lie behind the header without gaps, and at the end of the file.
        offset = reader.raw_data.bytes - reader.samples * self.width * 2
        rows = np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=(reader.samples, self.width)).view(
            np.ndarray
        )
        for row in (0, reader.samples - 1):
            if not np.array_equal(reader[row][COLUMN], rows[row]):
                raise UserError("the shard is not laid out as expected.", where=str(path), do=REBUILD)
        return rows

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
