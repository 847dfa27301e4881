"""From the text of a corpus to token sequences in shards, in parts by fixed ranges of documents, or of files of a hub.

A part depends on nothing but its documents, so the result is the same for any number of processes, and what was
finished before an interruption is kept. Layout below `root`:

    tokenizer/                            tokenizer.json, tokenizer_config.json, training.json
    <corpus>/<split>/<domain>/index.json  all shards of the domain, which lie in part.<n>/
    <corpus>/validation.jsonl             held-out documents (of a `hub` corpus the first 2,000)
    <corpus>/fingerprint.json             written last: what was built, with hashes
"""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cpt_repro.data import shards
from cpt_repro.data.encoding import Encoder
from cpt_repro.data.hubtext import HubPart, list_parts, part_documents
from cpt_repro.data.languages import entropy_rate
from cpt_repro.data.text import documents
from cpt_repro.data.tokenizer import (
    fetch_tokenizer,
    hashes,
    load_tokenizer,
    sample_evenly,
    save_tokenizer,
    train_tokenizer,
    verify_tokenizer,
)
from cpt_repro.declarations.manifests import SPLITS, Files, Generated, Hub, Manifest, Split, load_manifest
from cpt_repro.declarations.scale import Scale
from cpt_repro.errors import UserError
from cpt_repro.files import digest, file_digest, locked, read_json, whole_file, whole_folder, write_json
from cpt_repro.records.receipts import read_fingerprint

log = logging.getLogger(__name__)

#: Raise it whenever equal inputs would give other shards.
FORMAT = 1
#: Of a `hub` corpus: bytes of a shard, characters that are tokenised at once, documents kept as held-out text.
HUB_SHARD_BYTES = 1 << 28
BATCH_CHARACTERS = 1 << 20
HELD_OUT_DOCUMENTS = 2000
#: A part ends with the document that reaches either bound; both are fixed, or resuming would mix different parts.
PART_DOCUMENTS = 512
PART_CHARACTERS = 4_000_000


def _manifest(scale: Scale, corpus: str) -> Any:
    if corpus not in scale.corpora:
        known = ", ".join(scale.corpora)
        raise UserError(f"the scale '{scale.name}' has no corpus '{corpus}'.", do=f"Known: {known}.")
    return load_manifest(scale.corpora[corpus])


def build_tokenizer(scale: Scale, root: Path, rebuild: bool = False) -> Path:
    """Trains the scale's tokenizer on upstream training text, or fetches it; returns its folder, `root/tokenizer`.

    Does nothing if it is there already, trained with the same settings on the same text, or of the same name and
    revision. Raises `UserError` for a corpus that cannot be read, for a published tokenizer that cannot be had or is
    not what the scale says, and for a tokenizer that was altered; with `rebuild` that one is made again.
    """
    root = Path(root)
    folder = root / "tokenizer"
    settings = scale.tokenizer
    with locked(root / ".tokenizer.lock"):
        try:
            if _is_current(scale, folder):
                verify_tokenizer(folder)
                return folder
        except UserError:
            if not rebuild:
                raise
        if settings.kind == "train":
            manifest = _manifest(scale, scale.upstream)
            # Two passes, so that the sample is even without holding all text.
            total = sum(len(document["text"]) for document in documents(manifest, "train"))
            texts = (document["text"] for document in documents(manifest, "train"))
            tokenizer = train_tokenizer(
                sample_evenly(texts, total, settings.train_characters), settings.vocab_size
            )
        with whole_folder(folder) as aside:
            if settings.kind == "train":
                save_tokenizer(tokenizer, aside)
            else:
                fetch_tokenizer(settings.name, settings.revision, settings.vocab_size, aside)
            write_json(aside / "training.json", _origin(scale) | {"sha256": hashes(aside)})
    return folder


def _origin(scale: Scale) -> dict[str, Any]:
    """What a scale's tokenizer is made from, as its `training.json` says it."""
    settings = scale.tokenizer
    if settings.kind == "train":
        text = {
            "manifest": _manifest(scale, scale.upstream).digest,
            "train_characters": settings.train_characters,
        }
    else:
        text = {"name": settings.name, "revision": settings.revision}
    return {"format": FORMAT, "vocab_size": settings.vocab_size, **text}


