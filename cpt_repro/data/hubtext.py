"""The text of `hub` corpora: rows of a repository's files, chosen by hash, in parts that are read independently."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_repro.declarations.manifests import Hub, Split
from cpt_repro.errors import UserError
from cpt_repro.models.hub import Repository

CHUNK = 1 << 20

_DAMAGED = "Get the file again, and remove its entry from the lock file if it was damaged from the first."


@dataclass(frozen=True)
class HubPart:
    """A unit of work: the rows `row % stripes == stripe` of consecutive files."""

    files: tuple[str, ...]
    stripe: int = 0
    stripes: int = 1


def repository(manifest: Hub) -> Repository:
    """Where the manifest's files are taken from."""
    return Repository("dataset", manifest.dataset, manifest.revision, manifest.gating)


def list_files(manifest: Hub, split: Split) -> list[str]:
    """Paths of a split's files inside the repository, sorted; another number than declared is a `UserError`."""
    declared, source = manifest.files_of(split), repository(manifest)
    files = sorted({file for pattern in declared.files for file in source.files(pattern)})
    if declared.count not in (None, len(files)):
        what = f"the {split} split of '{manifest.name}' should have {declared.count} files, and {len(files)} are there."
        raise UserError(
            what, where=manifest.dataset, do="Complete the copy, or correct 'count' in the manifest."
        )
    return files


def list_parts(manifest: Hub, split: Split) -> list[HubPart]:
    """The units of work of a split, in order."""
    files, size, stripes = list_files(manifest, split), manifest.files_per_part, manifest.parts_per_file
    if stripes > 1:
        return [HubPart((file,), stripe, stripes) for file in files for stripe in range(stripes)]
    return [HubPart(tuple(files[k : k + size])) for k in range(0, len(files), size)]


def chooser(manifest: Hub, split: Split, file: str) -> Callable[[int], bool]:
    """Whether a row of a file belongs to a split: a function of seed, file and row, so that nothing is remembered."""
    held_out = manifest.validation_share
    if split == "validation":
        low, high = 0.0, held_out or 1.0
    else:
        low, high = held_out, held_out + manifest.fraction * (1 - held_out)
    if (low, high) == (0, 1):
        return lambda row: True
    state = hashlib.sha256(f"{manifest.seed}/{file}".encode())

    def chosen(row: int) -> bool:
        own = state.copy()
        own.update(b"/%d" % row)
        return low <= int.from_bytes(own.digest()[:8]) / 2**64 < high

    return chosen


def _chunks(path: Path, form: str) -> Iterator[bytes]:
    """The decompressed bytes of a file; one that is cut short or damaged is a `UserError`."""
    import zstandard

    with open(path, "rb") as stream:
        if form == "jsonl":
            while chunk := stream.read(CHUNK):
                yield chunk
            return

        def fresh() -> Any:
            return (
                zlib.decompressobj(31) if form == "jsonl.gz" else zstandard.ZstdDecompressor().decompressobj()
            )

        inner = fresh()
        try:
            while rest := stream.read(CHUNK):
                while rest:  # a file may be several compressed streams behind each other
                    inner = fresh() if inner.eof else inner
                    if text := inner.decompress(rest):
                        yield text
                    rest = inner.unused_data if inner.eof else b""
        except (zlib.error, zstandard.ZstdError) as error:
            fault = f"the file does not decompress ({error})."
            raise UserError(fault, where=str(path), do=_DAMAGED) from None
        if not inner.eof:
            raise UserError("the file is cut short.", where=str(path), do=_DAMAGED)


def _json_rows(path: Path, form: str, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
    """(number from 0, parsed line) of the lines that are wanted."""
    row, pieces = -1, []

    def parsed(line: bytes) -> Any:
        try:
            return json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            fault = f"not a line of JSON in UTF-8 ({error})."
            raise UserError(fault, where=f"{path}, row {row + 1}", do=_DAMAGED) from None

    for chunk in _chunks(path, form):
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        for line in others:
            row += 1
            if wanted(row):
                yield row, parsed(b"".join(pieces))
            pieces = [line]
    if any(pieces):
        row += 1
        if wanted(row):
            yield row, parsed(b"".join(pieces))


def _parquet_rows(path: Path, columns: list[str], wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
    """(number from 0, {column: value}) of the rows that are wanted; nested columns keep their nesting."""
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        file = parquet.ParquetFile(path)
        there = [column.path for column in (file.schema.column(k) for k in range(len(file.schema)))]
        for column in columns:
            if not any(path == column or path.startswith(f"{column}.") for path in there):
                fault = f"it has no column '{column}' (it has {', '.join(there)})."
                raise UserError(
                    fault, where=str(path), do="Correct 'text' or 'domain.column' in the manifest."
                )
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            chosen = [k for k in range(batch.num_rows) if wanted(row + k)]
            for k, value in zip(
                chosen, batch.take(pyarrow.array(chosen, pyarrow.int64())).to_pylist(), strict=True
            ):
                yield row + k, value
            row += batch.num_rows
    except pyarrow.ArrowException as error:
        fault = f"the file cannot be read ({' '.join(str(error).split())[:200]})."
        raise UserError(fault, where=f"{path}, near row {row + 1}", do=_DAMAGED) from None


def _value(row: Any, column: str) -> Any:
    for key in column.split("."):
        row = row[key]
    return row


def part_documents(manifest: Hub, split: Split, part: HubPart) -> Iterator[dict[str, str]]:
    """The documents `{id, domain, text}` of a part that belong to a split; texts may be empty.

    Fetches the files first. Raises `UserError` that names file and row for what is no text or of no known domain.
    """
    paths = repository(manifest).fetch_all(part.files)
    domain = next(iter(manifest.domains))
    columns = [manifest.text] + ([manifest.domain.column] if manifest.domain else [])
    for file, path in zip(part.files, paths, strict=True):
        chosen = chooser(manifest, split, file)

        def wanted(row: int, chosen: Callable[[int], bool] = chosen) -> bool:
            return row % part.stripes == part.stripe and chosen(row)

        if manifest.format == "parquet":
            rows = _parquet_rows(path, columns, wanted)
        else:
            rows = _json_rows(path, manifest.format, wanted)
        for number, row in rows:
            try:
                text = _value(row, manifest.text)
                text.encode("utf-8")  # a lone surrogate passes JSON ("\ud800") but is no text
                named = _value(row, manifest.domain.column) if manifest.domain else None
            except (KeyError, TypeError, AttributeError, UnicodeError) as error:
                what = f"the columns {', '.join(columns)} do not hold texts ({error!r})."
                do = "Correct 'text' or 'domain.column' in the manifest."
                raise UserError(what, where=f"{path}, row {number + 1}", do=do) from None
            if manifest.domain:
                known = manifest.domain.names
                if not isinstance(named, str) or named not in known:
                    what = f"the domain {named!r} is not declared by the manifest '{manifest.name}'."
                    do = f"Declare it in 'domain.names', which knows: {', '.join(known)}."
                    raise UserError(what, where=f"{path}, row {number + 1}", do=do)
                domain = known[named]
            yield {"id": f"{file}:{number + 1}", "domain": domain, "text": text}


def hub_documents(manifest: Hub, split: Split) -> Iterator[dict[str, str]]:
    """The documents of all parts of a split, one after the other."""
    for part in list_parts(manifest, split):
        yield from part_documents(manifest, split, part)
