"""Rebuilds the real corpora from their sources on GitHub, by the rules in `data_manifests/sources.yaml`.

Every choice (split, side of the upstream/downstream cut, selection, order) is a SHA-256 of the document's id
with a word before it, so that the result depends on nothing but the sources' files and the rules.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import zstandard
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track

from cpt_repro.declarations.manifests import SPLITS, Sha256
from cpt_repro.declarations.strict import Count, Name, Strict, load
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, whole_file, whole_folder, write_json
from cpt_repro.project import Project

PerMille = Annotated[int, Field(ge=0, le=1000)]
_REPOSITORY = "[A-Za-z0-9_][A-Za-z0-9._-]*"


class Source(Strict):
    """One git repository and how documents are made from its files."""

    url: str = Field(pattern=rf"^(https|file)://.*/{_REPOSITORY}/{_REPOSITORY}$")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    licence: str
    #: Relative to the checkout.
    glob: str = Field(pattern="^[^/]")
    without: tuple[str, ...] = ()
    kind: Literal["tei", "markdown"]
    domain: Name
    #: Shorter documents (for novels: parts) are left out.
    minimum_characters: Count
    corpora: tuple[Name, ...] = Field(min_length=1, max_length=2)
    #: Share of the first of two corpora.
    first_per_mille: PerMille = 1000

    @property
    def name(self) -> str:
        """Name of the repository and of its checkout."""
        return self.url.rpartition("/")[2]

    @property
    def prefix(self) -> str:
        """First part of the ids: owner and repository."""
        return "+".join(self.url.split("/")[-2:])


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
        return self


def load_sources(project: Project) -> Sources:
    """Reads the project's declarations; a fault is a `UserError` naming file and key."""
    return load(Sources, project.manifests / "sources.yaml")


# -- from a file to documents


def _hash(word: str, identifier: str) -> bytes:
    return hashlib.sha256(f"{word}:{identifier}".encode()).digest()


def per_mille(word: str, identifier: str) -> int:
    """A number from 0 to 999 that stays the same for one purpose (`word`) and one id."""
    return int.from_bytes(_hash(word, identifier)[:4], "big") % 1000


