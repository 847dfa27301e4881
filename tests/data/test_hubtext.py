"""Text of hub corpora: which rows are taken, the formats, and what is refused by file and row."""

import pytest
from tiny_corpora import refused, rows, write_rows

from cpt_repro.data import hubtext
from cpt_repro.data import rows as reading
from cpt_repro.data.text import documents


def taken(hub, split="train", **more):
    """Ids of the documents of a split."""
    return [document["id"] for document in hub.documents(split, **more)]


def test_fraction_and_held_out_share_are_a_fixed_choice(hub):
    def chosen(manifest, split):
        choose = hubtext.chooser(manifest, split, "train/x")
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
    whole = taken(hub, fraction=0.6, files_per_part=1)
    assert 60 < len(whole) < 110  # 138 have text
    assert taken(hub, files_per_part=4) == whole
    assert sorted(taken(hub, files_per_part=1, parts_per_file=5)) == sorted(whole)
    monkeypatch.setattr(reading, "CHUNK", 7)
    assert taken(hub, parts_per_file=1) == whole


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_formats_hold_the_same_text(hub, form):
    for file in "ab":
        write_rows(hub.copy / form / f"{file}.{form}", ({"content": row["text"]} for row in rows(file, 40)))
    more = {"validation_share": 0.3, "domains": {"german": None}, "domain": None, "text": "content"}
    manifest = hub.save(format=form, splits={"train": {"files": [f"{form}/*.{form}"]}}, **more)
    texts = {
        split: [document["text"] for document in documents(hub.project, manifest, split)]
        for split in ("train", "validation")
    }
    wanted = [row["text"] for file in "ab" for row in rows(file, 40) if row["text"]]
    assert sorted(texts["train"] + texts["validation"]) == sorted(wanted)
    assert 10 < len(texts["validation"]) < 40
    hub.build()
    assert hub.fingerprint().shares == {"german": 1}


PARQUET = {"format": "parquet", "splits": {split: {"files": ["p/*"]} for split in ("train", "validation")}}


def test_a_domain_in_a_nested_column_of_parquet(hub):
    write_rows(hub.copy / "p" / "a.parquet", rows("a"))
    given = hub.documents(**PARQUET)
    assert {document["domain"] for document in given} == {"c4", "book"} and len(given) == 23


def test_wrong_parquet(hub):
    write_rows(hub.copy / "p" / "a.parquet", rows("a"))
    text = refused(lambda: hub.documents(text="content", **PARQUET))
    assert "a.parquet: it has no column 'content' (it has text, meta.redpajama_set_name, other)" in text
    (hub.copy / "p" / "b.parquet").write_bytes(b"PAR1 not really")
    assert "b.parquet, near row 1: the file cannot be read" in refused(lambda: hub.documents(text="text"))


COLUMNS = "the columns text, meta.redpajama_set_name do not hold texts"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"text": "a"', "not a line of JSON in UTF-8"),
        (b'{"text": "\xff"}', "not a line of JSON in UTF-8"),
        (b"", "not a line of JSON in UTF-8"),
        (b"[" * 100_000, "not a line of JSON in UTF-8"),
        (b"[1]", COLUMNS),
        (b'{"text": 3}', COLUMNS),
        (b'{"text": null, "meta": {}}', COLUMNS),
        (b'{"text": "\\ud800", "meta": {"redpajama_set_name": "RedPajamaC4"}}', COLUMNS),
        (b'{"text": "a", "meta": null}', COLUMNS),
        (
            b'{"text": "a", "meta": {"redpajama_set_name": "RedPajamaX"}}',
            "the domain 'RedPajamaX' is not declared",
        ),
        (b'{"text": "a", "meta": {"redpajama_set_name": ["x"]}}', "the domain ['x'] is not declared"),
    ],
)
def test_a_bad_row_is_named(hub, row, message):
    good = {"text": "a b", "meta": {"redpajama_set_name": "RedPajamaC4"}}
    write_rows(hub.copy / hub.first, [good, row, good])
    assert f"{hub.copy / hub.first}, row 2: {message}" in refused(hub.documents)


@pytest.mark.parametrize("form", ["jsonl.gz", "jsonl.zst"])
def test_files_that_are_cut_short_or_damaged(tmp_path, form):
    path = tmp_path / f"x.{form}"
    write_rows(path, [row["text"].encode() for row in rows("x", 200)])
    raw = path.read_bytes()
    for damaged in (raw[:-9], raw[:60], raw[:40] + bytes(80) + raw[120:], raw + b"more", b""):
        path.write_bytes(damaged)
        compression = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}[form]
        text = refused(lambda compression=compression: [*reading.lines(path, compression, "Do.")])
        assert f"{path}: the file is damaged or cut short" in text


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
