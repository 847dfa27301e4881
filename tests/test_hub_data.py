"""Corpora and tokenizers of the hub: built from tiny copies in the published formats, damaged, killed, fetched."""

import gzip
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import yaml
import zstandard
from pyarrow import parquet
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from cpt_repro import hub
from cpt_repro import manifests as manifest
from cpt_repro.declarations.scale import load_scale
from cpt_repro.data import build, encoding, hubtext, shards
from cpt_repro.data.encoding import Encoder
from cpt_repro.data.text import documents
from cpt_repro.data.tokenizer import load_tokenizer
from cpt_repro.errors import StorageError, UserError
from cpt_repro.declarations.manifests import load_manifest

LENGTH = 16
COMMIT = "0" * 40
SETS = {"RedPajamaC4": "c4", "RedPajamaBook": "book"}
WORDS = [
    "the",
    "house,",
    "of",
    "trees;",
    "and",
    "rain",
    "(or",
    "snow)",
    '"old"',
    "don't",
    "stop\n\n",
    "",
    "x",
    "10",
]


def text_of(rng, words=60):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(words // 2, words)))


def neox_like(folder, vocab_size=400, end="<|endoftext|>"):
    """A tokenizer of the kind of GPT-NeoX-20B's: NFC, special tokens, runs of blanks, an end of text that is not 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|padding|>", end]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 3, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator([text_of(rng) + f" {i} {i * 7919} Grüße" for i in range(2000)], trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in (4, 3, 2)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "GPTNeoXTokenizerFast", "bos_token": end, "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def slimpajama_rows(split, file, count=24):
    rng = random.Random(f"{split}{file}")
    for row in range(count):
        text = "" if row == 5 else text_of(rng)
        yield {"text": text, "meta": {"redpajama_set_name": list(SETS)[row % 2]}, "other": row}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        return
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    raw = b"".join(line + b"\n" for line in lines)
    if path.suffix == ".zst":  # two frames, as a parallel compressor leaves them
        raw = zstandard.compress(raw[:1000]) + zstandard.compress(raw[1000:])
    elif path.suffix == ".gz":
        raw = gzip.compress(raw[:1000]) + gzip.compress(raw[1000:])
    path.write_bytes(raw)


class Project:
    """A data set in SlimPajama's layout and a tokenizer, as copies below a temporary `$CPT_REPRO_HUB`."""

    def __init__(self, folder, patch, tokenizer):
        self.folder, self.hub, self.root = folder, folder / "hub", folder / "data" / "tiny"
        self.copy = self.hub / "datasets" / "someone" / "slim"
        self.model = self.hub / "models" / "someone" / "neox"
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        patch.setattr(manifest, "MANIFESTS", self.manifests)
        patch.setattr(hub, "LOCK", folder / "hub.lock.json")
        patch.setenv("CPT_REPRO_HUB", str(self.hub))
        patch.delenv("CPT_REPRO_SHARDS_REMOTE", raising=False)
        shutil.copytree(tokenizer, self.model)
        told = {"kind": "pretrained", "name": "someone/neox", "revision": COMMIT, "vocab_size": 400}
        scale = load_scale("smoke")
        settings = type(scale.tokenizer).model_validate(told)
        update = {
            "sequence_length": LENGTH,
            "tokenizer": settings,
            "corpora": {"pile": "slim"},
            "name": "tiny",
        }
        self.scale = scale.model_copy(update=update)
        for chunk in (1, 2):
            for file in range(3):
                name = f"chunk{chunk}/example_train_{file}.jsonl.zst"
                write_rows(self.copy / "train" / name, slimpajama_rows("train", name))
            name = f"chunk{chunk}/example_holdout_0.jsonl.zst"
            write_rows(self.copy / "validation" / name, slimpajama_rows("validation", name))
        self.value = {
            "kind": "hub", "name": "slim", "about": "a test", "licence": "CC0", "note": "none", "gating": "none",
            "domains": {"c4": 0.9, "book": 0.1}, "dataset": "someone/slim", "revision": COMMIT,
            "format": "jsonl.zst", "domain": {"column": "meta.redpajama_set_name", "names": SETS},
            "splits": {
                "train": {"files": ["train/chunk*/example_train_*.jsonl.zst"], "count": 6},
                "validation": {"files": ["validation/chunk*/example_holdout_*.jsonl.zst"]},
            },
            "files_per_part": 2, "tokens_billions": 1,
        }  # fmt: skip
        self.save()

    def save(self, **more):
        self.value |= more
        (self.manifests / "slim.yaml").write_text(yaml.safe_dump(self.value))
        return load_manifest("slim")

    def build(self, root=None, **more):
        return build.build_corpus(self.scale, "pile", root or self.root, progress=False, **more)

    def fingerprint(self, root=None):
        return build.load_fingerprint(root or self.root, "pile")

    def taken(self, split="train", **more):
        """Ids of the documents of a split."""
        return [document["id"] for document in documents(self.save(**more), split)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    neox_like(folder)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch, tokenizer):
    return Project(tmp_path, monkeypatch, tokenizer)


def all_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(action, kind=UserError):
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# -- what is built


def test_a_hub_corpus_holds_its_text(project):
    folder = project.build()
    told = project.fingerprint()
    tokenizer = Tokenizer.from_file(str(project.model / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    end = tokenizer.token_to_id("<|endoftext|>")
    assert end == 1
    names = [f"chunk{chunk}/example_train_{file}.jsonl.zst" for chunk in (1, 2) for file in range(3)]
    for number, domain in enumerate(SETS.values()):
        entry, written = told["splits"]["train"][domain], []
        for k in range(0, 6, 2):
            rows = [row for name in names[k : k + 2] for row in slimpajama_rows("train", name)]
            texts = [row["text"] for row in rows[number::2] if row["text"]]
            stream = [token for text in texts for token in [*tokenizer.encode(text).ids, end]]
            found = shards.Sequences(folder / "train" / domain / f"part.{k // 2:05d}")
            rows = found.take(range(len(found)))
            assert [*rows[0][:1], *rows[:, 1:].ravel()] == stream[: len(rows) * LENGTH + 1]
            assert len(rows) == (len(stream) - 1) // LENGTH
            written += stream
        assert (entry["tokens"], entry["documents"]) == (len(written), 72 - 6 * number)
        whole = build.open_domain(project.root, "pile", "train", domain, told)
        assert len(whole) == entry["sequences"]
    assert told["empty_documents"] == {"train": 6, "validation": 2}
    assert told["shares"] == {"c4": 0.9, "book": 0.1}  # as declared, not as counted
    assert build.validation_sample(project.root, "pile", 8).shape == (8, LENGTH + 1)
    held_out = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert len(held_out) == 46 and held_out[0]["id"] == "validation/chunk1/example_holdout_0.jsonl.zst:1"


def test_any_number_of_processes_gives_the_same_bytes(project, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 500)  # several batches a part
    monkeypatch.setattr(build, "HUB_SHARD_BYTES", 2000)  # several shards a part
    results = [all_bytes(project.build(tmp_path / f"p{n}", processes=n)) for n in (1, 2)]
    assert results[0] == results[1]
    assert "train/c4/part.00002/shard.00001.mds" in results[0]


def test_pieces_do_not_show_in_the_shards(project, tmp_path, monkeypatch):
    whole = all_bytes(project.build(tmp_path / "whole"))
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 1)
    monkeypatch.setattr(hubtext, "CHUNK", 7)
    assert all_bytes(project.build(tmp_path / "pieces")) == whole


def test_a_killed_build_goes_on_to_the_same_bytes(project, tmp_path, monkeypatch):
    whole = all_bytes(project.build(tmp_path / "whole"))
    write, written = build._write_hub_part, []

    def stop_at(limit, inside=False):
        def stopping(folder, split, number, *rest):
            if len(written) == limit:
                if inside:  # between the renames of two domains
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr(os, "replace", _only_first(os.replace))
                        write(folder, split, number, *rest)
                raise KeyboardInterrupt
            write(folder, split, number, *rest)
            written.append((split, number))

        monkeypatch.setattr(build, "_write_hub_part", stopping)

    for limit, inside in ((1, False), (2, True), (3, False)):
        stop_at(limit, inside)
        with pytest.raises(KeyboardInterrupt):
            project.build()
        assert "is not built" in refused(project.fingerprint)
    stop_at(-1)
    assert all_bytes(project.build()) == whole
    assert len(written) == len(set(written)) == 4


def _only_first(replace):
    done = []

    def once(source, target):
        if "part." in os.path.basename(target) and not os.path.basename(target).endswith(".json"):
            if done:
                raise KeyboardInterrupt
            done.append(target)
        return replace(source, target)

    return once


WRITE = build._write_hub_part


def slow_part(folder, *arguments):
    time.sleep(0.3)
    WRITE(folder, *arguments)
    (folder.parent / "one").touch()


def endless_part(folder, *_):
    (folder.parent / "begun").touch()
    time.sleep(600)


def build_as_leader(project):
    os.setsid()
    project.build(processes=2)


def test_kill_9_of_all_processes(project, tmp_path, monkeypatch):
    whole = all_bytes(project.build(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(build, "_write_hub_part", slow_part)
        process = multiprocessing.get_context("fork").Process(target=build_as_leader, args=(project,))
        process.start()
        while not (project.root / "one").exists():
            assert process.is_alive()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert "is not built" in refused(project.fingerprint)
    assert list((project.root / "pile" / "train" / "c4").glob("part.*"))
    assert all_bytes(project.build()) == whole


def test_an_interrupt_does_not_wait_for_parts_that_were_begun(project, monkeypatch):
    def interrupted(workers):
        while not (project.root / "begun").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_write_hub_part", endless_part)
    monkeypatch.setattr(build._Workers, "finish", interrupted)
    # A library may have installed a handler, which the children inherit.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            project.build(processes=2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < 60


def test_damage_is_found_and_rebuilt_to_the_same_bytes(project):
    whole = all_bytes(project.build())
    path = project.root / "pile" / "train" / "c4" / "part.00001" / "shard.00000.mds"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    told = project.fingerprint()
    assert "part.00001/shard.00000.mds: the shard is altered" in refused(
        lambda: build.open_domain(project.root, "pile", "train", "c4", told)
    )
    build.open_domain(project.root, "pile", "train", "c4", told, check=False)  # another process checks
    assert all_bytes(project.build(rebuild=True)) == whole
    path.write_bytes(raw[:-1])
    assert "bytes were expected" in refused(
        lambda: build.open_domain(project.root, "pile", "train", "c4", told, check=False)
    )


def test_a_full_disk_is_told_and_leaves_no_half_part(project, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_json", full)
        patch.setattr(build, "write_json", lambda path, value: full() if path.name == "part.json" else None)
        assert "no space is left" in refused(project.build, StorageError)
    assert not list((project.root / "pile").rglob("part.*"))


# -- which documents are taken


def test_fraction_and_held_out_share_are_a_fixed_choice(project, monkeypatch):
    monkeypatch.setattr(hubtext, "part_documents", lambda *_: iter(()))  # only the choice is looked at
    value = project.save(fraction=0.5)

    def rows(value, split, count=4000):
        chosen = hubtext.chooser(value, split, "train/x")
        return {row for row in range(count) if chosen(row)}

    half = rows(value, "train")
    assert 1880 < len(half) < 2120 and half == rows(value, "train")
    assert len(rows(value, "validation")) == 4000  # its own files are taken whole
    assert half != rows(project.save(seed=1), "train")
    assert half <= rows(project.save(seed=0, fraction=0.7), "train")  # a larger share only adds
    del project.value["splits"]["validation"]
    value = project.save(validation_share=0.1, fraction=1.0)
    train, held_out = rows(value, "train"), rows(value, "validation")
    assert not train & held_out and len(train | held_out) == 4000 and 340 < len(held_out) < 460
    fewer = rows(project.save(fraction=0.5), "train")
    assert fewer < train and 1680 < len(fewer) < 1920 and rows(value, "validation") == held_out


def test_documents_do_not_depend_on_the_parts(project):
    whole = project.taken(fraction=0.6, files_per_part=1)
    assert project.taken(files_per_part=4) == whole
    assert sorted(project.taken(files_per_part=1, parts_per_file=5)) == sorted(whole)
    assert 60 < len(whole) < 110  # 138 have text
    assert len(project.save(parts_per_file=1).digest) == 64


def test_parts_of_one_large_file(project):
    project.save(files_per_part=1, parts_per_file=3)
    project.build()
    counts = [
        json.loads((project.root / "pile" / "train" / "c4" / f"part.{k:05d}" / "part.json").read_text())[
            "documents"
        ]
        for k in range(18)
    ]
    assert sum(counts) == 72 and max(counts) < 9


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_formats_hold_the_same_text(project, form):
    splits = {"train": {"files": [f"{form}/*.{form}"]}}
    for file in "ab":
        rows = [{"content": row["text"]} for row in slimpajama_rows("train", file, 40)]
        write_rows(project.copy / form / f"{file}.{form}", rows)
    more = {
        "format": form,
        "splits": splits,
        "validation_share": 0.3,
        "domains": {"german": None},
        "domain": None,
    }
    found = project.save(text="content", **more)
    texts = {split: [d["text"] for d in documents(found, split)] for split in ("train", "validation")}
    wanted = [row["text"] for file in "ab" for row in slimpajama_rows("train", file, 40) if row["text"]]
    assert sorted(texts["train"] + texts["validation"]) == sorted(wanted)
    assert 10 < len(texts["validation"]) < 40
    project.build()
    assert project.fingerprint()["shares"] == {"german": 1}


def test_a_domain_in_a_nested_column_of_parquet(project):
    write_rows(project.copy / "p" / "a.parquet", slimpajama_rows("train", "a"))
    found = project.save(format="parquet", splits={s: {"files": ["p/*"]} for s in ("train", "validation")})
    rows = list(documents(found, "train"))
    assert {row["domain"] for row in rows} == {"c4", "book"} and len(rows) == 23


# -- what is refused

FIRST = "train/chunk1/example_train_0.jsonl.zst"
BAD_ROWS = {
    b'{"text": "a"': "row 2: not a line of JSON in UTF-8",
    b'{"text": "\xff"}': "row 2: not a line of JSON in UTF-8",
    b"": "row 2: not a line of JSON in UTF-8",
    b"[" * 100_000: "row 2: not a line of JSON in UTF-8",
    b"[1]": "row 2: the columns text, meta.redpajama_set_name do not hold texts",
    b'{"text": 3}': "row 2: the columns text, meta.redpajama_set_name do not hold texts",
    b'{"text": null, "meta": {}}': "row 2: the columns text, meta.redpajama_set_name do not hold texts",
    b'{"text": "\\ud800", "meta": {"redpajama_set_name": "RedPajamaC4"}}': "row 2: the columns text",
    b'{"text": "a", "meta": null}': "row 2: the columns text",
    b'{"text": "a", "meta": {"redpajama_set_name": "RedPajamaX"}}': "row 2: the domain 'RedPajamaX' is not declared",
    b'{"text": "a", "meta": {"redpajama_set_name": ["x"]}}': "row 2: the domain ['x'] is not declared",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: row[:30].decode("latin-1"))
def test_bad_rows_are_named_by_file_and_row(project, row):
    good = {"text": "a b", "meta": {"redpajama_set_name": "RedPajamaC4"}}
    write_rows(project.copy / FIRST, [good, row, good])
    told = refused(project.build)
    assert f"{project.copy / FIRST}, {BAD_ROWS[row]}" in told


def test_bad_rows_are_named_by_worker_processes_too(project):
    write_rows(project.copy / FIRST, [b"3"])
    assert f"{project.copy / FIRST}, row 1" in refused(lambda: project.build(processes=2))


@pytest.mark.parametrize("form", ["jsonl.gz", "jsonl.zst"])
def test_files_that_are_cut_short_or_damaged(project, form):
    path = project.copy / f"x.{form}"
    rows = [row["text"].encode() for row in slimpajama_rows("train", "x", 200)]
    write_rows(path, rows)
    raw = path.read_bytes()
    for damaged, message in (
        (raw[:-9], "cut short"),
        (raw[:40] + bytes(80) + raw[120:], "does not decompress"),
    ):
        path.write_bytes(damaged)
        told = refused(lambda: [*hubtext._chunks(path, form)])
        assert str(path) in told and message in told
    path.write_bytes(b"")
    assert "cut short" in refused(lambda: [*hubtext._chunks(path, form)])


def test_wrong_columns_of_parquet(project):
    write_rows(project.copy / "p" / "a.parquet", slimpajama_rows("train", "a"))
    more = {"format": "parquet", "splits": {s: {"files": ["p/*"]} for s in ("train", "validation")}}
    told = refused(lambda: project.taken(text="content", **more))
    assert "a.parquet: it has no column 'content' (it has text, meta.redpajama_set_name, other)" in told
    (project.copy / "p" / "b.parquet").write_bytes(b"PAR1 not really")
    assert "b.parquet, near row 1: the file cannot be read" in refused(lambda: project.taken(text="text"))


def test_too_few_files(project):
    (project.copy / FIRST).unlink()
    assert "should have 6 files, and 5 are there" in refused(project.build)
    project.save(splits={**project.value["splits"], "train": {"files": ["absent/*"]}})
    assert "no file fits 'absent/*'" in refused(project.build)


def test_other_files_than_when_the_build_began(project, monkeypatch):
    project.save(splits={**project.value["splits"], "train": {"files": ["train/*"]}})
    with monkeypatch.context() as patch:
        patch.setattr(build, "_write_hub_part", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            project.build()
    write_rows(
        project.copy / "train" / "chunk3" / "example_train_0.jsonl.zst", slimpajama_rows("train", "new")
    )
    assert "other files than when this build began" in refused(project.build)


def test_content_that_changed_after_its_first_use(project, tmp_path):
    project.build()
    write_rows(project.copy / FIRST, slimpajama_rows("train", "another"))
    assert "it changed since it was first used" in refused(lambda: project.build(tmp_path / "again"))
    project.build()  # what is built does not need its sources any more
    shutil.rmtree(project.hub)
    project.build()


def test_links_that_leave_the_copy(project, tmp_path):
    (project.copy / FIRST).unlink()
    write_rows(tmp_path / "outside.jsonl.zst", slimpajama_rows("train", "x"))
    (project.copy / FIRST).symlink_to(tmp_path / "outside.jsonl.zst")
    assert "it leads out of the copy" in refused(project.build)


CONTRADICTIONS = [
    ({"validation_share": 0.1}, "either 'splits.validation' or a 'validation_share'"),
    ({"splits": {"validation": {"files": ["x"]}}}, "'splits' must name train"),
    ({"domain": None}, "'domain' must say which column"),
    ({"domain": {"column": "c", "names": {"x": "c4"}}}, "must name the same domains"),
    ({"parts_per_file": 2}, "cannot both be above 1"),
    ({"fraction": 0}, "'fraction' is wrong"),
    ({"dataset": "../../etc"}, "'dataset' is wrong"),
    ({"format": "csv"}, "'format' is wrong"),
]


@pytest.mark.parametrize(
    ("change", "message"), CONTRADICTIONS, ids=[message for _, message in CONTRADICTIONS]
)
def test_manifests_that_contradict_themselves(project, change, message):
    told = refused(lambda: project.save(**change))
    assert "slim.yaml" in told and message in told


def test_the_papers_manifests():
    slim, german, pile = (load_manifest(name) for name in ("slimpajama", "german_cc", "pile"))
    assert slim.fraction == pytest.approx(299.28 / 606, abs=1e-4) and len(slim.domains) == 7
    assert slim.domain.names["RedPajamaCommonCrawl"] == "commoncrawl"
    assert (
        german.validation_share == pytest.approx(0.9826 / (195.43 + 0.9826), abs=1e-4)
        and german.text == "content"
    )
    assert pile.dataset == "monology/pile-uncopyrighted" and "NOT the papers' data" in pile.note
    assert load_manifest("pile_original").dataset == "EleutherAI/pile"
    assert load_manifest("pile_deduplicated").format == "parquet"


# -- tokenizers


def test_a_published_tokenizer_is_kept_checked_and_loads_in_transformers(project):
    folder = build.build_tokenizer(project.scale, project.root)
    assert (folder / "tokenizer.json").read_bytes() == (project.model / "tokenizer.json").read_bytes()
    assert build.current_tokenizer(project.scale, project.root) == build.file_digest(
        folder / "tokenizer.json"
    )
    from cpt_repro.evaluation.harness import load_tokenizer as load_for_harness

    loaded = load_for_harness(folder)
    text = "Grüße    to  the house.\n\n  don't <|endoftext|>"
    ours = Encoder(load_tokenizer(folder))([text])
    assert loaded.eos_token_id == ours[-1] == 1
    special = loaded(text.removesuffix("<|endoftext|>")).input_ids
    assert special == Encoder(load_tokenizer(folder))([text.removesuffix("<|endoftext|>")])[:-1].tolist()
    shutil.rmtree(project.hub)
    assert build.build_tokenizer(project.scale, project.root) == folder  # not fetched again


def test_a_tokenizer_without_a_configuration_gets_one(project):
    (project.model / "tokenizer_config.json").unlink()
    folder = build.build_tokenizer(project.scale, project.root)
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


def test_tokenizers_that_do_not_fit(project):
    def of(**more):
        settings = project.scale.tokenizer.model_copy(update=more)
        return project.scale.model_copy(update={"tokenizer": settings})

    def told(scale):
        return refused(lambda: build.build_tokenizer(scale, project.root))

    assert "has 400 entries, and 'tokenizer.vocab_size' of the scale says 500" in told(of(vocab_size=500))
    assert "models/someone/absent" in told(of(name="someone/absent"))
    neox_like(project.hub / "models" / "someone" / "endless", end="<|done|>")
    assert "has no <|endoftext|>" in told(of(name="someone/endless"))
    large = json.loads((project.model / "tokenizer.json").read_text())
    largest = max(large["model"]["vocab"].values())
    extra = {f"w{n}": n for n in range(largest + 1, 65_537 - 3 + 4)}
    large["model"]["vocab"] |= extra
    for n, token in enumerate(token for token in large["added_tokens"] if not token["special"]):
        token["id"] = 65_538 + n
    (project.hub / "models" / "someone" / "large").mkdir()
    (project.hub / "models" / "someone" / "large" / "tokenizer.json").write_text(json.dumps(large))
    count = Tokenizer.from_str(json.dumps(large)).get_vocab_size()
    assert "are stored in 16 bits" in told(of(name="someone/large", vocab_size=count))
    for content, name in (("{}", "broken"), (None, "none")):
        folder = project.hub / "models" / "someone" / name
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text("{}")
        if content:
            (folder / "tokenizer.json").write_text(content)
    assert "cannot be read" in told(of(name="someone/broken"))
    assert "no tokenizer.json" in told(of(name="someone/none"))
    assert not (project.root / "tokenizer").exists()


def test_shards_of_another_tokenizer_are_built_anew(project, caplog):
    project.build()
    before = project.fingerprint()["tokenizer"]
    neox_like(project.model, vocab_size=390)
    (project.folder / "hub.lock.json").unlink()
    settings = project.scale.tokenizer.model_copy(update={"vocab_size": 390})
    project.scale = project.scale.model_copy(update={"tokenizer": settings})
    assert "the tokenizer of scale 'tiny' is not made" in refused(
        lambda: build.current_tokenizer(project.scale, project.root)
    )
    project.build()
    assert "another manifest, tokenizer or length" in caplog.text
    assert (
        before != project.fingerprint()["tokenizer"] == build.current_tokenizer(project.scale, project.root)
    )


ODD = [
    *"abcXYZéßäöŒ×÷ñ019²½Ⅷ'’\"!.,;:-_()[]{}@#<=>~`|\\ \t\n\r\f\v",
    "  ",
    "   ",
    "\u00a0",
    "\u2003",
    "\u2000",
]
ODD += [
    "\u3000",
    "\u0085",
    "\x1c",
    "\x1f",
    "\u200b",
    "\u2028",
    "\u0301",
    "\u0338",
    "\u0307",
    "東",
    "🙂",
    "한",
    "\u1100",
]
ODD += [
    "\u1161",
    "\u037e",
    "\u0387",
    "\u1fef",
    "\u0374",
    "<|endoftext|>",
    "'s",
    "'LL",
    "don't",
    "\u0391",
    "ж",
    "\ufeff",
]
ODD += ["\u180e", "\u1680", "ª", "º", "µ", "ʰ", "ſ", "\u212a"]


def test_the_fast_encoder_gives_the_librarys_tokens(tokenizer, monkeypatch):
    library = load_tokenizer(tokenizer)
    encoder, rng = Encoder(library), random.Random(1)
    assert not encoder._whole
    monkeypatch.setattr(encoding, "MOST_PIECES", 5000)  # forgets now and then
    for _ in range(400):
        texts = ["".join(rng.choice(ODD) for _ in range(rng.randint(0, 14))) for _ in range(20)]
        wanted = [
            token for e in library.encode_batch(texts, add_special_tokens=False) for token in [*e.ids, 1]
        ]
        found = encoder(texts)
        assert found.tolist() == wanted and found.dtype == np.uint16
        assert len(encoder._starts) < 5200
    assert encoder([]).tolist() == []


def test_texts_are_cut_only_where_the_library_cuts(tokenizer):
    library, rng, cuts = load_tokenizer(tokenizer), random.Random(2), 0
    encoder = Encoder(library)
    for _ in range(20_000):
        text = library.normalizer.normalize_str("".join(rng.choice(ODD) for _ in range(rng.randint(1, 8))))
        pieces = encoder._cut(text)
        assert "".join(pieces) == text
        ours = {sum(map(len, pieces[:k])) for k in range(1, len(pieces))}
        cuts += len(ours)
        assert ours <= {end for _, (_, end) in library.pre_tokenizer.pre_tokenize_str(text)}, repr(text)
    assert cuts > 5000


def test_tokenizers_that_split_in_another_way_are_left_to_the_library(tokenizer):
    library = load_tokenizer(tokenizer)
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    assert Encoder(library)._whole
    library = load_tokenizer(tokenizer)
    library.add_tokens([AddedToken("the house", special=False)])
    encoder = Encoder(library)
    assert encoder._whole
    assert encoder(["in the house."]).tolist() == [*library.encode("in the house.").ids, 1]


# -- shards elsewhere


@pytest.fixture
def remote(project, tmp_path, monkeypatch):
    """The project's shards, uploaded and removed here."""
    project.build()
    names = ["pile/" + name for name in all_bytes(project.root / "pile") if name.endswith((".mds", ".json"))]
    store = tmp_path / "store"
    shards.upload(project.root, names, str(store / "tiny"))
    assert all((store / "tiny" / name).read_bytes() == (project.root / name).read_bytes() for name in names)
    monkeypatch.setenv("CPT_REPRO_SHARDS_REMOTE", str(store))
    return store / "tiny" / "pile" / "train" / "c4"


def test_shards_are_fetched_at_their_first_use(project, remote):
    told, folder = project.fingerprint(), project.root / "pile" / "train" / "c4"
    wanted = build.open_domain(project.root, "pile", "train", "c4", told).take(range(40))
    for path in folder.rglob("*.mds"):
        path.unlink()
    there = build.open_domain(project.root, "pile", "train", "c4", told)
    assert not list(folder.rglob("*.mds"))
    assert np.array_equal(there.take(range(2)), wanted[:2])
    assert [path.parent.name for path in folder.rglob("*.mds")] == ["part.00000"]
    threads = [threading.Thread(target=there.take, args=(range(len(there)),)) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    shutil.rmtree(remote)
    assert np.array_equal(
        build.open_domain(project.root, "pile", "train", "c4", told).take(range(40)), wanted
    )
    assert not [path for path in folder.rglob("*") if "aside" in path.name]


def test_remote_shards_that_are_damaged_or_missing(project, remote, monkeypatch):
    told, folder = project.fingerprint(), project.root / "pile" / "train" / "c4"
    local, far = (where / "part.00000" / "shard.00000.mds" for where in (folder, remote))
    local.unlink()
    raw = far.read_bytes()
    far.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    there = build.open_domain(project.root, "pile", "train", "c4", told)
    assert f"{far}: the remote shard is of another build, or damaged" in refused(lambda: there.take([0]))
    assert not local.exists()
    far.unlink()
    assert f"{far}: the shard cannot be fetched" in refused(lambda: there.take([0]))
    monkeypatch.setenv("CPT_REPRO_SHARDS_REMOTE", "nowhere://x")
    there = build.open_domain(project.root, "pile", "train", "c4", told)
    assert "cannot be fetched (Unsupported remote path" in refused(lambda: there.take([0]))
    monkeypatch.delenv("CPT_REPRO_SHARDS_REMOTE")
    assert "is missing" in refused(lambda: build.open_domain(project.root, "pile", "train", "c4", told))


def test_what_is_here_is_still_checked(project, remote):
    path = project.root / "pile" / "train" / "c4" / "part.00001" / "shard.00000.mds"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    told = project.fingerprint()
    assert "the shard is altered" in refused(
        lambda: build.open_domain(project.root, "pile", "train", "c4", told)
    )


def test_upload_from_the_command_line(project, tmp_path, monkeypatch):
    from cpt_repro import cli, config

    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(config, "load_scale", lambda name: project.scale)
    done = CliRunner().invoke(
        cli.app, ["corpus", "pile", "--scale", "tiny", "--upload", str(tmp_path / "store")]
    )
    assert done.exit_code == 0, done.output
    built, stored = all_bytes(project.root / "pile"), all_bytes(tmp_path / "store" / "tiny" / "pile")
    assert stored == {name: raw for name, raw in built.items() if name in stored}
    assert sum(name.endswith(".mds") for name in stored) == 8


def test_memory_maps_stay_within_their_bound(project, monkeypatch):
    project.build()
    monkeypatch.setattr(shards, "_most_open", lambda: 2 * len(shards._alive))
    told = project.fingerprint()
    there = build.open_domain(project.root, "pile", "train", "c4", told)
    monkeypatch.setattr(shards, "_most_open", lambda: 2 * len(shards._alive))
    ends = [0, *there._ends[:-1]]
    for number in (0, 1, 0, 2):
        there.take([ends[number]])
    assert list(there._open) == [0, 2]  # the longest unused was closed
    assert shards._most_open() >= 2
