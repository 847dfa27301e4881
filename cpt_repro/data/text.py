"""The text of a corpus: documents `{id, domain, text}`, checked against its manifest while they are read."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import getitem
from pathlib import Path
from typing import Any, NoReturn

from cpt_repro.data.languages import make_documents
from cpt_repro.declarations.manifests import Files, Generated, Hub, Manifest, Split
from cpt_repro.errors import UserError, briefly
from cpt_repro.files import file_digest
from cpt_repro.models.hub import Repository
from cpt_repro.project import CORPORA, Project

log = logging.getLogger(__name__)

CHUNK = 1 << 20

_COMPRESSIONS = {"jsonl": None, "jsonl.gz": "gzip", "jsonl.zst": "zstd"}
_HUB_ADVICE = "Correct 'text' or 'domain.column' in the manifest; or get the file again, and remove its entry"
_HUB_ADVICE += " from the lock file if it was damaged from the first."


# -- rows


def _too_long(what: str, most: int, where: str) -> UserError:
    do = "Declare more 'line_bytes' in the manifest if that is right."
    return UserError(f"the {what} is longer than {most} bytes.", where=where, do=do)


def read_lines(path: Path, compression: str | None, most: int, do: str) -> Iterator[bytes]:
    """Decompressed lines with their ends; a file may be several compressed streams behind each other.

    A file that is damaged or cut short, and a line of more than `most` bytes, is a `UserError` with the
    advice `do`: a small file of one letter over and over may unpack to many gigabytes.
    """
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            reader, number = io.BufferedReader(stream, CHUNK), 0
            if compression and not path.stat().st_size:
                raise OSError("it is empty")
            while line := reader.readline(most + 1):
                number += 1
                if len(line) > most:
                    raise _too_long("line", most, f"{path}, row {number}")
                yield line
    except (OSError, pyarrow.ArrowException) as error:
        what = f"the file is damaged or cut short ({briefly(error)})."
        raise UserError(what, where=str(path), do=do) from None


def _read_parquet(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows as {column: value}; nested columns keep their nesting, unknown ones are missing."""
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        what = f"the file cannot be read ({briefly(error)})."
        raise UserError(what, where=str(path), do=_HUB_ADVICE) from None


@dataclass(frozen=True)
class _Columns:
    """Where a row holds its document; nested columns with dots."""

    text: str
    domain: str | None
    #: What may stand in the column of the domain -> domain; without such a column the one domain there is.
    names: Mapping[str, str]
    #: Bytes of a text.
    most: int
    do: str

    def document(self, row: Any, where: str, identifier: str | None = None) -> dict[str, str]:
        """The document of a row (bytes: a line of JSON); its id is the row's where none is given."""
        try:
            row = json.loads(row.decode("utf-8")) if isinstance(row, bytes) else row
        except (ValueError, RecursionError) as error:
            raise UserError(f"not a line of JSON in UTF-8 ({error}).", where=where, do=self.do) from None
        try:
            text = reduce(getitem, self.text.split("."), row)
            named = reduce(getitem, self.domain.split("."), row) if self.domain else next(iter(self.names))
            length = len(text.encode("utf-8"))  # a lone surrogate passes JSON ("\ud800") but is no text
            identifier = identifier or row["id"]
        except (KeyError, TypeError, AttributeError, UnicodeError) as error:
            columns = ", ".join(filter(None, (self.text, self.domain)))
            what = f"the columns {columns} do not hold texts ({error!r})."
            raise UserError(what, where=where, do=self.do) from None
        if length > self.most:
            raise _too_long("text", self.most, where)
        if not isinstance(named, str) or named not in self.names:
            known = f"Declare it in the manifest, which knows: {', '.join(self.names)}."
            raise UserError(f"the domain {named!r} is not declared.", where=where, do=known)
        return {"id": identifier, "domain": self.names[named], "text": text}


# -- local files


def _file_documents(folder: Path, manifest: Files, split: Split) -> Iterator[dict[str, str]]:
    """The documents of a local file; its hash is compared before, that of all lines behind the last.

    No more text is read than the manifest declares.
    """
    source = manifest.splits[split]
    path = folder / source.file
    do = f"Set the environment variable {CORPORA} to the folder that holds a good {path.name}, or extract it"
    do += " again from its sources with `cpt-repro corpora extract`."

    def refuse(what: str, where: str = str(path), do: str = do) -> NoReturn:
        raise UserError(what, where=where, do=do)

    def compare(what: str, expected: str, actual: str) -> None:
        if actual != expected:
            refuse(f"{what} is not what the manifest says: SHA-256 {expected} expected, {actual} found.")

    if not path.is_file():
        refuse(f"the corpus file does not exist (SHA-256 {source.sha256} expected).")
    compare("the file", source.sha256, file_digest(path))
    columns = _Columns("text", "domain", {name: name for name in manifest.domains}, manifest.line_bytes, do)
    hashed, counts = hashlib.sha256(), Counter[str]()
    for number, line in enumerate(read_lines(path, "zstd", manifest.line_bytes, do), 1):
        hashed.update(line)
        document = columns.document(line, where := f"{path}, row {number}")
        counts[document["domain"]] += len(document["text"].encode("utf-8"))
        if counts.total() > source.text_bytes:
            declared = f"the {source.text_bytes} bytes that the manifest declares"
            refuse(f"the text is longer than {declared}.", where)
        yield document
    compare("the decompressed text", source.sha256_jsonl, hashed.hexdigest())
    for domain, declared in source.domain_bytes.items():
        if counts[domain] != declared:
            what = f"has {counts[domain]} bytes of text, the manifest declares {declared}."
            refuse(f"the domain '{domain}' {what}", do="Correct 'domain_bytes' in the manifest.")


