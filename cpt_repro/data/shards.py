"""Token sequences in MDS shards: writing, merging, checking, random access. Only this module knows Streaming.

A shard is a header and, behind it, one array of tokens, which reading maps into memory. `StreamingDataset` is
not used: a killed run leaves its shared memory behind, and two runs on one folder compete for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from pydantic import AliasPath, BaseModel, Field

from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError, briefly
from cpt_repro.files import file_digest, locked, read_json, whole_file, write_json
from cpt_repro.project import SHARDS

COLUMN, HASH = "tokens", "sha1"
#: Bytes of a shard before the next is begun.
SHARD_BYTES = 1 << 25
#: Files that are hashed at once.
HASHING_THREADS = 8
#: Shards that a process maps at once. Each takes a file descriptor, of which 1,024 are usual.
OPEN_SHARDS = 512

REBUILD = "Rebuild what is damaged: `cpt-repro corpus NAME --scale SCALE --rebuild`."
#: No name that leads out of the folder.
_NAME = r"^(part\.\d{5,}/)?shard\.\d{5,}\.mds$"


class _Shard(BaseModel, frozen=True):
    """What is taken from an entry of an index: one column of two bytes a token."""

    name: str = Field(validation_alias=AliasPath("raw_data", "basename"), pattern=_NAME)
    size: int = Field(validation_alias=AliasPath("raw_data", "bytes"), ge=8)
    sha1: str = Field(validation_alias=AliasPath("raw_data", "hashes", HASH), pattern="^[0-9a-f]{40}$")
    column: str = Field(
        validation_alias=AliasPath("column_encodings", 0), pattern=r"^ndarray:uint16:\d{1,9}$"
    )
    samples: int = Field(ge=1)

    @property
    def width(self) -> int:
        return int(self.column.rpartition(":")[2])


class _Index(BaseModel):
    shards: tuple[_Shard, ...]


def _index(folder: Path) -> tuple[_Shard, ...]:
    path = folder / "index.json"
    if not path.is_file():
        raise UserError("the index of the shards is missing.", where=str(path), do=REBUILD)
    return parse(_Index, read_json(path), str(path)).shards


def preload() -> None:
    """Imports Streaming (10 s), so that processes forked later have it."""
    import streaming  # noqa: F401


@contextmanager
def writer(folder: Path, width: int, size_limit: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that adds sequences, shape (n, width) of uint16, to MDS shards in a new folder.

    Shards hold up to `size_limit` bytes; `index.json` is written at the end.
    """
    from streaming import MDSWriter

    columns = {COLUMN: f"ndarray:uint16:{width}"}
    with MDSWriter(out=str(folder), columns=columns, hashes=[HASH], size_limit=size_limit) as out:

        def write(sequences: np.ndarray) -> None:
            for sequence in sequences:
                out.write({COLUMN: sequence})

        yield write


def merge_indexes(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """Joins the indexes of sub-folders `parts`, in that order, into `folder/index.json`; {shard: hash}."""
    hashes, entries = {}, []
    for part in parts:
        hashes |= {f"{part}/{shard.name}": shard.sha1 for shard in _index(folder / part)}
        for entry in read_json(folder / part / "index.json")["shards"]:
            entry["raw_data"]["basename"] = f"{part}/{entry['raw_data']['basename']}"
            entries.append(entry)
    write_json(folder / "index.json", {"version": 2, "shards": entries})
    return hashes


def _check(folder: Path, shard: _Shard, contents: bool = True) -> None:
    """Compares a shard with its entry in the index; Streaming never does so with local files."""
    path, fault = folder / shard.name, None
    if not path.is_file():
        fault = "missing"
    elif (size := path.stat().st_size) < shard.size:
        fault = f"truncated, to {size} bytes of {shard.size}"
    elif contents and (actual := file_digest(path, HASH)) != shard.sha1:
        fault = f"altered, or of another build: {HASH} {actual} found"
    if fault:
        raise UserError(f"the shard is {fault}, {HASH} {shard.sha1} expected.", where=str(path), do=REBUILD)
    samples = int(np.fromfile(path, "<u4", 1)[0])
    if (size, samples) != (shard.size, shard.samples):
        what = f"the index does not fit the shard {shard.name} of {samples} samples in {size} bytes."
        raise UserError(what, where=str(folder / "index.json"), do=REBUILD)


@lru_cache(maxsize=OPEN_SHARDS)
def _mapped(folder: Path, shard: _Shard, remote: str | None) -> np.ndarray:
    """All sequences of a shard, shape (samples, width), mapped and not copied."""
    path = folder / shard.name
    if remote and not path.is_file():
        _fetch(f"{remote}/{shard.name}", path, shard.sha1)
    _check(folder, shard, contents=False)
    # They lie behind the header without gaps, and at the end of the file.
    offset, shape = shard.size - 2 * shard.samples * shard.width, (shard.samples, shard.width)
    return np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=shape).view(np.ndarray)


