"""The parts of a corpus: fixed ranges of its documents, or of a hub's files, each of them built by itself.

A part depends on nothing but its documents, so that shards are the same for any number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cpt_repro.data import shards
from cpt_repro.data.text import HubPart, documents, list_parts, part_documents
from cpt_repro.data.tokenizer import Encoder, load_tokenizer
from cpt_repro.declarations.manifests import SPLITS, Manifest, Split
from cpt_repro.errors import UserError
from cpt_repro.files import digest, read_json, whole_folder, write_json
from cpt_repro.processes import end_with
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

    @property
    def about(self) -> dict[str, Any]:
        """What decides its sequences, as its records say it."""
        of = {"name": self.manifest.name, "manifest": self.manifest.digest}
        return of | {"tokenizer": self.tokenizer, "sequence_length": self.length}


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


def local_parts(corpus: Corpus, skipped: Counter[str]) -> Iterator[Part]:
    """All parts, in the order in which they fill; `skipped` counts documents without text, by split."""
    for split in SPLITS:
        filling: dict[str, list[dict[str, str]]] = defaultdict(list)
        numbers: Counter[str] = Counter()
        for document in documents(corpus.project, corpus.manifest, split, skipped):
            part = filling[domain := document["domain"]]
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


class _DomainWriter:
    """Takes a domain's documents of a part one by one and writes their sequences; memory does not grow.

    A sequence has length + 1 tokens; its last is the first of the next, so that every token is predicted
    once. A rest of fewer than `length` predictions at the end of the part is dropped.
    """

    def __init__(self, write: Callable[[np.ndarray], None], encode: Encoder, length: int):
        self.write, self.encode, self.length = write, encode, length
        self.counts = Counter(documents=0, tokens=0, sequences=0, text_bytes=0, empty_documents=0)
        self.texts: list[str] = []
        self.waiting, self.rest = 0, np.empty(0, dtype=np.uint16)

    def add(self, text: str) -> None:
        if not text.strip():
            self.counts["empty_documents"] += 1
            return
        self.texts.append(text)
        self.waiting += len(text)
        if self.waiting >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        stream = np.concatenate([self.rest, tokens := self.encode(self.texts)])
        starts = np.arange(max(len(stream) - 1, 0) // self.length) * self.length
        self.write(stream[starts[:, None] + np.arange(self.length + 1)])
        self.rest = stream[len(starts) * self.length :].copy()
        text_bytes = sum(len(text.encode()) for text in self.texts)
        self.counts.update(
            documents=len(self.texts), tokens=len(tokens), text_bytes=text_bytes, sequences=len(starts)
        )
        self.texts, self.waiting = [], 0


def write_part(corpus: Corpus, part: Part) -> None:
    """Reads, tokenises, packs and writes a part; each domain's folder appears complete or not at all."""
    encoder = _encoder(corpus.folder.parent / "tokenizer", corpus.tokenizer)
    shard_bytes, texts = shards.SHARD_BYTES, part.source
    if isinstance(texts, HubPart):
        shard_bytes = HUB_SHARD_BYTES
        texts = part_documents(corpus.project, corpus.manifest, part.split, texts)
    with ExitStack() as folders:
        asides = {
            name: folders.enter_context(whole_folder(part.folder(corpus, name))) for name in part.domains
        }
        writers = {}
        with ExitStack() as opened:  # all shards are finished before the first folder is renamed
            for name, aside in asides.items():
                write = opened.enter_context(shards.writer(aside, corpus.length + 1, shard_bytes))
                writers[name] = _DomainWriter(write, encoder, corpus.length)
            for document in texts:
                writers[document["domain"]].add(document["text"])
            for writer in writers.values():
                writer.flush()
        for name, writer in writers.items():
            write_json(asides[name] / "part.json", writer.counts)


def _begin(parent: int) -> None:
    """Lets the parent answer an interrupt; a worker whose parent was killed would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def write_parts(corpus: Corpus, parts: Iterable[Part], processes: int) -> None:
    """`write_part` of each of `parts`, in this process or in several, which are given few at a time.

    On failure, of `parts` too, the processes are killed, and what they have begun is removed.
    """
    if processes == 1:
        for part in parts:
            write_part(corpus, part)
        return
    shards.preload()
    others, pending = set(multiprocessing.active_children()), set[Future]()
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, mp_context=fork, initializer=_begin, initargs=(os.getpid(),))
    pool.submit(int).result()  # forks now, before a progress bar starts its thread
    children = set(multiprocessing.active_children()) - others
    try:
        for part in parts:
            if len(pending) == 2 * processes:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            pending.add(pool.submit(write_part, corpus, part))
        for future in pending:
            future.result()
    except BaseException as error:
        # A part may take minutes more, and a child may have inherited handlers of signals that can be caught.
        for child in children:
            child.kill()
        pool.shutdown(cancel_futures=True)
        for aside in list(corpus.folder.rglob(".*.aside")):
            shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, BrokenProcessPool):
            do = "Run again, with fewer processes; finished parts are kept."
            what = "a building process was killed, perhaps for lack of memory."
            raise UserError(what, where=str(corpus.folder), do=do) from None
        raise
    pool.shutdown()
