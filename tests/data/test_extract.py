"""Extraction of the real corpora: the rules on tiny sources, and everything that is refused."""

import io
import json
import subprocess
from functools import partial

import pytest
import zstandard

from cpt_repro.data.extract import Sources, extract, fetch_sources, load_sources, per_mille
from cpt_repro.data.sources import (
    cleaned,
    joined,
    jsonl_text,
    tei_parts,
    xml_text,
)
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError

COMMIT = "0" * 40
TEI = """<?xml version="1.0" encoding="UTF-8"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><p>not text</p></teiHeader>
<text><body>{}</body></text></TEI>"""
ENTITY = """<?xml version="1.0" encoding="{}"?><!DOCTYPE a [<!ENTITY e SYSTEM "/etc/hostname">]>
<TEI><body><p>&e;</p></body></TEI>"""
#: Of the small sources' training text.
GOLDEN = "2a431147bbf05d9fb245333fedb6dfb9af154375aae48c581d8a5aa885fc28b5"


def source(name, kind, glob, corpora=("both_down",), **more):
    url = f"https://example.org/owner/{name}"
    common = {"url": url, "commit": COMMIT, "licence": "CC0", "glob": glob, "kind": kind, "domain": kind}
    return common | {"minimum_characters": 10, "corpora": list(corpora)} | more


def rules(*sources, **more):
    kinds = {given["domain"]: 10**9 for given in sources}
    corpora = {name: kinds for name in ("both_up", "both_down")}
    base = {"matches": "near", "zstd_level": 3, "validation_per_mille": 30, "part_characters": 12_000}
    return parse(Sources, {**base, "corpora": corpora, "sources": list(sources), **more}, "test")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def read(out, start=""):
    """id -> (name of the file, record)"""
    records = {}
    for path in out.glob(f"{start}*.zst"):
        stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()))
        for record in map(json.loads, stream.read().decode().splitlines()):
            records[record["id"]] = path.name.removesuffix(".jsonl.zst"), record
    return records


def run(tmp_path, *sources, **more):
    return extract(rules(*sources, **more), tmp_path / "in", tmp_path / "out")


def refused(action, *words):
    with pytest.raises(UserError) as caught:
        action()
    assert all(word in str(caught.value) for word in words), caught.value


BOTH = ("both_up", "both_down")
THREE = (
    source("novels", "tei", "level1/*.xml"),
    source("pages", "markdown", "**/*.md"),
    source("peps", "markdown", "*.rst", domain="standards"),
)


@pytest.fixture
def three(tmp_path):
    root = tmp_path / "in"
    body = "<head>I.</head><p>It <hi>was</hi>\n   dark.</p><p> </p><lg><l>A verse,</l><l>a line.</l></lg>"
    write(root / "novels/level1/N1.xml", TEI.format(f"<div>{body}</div>"))
    write(root / "pages/a/b.md", "---\ntitle: T\n---\n\n# Head  \n\n\n\nSee [the page](x.md#y) now.\n")
    write(root / "pages/short.md", "---\ntitle: a long title in the front matter\n---\nshort\n")
    write(root / "pages/lost.md", "a page with a lost \N{REPLACEMENT CHARACTER} character")
    write(root / "peps/pep-0001.rst", "PEP: 1\n\n\n\n[as](it) stands\n")


def test_three_sources(three, tmp_path):
    manifest = run(tmp_path, *THREE)
    records = [record for _, record in read(tmp_path / "out").values()]
    assert {record["id"]: record["text"] for record in records} == {
        "owner+novels/N1/0": "I.\n\nIt was dark.\n\nA verse,\n\na line.",
        "owner+pages/a/b.md": "# Head\n\nSee [the page] now.",
        "owner+peps/pep-0001.rst": "PEP: 1\n\n[as] stands",
    }
    assert [list(record) for record in records] == [["id", "domain", "text"]] * 3
    entries = [entry for splits in manifest["corpora"].values() for entry in splits.values()]
    assert sum(entry["documents"] for entry in entries) == 3
    assert sum(entry["text_bytes"] for entry in entries) == sum(len(record["text"]) for record in records)
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.zst")}
    assert files.keys() == {entry["file"] for entry in entries}
    assert manifest["corpora"]["both_down"]["train"]["sha256_jsonl"] == GOLDEN
    run(tmp_path, *THREE)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.zst")}


def test_markdown():
    text = (
        '{{APIRef("CSSOM")}}\n\n- `a` {{optional_inline}}\n- {{Glossary("T", "x")}}, ![alt](i.png) [k][r]\n'
    )
    assert cleaned("markdown", text) == "CSSOM\n\n- `a`\n- T, ![alt] [k][r]"
    assert cleaned("markdown", "a\n---\nb: c\n---\nd") == "a\n---\nb: c\n---\nd"
    assert cleaned("markdown", "{{ {nested} }} a  \n\n\n\n\nb") == "{{ {nested} }} a\n\nb"


