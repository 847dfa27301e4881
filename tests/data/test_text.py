"""Text of corpora: which rows are taken, the formats, and what is refused by file and row."""

import hashlib
import json
import tracemalloc
from collections import Counter

import pytest
import zstandard
from tiny_corpora import flip, refused, rows, texts, write_rows

from cpt_repro.data import text as reading
from cpt_repro.data.text import documents

NO_JSON = "not a line of JSON in UTF-8"
LOCAL, OF_HUB = (
    f"the columns {columns} do not hold texts"
    for columns in ("text, domain", "text, meta.redpajama_set_name")
)


def line(**more):
    return json.dumps({"id": "1", "domain": "law", "text": "x"} | more)


def hub_line(name, text="a"):
    return json.dumps({"text": text, "meta": {"redpajama_set_name": name}}).encode()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"id": "a", "domain": "law", "text": "\xff\xfe"}', NO_JSON),
        (line(text="\ud800"), LOCAL),
        (line(domain="poems"), "the domain 'poems' is not declared"),
        *((bad, NO_JSON) for bad in ["[" * 100_000, "9" * 5000, "{", ""]),
        *((bad, LOCAL) for bad in ['"text"', "null", '{"id": 1}', line(text=[])]),
    ],
)
def test_a_bad_line_of_a_local_file_is_named(local, bad, message):
    local.write(train=[line(), bad, line()])
    assert f"train.jsonl.zst, row 2: {message}" in refused(local.documents)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        *((bad, NO_JSON) for bad in (b'{"text": "a"', b'{"text": "\xff"}', b"", b"[" * 100_000)),
        *((bad, OF_HUB) for bad in (b"[1]", b'{"text": 3}', b'{"text": "a", "meta": null}')),
        (hub_line("RedPajamaC4", text=None), OF_HUB),
        (hub_line("RedPajamaC4", text="\ud800"), OF_HUB),
        (hub_line("RedPajamaX"), "the domain 'RedPajamaX' is not declared"),
        (hub_line(["x"]), "the domain ['x'] is not declared"),
    ],
)
def test_a_bad_row_of_the_hub_is_named(hub, bad, message):
    good = hub_line("RedPajamaC4")
    write_rows(hub.copy / hub.first, [good, bad, good])
    assert f"{hub.copy / hub.first}, row 2: {message}" in refused(hub.documents)


@pytest.mark.parametrize("form", ["jsonl.gz", "jsonl.zst"])
def test_files_that_are_cut_short_or_damaged(hub, form):
    path = hub.copy / "bad" / f"x.{form}"
    write_rows(path, rows("x", 200))
    hub.save(format=form, splits={split: {"files": ["bad/*"]} for split in ("train", "validation")})
    raw = path.read_bytes()
    for damaged in (raw[:-9], raw[:60], raw[:40] + bytes(80) + raw[120:], raw + b"more", b""):
        path.write_bytes(damaged)
        hub.project.hub_lock.unlink(missing_ok=True)
        assert f"{path}: the file is damaged or cut short" in refused(hub.documents)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_line_without_end_is_not_read(hub, form):
    """A small file that unpacks to a line of 64 MiB takes memory for the longest that is declared."""
    path = hub.copy / "bomb" / f"x.{form}"
    write_rows(path, [b"x" * (1 << 26)])
    files = {split: {"files": ["bomb/*"]} for split in ("train", "validation")}
    hub.save(format=form, splits=files, line_bytes=1 << 20)
    tracemalloc.start()
    try:
        assert f"{path}, row 1: the line is longer than 1048576 bytes" in refused(hub.documents)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_a_text_longer_than_a_line_may_be(hub):
    """Parquet has no lines."""
    given, path = list(rows("x", 3)), hub.copy / "long" / "x.parquet"
    longest = {**given[0], "text": "x" * 1024}
    files = {split: {"files": ["long/*"]} for split in ("train", "validation")}
    hub.save(format="parquet", splits=files, line_bytes=1024)
    write_rows(path, [*given, longest])
    assert longest["text"] in [document["text"] for document in hub.documents()]
    write_rows(path, [*given, longest | {"text": "x" * 1025}])
    hub.project.hub_lock.unlink()
    assert f"{path}, row 4: the text is longer than 1024 bytes" in refused(hub.documents)


@pytest.mark.timeout(120)
def test_the_time_of_a_long_line_does_not_grow_with_its_square(tmp_path, monkeypatch):
    """By pieces of 1 KiB, each of which would copy what is read already: half a terabyte."""
    monkeypatch.setattr(reading, "CHUNK", 1 << 10)
    (tmp_path / "long.jsonl").write_bytes(b"x" * (1 << 25))
    assert [len(line) for line in reading.read_lines(tmp_path / "long.jsonl", None, 1 << 25, "-")] == [
        1 << 25
    ]


def test_no_more_text_is_read_than_is_declared(local):
    """Lines enough, each of them short, are a bomb too."""
    given = local.value["splits"]["train"]
    length = sum(len(document["text"].encode()) for document in local.documents())
    for declared, said in ((length, None), (length - 1, "row 40: the text is longer than"), (0, "row 1: ")):
        given["text_bytes"] = declared
        assert said is None and local.documents() or said in refused(local.documents)


def test_bytes_of_domains_are_compared(local):
    given = local.value["splits"]["train"]
    counts = Counter()
    for document in local.documents():
        counts[document["domain"]] += len(document["text"].encode())
    given |= {"domains": {"prose": 20, "law": 20}, "text_bytes": counts.total()}
    given["domain_bytes"] = dict(counts)
    assert len(local.documents()) == 40
    given["domain_bytes"] = {"prose": counts["prose"] + 1, "law": counts["law"] - 1}
    assert f"'law' has {counts['law']} bytes of text, the manifest" in refused(local.documents)


