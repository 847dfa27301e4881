"""Extraction of the real corpora: the rules on tiny sources, and everything that is refused."""

import io
import json
import subprocess
from functools import partial

import pytest
import zstandard

from cpt_repro.data.extract import (
    Sources,
    clean_markdown,
    extract,
    fetch_sources,
    load_sources,
    per_mille,
    tei_parts,
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
    assert clean_markdown(text) == "CSSOM\n\n- `a`\n- T, ![alt] [k][r]"
    assert clean_markdown("a\n---\nb: c\n---\nd") == "a\n---\nb: c\n---\nd"
    assert clean_markdown("{{ {nested} }} a  \n\n\n\n\nb") == "{{ {nested} }} a\n\nb"


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
def test_malformed_tei(tmp_path, content, why):
    write(tmp_path / "in/novels/broken.xml", content)
    refused(lambda: run(tmp_path, source("novels", "tei", "*.xml")), "broken.xml", why)
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
    assert declared.matches == "exact" and len(declared.sources) == 7 and len(declared.sha256_jsonl) == 6
    pages, other = source("pages", "markdown", "*.md"), {"both_down": {"tei": 1}}
    refused(lambda: rules(pages, corpora=other), "corpora has no both_down.markdown")


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