def _is_current(scale: Scale, folder: Path) -> bool:
    record = folder / "training.json"
    told = read_json(record) if record.is_file() else None
    # One without hashes, of an early version, is trained anew, to the same bytes.
    return (
        isinstance(told, dict)
        and bool(told.get("sha256"))
        and told == _origin(scale) | {"sha256": told["sha256"]}
    )


def current_tokenizer(scale: Scale, root: Path) -> str:
    """SHA-256 of the scale's tokenizer, to compare with a fingerprint's `tokenizer`.

    A tokenizer that is missing, altered, or of other settings than the scale's is a `UserError`.
    """
    folder = Path(root) / "tokenizer"
    if not _is_current(scale, folder):
        do = f"Make it: `cpt-repro corpus tokenizer --scale {scale.name}`."
        raise UserError(f"the tokenizer of scale '{scale.name}' is not made.", where=str(folder), do=do)
    verify_tokenizer(folder)
    return file_digest(folder / "tokenizer.json")


@lru_cache(maxsize=1)
def _encoder(folder: str, version: str) -> Encoder:
    return Encoder(load_tokenizer(Path(folder)))


def pack(tokens: np.ndarray, length: int) -> np.ndarray:
    """Cuts a token stream into sequences of length + 1 with stride `length`: shape (n, length + 1).

    The last token of a sequence is the first of the next, so that every token is predicted once. A rest of fewer
    than `length` predictions is dropped.
    """
    count = max(len(tokens) - 1, 0) // length
    starts = np.arange(count) * length
    return (
        tokens[starts[:, None] + np.arange(length + 1)]
        if count
        else np.empty((0, length + 1), dtype=np.uint16)
    )


def _write_part(folder: Path, texts: list[str], tokenizer: tuple[str, str], length: int) -> None:
    """Tokenises, packs and writes one part; the folder appears complete or not at all."""
    tokens = _encoder(*tokenizer)(texts)
    sequences = pack(tokens, length)
    counts = {
        "documents": len(texts),
        "tokens": len(tokens),
        "sequences": len(sequences),
        "text_bytes": sum(len(text.encode()) for text in texts),
    }
    with whole_folder(folder) as aside:
        shards.write_shards(aside, sequences)
        write_json(aside / "part.json", counts)


class _PartWriter:
    """Tokenises, packs and writes one domain's documents of a part as they come, in memory that does not grow."""

    def __init__(self, folder: Path, encoder: Encoder, length: int, stack: ExitStack):
        self.folder, self.encoder, self.length = folder, encoder, length
        self._write = stack.enter_context(shards.writer(folder, length + 1, HUB_SHARD_BYTES))
        self._texts: list[str] = []
        self._characters = 0
        self._tokens = np.empty(0, dtype=np.uint16)
        self.counts = {"documents": 0, "tokens": 0, "sequences": 0, "text_bytes": 0, "empty_documents": 0}

    def add(self, text: str) -> None:
        if not text.strip():
            self.counts["empty_documents"] += 1
            return
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= BATCH_CHARACTERS:
            self._encode()

    def _encode(self) -> None:
        tokens = self.encoder(self._texts)
        self.counts["documents"] += len(self._texts)
        self.counts["text_bytes"] += sum(len(text.encode()) for text in self._texts)
        self.counts["tokens"] += len(tokens)
        self._texts, self._characters = [], 0
        tokens = np.concatenate([self._tokens, tokens])
        sequences = pack(tokens, self.length)
        self.counts["sequences"] += len(sequences)
        self._write(sequences)
        # The last token written is the first of the next sequence.
        self._tokens = tokens[len(sequences) * self.length :].copy()

    def finish(self) -> None:
        if self._texts:
            self._encode()
        write_json(self.folder / "part.json", self.counts)


