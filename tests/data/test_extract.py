"""Extraction of the real corpora: the rules on tiny sources, and everything that is refused."""

import io
import json
import subprocess

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
    path.write_bytes(text.encode())


def read(path):
    stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()))
    return [json.loads(line) for line in stream.read().decode().split("\n") if line]


def read_all(out):
    return [record for path in sorted(out.glob("*.zst")) for record in read(path)]


@pytest.fixture
def checkouts(tmp_path):
    root = tmp_path / "checkouts"
    body = "<head>I.</head><p>It <hi>was</hi>\n   dark.</p><p> </p><lg><l>A verse,</l><l>a line.</l></lg>"
    write(root / "novels/level1/N1.xml", TEI.format(f"<div>{body}</div>"))
    write(root / "pages/a/b.md", "---\ntitle: T\n---\n\n# Head  \n\n\n\nSee [the page](x.md#y) now.\n")
    write(root / "pages/short.md", "---\ntitle: a long title in the front matter\n---\nshort\n")
    write(root / "pages/lost.md", "a page with a lost \N{REPLACEMENT CHARACTER} character")
    write(root / "peps/pep-0001.rst", "PEP: 1\n\n\n\n[as](it) stands\n")
    return root


THREE = (
    source("novels", "tei", "level1/*.xml"),
    source("pages", "markdown", "**/*.md"),
    source("peps", "markdown", "*.rst", domain="standards"),
)


def test_three_sources(checkouts, tmp_path):
    manifest = extract(rules(*THREE), checkouts, tmp_path / "out")
    records = {record["id"]: record for record in read_all(tmp_path / "out")}
    assert {identifier: record["text"] for identifier, record in records.items()} == {
        "owner+novels/N1/0": "I.\n\nIt was dark.\n\nA verse,\n\na line.",
        "owner+pages/a/b.md": "# Head\n\nSee [the page] now.",
        "owner+peps/pep-0001.rst": "PEP: 1\n\n[as] stands",
    }
    assert [list(record) for record in records.values()] == [["id", "domain", "text"]] * 3
    entries = [entry for splits in manifest["corpora"].values() for entry in splits.values()]
    assert sum(entry["documents"] for entry in entries) == 3
    assert sum(entry["text_bytes"] for entry in entries) == sum(
        len(r["text"].encode()) for r in records.values()
    )
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json"} | {
        e["file"] for e in entries
    }


def test_markdown():
    text = '{{APIRef("CSSOM")}}\n\n- `a` {{optional_inline}}\n- {{Glossary("Term", "x")}}, ![alt](i.png) [k][r]\n'
    assert clean_markdown(text) == "CSSOM\n\n- `a`\n- Term, ![alt] [k][r]"
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


def test_deterministic_and_independent_of_creation_order(tmp_path):
    names = [f"p{number}.md" for number in range(60)]
    for place, order in (("one", names), ("two", names[::-1])):
        for name in order:
            write(tmp_path / place / "pages" / name, f"The text of the page {name}.")
        extract(rules(source("pages", "markdown", "*.md")), tmp_path / place, tmp_path / f"{place}_out")
    outs = [
        {p.name: p.read_bytes() for p in (tmp_path / f"{place}_out").iterdir()} for place in ("one", "two")
    ]
    assert outs[0] == outs[1]


def test_split_and_cut(tmp_path):
    # The values themselves, because another hash would silently move documents between train and validation.
    assert [per_mille("split", f"d{n}") for n in range(4)] == [654, 928, 56, 731]
    for number in range(300):
        write(tmp_path / f"in/pages/p{number}.md", f"The text of page {number}.")
    both = ("both_up", "both_down")
    declared = rules(source("pages", "markdown", "*.md", both, first_per_mille=400), validation_per_mille=100)
    extract(declared, tmp_path / "in", tmp_path / "out")
    seen = {}
    for corpus in both:
        for split in ("train", "validation"):
            for record in read(tmp_path / f"out/{corpus}.{split}.jsonl.zst"):
                seen[record["id"]] = (corpus, split)
    assert len(seen) == 300
    for identifier, (corpus, split) in seen.items():
        assert (corpus == "both_up") == (per_mille("side", identifier) < 400)
        assert (split == "validation") == (per_mille("split", identifier) < 100)
    assert 80 < sum(corpus == "both_up" for corpus, _ in seen.values()) < 160
    assert 12 < sum(split == "validation" for _, split in seen.values()) < 50


def test_novel_stays_on_one_side(tmp_path):
    for number in range(12):
        body = "".join(f"<p>Paragraph {index} of the novel.</p>" for index in range(30))
        write(tmp_path / f"in/novels/N{number}.xml", TEI.format(body))
    both = ("both_up", "both_down")
    declared = rules(source("novels", "tei", "*.xml", both, first_per_mille=500), part_characters=100)
    extract(declared, tmp_path / "in", tmp_path / "out")
    novels = [
        {record["id"].rsplit("/", 1)[0] for record in read_all(tmp_path / "out") if record["id"] in ids}
        for corpus in both
        for ids in [{r["id"] for path in (tmp_path / "out").glob(f"{corpus}*") for r in read(path)}]
    ]
    assert novels[0] and novels[1] and not novels[0] & novels[1]


