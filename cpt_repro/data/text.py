"""The text of a corpus: checked against its manifest while it is read."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from cpt_repro.data.hubtext import hub_documents
from cpt_repro.data.languages import make_documents
from cpt_repro.data.lines import lines
from cpt_repro.declarations.manifests import Files, Generated, Hub, Manifest, Split
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest
from cpt_repro.project import CORPORA, Project

log = logging.getLogger(__name__)


def _file_documents(folder: Path, manifest: Files, split: Split) -> Iterator[dict[str, str]]:
    """The documents of a local file; its hash is compared before, that of all lines behind the last."""
    source = manifest.splits[split]
    path = folder / source.file
    do = (
        f"Set the environment variable {CORPORA} to the folder that holds a good {path.name}, or extract it "
        "again from its sources with `cpt-repro corpora extract`."
    )

    def refused(what: str, line: int | None = None, do: str = do) -> UserError:
        return UserError(what, where=f"{path}, line {line}" if line else str(path), do=do)

    if not path.is_file():
        raise refused(f"the corpus file does not exist (SHA-256 {source.sha256} expected).")
    altered = "is not what the manifest says: SHA-256 {} expected, {} found."
    if (actual := file_digest(path)) != source.sha256:
        raise refused("the file " + altered.format(source.sha256, actual))
    hashed, text_bytes = hashlib.sha256(), 0
    for number, line in enumerate(lines(path, "zstd", do), 1):
        hashed.update(line)
        try:
            value = json.loads(line.decode("utf-8"))
            document = {key: value[key] for key in ("id", "domain", "text")}
            # A lone surrogate passes JSON ("\ud800") but is no text; it would break the tokenizer far from
            # here.
            text_bytes += len(document["text"].encode("utf-8"))
        except UnicodeError as error:
            raise refused(f"not valid UTF-8 ({error}).", number) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise refused(
                f"not a JSON object with the texts id, domain and text ({error!r}).", number
            ) from None
        if document["domain"] not in manifest.domains:
            what = f"the domain '{document['domain']}' is not declared by the manifest '{manifest.name}'."
            raise refused(what, number, f"Declare it there; it knows: {', '.join(manifest.domains)}.")
        if number > source.documents or text_bytes > source.text_bytes:
            declared = f"{source.documents} documents of {source.text_bytes} bytes in all"
            raise refused(f"the manifest declares {declared}, and here are more.", number)
        yield document
    if hashed.hexdigest() != source.sha256_jsonl:
        raise refused("the decompressed text " + altered.format(source.sha256_jsonl, hashed.hexdigest()))


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