def _write_hub_part(
    folder: Path,
    split: Split,
    number: int,
    part: HubPart,
    manifest: Hub,
    tokenizer: tuple[str, str],
    length: int,
) -> None:
    """Reads, tokenises, packs and writes one part of every domain; each folder appears complete or not at all."""
    encoder = _encoder(*tokenizer)
    with ExitStack() as folders:
        targets = {name: _part_folder(folder / split / name, number) for name in manifest.domains}
        asides = {name: folders.enter_context(whole_folder(target)) for name, target in targets.items()}
        with ExitStack() as open_shards:
            writers = {
                name: _PartWriter(aside, encoder, length, open_shards) for name, aside in asides.items()
            }
            for document in part_documents(manifest, split, part):
                writers[document["domain"]].add(document["text"])
            for writer in writers.values():
                writer.finish()


def _parts(
    manifest: Manifest, split: Split, skipped: dict[str, int]
) -> Iterator[tuple[str, int, list[dict]]]:
    """(domain, number, documents) of all parts, in the order in which they fill."""
    filling: dict[str, list[dict]] = {}
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for document in documents(manifest, split, skipped):
        domain = document["domain"]
        part = filling.setdefault(domain, [])
        part.append(document)
        sizes[domain] += len(document["text"])
        if len(part) == PART_DOCUMENTS or sizes[domain] >= PART_CHARACTERS:
            yield domain, numbers[domain], filling.pop(domain)
            numbers[domain] += 1
            sizes[domain] = 0
    for domain, part in filling.items():
        yield domain, numbers[domain], part


def _part_folder(domain_folder: Path, number: int) -> Path:
    return domain_folder / f"part.{number:05d}"


def _die_with_parent() -> None:
    """Linux: a worker whose parent was killed outright would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Workers:
    """Runs functions in this process, or in others with a bounded queue."""

    def __init__(self, processes: int):
        self.processes = processes
        self.pending: set[Future] = set()
        self.pool = None
        if processes > 1:
            shards.preload()
            # Forked, because importing Streaming takes each process some 10 s.
            context = multiprocessing.get_context("fork")
            others = set(multiprocessing.active_children())
            self.pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_die_with_parent)
            self.pool.submit(int).result()  # forks now, before a progress bar starts its thread
            self.children = set(multiprocessing.active_children()) - others

    def _drain(self, limit: int) -> None:
        try:
            while len(self.pending) > limit:
                done, self.pending = wait(self.pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            fault = "a building process was killed, perhaps for lack of memory."
            raise UserError(fault, do="Run again, with fewer processes; finished parts are kept.") from None

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        if self.pool is None:
            function(*arguments)
            return
        self._drain(2 * self.processes - 1)
        self.pending.add(self.pool.submit(function, *arguments))

    def finish(self) -> None:
        self._drain(0)

    def close(self, folder: Path) -> None:
        """Ends the processes; what those that are killed have begun below `folder` is removed."""
        if self.pool is not None:
            # Something failed, and what others have begun may take many minutes more. A signal that can be caught will
            # not do: a child has inherited whatever handlers its parent had.
            for child in self.children if self.pending else ():
                child.kill()
            self.pool.shutdown(cancel_futures=True)
            for left in list(folder.rglob(".*.aside")) if self.pending else ():
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _progress(manifest: Manifest, show: bool) -> Iterator[Any]:
    """Yields a function (split, documents or parts more); draws a bar a split on a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, disable=not (show and console.is_terminal), transient=True
    ) as bar:
        tasks: dict[str, Any] = {}

        def advance(split: Split, count: int, total: int | None = None) -> None:
            if split not in tasks:
                unit = "parts" if isinstance(manifest, Hub) else "documents"
                total = manifest.splits[split].documents if isinstance(manifest, Files) else total
                tasks[split] = bar.add_task(f"{manifest.name}, {split}: {unit}", total=total)
            bar.advance(tasks[split], count)

        yield advance


def _collect(folder: Path, domain: str, parts: int, split: Split, manifest: Manifest) -> dict[str, Any]:
    """Merges a domain's parts and returns its entry of the fingerprint."""
    domain_folder = folder / split / domain
    names = [_part_folder(domain_folder, number).name for number in range(parts)]
    counts: Counter[str] = Counter()
    for name in names:
        counts.update(read_json(domain_folder / name / "part.json"))
    if not counts["sequences"]:
        share = manifest.domains[domain]
        fault = (
            f"the domain '{domain}' of corpus '{manifest.name}' has too little {split} text for one sequence"
        )
        fault += f" ({counts['documents']} documents, {counts['tokens']} tokens; declared share {share})."
        raise UserError(fault, do="Give it more text, or take the domain out of the manifest.")
    return dict(counts) | {"shards": shards.merge_indexes(domain_folder, names)}


