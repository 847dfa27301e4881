"""Building corpora: the same bytes whatever happens, and damage that is found, named and built again."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
from tiny_corpora import LENGTH, Local, all_bytes, flip, refused, rows, texts, write_rows
from tokenizers import Tokenizer

from cpt_repro.data import build, parts, shards
from cpt_repro.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from cpt_repro.errors import StorageError
from cpt_repro.files import read_json, write_json

FIRST, SECOND = "part.00000/shard.00000.mds", "part.00001/shard.00000.mds"
#: Of the local corpus with parts of five documents.
GOLDEN = "8bcf6eeeb0631c33c5a338bfc720fbf265fde165fa0269d3ab2a8751622588b9"
KINDS = pytest.mark.parametrize("kind", ["local", "hub"])


@pytest.fixture
def tiny(request, kind):
    return request.getfixturevalue(kind)


# -- what is built


def expected_tokens(tokenizer, documents, end):
    return [token for text in documents for token in [*tokenizer.encode(text).ids, end]]


def check_part(folder, stream, built):
    """The sequences of a part are its documents' tokens, each predicted once."""
    hashes = {name.split("/")[1]: sha1 for name, sha1 in built.shards.items() if name.startswith(folder.name)}
    sequences = shards.Sequences(folder, LENGTH + 1, hashes)
    taken = sequences.take(range(len(sequences)))
    assert [*taken[0][:1], *taken[:, 1:].ravel()] == stream[: len(taken) * LENGTH + 1]
    assert (taken[1:, 0] == taken[:-1, -1]).all() and len(taken) == (len(stream) - 1) // LENGTH


def test_local_sequences_hold_the_text(local):
    folder = local.build()
    tokenizer, fingerprint = load_tokenizer(local.root / "tokenizer"), local.fingerprint()
    tokens = {}
    for domain in ("prose", "law"):
        given = [document["text"] for document in texts("train", 40) if document["domain"] == domain]
        streams = [expected_tokens(tokenizer, given[k : k + 5], END_OF_TEXT_ID) for k in range(0, 20, 5)]
        built = fingerprint.splits["train"][domain]
        for k, stream in enumerate(streams):
            check_part(folder / "train" / domain / f"part.{k:05d}", stream, built)
        tokens[domain] = sum(map(len, streams))
        assert (built.tokens, built.documents) == (tokens[domain], 20)
        assert built.text_bytes == sum(len(text.encode()) for text in given)
        assert built.sequences == len(local.open(domain))
    assert fingerprint.shares["law"] == pytest.approx(tokens["law"] / sum(tokens.values()))
    held_out = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert sorted(x["text"] for x in held_out) == sorted(x["text"] for x in texts("validation", 20))


