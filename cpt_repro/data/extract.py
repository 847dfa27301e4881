"""Rebuilds the real corpora from their sources on GitHub, by the rules in `data_manifests/sources.yaml`.

Every choice (split, side of the cut between two corpora, selection, order) is a SHA-256 of the document's id
with a word before it, so that the result depends on nothing but the sources' files and the rules.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import zstandard
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track

from cpt_repro.data.sources import PerMille, Source, joined, read, tei_parts
from cpt_repro.declarations.manifests import SPLITS, Sha256
from cpt_repro.declarations.strict import Count, Name, Strict, load
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, whole_file, whole_folder, write_json
from cpt_repro.project import Project


class Sources(Strict):
    """The whole of `sources.yaml`."""

    matches: Literal["exact", "near"]
    zstd_level: int = Field(ge=1, le=22)
    validation_per_mille: PerMille
    part_characters: Count
    #: Corpus -> domain -> bytes of UTF-8 text to take.
    corpora: dict[Name, dict[Name, Count]]
    sources: tuple[Source, ...]
    #: `<corpus>.<split>` -> hash of the uncompressed file; only those named are compared.
    sha256_jsonl: dict[str, Sha256] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Sources:
        for source in self.sources:
            for corpus in source.corpora:
                if source.domain not in self.corpora.get(corpus, {}):
                    raise ValueError(f"corpora has no {corpus}.{source.domain}, which {source.name} is for")
            if source.kind == "tei" and source.maximum_characters:
                raise ValueError("the kind tei cuts by part_characters; take xml for maximum_characters")
        if len({source.name for source in self.sources}) < len({(s.url, s.commit) for s in self.sources}):
            raise ValueError("a repository (or two of one name) is declared with two addresses or commits")
        return self


def load_sources(project: Project) -> Sources:
    """Reads the project's declarations; a fault is a `UserError` naming file and key."""
    return load(Sources, project.manifests / "sources.yaml")


# -- from sources to candidates


def _hash(word: str, identifier: str) -> bytes:
    return hashlib.sha256(f"{word}:{identifier}".encode()).digest()


def per_mille(word: str, identifier: str) -> int:
    """A number from 0 to 999 that stays the same for one purpose (`word`) and one id."""
    return int.from_bytes(_hash(word, identifier)[:4], "big") % 1000


def _files(root: Path, source: Source) -> list[tuple[str, Path]]:
    """The source's files by name: (what their ids begin with, path).

    No file, or one that really lies outside the checkout, is a `UserError`.
    """
    files = []
    for path in sorted(root.glob(source.glob)):
        name = path.relative_to(root).as_posix()
        skipped = source.without_names and re.search(source.without_names, name)
        if name.startswith(".git/") or name in source.without or skipped:
            continue
        if not path.resolve().is_relative_to(root):
            do = "Remove the checkout."
            raise UserError("the link leads outside the checkout.", where=str(path), do=do)
        if path.is_file():
            files.append((f"{source.prefix}/{name}", path))
    if not files:
        do = "Run the fetch of the sources, or unpack the commit's archive there."
        raise UserError(f"no file matches {source.glob}.", where=str(root), do=do)
    return files


def _side(source: Source, whole: str) -> str:
    """The corpus that a file, or a novel, belongs to."""
    return source.corpora[per_mille("side", whole) >= source.first_per_mille]


def _candidates(root: Path, source: Source, characters: int) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """What may become documents: (corpus, id, function that makes the text).

    Whole pages are read only when it is their turn: of the laws, 3 % are used.
    """
    files = _files(root, source)
    if source.maximum_characters:
        for corpus in dict.fromkeys(source.corpora):
            texts = ((name, read(path, source)) for name, path in files if _side(source, name) == corpus)
            for identifier, text in joined(texts, source.minimum_characters, source.maximum_characters):
                yield corpus, identifier, partial(str, text)
    elif source.kind == "tei":
        for _, path in files:
            novel = f"{source.prefix}/{path.stem}"
            for number, text in enumerate(tei_parts(path, characters)):
                yield _side(source, novel), f"{novel}/{number}", partial(str, text)
    else:
        for name, path in files:
            yield _side(source, name), name, partial(read, path, source)


# -- corpora


