"""The text of a corpus: checked against its manifest while it is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from cpt_repro.data.hubtext import hub_documents
from cpt_repro.data.languages import make_documents
from cpt_repro.declarations.manifests import Files, Generated, Hub, Manifest, SourceFile, Split
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest
from cpt_repro.project import ROOT

log = logging.getLogger(__name__)

CORPORA_VARIABLE = "CPT_REPRO_CORPORA"


def corpora_folder() -> Path:
    """Where the files of `files` corpora are looked for: `$CPT_REPRO_CORPORA`, else `data/corpora` of the project."""
    return Path(os.environ.get(CORPORA_VARIABLE) or ROOT / "data" / "corpora")


def _advice(path: Path) -> str:
    return (
        f"Set the environment variable {CORPORA_VARIABLE} to the folder that holds a good {path.name}, or extract it "
        f"again from its sources with `cpt-repro corpora extract`."
    )


def _altered(path: Path, what: str, expected: str, found: str) -> UserError:
    fault = f"{what} is not what the manifest says: SHA-256 {expected} expected, {found} found."
    return UserError(fault, where=str(path), do=_advice(path))


def _checked_file(source: SourceFile) -> Path:
    path = corpora_folder() / source.file
    if not path.is_file():
        fault = f"the corpus file does not exist (SHA-256 {source.sha256} expected, no file found)."
        raise UserError(fault, where=str(path), do=_advice(path))
    if (found := file_digest(path)) != source.sha256:
        raise _altered(path, "the file", source.sha256, found)
    return path


def _lines(path: Path, source: SourceFile) -> Iterator[bytes]:
    """Decompressed lines; the hash of all of them is compared after the last."""
    import zstandard

    hashed = hashlib.sha256()
    rest = b""
    with open(path, "rb") as stream:
        try:
            for chunk in zstandard.ZstdDecompressor().read_to_iter(stream, write_size=1 << 20):
                hashed.update(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except zstandard.ZstdError as error:
            raise UserError(
                f"the file does not decompress ({error}).", where=str(path), do=_advice(path)
            ) from None
    if rest:
        yield rest
    if hashed.hexdigest() != source.sha256_jsonl:
        raise _altered(path, "the decompressed text", source.sha256_jsonl, hashed.hexdigest())


def _file_documents(manifest: Files, split: Split) -> Iterator[dict[str, str]]:
    source = manifest.splits[split]
    path = _checked_file(source)
    for number, line in enumerate(_lines(path, source), 1):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
            document = {key: value[key] for key in ("id", "domain", "text")}
            # A lone surrogate passes JSON ("\ud800") but is no text; it would break the tokenizer far from here.
            document["text"].encode("utf-8")
        except UnicodeError as error:
            raise UserError(f"not valid UTF-8 ({error}).", where=where, do=_advice(path)) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            fault = f"not a JSON object with the texts id, domain and text ({error!r})."
            raise UserError(fault, where=where, do=_advice(path)) from None
        if document["domain"] not in manifest.domains:
            known = ", ".join(manifest.domains)
            fault = f"the domain '{document['domain']}' is not declared by the manifest '{manifest.name}'."
            raise UserError(fault, where=where, do=f"Declare it there; it knows: {known}.")
        yield document


def documents(
    manifest: Manifest, split: Split, skipped: dict[str, int] | None = None
) -> Iterator[dict[str, str]]:
    """The documents of a split as `{id, domain, text}`, in a fixed order.

    Documents without text are left out; their number is added to `skipped[split]` if a mapping is given. A document
    may be of any length, and ids may stand twice: both documents count. Raises `UserError` for files that are missing,
    altered or not what they should be (an altered text can be noticed only after the last document), and for a split
    without documents.
    """
    if isinstance(manifest, Generated):
        source = make_documents(manifest, split)
    elif isinstance(manifest, Hub):
        source = hub_documents(manifest, split)
    else:
        assert isinstance(manifest, Files)
        source = _file_documents(manifest, split)
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
        raise UserError(
            f"the corpus '{manifest.name}' has no text in its {split} split.",
            do="Give it text, or use another corpus.",
        )