def _remove_damaged(folder: Path) -> str | None:
    """Removes the parts of a corpus that do not fit its fingerprint, then that; returns it (None: all was removed)."""
    path = folder / "fingerprint.json"
    try:
        fingerprint = load_fingerprint(folder.parent, folder.name)
    except UserError:  # nothing left to compare with
        shutil.rmtree(folder)
        return None
    for split, domains in fingerprint["splits"].items():
        for domain, built in domains.items():
            for part in sorted((folder / split / domain).glob("part.*")):
                own = {
                    name.split("/")[1]: value
                    for name, value in built["shards"].items()
                    if name.startswith(f"{part.name}/")
                }
                try:
                    shards.verify(part, {"shards": own})
                    if not all(isinstance(count, int) for count in read_json(part / "part.json").values()):
                        raise TypeError("its counts are no numbers")
                except (UserError, AttributeError, TypeError) as error:
                    log.warning("removed, to be built again: %s (%s)", part, error)
                    shutil.rmtree(part)
    path.unlink()
    return fingerprint["fingerprint"]


def build_corpus(
    scale: Scale, corpus: str, root: Path, processes: int = 1, progress: bool = True, rebuild: bool = False
) -> Path:
    """Builds the shards of one corpus and returns its folder, `root/<corpus>`.

    `corpus` is a role key of `scale.corpora`; the tokenizer is built if it is not there. Sequences hold
    `scale.sequence_length` + 1 tokens. The files are byte-identical for any number of processes. Does nothing if the
    corpus is there already, built from the same manifest, tokenizer and length; continues an interrupted build. With
    `rebuild` everything that is there is checked, and what is damaged is built again to the same bytes.

    Raises `UserError` for text that is missing, altered or empty, and for a domain without enough text.
    """
    root = Path(root)
    manifest = _manifest(scale, corpus)
    tokenizer_folder = build_tokenizer(scale, root, rebuild)
    tokenizer = (str(tokenizer_folder), file_digest(tokenizer_folder / "tokenizer.json"))
    length = scale.sequence_length
    inputs = {
        "format": FORMAT,
        "part": [HUB_SHARD_BYTES] if isinstance(manifest, Hub) else [PART_DOCUMENTS, PART_CHARACTERS],
        "name": manifest.name,
        "manifest": manifest.digest,
        "tokenizer": tokenizer[1],
        "sequence_length": length,
    }
    folder = root / corpus
    with locked(root / f".{corpus}.lock"):
        record, before = folder / "build.json", None
        if rebuild and record.is_file():
            before = _remove_damaged(folder)
            write_json(record, inputs) if before is None else None
        if not (record.is_file() and read_json(record) == inputs):
            if folder.exists() and not record.is_file() and any(p.name[0] != "." for p in folder.iterdir()):
                raise UserError("the folder holds something else.", where=str(folder), do="Move it away.")
            if folder.exists():
                log.warning("%s: built from another manifest, tokenizer or length; building anew", folder)
                shutil.rmtree(folder)
            write_json(record, inputs)
        if not (folder / "fingerprint.json").is_file():
            workers = _Workers(processes)
            try:
                with _progress(manifest, progress) as advance:
                    _build(folder, manifest, tokenizer, length, workers, advance)
                if before not in (None, load_fingerprint(root, corpus)["fingerprint"]):
                    log.warning("%s: what was kept does not fit; building all anew", folder)
                    shutil.rmtree(folder)
                    write_json(record, inputs)
                    with _progress(manifest, progress) as advance:
                        _build(folder, manifest, tokenizer, length, workers, advance)
            finally:
                workers.close(folder)
    return folder


