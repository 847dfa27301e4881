"""Rebuilds the real corpora from their sources on GitHub, by the rules in `data_manifests/sources.yaml`.

Every choice (split, side of the upstream/downstream cut, selection, order) is a SHA-256 of the document's id with a
word before it, so that the result depends on nothing but the sources' files and the rules.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import zstandard
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import Progress

from cpt_repro.declarations.strict import Strict, load
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, whole_file, write_json
from cpt_repro.project import MANIFESTS

SOURCES = MANIFESTS / "sources.yaml"
SPLITS = ("train", "validation")

PerMille = Annotated[int, Field(ge=0, le=1000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Source(Strict):
    """One git repository and how documents are made from its files."""

    url: str = Field(pattern=r"^(https|file)://.*/[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    licence: str
    glob: str
    without: tuple[str, ...] = ()
    kind: Literal["tei", "markdown", "plain"]
    domain: Name
    #: Shorter documents (for novels: parts) are left out.
    minimum_characters: int = Field(ge=1)
    corpora: tuple[Name, ...] = Field(min_length=1, max_length=2)
    #: Share of the first of two corpora.
    first_per_mille: PerMille | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if (len(self.corpora) == 2) != (self.first_per_mille is not None):
            raise ValueError("two corpora and first_per_mille go together")
        if PurePosixPath(self.glob).is_absolute() or ".." in PurePosixPath(self.glob).parts:
            raise ValueError(f"the glob {self.glob!r} leads outside the checkout")
        return self

    @property
    def name(self) -> str:
        """Name of the repository and of its checkout."""
        return self.url.rsplit("/", 1)[1]

    @property
    def prefix(self) -> str:
        """First part of the ids: owner and repository."""
        return "+".join(self.url.rsplit("/", 2)[1:])


class Sources(Strict):
    """The whole of `sources.yaml`."""

    matches: Literal["exact", "near"]
    zstd_level: int = Field(ge=1, le=22)
    validation_per_mille: PerMille
    part_characters: int = Field(ge=1)
    #: Corpus -> domain -> bytes of UTF-8 text to take.
    corpora: dict[Name, dict[Name, Annotated[int, Field(ge=1)]]]
    sources: tuple[Source, ...]
    #: `<corpus>.<split>` -> hash of the uncompressed file; only those named are compared.
    sha256_jsonl: dict[str, Sha256] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Sources:
        for source in self.sources:
            for corpus in source.corpora:
                if source.domain not in self.corpora.get(corpus, {}):
                    raise ValueError(f"corpora has no {corpus}.{source.domain}, which {source.name} is for")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("two sources have the same repository name")
        unknown = self.sha256_jsonl.keys() - {
            f"{corpus}.{split}" for corpus in self.corpora for split in SPLITS
        }
        if unknown:
            raise ValueError(f"sha256_jsonl names no file of the corpora: {', '.join(sorted(unknown))}")
        return self


def load_sources(path: Path = SOURCES) -> Sources:
    """Reads the declarations; a fault is a `UserError` naming file and key."""
    return load(Sources, path)


def _hash(word: str, identifier: str) -> bytes:
    return hashlib.sha256(f"{word}:{identifier}".encode()).digest()


def per_mille(word: str, identifier: str) -> int:
    """A number from 0 to 999 that stays the same for one purpose (`word`) and one id."""
    return int.from_bytes(_hash(word, identifier)[:4], "big") % 1000


def clean_markdown(text: str) -> str:
    """Markdown without front matter and link targets; of a `{{macro("a", ...)}}` its first quoted text stays.

    The order and the narrowness of the patterns are those of the given corpora: front matter with Windows line ends
    stays, for example.
    """
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r'\{\{[^{}]*?"([^"{}]+)"[^{}]*\}\}', r"\1", text)
    text = re.sub(r"\{\{[^{}]*\}\}", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _WithoutDoctype(ET.TreeBuilder):
    """Stops at a document type: it is the only way to entities, and TEI level 1 has none."""

    def doctype(self, *declared: str | None) -> None:
        raise ValueError("a document type declaration is not accepted")


def tei_parts(path: Path, characters: int) -> list[str]:
    """The body of a TEI file: headings, paragraphs and verse lines joined into parts.

    A part ends with the paragraph that brings it above `characters` (separators not counted); the last is the rest.
    A file that is not well-formed, has no body or declares a document type is a `UserError`.
    """
    try:
        body = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_WithoutDoctype())).find(".//{*}body")
        fault = "there is no <body>" if body is None else None
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: odd encodings
        fault = str(error)
    if fault:
        raise UserError(f"not a usable TEI file ({fault}).", where=str(path), do="Fetch the source again.")
    parts: list[str] = []
    part: list[str] = []
    for element in body.iter():
        if element.tag.rpartition("}")[2] not in {"p", "l", "head"}:
            continue
        if paragraph := " ".join("".join(element.itertext()).split()):
            part.append(paragraph)
        if sum(map(len, part)) > characters:
            parts.append("\n\n".join(part))
            part = []
    return [*parts, "\n\n".join(part)] if part else parts


def _files(root: Path, source: Source) -> list[Path]:
    """Files of a checkout that the glob matches, sorted; one that really lies elsewhere is a `UserError`."""
    root = root.resolve()
    found = []
    for path in sorted(root.glob(source.glob)):
        relative = path.relative_to(root)
        if ".git" in relative.parts or relative.as_posix() in source.without:
            continue
        if not path.resolve().is_relative_to(root):
            raise UserError(
                "the link leads outside the checkout.", where=str(path), do="Remove the checkout."
            )
        if path.is_file():
            found.append(path)
    if not found:
        do = "Run the fetch of the sources, or unpack the commit's archive there."
        raise UserError(f"no file matches {source.glob}.", where=str(root), do=do)
    return found


def _page(path: Path, kind: str) -> str:
    text = path.read_bytes().decode("utf-8", "replace")
    # A character that cannot be shown is lost text; such a page is left out as if it were empty.
    if "\N{REPLACEMENT CHARACTER}" in text:
        return ""
    return clean_markdown(text) if kind == "markdown" else text


#: Id, id of the whole it may not be parted from, and a function that makes the text.
_Candidate = tuple[str, str, Callable[[], str]]


def _candidates(root: Path, source: Source, part_characters: int) -> Iterator[_Candidate]:
    base = root.resolve()
    for path in _files(root, source):
        if source.kind == "tei":
            novel = f"{source.prefix}/{path.stem}"
            for number, text in enumerate(tei_parts(path, part_characters)):
                yield f"{novel}/{number}", novel, lambda text=text: text
        else:
            identifier = f"{source.prefix}/{path.relative_to(base).as_posix()}"
            # Read only when it is the page's turn: of the laws, 3 % are used.
            yield identifier, identifier, lambda path=path: _page(path, source.kind)


def _checked_checkout(checkouts: Path, source: Source) -> Path:
    """The checkout's folder; missing, or a clone at another commit, it is a `UserError`. Archives are not checked."""
    root = checkouts / source.name
    if not root.is_dir():
        raise UserError("the source is not there.", where=str(root), do="Run the fetch of the sources.")
    if (root / ".git").exists() and (head := _head(root)) != source.commit:
        do = f"Remove the folder and fetch again: {source.commit} is declared."
        raise UserError(f"the clone is at commit {head}.", where=str(root), do=do)
    return root


