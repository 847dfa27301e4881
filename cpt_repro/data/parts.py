"""The parts of a corpus: fixed ranges of its documents, or of a hub's files, each of them built by itself.

A part depends on nothing but its documents, so that shards are the same for any number of processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cpt_repro.data import shards
from cpt_repro.data.encoding import Encoder
from cpt_repro.data.hubtext import HubPart, list_parts, part_documents
from cpt_repro.data.text import documents
from cpt_repro.data.tokenizer import load_tokenizer
from cpt_repro.declarations.manifests import SPLITS, Hub, Manifest, Split
from cpt_repro.errors import UserError
from cpt_repro.files import digest, read_json, whole_folder, write_json
from cpt_repro.project import Project

#: A part ends with the document that reaches either bound. Both are fixed, or resuming would mix parts.
PART_DOCUMENTS = 512
PART_CHARACTERS = 4_000_000
#: Of a shard of a `hub` corpus.
HUB_SHARD_BYTES = 1 << 28
#: Characters that are tokenised at once.
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """A corpus that is built: from what, and where to."""

    project: Project
    manifest: Manifest
    folder: Path
    #: SHA-256 of the tokenizer beside the folder.
    tokenizer: str
    #: Tokens of a sequence that are predicted.
    length: int


@dataclass(frozen=True)
class Part:
    """A unit of work: what becomes one folder of shards of each of its domains."""

    split: Split
    number: int
    domains: tuple[str, ...]
    source: list[dict[str, str]] | HubPart

    def folder(self, corpus: Corpus, domain: str) -> Path:
        """Where the shards of a domain lie."""
        return corpus.folder / self.split / domain / f"part.{self.number:05d}"


def local_parts(corpus: Corpus, skipped: dict[str, int]) -> Iterator[Part]:
    """All parts, in the order in which they fill; `skipped` counts documents without text, by split."""
    for split in SPLITS:
        filling: dict[str, list[dict[str, str]]] = defaultdict(list)
        numbers: Counter[str] = Counter()
        for document in documents(corpus.project, corpus.manifest, split, skipped):
            domain = document["domain"]
            part = filling[domain]
            part.append(document)
            if len(part) == PART_DOCUMENTS or sum(len(each["text"]) for each in part) >= PART_CHARACTERS:
                yield Part(split, numbers[domain], (domain,), filling.pop(domain))
                numbers[domain] += 1
        for domain, part in filling.items():
            yield Part(split, numbers[domain], (domain,), part)


def hub_parts(corpus: Corpus) -> Iterator[Part]:
    """All parts; other files than when the build began are a `UserError`."""
    manifest, record = corpus.manifest, corpus.folder / "files.json"
    listed = {split: list_parts(corpus.project, manifest, split) for split in SPLITS}
    files = {split: digest([[*part.files] for part in parts]) for split, parts in listed.items()}
    if record.is_file() and read_json(record) != files:
        what = f"the data set {manifest.dataset} has other files than when this build began."
        do = "Restore them, or remove this folder to build anew."
        raise UserError(what, where=str(corpus.folder), do=do)
    write_json(record, files)
    for split, parts in listed.items():
        for number, part in enumerate(parts):
            yield Part(split, number, tuple(manifest.domains), part)


@lru_cache(maxsize=1)
def _encoder(folder: Path, version: str) -> Encoder:
    return Encoder(load_tokenizer(folder))


def pack(tokens: np.ndarray, length: int) -> np.ndarray:
    """Cuts a token stream into sequences of length + 1 with stride `length`: shape (n, length + 1).

    The last token of a sequence is the first of the next, so that every token is predicted once. A rest of
    fewer than `length` predictions is dropped.
    """
    starts = np.arange(max(len(tokens) - 1, 0) // length) * length
    return tokens[starts[:, None] + np.arange(length + 1)]


@contextmanager
def _domain_writer(
    folder: Path, encode: Encoder, length: int, shard_bytes: int
) -> Iterator[Callable[[str], None]]:
    """Yields a function that takes a domain's documents of a part one by one; memory does not grow."""
    counts = Counter(documents=0, tokens=0, sequences=0, text_bytes=0, empty_documents=0)
    texts: list[str] = []
    waiting, rest = 0, np.empty(0, dtype=np.uint16)

    with shards.writer(folder, length + 1, shard_bytes) as write:

        def flush() -> None:
            nonlocal waiting, rest
            tokens = encode(texts)
            text_bytes = sum(len(text.encode()) for text in texts)
            stream = np.concatenate([rest, tokens])
            sequences = pack(stream, length)
            write(sequences)
            counts.update(
                documents=len(texts), tokens=len(tokens), text_bytes=text_bytes, sequences=len(sequences)
            )
            # The last token written is the first of the next sequence.
            waiting, rest = 0, stream[len(sequences) * length :].copy()
            texts.clear()

        def add(text: str) -> None:
            nonlocal waiting
            if not text.strip():
                counts["empty_documents"] += 1
                return
            texts.append(text)
            waiting += len(text)
            if waiting >= BATCH_CHARACTERS:
                flush()

        yield add
        flush()
    write_json(folder / "part.json", counts)


def write_part(corpus: Corpus, part: Part) -> None:
    """Reads, tokenises, packs and writes one part; each domain's folder appears complete or not at all."""
    encoder = _encoder(corpus.folder.parent / "tokenizer", corpus.tokenizer)
    shard_bytes, texts = shards.SHARD_BYTES, part.source
    if isinstance(texts, HubPart):
        assert isinstance(corpus.manifest, Hub)
        shard_bytes = HUB_SHARD_BYTES
        texts = part_documents(corpus.project, corpus.manifest, part.split, texts)
    with ExitStack() as stack:
        # All shards are finished before the first folder is renamed.
        asides = {name: stack.enter_context(whole_folder(part.folder(corpus, name))) for name in part.domains}
        add = {
            name: stack.enter_context(_domain_writer(aside, encoder, corpus.length, shard_bytes))
            for name, aside in asides.items()
        }
        for document in texts:
            add[document["domain"]](document["text"])