def _build(
    folder: Path, manifest: Manifest, tokenizer: tuple[str, str], length: int, workers: _Workers, advance: Any
) -> None:
    write = _write_all_hub_parts if isinstance(manifest, Hub) else _write_all_parts
    numbers, held_out, skipped = write(folder, manifest, tokenizer, length, workers, advance)
    with (
        whole_file(folder / "validation.jsonl") as aside,
        open(aside, "w", encoding="utf-8", newline="\n") as stream,
    ):
        for document in held_out:
            stream.write(json.dumps(document, ensure_ascii=False) + "\n")

    splits = {
        split: {
            domain: _collect(folder, domain, numbers[split][domain], split, manifest)
            for domain in manifest.domains
        }
        for split in SPLITS
    }
    for split, domains in splits.items():
        # Parts of local corpora do not have it: their empty documents were counted while reading.
        skipped[split] = sum(
            (entry.pop("empty_documents", 0) for entry in domains.values()), skipped.get(split, 0)
        )
    tokens = {domain: entry["tokens"] for domain, entry in splits["train"].items()}
    total = sum(tokens.values())
    floor = None
    if isinstance(manifest, Generated):
        words = sum(len(document["text"].split()) for document in held_out)
        validation_tokens = sum(entry["tokens"] for entry in splits["validation"].values())
        # Rounded, because the last digits of a logarithm depend on the machine.
        floor = round(entropy_rate(manifest) * words / validation_tokens, 6)
    fingerprint = {
        "name": manifest.name,
        "manifest": manifest.digest,
        "tokenizer": tokenizer[1],
        "sequence_length": length,
        "splits": splits,
        "shares": {
            domain: tokens[domain] / total if share is None else share
            for domain, share in manifest.domains.items()
        },
        "entropy_floor": floor,
        "empty_documents": skipped,
        "validation_documents": file_digest(folder / "validation.jsonl"),
    }
    write_json(folder / "fingerprint.json", fingerprint | {"fingerprint": digest(fingerprint)})


def _write_all_parts(
    folder: Path, manifest: Manifest, tokenizer: tuple[str, str], length: int, workers: _Workers, advance: Any
) -> tuple[dict[str, Counter[str]], list[dict], dict[str, int]]:
    """Writes what parts are missing; returns how many by split and domain, held-out text, empty documents."""
    skipped: dict[str, int] = {}
    numbers: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    held_out: list[dict] = []
    for split in SPLITS:
        for domain, number, part in _parts(manifest, split, skipped):
            numbers[split][domain] += 1
            target = _part_folder(folder / split / domain, number)
            if not target.is_dir():
                workers.run(_write_part, target, [document["text"] for document in part], tokenizer, length)
            if split == "validation":
                held_out += part
            advance(split, len(part))
        workers.finish()
    return numbers, held_out, skipped


def _write_all_hub_parts(
    folder: Path, manifest: Hub, tokenizer: tuple[str, str], length: int, workers: _Workers, advance: Any
) -> tuple[dict[str, Counter[str]], list[dict], dict[str, int]]:
    """As `_write_all_parts`; held-out text is the first documents only, for prompts and tasks do not need more."""
    parts = {split: list_parts(manifest, split) for split in SPLITS}
    told = {split: digest([[*part.files] for part in listed]) for split, listed in parts.items()}
    record = folder / "files.json"
    if record.is_file() and read_json(record) != told:
        what = f"the data set {manifest.dataset} has other files than when this build began."
        raise UserError(what, where=str(folder), do="Restore them, or remove this folder to build anew.")
    write_json(record, told)
    held_out = list(islice(documents(manifest, "validation"), HELD_OUT_DOCUMENTS))
    for split, listed in parts.items():
        for number, part in enumerate(listed):
            if not all(_part_folder(folder / split / domain, number).is_dir() for domain in manifest.domains):
                workers.run(_write_hub_part, folder, split, number, part, manifest, tokenizer, length)
            advance(split, 1, len(listed))
    workers.finish()
    numbers = {
        split: Counter(dict.fromkeys(manifest.domains, len(listed))) for split, listed in parts.items()
    }
    return numbers, held_out, {}