def clean_markdown(text: str) -> str:
    """Markdown without front matter and link targets; of a `{{macro("a", ...)}}` its first quoted text stays.

    The order and the narrowness of the patterns are those of the given corpora: front matter with Windows
    line ends stays, for example.
    """
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r'\{\{[^{}]*?"([^"{}]+)"[^{}]*\}\}', r"\1", text)
    text = re.sub(r"\{\{[^{}]*\}\}", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _page(path: Path) -> str:
    text = path.read_bytes().decode("utf-8", "replace")
    # A character that cannot be shown is lost text; such a page is left out as if it were empty.
    return "" if "\N{REPLACEMENT CHARACTER}" in text else clean_markdown(text)


class _WithoutDoctype(ET.TreeBuilder):
    """Stops at a document type: it is the only way to entities, and TEI level 1 has none."""

    def doctype(self, *declared: str | None) -> None:
        raise ValueError("a document type declaration is not accepted")


def tei_parts(path: Path, characters: int) -> list[str]:
    """The body of a TEI file: headings, paragraphs and verse lines joined into parts.

    A part ends with the paragraph that brings it above `characters` (separators not counted); the last is the
    rest. A file that is not well-formed, has no body or declares a document type is a `UserError`.
    """
    try:
        parser = ET.XMLParser(target=_WithoutDoctype())  # noqa: S314  entities need a doctype, refused above
        body = ET.fromstring(path.read_bytes(), parser).find(".//{*}body")  # noqa: S314  with that parser
        if body is None:
            raise ValueError("there is no <body>")
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: odd encodings
        do = "Fetch the source again."
        raise UserError(f"not a usable TEI file ({error}).", where=str(path), do=do) from None
    parts: list[list[str]] = [[]]
    for element in body.iter():
        if element.tag.rpartition("}")[2] in {"p", "l", "head"}:
            if sum(map(len, parts[-1])) > characters:
                parts.append([])
            if paragraph := " ".join("".join(element.itertext()).split()):
                parts[-1].append(paragraph)
    return ["\n\n".join(part) for part in parts if part]


def _candidates(root: Path, source: Source, characters: int) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """What may become documents: (what two corpora may not share, id, function that makes the text).

    Texts are made only when it is their turn: of the laws, 3 % are used. No file, or one that really lies
    outside the checkout, is a `UserError`.
    """
    matched = False
    for path in sorted(root.glob(source.glob)):
        name = path.relative_to(root).as_posix()
        if name.startswith(".git/") or name in source.without:
            continue
        if not path.resolve().is_relative_to(root):
            do = "Remove the checkout."
            raise UserError("the link leads outside the checkout.", where=str(path), do=do)
        if not path.is_file():
            continue
        matched = True
        if source.kind == "tei":
            novel = f"{source.prefix}/{path.stem}"
            for number, text in enumerate(tei_parts(path, characters)):
                yield novel, f"{novel}/{number}", partial(str, text)
        else:
            page = f"{source.prefix}/{name}"
            yield page, page, partial(_page, path)
    if not matched:
        do = "Run the fetch of the sources, or unpack the commit's archive there."
        raise UserError(f"no file matches {source.glob}.", where=str(root), do=do)


# -- corpora


def extract(rules: Sources, checkouts: Path, out: Path) -> dict[str, Any]:
    """Writes `<corpus>.<split>.jsonl.zst` and `manifest.json` to `out`; returns the manifest.

    `checkouts/<repository>/` are clones or unpacked archives of the sources. Before anything is written, a
    missing source, a clone at another commit, a malformed file and an undeclared hash are `UserError`s.
    """
    pools: dict[tuple[str, str], list[tuple[str, int, Callable[[], str]]]] = defaultdict(list)
    roots = [_checked_checkout(checkouts, source) for source in rules.sources]
    for root, source in zip(roots, rules.sources, strict=True):
        for whole, identifier, read in _candidates(root, source, rules.part_characters):
            corpus = source.corpora[per_mille("side", whole) >= source.first_per_mille]
            pools[corpus, source.domain].append((identifier, source.minimum_characters, read))
    taken: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for (corpus, domain), pool in track(pools.items(), "take documents", console=Console(stderr=True)):
        budget = rules.corpora[corpus][domain]
        for identifier, minimum, read in sorted(pool, key=lambda candidate: _hash("take", candidate[0])):
            if len(text := read()) < minimum:
                continue
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
        contents[corpus, split] = content
        entries[corpus][split] = {
            "file": f"{corpus}.{split}.jsonl.zst",
            "documents": len(documents),
            "text_bytes": sum(len(document["text"].encode()) for document in documents),
            "sha256_jsonl": actual,
            "domains": dict(sorted(Counter(document["domain"] for document in documents).items())),
        }
    for (corpus, split), content in track(contents.items(), "compress", console=Console(stderr=True)):
        entry = entries[corpus][split]
        with whole_file(out / entry["file"]) as aside:
            aside.write_bytes(zstandard.ZstdCompressor(level=rules.zstd_level).compress(content))
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
        done = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603  no shell
    except FileNotFoundError:
        do = "Install git, or unpack the sources' archives by hand."
        raise UserError("git is not installed.", do=do) from None
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        do = "Check the network and run again; if the commit is gone, unpack an archive of it there."
        raise UserError(f"git {arguments[0]} failed ({message}).", where=str(folder), do=do)
    return done.stdout.strip()


def _checked_checkout(checkouts: Path, source: Source) -> Path:
    """The checkout's folder; missing, or a clone at another commit: `UserError`. Archives are not checked."""
    root = (checkouts / source.name).resolve()
    if not root.is_dir():
        raise UserError("the source is not there.", where=str(root), do="Run the fetch of the sources.")
    if (root / ".git").exists() and (head := _git(root, "rev-parse", "HEAD")) != source.commit:
        do = f"Remove the folder and fetch again: {source.commit} is declared."
        raise UserError(f"the clone is at commit {head}.", where=str(root), do=do)
    return root


def fetch_sources(rules: Sources, checkouts: Path) -> None:
    """Clones each source at its commit to `checkouts/<repository>`: no history, only the files of its glob.

    A clone that is already there at the right commit is kept; at another one it is a `UserError`, as are a
    missing network and a commit that is gone. A clone is never half there.
    """
    for source in track(rules.sources, "fetch the sources", console=Console(stderr=True)):
        if (checkouts / source.name).exists():
            _checked_checkout(checkouts, source)
            continue
        with whole_folder(checkouts / source.name) as clone:
            _git(clone, "init", "--quiet")
            _git(clone, "remote", "add", "origin", source.url)
            _git(clone, "sparse-checkout", "set", "--no-cone", f"/{source.glob}")
            _git(clone, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", source.commit)
            _git(clone, "checkout", "--quiet", "--detach", "FETCH_HEAD")