def test_budget_ends_with_the_document_that_reaches_it(tmp_path):
    for number in range(50):
        write(tmp_path / f"in/pages/p{number:02d}.md", "ü" * 50)
    declared = rules(source("pages", "markdown", "*.md"), corpora={"both_down": {"markdown": 950}})
    manifest = extract(declared, tmp_path / "in", tmp_path / "out")
    assert sum(entry["text_bytes"] for entry in manifest["corpora"]["both_down"].values()) == 1000


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("<TEI><p>open", "no element found"),
        (TEI.replace("body", "front").format("<p>a</p>"), "no <body>"),
        (
            '<!DOCTYPE a [<!ENTITY e SYSTEM "/etc/hostname">]><TEI><body><p>&e;</p></body></TEI>',
            "document type",
        ),
    ],
)
def test_malformed_tei(tmp_path, content, why):
    write(tmp_path / "in/novels/broken.xml", content)
    with pytest.raises(UserError, match=rf"broken\.xml.*{why}"):
        extract(rules(source("novels", "tei", "*.xml")), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_folder", [False, True])
def test_link_leading_outside(checkouts, tmp_path, as_folder):
    write(tmp_path / "private/secret.md", "this must not get into a corpus")
    link = checkouts / "pages" / ("folder" if as_folder else "link.md")
    link.symlink_to(tmp_path / "private" / ("" if as_folder else "secret.md"))
    glob = "folder/*.md" if as_folder else "**/*.md"
    with pytest.raises(UserError, match="outside the checkout"):
        extract(rules(source("pages", "markdown", glob)), checkouts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("glob", "message"), [("/etc/*", "glob' is wrong"), ("a/../../*.md", "outside the checkout")]
)
def test_glob_leading_outside(checkouts, tmp_path, glob, message):
    write(tmp_path / "checkouts" / "secret.md", "this must not get into a corpus")
    with pytest.raises(UserError, match=message):
        extract(rules(source("pages", "markdown", glob)), checkouts, tmp_path / "out")


def test_missing_source_and_wrong_hash(checkouts, tmp_path):
    with pytest.raises(UserError, match="absent"):
        extract(rules(source("absent", "markdown", "*")), checkouts, tmp_path / "out")
    with pytest.raises(UserError, match="no file matches"):
        extract(rules(source("peps", "markdown", "*.txt")), checkouts, tmp_path / "out")
    with pytest.raises(UserError, match="is declared"):
        extract(rules(*THREE, sha256_jsonl={"both_down.train": "0" * 64}), checkouts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_declarations(repository):
    declared = load_sources(repository)
    assert declared.matches == "exact" and len(declared.sources) == 7 and len(declared.sha256_jsonl) == 6
    with pytest.raises(UserError, match="corpora has no"):
        rules(source("pages", "markdown", "*.md"), corpora={"both_down": {"tei": 1}})


@pytest.fixture
def remote(tmp_path):
    """A git repository of two commits; returns the declaration of the first, and the second's hash."""
    root = tmp_path / "remote/owner/pages"
    commits = []
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for text in ("first text of it\r\n", "second text of it\n"):
        write(root / "docs/a.md", text)
        write(root / "other.bin", "not wanted")
        for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "c"]):
            subprocess.run(["git", "-C", str(root), *arguments], check=True)
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        )
        commits.append(head.stdout.strip())
    for key in ("allowAnySHA1InWant", "allowFilter"):
        subprocess.run(["git", "-C", str(root), "config", f"uploadpack.{key}", "true"], check=True)
    return {**source("pages", "markdown", "docs/*.md"), "url": root.as_uri(), "commit": commits[0]}, commits[
        1
    ]


def test_fetch(remote, tmp_path):
    first, second = remote
    checkouts = tmp_path / "checkouts"
    fetch_sources(rules(first), checkouts)
    assert (checkouts / "pages/docs/a.md").read_bytes() == b"first text of it\r\n"
    assert not (checkouts / "pages/other.bin").exists()
    fetch_sources(rules(first), checkouts)
    extract(rules(first), checkouts, tmp_path / "out")
    for action in (fetch_sources, lambda declared, where: extract(declared, where, tmp_path / "out")):
        with pytest.raises(UserError, match=f"is at commit {first['commit']}"):
            action(rules({**first, "commit": second}), checkouts)


def test_fetch_failures_leave_nothing(remote, tmp_path, monkeypatch):
    first, _ = remote
    for fault in ({"commit": "1" * 40}, {"url": (tmp_path / "no/owner/pages").as_uri()}):
        with pytest.raises(UserError, match="Check the network"):
            fetch_sources(rules({**first, **fault}), tmp_path / "checkouts")
        assert list((tmp_path / "checkouts").iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not installed"):
        fetch_sources(rules(first), tmp_path / "checkouts")