def test_parts_are_cut_at_paragraphs(tmp_path):
    paragraphs = [f"{number:03d} " + "x" * (150 + 37 * number % 300) for number in range(200)]
    write(tmp_path / "n.xml", TEI.format("".join(f"<p>{text}</p>" for text in paragraphs)))
    parts = tei_parts(tmp_path / "n.xml", 12_000)
    assert [paragraph for part in parts for paragraph in part.split("\n\n")] == paragraphs
    for part in parts[:-1]:
        lengths = [len(paragraph) for paragraph in part.split("\n\n")]
        assert sum(lengths[:-1]) <= 12_000 < sum(lengths)
    write(tmp_path / "even.xml", TEI.format("<p>12345</p><p>12345</p><p>1</p><p>2</p>"))
    assert tei_parts(tmp_path / "even.xml", 10) == ["12345\n\n12345\n\n1", "2"]


def test_split_and_cut(tmp_path):
    # The values themselves, because another hash would silently move documents between train and validation.
    assert [per_mille("split", f"d{n}") for n in range(4)] == [654, 928, 56, 731]
    for number in range(300):
        write(tmp_path / f"in/pages/p{number}.md", f"The text of page {number}.")
    run(tmp_path, source("pages", "markdown", "*.md", BOTH, first_per_mille=400), validation_per_mille=100)
    names = {identifier: name.split(".") for identifier, (name, _) in read(tmp_path / "out").items()}
    assert len(names) == 300
    for identifier, (corpus, split) in names.items():
        assert (corpus == "both_up") == (per_mille("side", identifier) < 400)
        assert (split == "validation") == (per_mille("split", identifier) < 100)
    assert 80 < sum(corpus == "both_up" for corpus, _ in names.values()) < 160


def test_a_novel_stays_on_one_side(tmp_path):
    for number in range(12):
        body = "".join(f"<p>Paragraph {index} of the novel.</p>" for index in range(30))
        write(tmp_path / f"in/novels/N{number}.xml", TEI.format(body))
    run(tmp_path, source("novels", "tei", "*.xml", BOTH, first_per_mille=500), part_characters=100)
    up, down = ({i.rsplit("/", 1)[0] for i in read(tmp_path / "out", corpus)} for corpus in BOTH)
    assert up and down and not up & down


def test_a_budget_ends_with_the_document_that_reaches_it(tmp_path):
    for number in range(50):
        write(tmp_path / f"in/pages/p{number:02d}.md", "ü" * 50)
    manifest = run(tmp_path, source("pages", "markdown", "*.md"), corpora={"both_down": {"markdown": 950}})
    assert sum(entry["text_bytes"] for entry in manifest["corpora"]["both_down"].values()) == 1000


def test_documents_are_cut_at_paragraphs_and_neighbours_joined():
    def given(*texts):
        return list(joined([(f"f{n}", text) for n, text in enumerate(texts)], 10, 20))

    assert given("short", "shorter", "long enough a text", "end") == [
        ("f0#0", "short\n\nshorter"),
        ("f2#0", "long enough a text"),
        ("f3#0", "end"),  # for the caller to leave out
    ]
    assert given("one para\n\ntwo paras\n\nand three") == [
        ("f0#0", "one para\n\ntwo paras"),
        ("f0#1", "and three"),
    ]
    assert given("a line of it\nmore of it\nand more") == [
        ("f0#0", "a line of it"),
        ("f0#1", "more of it\nand more"),
    ]
    assert given("x" * 45) == [("f0#0", "x" * 20), ("f0#1", "x" * 20), ("f0#2", "x" * 5)]
    assert given("    def f():\n        1") == [("f0#0", "    def f():"), ("f0#1", "        1")]
    assert given("1234567\n\n1234567\n\n89ab", "12345678") == [
        ("f0#0", "1234567\n\n1234567"),
        ("f0#1", "89ab\n\n12345678"),
    ]


def test_latex_and_code():
    text = "\\a\n\\begin{document}\n% no\nA 5\\% b % c\n%\nd\n\\end{document}\nz"
    assert cleaned("latex", text) == "A 5\\% b \nd"
    assert cleaned("latex", "% Part\n\n\\section{A}\n") == "\\section{A}"
    for head in ("/*\n * Copyright\n */\n", "#!/bin/x\n# A licence.\n# b\n", "// SPDX-License\n"):
        assert cleaned("code", head + "\n  code()\n") == "  code()"
    for whole in ("/* What it does */\nint a;", "#include <license.h>\nint a;", "# plain\na = 1"):
        assert cleaned("code", whole) == whole


