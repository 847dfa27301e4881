"""Shards: random access, indexes that are not to be trusted, and shards that lie elsewhere."""

import pickle
import shutil
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_corpora import LENGTH, all_bytes, flip, refused

from cpt_repro.data import shards
from cpt_repro.data.corpus import upload_corpus
from cpt_repro.errors import UserError
from cpt_repro.files import read_json, write_json

SHARD = "part.00000/shard.00000.mds"


def test_random_access_agrees_with_streaming(local):
    from streaming import StreamingDataset

    local.build()
    sequences = local.open("prose")
    order = np.random.default_rng(0).permutation(len(sequences))
    taken = sequences.take(order)
    dataset = StreamingDataset(local=str(local.corpus / "train" / "prose"), batch_size=1)
    assert len(dataset) == len(sequences) == local.fingerprint().splits["train"]["prose"].sequences
    assert np.array_equal(np.stack([dataset[int(index)]["tokens"] for index in order]), taken)
    assert taken.dtype == np.uint16 and sequences.take([]).shape == (0, LENGTH + 1)
    for index in (-1, len(sequences)):
        with pytest.raises(IndexError):
            sequences.take([index])


def test_memory_maps_stay_within_their_bound(local, monkeypatch):
    local.build()
    few = shards.lru_cache(maxsize=2)(shards._mapped.__wrapped__)
    monkeypatch.setattr(shards, "_mapped", few)
    sequences = local.open("prose")
    whole = sequences.take(range(len(sequences)))
    assert np.array_equal(sequences.take(range(len(sequences) - 1, -1, -1)), whole[::-1])
    assert few.cache_info().currsize == 2 and few.cache_info().misses > 4
    assert shards.OPEN_SHARDS < 1024


# -- indexes


def changed(index, **changes):
    value = read_json(index)
    for key, change in changes.items():
        (value["shards"][0]["raw_data"] if key == "basename" else value["shards"][0])[key] = change
    write_json(index, value)


@pytest.mark.parametrize(
    "name",
    ["../../secret.mds", "/etc/passwd", "part.00000/../../x", "shard.00000.mds.zstd", "a/shard.00000.mds"],
)
def test_an_index_cannot_reach_outside_its_folder(local, name):
    local.build()
    index = local.corpus / "train" / "law" / "index.json"
    shutil.copy(index.parent / SHARD, local.corpus / "secret.mds")
    changed(index, basename=name)
    text = refused(local.open_all)
    assert f"{index}: " in text and "basename" in text


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("code from a file was run",))


def test_an_index_cannot_make_a_shard_be_unpickled(local):
    local.build()
    index = local.corpus / "train" / "law" / "index.json"
    (index.parent / SHARD).write_bytes(pickle.dumps(Boom()))
    changed(index, column_encodings=["pkl"])
    assert f"{index}: the key 'shards.0.column_encodings" in refused(local.open_all)
    changed(index.parent / "part.00000" / "index.json", column_encodings=["pkl"])
    assert "column_encodings" in refused(lambda: shards.merge_indexes(index.parent, ["part.00000"]))


@pytest.mark.parametrize(
    "value", [[], 3, {}, {"shards": 3}, {"shards": [[]]}, {"shards": [{"samples": "1"}]}, None]
)
def test_a_file_that_is_no_index(local, value):
    local.build()
    index = local.corpus / "validation" / "law" / "index.json"
    write_json(index, value)
    assert f"{index}: " in refused(local.open_all)


# -- elsewhere


@pytest.fixture
def remote(hub, tmp_path):
    """The hub's corpus, uploaded; and the folder of a domain there."""
    hub.build()
    upload_corpus(hub.project, "tiny", "pile", str(tmp_path / "far"))
    hub.project = hub.project.with_(shards_remote=str(tmp_path / "far"))
    return tmp_path / "far" / "tiny" / "pile" / "train" / "c4"


def test_what_is_uploaded_is_all_that_is_needed(hub, remote):
    built, stored = all_bytes(hub.corpus), all_bytes(remote.parents[1])
    assert stored == {name: raw for name, raw in built.items() if name in stored}
    of_parts = {name for name in built if name.count("/") == 3 and name.endswith(".json")}
    assert set(built) - set(stored) == of_parts | {"build.json", "files.json"}
    for path in hub.corpus.rglob("part.*"):
        shutil.rmtree(path, ignore_errors=True)
    assert len(hub.open("c4", "validation").take([0])) == 1


def test_shards_are_fetched_at_their_first_use(hub, remote):
    folder = hub.corpus / "train" / "c4"
    wanted = hub.open("c4").take(range(40))
    for path in folder.rglob("*.mds"):
        path.unlink()
    shards._mapped.cache_clear()
    sequences = hub.open("c4")
    assert not list(folder.rglob("*.mds"))
    assert np.array_equal(sequences.take(range(2)), wanted[:2])
    assert [path.parent.name for path in folder.rglob("*.mds")] == ["part.00000"]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(sequences.take, [range(len(sequences))] * 4))
    shutil.rmtree(remote)
    assert np.array_equal(hub.open("c4").take(range(40)), wanted)
    assert not [path for path in folder.rglob("*") if "aside" in path.name]


@pytest.mark.slow
def test_remote_shards_that_are_damaged_or_missing(hub, remote):
    near, far = hub.corpus / "train" / "c4" / SHARD, remote / SHARD
    near.unlink()
    flip(far, -1)
    shards._mapped.cache_clear()
    sequences = hub.open("c4")
    assert f"{far}: the remote shard is of another build, or damaged" in refused(lambda: sequences.take([0]))
    assert not near.exists()
    far.unlink()
    assert f"{far}: the shard cannot be fetched" in refused(lambda: sequences.take([0]))
    hub.project = hub.project.with_(shards_remote="nowhere://x")
    text = refused(lambda: hub.open("c4").take([0]))
    assert "nowhere://x/tiny/pile/train/c4" in text and "cannot be fetched (Unsupported remote path" in text


@pytest.mark.parametrize(
    "address",
    ["foo://KEY:SECRET@bucket/x", "s3://KEY:SECRET@bucket/x", "foo://KEY:SEC%52ET@bucket/x?sig=SECRET"],
)
def test_no_secret_of_a_remote_is_told(hub, monkeypatch, address):
    """Neither by us nor by the store's library, whose error is not shown as the cause."""
    monkeypatch.setenv("CPT_REPRO_SHARDS_REMOTE", address)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    hub.build()
    (hub.corpus / "train" / "c4" / SHARD).unlink()
    shards._mapped.cache_clear()
    hub.project = hub.project.with_(shards_remote=address)
    with pytest.raises(UserError) as caught:
        hub.open("c4").take([0])
    told = "".join(traceback.format_exception(caught.value))
    assert "***@bucket/x" in told and "SECRET" not in told and "SEC%52ET" not in told
    with pytest.raises(UserError) as caught:
        shards.upload(hub.corpus, ["fingerprint.json"], address)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_shards_that_are_here_are_checked_though_others_are_elsewhere(hub, remote):
    path = hub.corpus / "train" / "c4" / "part.00001" / "shard.00000.mds"
    flip(path)
    assert f"{path}: the shard is altered" in refused(lambda: hub.open("c4"))
    hub.open("c4", check=False)  # another process checks
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: the shard is truncated" in refused(lambda: hub.open("c4", check=False))