def extract(checkouts: Path, out: Path, declared: Sources | None = None) -> dict[str, Any]:
    """Writes `<corpus>.<split>.jsonl.zst` and `manifest.json` to `out`; returns the manifest (sizes in bytes).

    `checkouts/<repository>/` are clones or unpacked archives of the sources. A missing source, a clone at another
    commit, a malformed file and a hash other than the declared one are `UserError`s, raised before a file is written.
    """
    rules = declared or load_sources()
    checkouts, out = Path(checkouts), Path(out)
    roots = {source.name: _checked_checkout(checkouts, source) for source in rules.sources}
    pools: dict[tuple[str, str], list[tuple[bytes, str, int, Callable[[], str]]]] = {}
    lines: dict[tuple[str, str], list[tuple[bytes, str, str, bytes, int]]] = {}
    with Progress(console=Console(stderr=True)) as progress:
        for source in progress.track(rules.sources, description="list the sources"):
            for identifier, whole, read in _candidates(roots[source.name], source, rules.part_characters):
                first = source.first_per_mille is None or per_mille("side", whole) < source.first_per_mille
                corpus = source.corpora[0 if first else 1]
                candidate = (_hash("take", identifier), identifier, source.minimum_characters, read)
                pools.setdefault((corpus, source.domain), []).append(candidate)
        for (corpus, domain), pool in pools.items():
            budget = rules.corpora[corpus][domain]
            task = progress.add_task(f"{corpus}, {domain}", total=budget)
            for _, identifier, minimum, read in sorted(pool, key=lambda candidate: candidate[:2]):
                text = read()
                if len(text) < minimum:
                    continue
                split = SPLITS[per_mille("split", identifier) < rules.validation_per_mille]
                record = {"id": identifier, "domain": domain, "text": text}
                line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
                size = len(text.encode())
                lines.setdefault((corpus, split), []).append(
                    (_hash("order", identifier), identifier, domain, line, size)
                )
                progress.advance(task, size)
                budget -= size
                if budget <= 0:
                    break
        return _write(rules, lines, out, progress)