LAW = """<section xmlns="urn:x"><num>1-2</num><heading>Of  fees.</heading>
<para><num>(a)</num><text>Pay <cite>§ 3</cite>
now.</text></para><annotations><text>Stat. 1</text></annotations></section>"""


def test_xml_and_jsonl(tmp_path):
    write(tmp_path / "law.xml", LAW)
    parts = {"num": "\n\n", "heading": " ", "text": " "}
    law = xml_text(tmp_path / "law.xml", "*", parts, ["annotations"])
    assert law == "1-2 Of fees.\n\n(a) Pay § 3 now."
    assert xml_text(tmp_path / "law.xml", "para", {"text": "Text: "}, ["cite"]) == "Text: Pay now."
    write(tmp_path / "n.xml", TEI.format("<p>One<note><p>a note</p></note> p<p>q</p>.</p><l>v</l>"))
    text = xml_text(tmp_path / "n.xml", "body", {"p": "\n\n", "l": "\n"}, ["note"])
    assert text == "One pq.\nv"
    write(tmp_path / "deep.xml", "<a>" * 5000 + "</a>" * 5000)
    refused(lambda: xml_text(tmp_path / "deep.xml", "*", parts), "deep.xml", "too deeply")
    write(tmp_path / "qa.jsonl", '{"q": "Why? ", "a": "So.", "x": 1}\n{"a": "Yes.", "q": "Is it?"}\n')
    asked = jsonl_text(tmp_path / "qa.jsonl", {"q": "\n\nQ: ", "a": "\n"})
    assert asked == "Q: Why?\nSo.\n\nQ: Is it?\nYes."


@pytest.mark.parametrize("line", ["{", '{"q": "b"}', '{"q": 1, "a": "b"}', "[" * 100_000, "3", "\udcff"])
def test_malformed_lines(tmp_path, line):
    content = '{"q": "a", "a": "b"}\n' + line
    write(tmp_path / "in/qa/a.jsonl", content.encode("utf-8", "surrogateescape"))
    given = source("qa", "jsonl", "*.jsonl", parts={"q": "", "a": ""})
    refused(lambda: run(tmp_path, given), "a.jsonl, line 2", "the texts q, a")
    assert not (tmp_path / "out").exists()


def test_documents_of_two_corpora(tmp_path):
    """Cut, joined, without what is removed or left out; no text twice, not even in two corpora."""
    for number in range(60):
        write(tmp_path / f"in/logs/d/{number:02d}.txt", f"[10:{number}] <a> <<x>>hello, this is {number}")
        write(tmp_path / f"in/logs/d/same{number}.txt", "these are the very same words")
        write(tmp_path / f"in/logs/tests/{number}.txt", "must not be in it, whatever it says")
    write(tmp_path / "in/logs/lost.txt", b"a line with a lost \xff character, long enough")
    more = {"minimum_characters": 25, "maximum_characters": 60, "without_names": "tests/", "removed": "<<.>>"}
    manifest = run(tmp_path, source("logs", "text", "**/*.txt", BOTH, first_per_mille=500, **more))
    found = read(tmp_path / "out")
    texts = [record["text"] for _, record in found.values()]
    assert len(texts) == len(set(texts)) and sum("very same" in text for text in texts) == 1
    assert all(25 <= len(text) <= 60 and "<<" not in text and "must not" not in text for text in texts)
    up, down = ({i.split("#")[0] for i in read(tmp_path / "out", corpus)} for corpus in BOTH)
    assert len(up) > 10 and len(down) > 10 and not up & down
    for identifier, (name, _) in found.items():
        assert name.startswith("both_up") == (per_mille("side", identifier.split("#")[0]) < 500)
    for splits in manifest["corpora"].values():
        assert all(entry["domain_bytes"].get("text", 0) == entry["text_bytes"] for entry in splits.values())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("<TEI><p>open", "no element found"),
        (TEI.replace("body", "front").format("<p>a</p>"), "no <body>"),
        ('<?xml version="1.0" encoding="no-such"?><TEI><body/></TEI>', "no-such"),
        (ENTITY.format("UTF-8"), "document type"),
        (ENTITY.format("UTF-16").encode("UTF-16"), "document type"),
    ],
)
def test_malformed_xml(tmp_path, content, why):
    write(tmp_path / "in/novels/broken.xml", content)
    cut = {"kind": "xml", "within": "body", "parts": {"p": "\n\n"}, "maximum_characters": 99}
    for more in ({}, cut):
        given = source("novels", "tei", "*.xml") | more
        refused(lambda given=given: run(tmp_path, given), "broken.xml", why)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("glob", ["**/*.md", "folder/*.md", "a/../../*.md", "/etc/*"])