def load_fingerprint(root: Path, corpus: str) -> dict[str, Any]:
    """What `build_corpus` built (see there); `UserError` if it is not there or was edited."""
    path = Path(root) / corpus / "fingerprint.json"
    if not path.is_file():
        raise UserError(
            f"the corpus '{corpus}' is not built.", where=str(path), do="Run `build_corpus` first."
        )
    return read_fingerprint(path)


def upload_corpus(root: Path, corpus: str, remote: str) -> None:
    """Copies a built corpus to `<remote>/<scale>/<corpus>`, for `$CPT_REPRO_SHARDS_REMOTE`; the fingerprint last."""
    root = Path(root)
    names = [
        f"{split}/{domain}/{name}"
        for split, domains in load_fingerprint(root, corpus)["splits"].items()
        for domain, built in domains.items()
        for name in (*built["shards"], "index.json")
    ]
    names += ["validation.jsonl", "fingerprint.json"]
    shards.upload(root, [f"{corpus}/{name}" for name in names], f"{remote.rstrip('/')}/{root.name}")


def open_domain(
    root: Path, corpus: str, split: Split, domain: str, fingerprint: dict[str, Any], check: bool = True
) -> shards.Sequences:
    """The sequences of a domain, their shards compared with the corpus' fingerprint.

    Without `check` only the sizes are compared: where several processes read one folder, one of them checking it is
    enough. Shards that are not here are fetched at their first use, if `$CPT_REPRO_SHARDS_REMOTE` says where from.
    """
    root = Path(root)
    folder, built = root / corpus / split / domain, fingerprint["splits"][split][domain]
    remote = shards.remote_folder(root.name, corpus, split, domain)
    if check:
        shards.verify(folder, built, partial=remote is not None)
    sequences = shards.Sequences(folder, remote, built["shards"])
    if sequences.width != fingerprint["sequence_length"] + 1:
        what = f"its sequences have {sequences.width} tokens, and not {fingerprint['sequence_length'] + 1}."
        raise UserError(what, where=str(folder), do=shards.REBUILD)
    return sequences


def _quotas(shares: dict[str, float], available: dict[str, int], n: int) -> dict[str, int]:
    """Splits n in proportion to the shares (largest remainder), never more than is available of a domain."""
    quotas = dict.fromkeys(shares, 0)
    while (left := n - sum(quotas.values())) > 0:
        # What a small domain cannot give is shared out among the others.
        open_ = {
            domain: share for domain, share in shares.items() if share and quotas[domain] < available[domain]
        }
        exact = {domain: left * share / sum(open_.values()) for domain, share in open_.items()}
        extra = {domain: int(value) for domain, value in exact.items()}
        by_remainder = sorted(exact, key=lambda domain: (extra[domain] - exact[domain], domain))
        for domain in by_remainder[: left - sum(extra.values())]:
            extra[domain] += 1
        for domain, count in extra.items():
            quotas[domain] = min(quotas[domain] + count, available[domain])
    return quotas


def validation_sample(root: Path, corpus: str, n: int, check: bool = True) -> np.ndarray:
    """A fixed sample of `n` validation sequences: shape (n, L+1), uint16.

    Every domain gives its share (largest remainder), evenly spaced over its sequences; the order is shuffled by a
    fixed seed, so that the first rows are a fair sample too. More than there is: `UserError`. `check`: as for
    `open_domain`.
    """
    fingerprint = load_fingerprint(root, corpus)
    entries = fingerprint["splits"]["validation"]
    available = {domain: entry["sequences"] for domain, entry in entries.items()}
    possible = sum(count for domain, count in available.items() if fingerprint["shares"][domain])
    if n > possible:
        fault = f"{n} validation sequences are wanted of corpus '{corpus}', there are {possible}."
        raise UserError(
            fault, do="Lower 'validation.sequences' of the scale, or give the corpus more validation text."
        )
    rows = []
    for domain, quota in _quotas(fingerprint["shares"], available, n).items():
        if quota:
            # Middles of `quota` equal stretches.
            chosen = (2 * np.arange(quota) + 1) * available[domain] // (2 * quota)
            rows.append(open_domain(root, corpus, "validation", domain, fingerprint, check).take(chosen))
    rng = random.Random(0)
    order = sorted((rng.random(), index) for index in range(n))
    return np.concatenate(rows)[[index for _, index in order]]