# -- local files


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_documents_at_all(local, split):
    for given in ([], [line(text=" ")]):
        local.write(**{split: given})
        message = f"the corpus 'tiny' has no text in its {split} split"
        assert message in refused(lambda: local.documents(split))


def test_documents_without_text_are_left_out_and_counted(local):
    given = list(texts("t", 40))
    local.write(train=[document | {"text": "\n"} for document in given[:8]] + given[8:])
    assert local.documents() == given[8:]
    local.build()
    assert local.fingerprint().empty_documents == {"train": 8, "validation": 0}


def test_a_missing_altered_or_short_file(local):
    path = local.project.corpora / "train.jsonl.zst"
    expected = local.value["splits"]["train"]["sha256"]
    flip(path, 30)
    text = refused(local.build)
    assert all(word in text for word in (f"{path}: the file is not", expected, "CPT_REPRO_CORPORA"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    path.unlink()
    assert f"{path}: the corpus file does not exist" in (text := refused(local.build))
    assert "cpt-repro corpora extract" in text
    local.write(compress=lambda raw: zstandard.compress(raw)[:-9])
    assert f"{path}: the file is damaged or cut short" in refused(local.documents)


def test_altered_text_behind_a_good_file_hash(local):
    local.value["splits"]["train"]["sha256_jsonl"] = "0" * 64
    local.save()
    assert "train.jsonl.zst: the decompressed text is not what" in refused(local.build)
    assert not (local.corpus / "fingerprint.json").exists()


# -- files of the hub


def test_fraction_and_held_out_share_are_a_fixed_choice(hub):
    def chosen(manifest, split):
        choose = reading.chooser(manifest, split, "train/x")
        return {row for row in range(4000) if choose(row)}

    value = hub.save(fraction=0.5)
    half = chosen(value, "train")
    assert 1880 < len(half) < 2120 and half == chosen(value, "train")
    assert len(chosen(value, "validation")) == 4000  # its own files are taken whole
    assert half != chosen(hub.save(seed=1), "train")
    assert half <= chosen(hub.save(seed=0, fraction=0.7), "train")  # a larger share only adds
    del hub.value["splits"]["validation"]
    value = hub.save(validation_share=0.1, fraction=1.0)
    train, held_out = chosen(value, "train"), chosen(value, "validation")
    assert not train & held_out and len(train | held_out) == 4000 and 340 < len(held_out) < 460
    value = hub.save(fraction=0.5)
    assert chosen(value, "train") < train and 1680 < len(chosen(value, "train")) < 1920
    assert chosen(value, "validation") == held_out


def test_documents_do_not_depend_on_parts_or_pieces(hub, monkeypatch):
    def taken(**more):
        return [document["id"] for document in hub.documents(**more)]

    whole = taken(fraction=0.6, files_per_part=1)
    assert 60 < len(whole) < 110  # 138 have text
    assert taken(files_per_part=4) == whole
    assert sorted(taken(files_per_part=1, parts_per_file=5)) == sorted(whole)
    monkeypatch.setattr(reading, "CHUNK", 7)
    assert taken(parts_per_file=1) == whole


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_formats_hold_the_same_text(hub, form):
    for file in "ab":
        write_rows(hub.copy / form / f"{file}.{form}", ({"content": row["text"]} for row in rows(file, 40)))
    more = {"validation_share": 0.3, "domains": {"german": None}, "domain": None, "text": "content"}
    manifest = hub.save(format=form, splits={"train": {"files": [f"{form}/*.{form}"]}}, **more)
    given = {
        split: [document["text"] for document in documents(hub.project, manifest, split)]
        for split in ("train", "validation")
    }
    wanted = [row["text"] for file in "ab" for row in rows(file, 40) if row["text"]]
    assert sorted(given["train"] + given["validation"]) == sorted(wanted)
    assert 10 < len(given["validation"]) < 40
    hub.build()
    assert hub.fingerprint().shares == {"german": 1}


def test_parquet_of_nested_and_of_wrong_columns(hub):
    files = {"format": "parquet", "splits": {split: {"files": ["p/*"]} for split in ("train", "validation")}}
    write_rows(hub.copy / "p" / "a.parquet", rows("a"))
    given = hub.documents(**files)
    assert {document["domain"] for document in given} == {"c4", "book"} and len(given) == 23
    wrong = refused(lambda: hub.documents(text="content"))
    assert "a.parquet, row 1: the columns content, meta.redpajama_set_name do not hold texts" in wrong
    (hub.copy / "p" / "b.parquet").write_bytes(b"PAR1 not really")
    assert "b.parquet: the file cannot be read" in refused(lambda: hub.documents(text="text"))


def test_too_few_files(hub):
    (hub.copy / hub.first).unlink()
    assert "someone/slim: the train split of 'slim' has 5 files and should have 6" in refused(hub.build)
    hub.save(splits=hub.value["splits"] | {"train": {"files": ["absent/*"]}})
    assert "no file fits 'absent/*'" in refused(hub.build)


def test_what_changed_after_its_first_use_is_refused(hub, tmp_path):
    hub.build()
    write_rows(hub.copy / hub.first, rows("another"))
    hub.build()  # what is built does not need its sources any more
    text = refused(hub.elsewhere(tmp_path / "again").build)
    assert str(hub.copy / hub.first) in text and "it changed since it was first used" in text


def test_without_a_copy_the_hub_is_asked(hub):
    hub.project = hub.project.with_(hub_copies=hub.project.root / "empty")
    assert "dataset someone/slim" in (text := refused(hub.documents))
    assert "put a copy below $CPT_REPRO_HUB/datasets/someone/slim" in text
