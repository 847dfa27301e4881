"""The text of `hub` corpora: rows of a repository's files, chosen by hash, in independent parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_repro.data.rows import Columns, lines, parsed
from cpt_repro.declarations.manifests import Hub, Split
from cpt_repro.errors import UserError
from cpt_repro.models.hub import Repository
from cpt_repro.project import Project

_DAMAGED = "Get the file again, and remove its entry from the lock file if it was damaged from the first."
_COLUMNS = "Correct 'text' or 'domain.column' in the manifest."


@dataclass(frozen=True)
class HubPart:
    """A unit of work: the rows `row % stripes == stripe` of consecutive files."""

    files: tuple[str, ...]
    stripe: int = 0
    stripes: int = 1


def _repository(project: Project, manifest: Hub) -> Repository:
    return Repository(project, "dataset", manifest.dataset, manifest.revision, manifest.gating)


def list_parts(project: Project, manifest: Hub, split: Split) -> list[HubPart]:
    """The units of work of a split, in the order of its files; another number of them: `UserError`."""
    declared, source = manifest.files_of(split), _repository(project, manifest)
    files = sorted({file for pattern in declared.files for file in source.files(pattern)})
    if declared.count not in (None, len(files)):
        what = (
            f"the {split} split of '{manifest.name}' has {len(files)} files and should have {declared.count}."
        )
        do = "Complete the copy, or correct 'count' in the manifest."
        raise UserError(what, where=manifest.dataset, do=do)
    size, stripes = manifest.files_per_part, manifest.parts_per_file
    if stripes > 1:
        return [HubPart((file,), stripe, stripes) for file in files for stripe in range(stripes)]
    return [HubPart(tuple(files[k : k + size])) for k in range(0, len(files), size)]


def chooser(manifest: Hub, split: Split, file: str) -> Callable[[int], bool]:
    """Whether a row of a file belongs to a split: a function of seed, file and row alone."""
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


_Rows = Iterator[tuple[int, Any]]


def _json_rows(path: Path, form: str, wanted: Callable[[int], bool]) -> _Rows:
    """(number from 0, parsed line) of the lines that are wanted."""
    compression = {"jsonl": None, "jsonl.gz": "gzip", "jsonl.zst": "zstd"}[form]
    for row, line in enumerate(lines(path, compression, _DAMAGED)):
        if wanted(row):
            yield row, parsed(line, f"{path}, row {row + 1}", _DAMAGED)


def _parquet_rows(path: Path, columns: list[str], wanted: Callable[[int], bool]) -> _Rows:
    """(number from 0, {column: value}) of the rows that are wanted; nested columns keep their nesting."""
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        file = parquet.ParquetFile(path)
        known = [column.path for column in (file.schema.column(k) for k in range(len(file.schema)))]
        for column in columns:
            if not any(other == column or other.startswith(f"{column}.") for other in known):
                what = f"it has no column '{column}' (it has {', '.join(known)})."
                raise UserError(what, where=str(path), do=_COLUMNS)
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            chosen = [k for k in range(batch.num_rows) if wanted(row + k)]
            values = batch.take(pyarrow.array(chosen, pyarrow.int64())).to_pylist()
            yield from zip((row + k for k in chosen), values, strict=True)
            row += batch.num_rows
    except pyarrow.ArrowException as error:
        what = f"the file cannot be read ({' '.join(str(error).split())[:200]})."
        raise UserError(what, where=f"{path}, near row {row + 1}", do=_DAMAGED) from None


def part_documents(project: Project, manifest: Hub, split: Split, part: HubPart) -> Iterator[dict[str, str]]:
    """The documents `{id, domain, text}` of a part that belong to a split; texts may be empty.

    Fetches the files first. Raises `UserError` that names file and row for what is no text or of no known
    domain.
    """
    columns = Columns(manifest.text, None, {name: name for name in manifest.domains})
    if manifest.domain:
        columns = Columns(manifest.text, manifest.domain.column, manifest.domain.names)
    paths = _repository(project, manifest).fetch_all(part.files)
    for file, path in zip(part.files, paths, strict=True):
        chosen = chooser(manifest, split, file)

        def wanted(row: int, chosen: Callable[[int], bool] = chosen) -> bool:
            return row % part.stripes == part.stripe and chosen(row)

        if manifest.format == "parquet":
            rows = _parquet_rows(path, [*filter(None, (columns.text, columns.domain))], wanted)
        else:
            rows = _json_rows(path, manifest.format, wanted)
        for number, row in rows:
            yield columns.document(row, f"{path}, row {number + 1}", _COLUMNS, f"{file}:{number + 1}")


def hub_documents(project: Project, manifest: Hub, split: Split) -> Iterator[dict[str, str]]:
    """The documents of all parts of a split, one after the other."""
    for part in list_parts(project, manifest, split):
        yield from part_documents(project, manifest, split, part)