class Sequences:
    """Random access to the token sequences below a folder with an `index.json`.

    `hashes`: {shard: hash} that were built, of sequences of `width` tokens; another index is a `UserError`,
    and so is a shard that is missing, of another size or (with `check`) of other contents. `remote`: where
    shards that are not here are fetched from at their first use.
    """

    def __init__(
        self, folder: Path, width: int, hashes: dict[str, str], remote: str | None = None, check: bool = True
    ):
        self.folder, self.width, self._remote, self._shards = folder, width, remote, _index(folder)
        built = sorted(hashes.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])])
        fault = None
        if [(shard.name, shard.sha1) for shard in self._shards] != built:
            fault = "the index lists other shards than were built, or in another order."
        elif others := {shard.width for shard in self._shards} - {width}:
            fault = f"its sequences have {others.pop()} tokens, and not {width}."
        if fault:
            raise UserError(fault, where=str(folder / "index.json"), do=REBUILD)
        here = [shard for shard in self._shards if not remote or (folder / shard.name).is_file()]
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            list(threads.map(lambda shard: _check(folder, shard, check), here))
        self._ends = np.cumsum([shard.samples for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return sum(shard.samples for shard in self._shards)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The sequences `indices`, in that order: (n, width) uint16; `IndexError` outside 0..len - 1."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self._ends[-1]):
            raise IndexError(f"sequence outside 0..{len(self) - 1} in {self.folder}")
        out = np.empty((len(indices), self.width), dtype=np.uint16)
        numbers = np.searchsorted(self._ends, indices, side="right")
        for number in set(numbers.tolist()):
            chosen, shard = numbers == number, self._shards[number]
            rows = _mapped(self.folder, shard, self._remote)
            out[chosen] = rows[indices[chosen] - (self._ends[number] - shard.samples)]
        return out


# -- elsewhere


@contextmanager
def _stores_errors(what: str, where: str, do: str) -> Iterator[None]:
    """Every store has errors of its own, not shown as the cause: they may hold an address with its keys."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({briefly(error)}).", where=where, do=do) from None


def _fetch(remote: str, path: Path, expected: str) -> None:
    """Downloads a shard by Streaming's own means; it appears whole and with the right hash, or not at all."""
    from streaming.base.storage import CloudDownloader
    from streaming.base.util import retry

    do = f"Look at ${SHARDS} and the rights of access, or copy the shard to {path}."
    # Ranks and loader workers of a node want the same shard at the same time.
    with (
        locked(path.with_name(f".{path.name}.lock")),
        _stores_errors("the shard cannot be fetched", remote, do),
    ):
        if path.is_file():
            return
        with whole_file(path) as aside:
            aside.unlink()  # of what is there Streaming thinks that it is the file
            retry(num_attempts=3)(CloudDownloader.direct_download)(remote, str(aside))
            if (actual := file_digest(aside, HASH)) != expected:
                what = f"the remote shard is of another build, or damaged: {HASH} {expected} expected, "
                do = "Upload it again: `cpt-repro corpus NAME --upload REMOTE`."
                raise UserError(f"{what}{actual} found.", where=remote, do=do)


def upload(folder: Path, names: Iterable[str], remote: str) -> None:
    """Copies files below `folder` to the same places below `remote`, by Streaming's own means."""
    from streaming.base.storage import CloudUploader

    logging.getLogger("streaming").setLevel(logging.ERROR)  # it warns of every folder that is not empty
    do = "Look at the address and the rights of access, and run the same command again."
    for place, files in groupby(map(Path, names), lambda name: name.parent):
        with _stores_errors(f"{place} cannot be uploaded", remote, do):
            out = (str(folder / place), f"{remote}/{place}")
            uploader = CloudUploader.get(out, keep_local=True, exist_ok=True)
            for file in files:
                uploader.upload_file(file.name)
