"""From a source's files to documents: one small reader for each kind of text, then cutting and joining."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cpt_repro.declarations.strict import Count, Name, Strict
from cpt_repro.errors import UserError, briefly

PerMille = Annotated[int, Field(ge=0, le=1000)]
_REPOSITORY = "[A-Za-z0-9_][A-Za-z0-9._-]*"
_AGAIN = "Fetch the source again, or name the file under 'without' in sources.yaml."


def _regular(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    return pattern


Regular = Annotated[str, AfterValidator(_regular)]


class Source(Strict):
    """Files of one git repository and how documents are made from them."""

    url: str = Field(pattern=rf"^(https|file)://.*/{_REPOSITORY}/{_REPOSITORY}$")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    licence: str
    #: Relative to the checkout.
    glob: str = Field(pattern="^[^/]")
    #: Files of the glob that are left out.
    without: tuple[str, ...] = ()
    #: Files whose name holds it somewhere are left out too.
    without_names: Regular | None = None
    kind: Literal["tei", "markdown", "text", "latex", "code", "xml", "jsonl"]
    domain: Name
    #: Shorter documents (for novels: parts) are left out.
    minimum_characters: Count
    #: Files are cut to documents of at most so many, short neighbours joined (`joined`); null: whole files.
    maximum_characters: Count | None = None
    #: Kinds `xml`, `jsonl`: element or column -> what stands before its text.
    parts: dict[str, str] = {}
    #: Kind `xml`: the element that is read, and elements inside it whose text is left out.
    within: str = "*"
    without_elements: tuple[str, ...] = ()
    #: What this matches is taken out of the text.
    removed: Regular | None = None
    corpora: tuple[Name, ...] = Field(min_length=1, max_length=2)
    #: Share of the first of two corpora.
    first_per_mille: PerMille = 1000

    @model_validator(mode="after")
    def _parts_where_needed(self) -> Source:
        if bool(self.parts) != (self.kind in ("xml", "jsonl")):
            raise ValueError("the kinds xml and jsonl need 'parts', and only they")
        if self.maximum_characters and self.maximum_characters < self.minimum_characters:
            raise ValueError("maximum_characters is below minimum_characters")
        if self.first_per_mille < 1000 and len(self.corpora) == 1:
            raise ValueError("first_per_mille leaves a share to a second corpus, and there is one")
        return self

    @property
    def name(self) -> str:
        """Name of the repository and of its checkout."""
        return self.url.rpartition("/")[2]

    @property
    def prefix(self) -> str:
        """First part of the ids: owner and repository."""
        return "+".join(self.url.split("/")[-2:])


# -- kinds of text

_EMPTY_LINES = (r"\n{3,}", "\n\n")
#: A file's first comment, behind a line that names an interpreter; a directive of C is none.
_HEAD = r"\A(?:#!.*\n)?\s*(?:/\*(?s:.*?)\*/|(?:(?://|#(?!include|define|if|pragma)).*\n)+)"
#: Kind -> what is replaced, one behind the other, and by what. The order and the narrowness are those of the
#: given corpora: front matter with Windows line ends stays, for example.
_CLEANED: dict[str, tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = {
    "markdown": (
        (r"(?s)\A---\n.*?\n---\n", ""),  # front matter
        (r"\]\([^)]*\)", "]"),  # targets of links
        (r'\{\{[^{}]*?"([^"{}]+)"[^{}]*\}\}', r"\1"),  # of a {{macro("a", ...)}} its first quoted text stays
        (r"\{\{[^{}]*\}\}", ""),
        (r"(?m)[ \t]+$", ""),
        _EMPTY_LINES,
    ),
    "latex": (
        (r"(?s)\A.*?\\begin\{document\}(.+)\\end\{document\}.*", r"\1"),
        (r"(?m)^[ \t]*%.*\n?", ""),  # a line that is only a comment goes as a whole
        (r"(?<!\\)%.*", ""),
        _EMPTY_LINES,
    ),
    # A comment at the head that speaks of rights.
    "code": ((_HEAD, lambda head: "" if re.search("(?i)copyright|licen[cs]e", head[0]) else head[0]),),
    "text": (),
}


def cleaned(kind: str, text: str) -> str:
    """Text of a kind without what `_CLEANED` takes out, and without white space around it."""
    for pattern, replacement in _CLEANED[kind]:
        text = re.sub(pattern, replacement, text)
    return text.strip("\n").rstrip() if kind == "code" else text.strip()


class _WithoutDoctype(ET.TreeBuilder):
    """Stops at a document type: it is the only way to entities, and no source needs them."""

    def doctype(self, *declared: str | None) -> None:
        raise ValueError("a document type declaration is not accepted")


def _element(path: Path, within: str) -> ET.Element:
    """An XML file's first element of that name (`*`: its root).

    A file that is not well-formed, lacks the element or declares a document type is a `UserError`.
    """
    try:
        parser = ET.XMLParser(target=_WithoutDoctype())  # noqa: S314  entities need a doctype, refused above
        root = ET.fromstring(path.read_bytes(), parser)  # noqa: S314  with that parser
        found = root if within == "*" else root.find(f".//{{*}}{within}")
        if found is None:
            raise ValueError(f"there is no <{within}>")
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: odd encodings
        raise UserError(f"not a usable XML file ({error}).", where=str(path), do=_AGAIN) from None
    return found


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _on_one_line(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tei_parts(path: Path, characters: int) -> list[str]:
    """The body of a TEI file: headings, paragraphs and verse lines joined into parts.

    A part ends with the paragraph that brings it above `characters` (separators not counted).
    """
    parts: list[list[str]] = [[]]
    for element in _element(path, "body").iter():
        if _tag(element) in {"p", "l", "head"}:
            if sum(map(len, parts[-1])) > characters:
                parts.append([])
            if paragraph := _on_one_line(element):
                parts[-1].append(paragraph)
    return ["\n\n".join(part) for part in parts if part]


def xml_text(path: Path, within: str, parts: dict[str, str], without: Iterable[str] = ()) -> str:
    """The text of the outermost elements named in `parts`, with what `parts` puts before each.

    Only inside the first element `within`, and without the elements `without`. White space is one space.
    `UserError` as of `_element`, and for a file nested a thousand deep.
    """
    root = _element(path, within)
    for parent in [*root.iter()]:
        for number, child in enumerate([*parent]):
            if _tag(child) in without:
                parent[number] = hole = ET.Element("")
                hole.tail = child.tail

    def read(element: ET.Element) -> Iterator[str]:
        if (before := parts.get(_tag(element))) is None:
            for child in element:
                yield from read(child)
        elif text := _on_one_line(element):
            yield before + text

    try:
        return "".join(read(root)).strip()
    except RecursionError:
        raise UserError("its elements are nested too deeply.", where=str(path), do=_AGAIN) from None


def jsonl_text(path: Path, parts: dict[str, str]) -> str:
    """The columns named in `parts` of every line of JSON, in that order, with what it puts before each."""
    texts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            texts += [before + row[column].strip() for column, before in parts.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"not a line with the texts {', '.join(parts)} ({briefly(error)})."
            raise UserError(what, where=f"{path}, line {number}", do=_AGAIN) from None
    return "".join(texts).strip()


def read(path: Path, source: Source) -> str:
    """A file's text by its kind's rule, without what is `removed`; empty if it has lost characters."""
    removed = partial(re.sub, source.removed or "(?!)", "")
    if source.kind == "xml":
        return removed(xml_text(path, source.within, source.parts, source.without_elements))
    if source.kind == "jsonl":
        return removed(jsonl_text(path, source.parts))
    text = path.read_bytes().decode("utf-8", "replace")
    # A character that cannot be shown is lost text; such a page is left out as if it were empty.
    return "" if "\N{REPLACEMENT CHARACTER}" in text else cleaned(source.kind, removed(text))


# -- from texts to documents


def joined(texts: Iterable[tuple[str, str]], least: int, most: int) -> Iterator[tuple[str, str]]:
    """Documents (id, text) of `least` to `most` characters from files (name, text) that are neighbours.

    A file ends a document that has `least` characters already; else the next file is joined to it. A longer
    one is cut after the paragraph (a too long paragraph: the line) that still fits. A shorter rest is given
    too, for the caller to leave out. Ids: the file that a document begins in, and its number among those.
    """
    held, start, numbers = "", "", Counter()

    def whole() -> tuple[str, str]:
        numbers[start] += 1
        return f"{start}#{numbers[start] - 1}", held.strip("\n").rstrip()

    for name, text in texts:
        for block in _blocks(text, most):
            if held and len(held) + len(block.rstrip()) > most:
                yield whole()
                held = ""
            start = start if held else name
            held += block
        if len(held) >= least:
            yield whole()
            held = ""
        elif held:
            held = held.rstrip() + "\n\n"
    if held:
        yield whole()


def _blocks(text: str, most: int) -> Iterator[str]:
    """Paragraphs with the white space behind them; too long ones as lines, too long lines as pieces."""
    for paragraph in re.split(r"(?<=\n\n)(?=[^\n])", text):
        for line in [paragraph] if len(paragraph) <= most else paragraph.splitlines(keepends=True):
            yield from (line[k : k + most] for k in range(0, len(line), most))
