"""Text of local files: what is not as its manifest says is named by file and line."""

import hashlib
import json

import pytest
import zstandard
from tiny_corpora import flip, refused, texts

from cpt_repro.data import rows

COLUMNS = "the columns text, domain do not hold texts"


def line(**more):
    return json.dumps({"id": "1", "domain": "law", "text": "x"} | more)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"id": "a", "domain": "law", "text": "\xff\xfe"}', "not a line of JSON in UTF-8"),
        (line(text="\ud800"), COLUMNS),
        (line(domain="poems"), "the domain 'poems' is not declared"),
        *((bad, "not a line of JSON in UTF-8") for bad in ["[" * 100_000, "9" * 5000, "{", ""]),
        *((bad, COLUMNS) for bad in ['"text"', "null", '{"id": 1}', line(text=[])]),
    ],
)
def test_a_bad_line_is_named(local, bad, message):
    local.write(train=[line(), bad, line()])
    assert f"train.jsonl.zst, row 2: {message}" in refused(local.documents)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_documents_at_all(local, split):
    for given in ([], [line(text=" ")]):
        local.write(**{split: given})
        assert f"the corpus 'tiny' has no text in its {split} split" in refused(
            lambda: local.documents(split)
        )


def test_documents_without_text_are_left_out_and_counted(local):
    given = [
        document | {"text": document["text"] if i > 7 else "\n"} for i, document in enumerate(texts("t", 40))
    ]
    local.write(train=given)
    assert local.documents() == given[8:]
    local.build()
    assert local.fingerprint().empty_documents == {"train": 8, "validation": 0}


def test_a_missing_or_altered_file(local):
    path = local.project.corpora / "train.jsonl.zst"
    expected = local.value["splits"]["train"]["sha256"]
    flip(path, 30)
    text = refused(local.build)
    assert all(word in text for word in (f"{path}: the file is not", expected, "CPT_REPRO_CORPORA"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    path.unlink()
    assert f"{path}: the corpus file does not exist" in (text := refused(local.build))
    assert "cpt-repro corpora extract" in text


def test_altered_text_behind_a_good_file_hash(local):
    local.value["splits"]["train"]["sha256_jsonl"] = "0" * 64
    local.save()
    assert "train.jsonl.zst: the decompressed text is not what" in refused(local.build)
    assert not (local.corpus / "fingerprint.json").exists()


@pytest.mark.parametrize("key", ["documents", "text_bytes"])
def test_more_text_than_is_declared_is_not_read(local, key):
    local.value["splits"]["train"][key] = 3 if key == "documents" else 400
    local.save()
    text = refused(local.documents)
    assert "train.jsonl.zst, row " in text and "and here are more" in text


def test_a_line_without_end_is_not_read(local, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_LINE", 1 << 20)
    local.write(train=[line(), "x" * (1 << 24)])
    assert (local.project.corpora / "train.jsonl.zst").stat().st_size < 5000
    assert "train.jsonl.zst, row 2: the line is longer than 1 MiB" in refused(local.documents)


def test_a_file_that_is_cut_short(local):
    local.write(compress=lambda raw: zstandard.compress(raw)[:-9])
    assert "train.jsonl.zst: the file is damaged or cut short" in refused(local.documents)