def extract(rules: Sources, checkouts: Path, out: Path) -> dict[str, Any]:
    """Writes `<corpus>.<split>.jsonl.zst` and `manifest.json` to `out`; returns the manifest.

    `checkouts/<repository>/` are clones or unpacked archives. Before anything is written, a missing source, a
    clone at another commit, a malformed file and an undeclared hash are `UserError`s. Of the documents that
    are cut and joined, no text is taken twice, not for two corpora either.
    """
    pools: dict[tuple[str, str], list[tuple[str, Source, Callable[[], str]]]] = defaultdict(list)
    taken: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    seen: set[str] = set()
    roots = [_checked_checkout(checkouts, source) for source in rules.sources]
    for root, source in zip(roots, rules.sources, strict=True):
        for corpus, identifier, text_of in _candidates(root, source, rules.part_characters):
            pools[corpus, source.domain].append((identifier, source, text_of))
    for (corpus, domain), pool in track(pools.items(), "take documents", console=Console(stderr=True)):
        budget = rules.corpora[corpus][domain]
        for identifier, source, text_of in sorted(pool, key=lambda candidate: _hash("take", candidate[0])):
            if len(text := text_of()) < source.minimum_characters:
                continue
            if source.maximum_characters:
                if text in seen:
                    continue
                seen.add(text)
            split = SPLITS[per_mille("split", identifier) < rules.validation_per_mille]
            taken[corpus, split].append({"id": identifier, "domain": domain, "text": text})
            budget -= len(text.encode())
            if budget <= 0:
                break
    return _write(rules, taken, out)


def _write(rules: Sources, taken: dict[tuple[str, str], list[dict[str, str]]], out: Path) -> dict[str, Any]:
    contents, entries = {}, defaultdict(dict)
    for corpus, split in product(rules.corpora, SPLITS):
        documents = sorted(taken[corpus, split], key=lambda document: _hash("order", document["id"]))
        content = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents).encode()
        actual = hashlib.sha256(content).hexdigest()
        if (expected := rules.sha256_jsonl.get(f"{corpus}.{split}", actual)) != actual:
            what = f"{corpus}.{split} has SHA-256 {actual}, but {expected} is declared."
            do = "Check that the checkouts are whole and unchanged, or that a rule was changed on purpose."
            raise UserError(what, where=str(out), do=do)
        domain_bytes: Counter[str] = Counter()
        for document in documents:
            domain_bytes[document["domain"]] += len(document["text"].encode())
        contents[f"{corpus}.{split}.jsonl.zst"] = content
        entries[corpus][split] = {
            "file": f"{corpus}.{split}.jsonl.zst",
            "documents": len(documents),
            "text_bytes": domain_bytes.total(),
            "sha256_jsonl": actual,
            "domains": Counter(document["domain"] for document in documents),
            "domain_bytes": domain_bytes,
        }
    for file, content in track(contents.items(), "compress", console=Console(stderr=True)):
        with whole_file(out / file) as aside:
            aside.write_bytes(zstandard.ZstdCompressor(level=rules.zstd_level).compress(content))
    for entry in (entry for splits in entries.values() for entry in splits.values()):
        entry["sha256_file"] = file_digest(out / entry["file"])
    sources = [source.model_dump(include={"url", "commit", "licence"}) for source in rules.sources]
    manifest = {"sources": sources, "corpora": entries}
    write_json(out / "manifest.json", manifest)
    return manifest


# -- checkouts


def _git(folder: Path, *arguments: str) -> str:
    """Runs git in `folder` and returns what it printed; a failure is a `UserError` with git's last line."""
    # Pages are compared byte for byte, so line ends stay; and nobody is there to give a password.
    options = ["-c", "core.autocrlf=false", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(folder), *options, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603  git
    except FileNotFoundError:
        do = "Install git, or unpack the sources' archives by hand."
        raise UserError("git is not installed.", do=do) from None
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        do = "Check the network and run again; if the commit is gone, unpack an archive of it there."
        raise UserError(f"git {arguments[0]} failed ({message}).", where=str(folder), do=do)
    return done.stdout.strip()


def _checked_checkout(checkouts: Path, source: Source) -> Path:
    """The checkout's folder; missing, or a clone (not an archive) at another commit: `UserError`."""
    root = (checkouts / source.name).resolve()
    if not root.is_dir():
        raise UserError("the source is not there.", where=str(root), do="Run the fetch of the sources.")
    if (root / ".git").exists() and (head := _git(root, "rev-parse", "HEAD")) != source.commit:
        do = f"Remove the folder and fetch again: {source.commit} is declared."
        raise UserError(f"the clone is at commit {head}.", where=str(root), do=do)
    return root


def fetch_sources(rules: Sources, checkouts: Path) -> None:
    """Clones each source at its commit to `checkouts/<repository>`: no history, only the files of its globs.

    A clone at the right commit is kept; one at another is a `UserError`. A clone is never half there.
    """
    repositories: dict[str, list[Source]] = defaultdict(list)
    for source in rules.sources:
        repositories[source.name].append(source)
    for name, sources in track(repositories.items(), "fetch the sources", console=Console(stderr=True)):
        if (checkouts / name).exists():
            _checked_checkout(checkouts, sources[0])
            continue
        globs = dict.fromkeys(f"/{source.glob}" for source in sources)
        with whole_folder(checkouts / name) as clone:
            _git(clone, "init", "--quiet")
            _git(clone, "remote", "add", "origin", sources[0].url)
            _git(clone, "sparse-checkout", "set", "--no-cone", *globs)
            _git(clone, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", sources[0].commit)
            _git(clone, "checkout", "--quiet", "--detach", "FETCH_HEAD")