# -- files of the hub


@dataclass(frozen=True)
class HubPart:
    """A unit of work: the rows `row % stripes == stripe` of consecutive files."""

    files: tuple[str, ...]
    stripe: int
    stripes: int


def _repository(project: Project, manifest: Hub) -> Repository:
    return Repository(project, "dataset", manifest.dataset, manifest.revision, manifest.gating)


def list_parts(project: Project, manifest: Hub, split: Split) -> list[HubPart]:
    """The units of work of a split, in the order of its files; another number of them: `UserError`."""
    declared, source = manifest.files_of(split), _repository(project, manifest)
    files = sorted({file for pattern in declared.files for file in source.files(pattern)})
    if declared.count not in (None, len(files)):
        told = f"has {len(files)} files and should have {declared.count}"
        what = f"the {split} split of '{manifest.name}' {told}."
        do = "Complete the copy, or correct 'count' in the manifest."
        raise UserError(what, where=manifest.dataset, do=do)
    size, stripes = manifest.files_per_part, manifest.parts_per_file  # one of them is 1
    starts = range(0, len(files), size)
    return [HubPart(tuple(files[k : k + size]), n, stripes) for k in starts for n in range(stripes)]


def chooser(manifest: Hub, split: Split, file: str) -> Callable[[int], bool]:
    """Whether a row of a file belongs to a split: a function of seed, file and row alone."""
    held_out = manifest.validation_share
    low, high = 0.0, held_out or 1.0
    if split == "train":
        low, high = held_out, held_out + manifest.fraction * (1 - held_out)

    def chosen(row: int) -> bool:
        hashed = hashlib.sha256(f"{manifest.seed}/{file}/{row}".encode()).digest()
        return low <= int.from_bytes(hashed[:8]) / 2**64 < high

    return chosen


def part_documents(project: Project, manifest: Hub, split: Split, part: HubPart) -> Iterator[dict[str, str]]:
    """The documents `{id, domain, text}` of a part that belong to a split; texts may be empty.

    Fetches the files first. What is no text, or of no known domain, is a `UserError` naming file and row.
    """
    domain = manifest.domain.column if manifest.domain else None
    names = manifest.domain.names if manifest.domain else {name: name for name in manifest.domains}
    columns = _Columns(manifest.text, domain, names, manifest.line_bytes, _HUB_ADVICE)
    paths = _repository(project, manifest).fetch(*part.files)
    for file, path in zip(part.files, paths, strict=True):
        if manifest.format == "parquet":
            rows = _read_parquet(path, [manifest.text, domain] if domain else [manifest.text])
        else:
            rows = read_lines(path, _COMPRESSIONS[manifest.format], manifest.line_bytes, _HUB_ADVICE)
        chosen = chooser(manifest, split, file)
        for row, value in enumerate(rows):
            if row % part.stripes == part.stripe and chosen(row):
                yield columns.document(value, f"{path}, row {row + 1}", f"{file}:{row + 1}")


# -- any


def documents(
    project: Project, manifest: Manifest, split: Split, skipped: Counter[str] | None = None
) -> Iterator[dict[str, str]]:
    """The documents of a split as `{id, domain, text}`, in a fixed order; ids may stand twice.

    Those without text are left out, and counted in `skipped[split]`. `UserError`: files that are missing or
    altered (which may be noticed only after the last document), and a split without documents.
    """
    if isinstance(manifest, Generated):
        source = make_documents(manifest, split)
    elif isinstance(manifest, Hub):
        listed = list_parts(project, manifest, split)
        source = chain.from_iterable(part_documents(project, manifest, split, part) for part in listed)
    else:
        source = _file_documents(project.corpora, manifest, split)
    empty = given = 0
    for document in source:
        if document["text"].strip():
            given += 1
            yield document
        else:
            empty += 1
    if empty:
        log.warning("%s, %s: left out %d documents without text", manifest.name, split, empty)
    if skipped is not None:
        skipped[split] += empty
    if not given:
        do = "Give it text, or use another corpus."
        raise UserError(f"the corpus '{manifest.name}' has no text in its {split} split.", do=do)