def _write(rules: Sources, lines: dict, out: Path, progress: Progress) -> dict[str, Any]:
    contents, manifest = {}, {}
    for corpus in rules.corpora:
        for split in SPLITS:
            documents = sorted(lines.get((corpus, split), []))
            content = contents[corpus, split] = b"".join(line for *_, line, _ in documents)
            entry = manifest.setdefault(corpus, {})[split] = {
                "file": f"{corpus}.{split}.jsonl.zst",
                "documents": len(documents),
                "text_bytes": sum(size for *_, size in documents),
                "sha256_jsonl": hashlib.sha256(content).hexdigest(),
                "domains": dict(sorted(Counter(domain for _, _, domain, _, _ in documents).items())),
            }
            expected = rules.sha256_jsonl.get(f"{corpus}.{split}", entry["sha256_jsonl"])
            if entry["sha256_jsonl"] != expected:
                raise UserError(
                    f"{corpus}.{split} has SHA-256 {entry['sha256_jsonl']}, but {expected} is declared.",
                    where=str(out),
                    do="Check that the checkouts are whole and unchanged, or that a rule was changed on purpose.",
                )
    for (corpus, split), content in progress.track(contents.items(), description="compress"):
        entry = manifest[corpus][split]
        path = out / entry["file"]
        with whole_file(path) as aside:
            aside.write_bytes(zstandard.ZstdCompressor(level=rules.zstd_level).compress(content))
        entry["sha256_file"] = file_digest(path)
    sources = [source.model_dump(include={"url", "commit", "licence"}) for source in rules.sources]
    result = {"sources": sources, "corpora": manifest}
    write_json(out / "manifest.json", result)
    return result


def _git(folder: Path, *arguments: str) -> str:
    """Runs git in `folder` and returns what it printed; a failure is a `UserError` with git's last line."""
    # Pages are compared byte for byte, so line ends stay; and nobody is there to answer a question for a password.
    options = ["-c", "core.autocrlf=false", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *options, *arguments], capture_output=True, text=True, env=environment
        )
    except FileNotFoundError:
        raise UserError(
            "git is not installed.", do="Install git, or unpack the sources' archives by hand."
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"git {arguments[0]} failed ({said}).", where=str(folder))
    return done.stdout.strip()


def _head(folder: Path) -> str:
    return _git(folder, "rev-parse", "HEAD")


def fetch_sources(checkouts: Path, declared: Sources | None = None) -> None:
    """Clones each source at its commit to `checkouts/<repository>`: no history, and only the files of its glob.

    A clone that is already there at the right commit is kept; at another one it is a `UserError`, as are a missing
    network and a commit that is gone. A clone is made aside and renamed, so none is ever half there.
    """
    rules = declared or load_sources()
    checkouts = Path(checkouts)
    checkouts.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        for source in progress.track(rules.sources, description="fetch the sources"):
            if (checkouts / source.name).exists():
                _checked_checkout(checkouts, source)
                continue
            with tempfile.TemporaryDirectory(prefix=f".{source.name}.", dir=checkouts) as aside:
                clone = Path(aside) / source.name
                clone.mkdir()
                _clone(source, clone)
                os.replace(clone, checkouts / source.name)


def _clone(source: Source, clone: Path) -> None:
    try:
        _git(clone, "init", "--quiet")
        _git(clone, "remote", "add", "origin", source.url)
        _git(clone, "sparse-checkout", "set", "--no-cone", f"/{source.glob}")
        _git(clone, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", source.commit)
        _git(clone, "checkout", "--quiet", "--detach", "FETCH_HEAD")
        head = _head(clone)
    except UserError as error:
        do = "Check the network and run again; if the commit is gone, unpack an archive of it into that folder."
        raise UserError(
            f"{source.url} at {source.commit}: {error.what}", where=str(clone.parent.parent), do=do
        ) from None
    if head != source.commit:
        raise UserError(f"git brought commit {head}, not {source.commit}.", where=source.url, do="Run again.")