def test_nothing_outside_a_checkout_is_read(three, tmp_path, glob):
    write(tmp_path / "in/secret.md", "this must not get into a corpus")
    if glob == "**/*.md":
        (tmp_path / "in/pages/link.md").symlink_to(tmp_path / "in/secret.md")
    elif glob == "folder/*.md":
        (tmp_path / "in/pages/folder").symlink_to(tmp_path / "in")
    words = ("glob' is wrong",) if glob[0] == "/" else ("outside the checkout", str(tmp_path / "in/pages"))
    refused(lambda: run(tmp_path, source("pages", "markdown", glob)), *words)
    assert not (tmp_path / "out").exists()


def test_missing_sources_and_a_wrong_hash(three, tmp_path):
    refused(lambda: run(tmp_path, source("absent", "markdown", "*")), "absent: the source is not there")
    refused(lambda: run(tmp_path, source("peps", "markdown", "*.txt")), "peps: no file matches *.txt")
    wrong = {"both_down.train": "0" * 64}
    refused(lambda: run(tmp_path, *THREE, sha256_jsonl=wrong), "both_down.train", "declared")
    assert not (tmp_path / "out").exists()


def test_declarations(repository):
    declared = load_sources(repository)
    hashed = {f"{corpus}.{split}" for corpus in declared.corpora for split in ("train", "validation")}
    assert declared.sha256_jsonl.keys() == hashed
    pages, other = source("pages", "markdown", "*.md"), {"both_down": {"tei": 1}}
    refused(lambda: rules(pages, corpora=other), "corpora has no both_down.markdown")
    refused(lambda: rules(pages, pages | {"commit": "1" * 40}), "with two addresses or commits")
    for fault, why in (
        ({"kind": "xml"}, "need 'parts'"),
        ({"parts": {"a": ""}}, "need 'parts'"),
        ({"maximum_characters": 9}, "below minimum_characters"),
        ({"first_per_mille": 500}, "a second corpus, and there is one"),
        ({"removed": "("}, "not a regular expression"),
        ({"kind": "tei", "domain": "markdown", "maximum_characters": 99}, "tei cuts by part_characters"),
    ):
        refused(lambda fault=fault: rules(pages | fault), why)


@pytest.fixture
def remote(tmp_path):
    """A git repository of two commits; the declaration of the first, and the second's hash."""
    root, commits = tmp_path / "remote/owner/pages", []

    def git(*arguments):
        command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for text in ("first text of it\r\n", "second text of it\n"):
        write(root / "docs/a.md", text)
        write(root / "other.bin", "not wanted")
        git("init", "-q")
        git("add", ".")
        git("-c", "commit.gpgsign=false", "commit", "-qm", "c")
        commits.append(git("rev-parse", "HEAD"))
    for key in ("allowAnySHA1InWant", "allowFilter"):
        git("config", f"uploadpack.{key}", "true")
    first = source("pages", "markdown", "docs/*.md") | {"url": root.as_uri(), "commit": commits[0]}
    return first, commits[1]


def test_two_globs_of_one_repository_are_both_fetched(remote, tmp_path):
    first, _ = remote
    fetch_sources(rules(first, first | {"glob": "*.bin"}), tmp_path / "checkouts")
    assert {path.name for path in (tmp_path / "checkouts/pages").rglob("*.*")} >= {"a.md", "other.bin"}


def test_fetch(remote, tmp_path):
    first, second = remote
    checkouts = tmp_path / "checkouts"
    fetch_sources(rules(first), checkouts)
    assert (checkouts / "pages/docs/a.md").read_bytes() == b"first text of it\r\n"
    assert not (checkouts / "pages/other.bin").exists()
    fetch_sources(rules(first), checkouts)
    extract(rules(first), checkouts, tmp_path / "out")
    for action in (fetch_sources, partial(extract, out=tmp_path / "out")):
        words = "pages: the clone is at commit", first["commit"]
        refused(partial(action, rules(first | {"commit": second}), checkouts), *words)


def test_fetch_failures_leave_nothing(remote, tmp_path, monkeypatch):
    first, checkouts = remote[0], tmp_path / "checkouts"
    for fault in ({"commit": "1" * 40}, {"url": (tmp_path / "no/owner/pages").as_uri()}):
        fetch = partial(fetch_sources, rules(first | fault), checkouts)
        refused(fetch, str(checkouts), "Check the network")
        assert list(checkouts.iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(lambda: fetch_sources(rules(first), checkouts), "git is not installed")