def test_hub_sequences_hold_the_text(hub):
    folder, fingerprint = hub.build(), None
    fingerprint = hub.fingerprint()
    tokenizer = Tokenizer.from_file(str(hub.model / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    for number, domain in enumerate(("c4", "book")):
        built, total = fingerprint.splits["train"][domain], 0
        for k in range(3):
            given = [row["text"] for name in hub.files[2 * k : 2 * k + 2] for row in [*rows(name)][number::2]]
            stream = expected_tokens(tokenizer, filter(None, given), 1)
            check_part(folder / "train" / domain / f"part.{k:05d}", stream, built)
            total += len(stream)
        assert (built.tokens, built.documents) == (total, 72 - 6 * number)
    assert fingerprint.empty_documents == {"train": 6, "validation": 2}
    assert fingerprint.shares == {"c4": 0.9, "book": 0.1}  # as declared, not as counted
    held_out = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert len(held_out) == 46 and held_out[0]["id"] == "validation/chunk1/example_holdout_0.jsonl.zst:1"


def test_the_bytes_are_those_of_ever(local):
    """Regression: if this fails, every corpus that was ever built is stale."""
    files = all_bytes(local.build())
    names = [name for name in files if name.endswith((".mds", ".jsonl", "fingerprint.json"))]
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in names}
    assert hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest() == GOLDEN


@KINDS
def test_neither_processes_nor_pieces_show_in_the_bytes(tiny, kind, tmp_path, monkeypatch):
    whole = all_bytes(tiny.build())
    assert sum(name.endswith(".mds") for name in whole) >= 8
    monkeypatch.setattr(parts, "BATCH_CHARACTERS", 1)
    for processes in (1, 2, 5):
        assert all_bytes(tiny.elsewhere(tmp_path / f"{processes}").build(processes=processes)) == whole


def test_a_document_longer_than_a_shard_or_a_part_is_kept_whole(local, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    monkeypatch.setattr(parts, "PART_CHARACTERS", 3000)
    long = " ".join(f"v{i % 53}" for i in range(5000))
    local.write(train=[*texts("train", 12), {"id": "long", "domain": "law", "text": long}])
    folder = local.build()
    assert len(list((folder / "train" / "law").rglob("*.mds"))) > 5
    sequences = local.open("law")
    tokens = np.concatenate([row[:-1] for row in sequences.take(range(len(sequences)))])
    assert long[:15000] in load_tokenizer(local.root / "tokenizer").decode(tokens.tolist())
    assert all_bytes(local.elsewhere(tmp_path / "again").build(processes=2)) == all_bytes(folder)


def test_ids_may_stand_twice(local):
    local.write(train=[document | {"id": "same"} for document in texts("train", 40)])
    local.build()
    assert sum(built.documents for built in local.fingerprint().splits["train"].values()) == 40


# -- what is refused


def test_domains_without_text(local):
    prose = [document for document in texts("validation", 20) if document["domain"] == "prose"]
    local.write(validation=prose)
    assert "domain 'law' of corpus 'tiny' has too little validation text" in refused(local.build)
    local.write()
    local.save(domains={"prose": 0.5, "law": 0.4, "verse": 0.1})
    assert "domain 'verse' of corpus 'tiny' has too little train text" in refused(local.build)


def test_an_unknown_corpus_and_a_folder_of_something_else(local):
    text = refused(lambda: build.build_corpus(local.project, local.scale, "pil"))
    assert "the scale 'tiny' has no corpus 'pil'" in text and "pile" in text
    local.corpus.mkdir(parents=True)
    (local.corpus / "thesis.txt").write_text("precious")
    assert f"{local.corpus}: the folder holds something else" in refused(local.build)
    assert (local.corpus / "thesis.txt").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_row_is_named_by_workers_too(hub, processes):
    write_rows(hub.copy / hub.first, [b"3"])
    assert f"{hub.copy / hub.first}, row 1: " in refused(lambda: hub.build(processes=processes))


# -- interruptions


def stopping(monkeypatch, limit, written, after=None):
    """Building stops at the part behind `limit` others."""
    write = parts.write_part

    def stop(corpus, part):
        if len(written) == limit:
            if after:
                after(write, corpus, part)
            raise KeyboardInterrupt
        write(corpus, part)
        written.append((part.split, part.domains, part.number))

    monkeypatch.setattr(parts, "write_part", stop)


def between_two_renames(write, corpus, part):
    """The second folder of a part does not get its name."""
    replace, done = os.replace, []

    def once(source, target):
        if os.path.basename(target).startswith("part.0"):
            if done:
                raise KeyboardInterrupt
            done.append(target)
        return replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", once)
        write(corpus, part)


@KINDS
def test_an_interrupted_build_goes_on_to_the_same_bytes(tiny, kind, tmp_path, monkeypatch):
    whole, written = all_bytes(tiny.elsewhere(tmp_path / "whole").build()), []
    for limit, after in ((1, None), (2, between_two_renames if kind == "hub" else None), (3, None)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stopping(patch, limit, written, after)
            tiny.build()
        assert "the corpus 'pile' is not built" in refused(tiny.fingerprint)
    (tiny.corpus / "train" / ".part.00009.aside").mkdir()  # as a kill leaves one
    stopping(monkeypatch, -1, written)
    assert {name: raw for name, raw in all_bytes(tiny.build()).items() if ".aside" not in name} == whole
    wanted = sum(name.endswith("part.json") for name in whole) / (2 if kind == "hub" else 1)
    assert len(written) == len(set(written)) == wanted
    before = (tiny.corpus / "fingerprint.json").stat().st_mtime_ns
    tiny.build()
    assert (tiny.corpus / "fingerprint.json").stat().st_mtime_ns == before


WRITE = parts.write_part


def begun(corpus, part):
    """A part that never ends; in training text one is finished before."""
    if part.split == "train":
        WRITE(corpus, part)
    (corpus.folder / ".begun.aside").mkdir(exist_ok=True)
    (corpus.folder.parent / "one").touch()
    time.sleep(600)


@pytest.mark.slow
def test_kill_9_of_all_processes(hub, tmp_path, monkeypatch):
    whole = all_bytes(hub.elsewhere(tmp_path / "whole").build())

    def leader():
        os.setsid()
        hub.build(processes=2)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_part", begun)
        process = multiprocessing.get_context("fork").Process(target=leader)
        process.start()
        while not (hub.root / "one").exists():
            assert process.is_alive()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert "is not built" in refused(hub.fingerprint)
    assert list((hub.corpus / "train").rglob("part.json"))
    shutil.rmtree(hub.corpus / ".begun.aside")
    assert all_bytes(hub.build()) == whole


def test_an_interrupt_does_not_wait_for_parts_that_were_begun(hub, monkeypatch):
    def interrupted(*_):
        while not (hub.root / "one").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write_part", begun)
    monkeypatch.setattr(build, "islice", interrupted)  # what comes behind the last part
    # A library may have installed a handler, which the children inherit.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            hub.build(processes=2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not multiprocessing.active_children() and not list(hub.corpus.rglob("*.aside"))


def killed(corpus, part):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(hub, monkeypatch):
    monkeypatch.setattr(parts, "write_part", killed)
    text = refused(lambda: hub.build(processes=2))
    assert f"{hub.corpus}: a building process was killed, perhaps for lack of memory" in text


def test_a_full_disk_is_told_and_leaves_no_half_part(hub, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_json", lambda path, value: full() if path.name == "part.json" else None)
        text = refused(hub.build, StorageError)
    assert "no space is left" in text and str(hub.corpus / "train") in text
    assert not list(hub.corpus.rglob("part.*")) and not list(hub.corpus.rglob("*.aside"))
    hub.build()


def test_other_files_than_when_the_build_began(hub, monkeypatch):
    hub.save(splits=hub.value["splits"] | {"train": {"files": ["train/*"]}})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping(patch, 0, [])
        hub.build()
    write_rows(hub.copy / "train" / "chunk3" / "example_train_0.jsonl.zst", rows("new"))
    assert f"{hub.corpus}: the data set someone/slim has other files" in refused(hub.build)


# -- damage


def exchange(corpus):
    one, other = (corpus / "train/law" / name for name in (FIRST, SECOND))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes() + bytes(9))  # not shorter, which would be found first
    other.write_bytes(first)


def exchange_parts(corpus):
    """Whole parts with their own indexes; the domain's index is made to fit."""
    domain = corpus / "train/law"
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        (domain / f"part.0000{old}").rename(domain / f"part.0000{new}")
    shards.merge_indexes(domain, sorted(part.name for part in domain.glob("part.*")))


def another_split(corpus):
    shutil.rmtree(corpus / "train/law")
    shutil.copytree(corpus / "validation/law", corpus / "train/law")


def edit_index(edit):
    def damage(corpus):
        index = read_json(corpus / INDEX)
        edit(index["shards"])
        write_json(corpus / INDEX, index)

    return damage


def move_a_sample(entries):
    entries[0]["samples"] -= 1
    entries[1]["samples"] += 1


def edit(name, change):
    return lambda corpus: (corpus / name).write_text(change((corpus / name).read_text()))


LAW, INDEX = f"train/law/{SECOND}", "train/law/index.json"
PROSE, OTHERS = f"validation/prose/{FIRST}", "the index lists other shards than were built"
#: fault -> (what is done to a corpus, the file that is named, words of the message)
DAMAGES = {
    "flipped bit": (lambda corpus: flip(corpus / LAW), LAW, "altered"),
    "flipped bit in a header": (lambda corpus: flip(corpus / LAW, 1), LAW, "altered"),
    "flipped bit in validation": (lambda corpus: flip(corpus / PROSE), PROSE, "altered"),
    "truncated shard": (lambda corpus: os.truncate(corpus / LAW, 90), LAW, "truncated"),
    "empty shard": (lambda corpus: os.truncate(corpus / PROSE, 0), PROSE, "truncated"),
    "missing shard": (lambda corpus: (corpus / LAW).unlink(), LAW, "missing"),
    "missing part": (lambda corpus: shutil.rmtree((corpus / LAW).parent), LAW, "missing"),
    "exchanged shards": (exchange, f"train/law/{FIRST}", "of another build"),
    "exchanged parts": (exchange_parts, INDEX, OTHERS),
    "shards of another split": (another_split, INDEX, OTHERS),
    "index of fewer shards": (edit_index(lambda entries: entries.pop()), INDEX, OTHERS),
    "index in another order": (edit_index(lambda entries: entries.reverse()), INDEX, "in another order"),
    "index of wrong samples": (edit_index(move_a_sample), INDEX, "does not fit the shard"),
    "broken index": (edit(INDEX, lambda text: text[:20]), INDEX, "not valid JSON"),
    "missing index": (lambda corpus: (corpus / INDEX).unlink(), INDEX, "the index of the shards is missing"),
    "edited fingerprint": (
        edit("fingerprint.json", lambda text: text.replace("16", "17")),
        "fingerprint.json",
        "does not match",
    ),
}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A local corpus that is built once; tests take copies of it."""
    tiny = Local(tmp_path_factory.mktemp("once"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_DOCUMENTS", 5)
        tiny.build()
    return tiny


@pytest.fixture
def copied(once, tmp_path):
    shutil.copytree(once.project.data / "tiny", tmp_path / "tiny")
    return once.elsewhere(tmp_path)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_named_and_rebuilt_to_the_same_bytes(copied, name, faults):
    corpus, whole = copied.corpus, all_bytes(copied.root)
    copied.open_all()
    hashes = {path: hashlib.sha1(path.read_bytes()).hexdigest() for path in corpus.rglob("*.mds")}
    damage, file, message = DAMAGES[name]
    damage(corpus)
    text = refused(copied.open_all)
    assert f"{corpus / file}: " in text and message in text and ("--rebuild" in text or "made anew" in text)
    if file.endswith(".mds"):
        assert hashes[corpus / file] in text
    copied.build()  # leaves alone what is there
    refused(copied.open_all)
    copied.build(rebuild=True)
    copied.open_all()
    assert all_bytes(copied.root) == whole
    faults(f"data: {name}", 1, "found, named and rebuilt to the same bytes")


def test_changed_text_is_built_anew_and_its_earlier_shards_are_refused(local, tmp_path, caplog):
    earlier = shutil.copytree(local.build(), tmp_path / "earlier")
    before = local.fingerprint()
    local.write("other")
    local.build()
    assert before.fingerprint != local.fingerprint().fingerprint
    assert "built from another manifest, tokenizer or length; building anew" in caplog.text
    shutil.rmtree(local.corpus / "train")
    shutil.copytree(earlier / "train", local.corpus / "train")
    assert f"{local.corpus / 'train/law/index.json'}: {OTHERS}" in refused(local.open_all)


@pytest.mark.parametrize("file", ["part.json", "index.json"])
@pytest.mark.parametrize("content", ["[]", "{", "3", '{"sequences": 1}', '{"sequences": "1"}', None])
def test_a_rebuild_mends_what_a_part_says_of_itself(copied, file, content):
    whole, path = all_bytes(copied.root), copied.corpus / "train/law/part.00001" / file
    if content is None:  # a count that is wrong, and looks like one
        content = path.read_text().replace('"documents": 5', '"documents": 4').replace("1}", "2}")
    path.write_text(content)
    copied.build(rebuild=True)
    assert all_bytes(copied.root) == whole


def test_only_damaged_parts_are_built_again_and_a_kill_leaves_nothing_that_passes(copied, monkeypatch):
    whole, written = all_bytes(copied.root), []
    with monkeypatch.context() as patch:
        stopping(patch, -1, written)
        copied.build(rebuild=True)
    assert written == []
    flip(copied.corpus / "train/law" / SECOND)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping(patch, 0, [])
        copied.build(rebuild=True)
    refused(copied.open_all)
    stopping(monkeypatch, -1, written)
    copied.build()  # an ordinary call goes on
    assert all_bytes(copied.root) == whole and written == [("train", ("law",), 1)]
