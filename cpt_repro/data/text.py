"""The text of a corpus: checked against its manifest while it is read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from cpt_repro.data.hubtext import hub_documents
from cpt_repro.data.languages import make_documents
from cpt_repro.data.rows import Columns, lines, parsed
from cpt_repro.declarations.manifests import Files, Generated, Hub, Manifest, Split
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest
from cpt_repro.project import CORPORA, Project

log = logging.getLogger(__name__)


def _file_documents(folder: Path, manifest: Files, split: Split) -> Iterator[dict[str, str]]:
    """The documents of a local file; its hash is compared before, that of all lines behind the last."""
    source = manifest.splits[split]
    path, columns = folder / source.file, Columns("text", "domain", {name: name for name in manifest.domains})
    do = (
        f"Set the environment variable {CORPORA} to the folder that holds a good {path.name}, or extract it "
        "again from its sources with `cpt-repro corpora extract`."
    )

    def compare(what: str, expected: str, actual: str) -> None:
        if actual != expected:
            fault = f"{what} is not what the manifest says: SHA-256 {expected} expected, {actual} found."
            raise UserError(fault, where=str(path), do=do)

    if not path.is_file():
        what = f"the corpus file does not exist (SHA-256 {source.sha256} expected)."
        raise UserError(what, where=str(path), do=do)
    compare("the file", source.sha256, file_digest(path))
    hashed, text_bytes = hashlib.sha256(), 0
    for number, line in enumerate(lines(path, "zstd", do), 1):
        hashed.update(line)
        where = f"{path}, row {number}"
        document = columns.document(parsed(line, where, do), where, do)
        text_bytes += len(document["text"].encode())
        if number > source.documents or text_bytes > source.text_bytes:
            declared = f"{source.documents} documents of {source.text_bytes} bytes in all"
            raise UserError(f"the manifest declares {declared}, and here are more.", where=where, do=do)
        yield document
    compare("the decompressed text", source.sha256_jsonl, hashed.hexdigest())


def documents(
    project: Project, manifest: Manifest, split: Split, skipped: dict[str, int] | None = None
) -> Iterator[dict[str, str]]:
    """The documents of a split as `{id, domain, text}`, in a fixed order.

    Documents without text are left out; their number is added to `skipped[split]` if a mapping is given. Ids
    may stand twice: both documents count. Raises `UserError` for files that are missing, altered or not what
    they should be (an altered text can be noticed only after the last document), and for a split without
    documents.
    """
    if isinstance(manifest, Generated):
        source = make_documents(manifest, split)
    elif isinstance(manifest, Hub):
        source = hub_documents(project, manifest, split)
    else:
        assert isinstance(manifest, Files)
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
        skipped[split] = skipped.get(split, 0) + empty
    if not given:
        do = "Give it text, or use another corpus."
        raise UserError(f"the corpus '{manifest.name}' has no text in its {split} split.", do=do)
