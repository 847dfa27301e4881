"""Checkpoints by identity: what is there, states against interruption, room on the disk."""

import os
import shutil
from types import SimpleNamespace

import pytest

from cpt_repro.errors import StorageError, UserError
from cpt_repro.files import read_json, write_json
from cpt_repro.models.architecture import GB
from cpt_repro.training.store import SavedStates, check_room, kept_bytes, state_bytes

RUN = "sp-3x100/infinite-cosine/split-1"


@pytest.mark.slow
def test_finished_is_what_has_its_receipt_and_every_checkpoint(world, trained, tmp_path):
    own = world()
    run, other = own.run("pile"), own.run("sp").identity
    shutil.copytree(trained.folder("pile"), own.folder("pile"))
    kept = own.plan.kept(run.identity)
    receipt = own.store.finished(run.identity, kept)
    assert receipt == trained.records.receipt(run) and set(receipt.checkpoints) == set(kept)
    assert (
        own.store.recorded_hash(run.identity, run.training.iterations)
        == receipt.checkpoints[run.training.iterations]
    )
    assert own.store.iterations(run.identity) == sorted(kept)
    assert own.store.finished(run.identity, kept | {7: False}) is None
    # A child that keeps the optimizer's state needs it.
    assert (own.model("pile") / "optimizer.pt").unlink() is None
    assert own.store.finished(run.identity, kept) is None
    # A folder of another identity, whatever it is called, is not it.
    shutil.copytree(trained.folder("pile"), own.store.folder(other))
    assert own.store.receipt(other) is None and own.store.finished(other, {}) is None


# -- states against interruption


def add(saved, *iterations, sharded=False, **more):
    for iteration in iterations:
        with saved.adding(iteration, sharded, **more) as aside:
            if sharded:
                (aside / "ep0").mkdir(parents=True)
                for rank in range(2):
                    (aside / "ep0" / f"{rank}.distcp").write_bytes(bytes([iteration, rank]) * 1000)
            else:
                aside.write_bytes(bytes([iteration]) * 1000)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "unnamed"])
def test_only_a_whole_saved_state_is_gone_on_from(tmp_path, damage):
    saved, newest = SavedStates(tmp_path, {"pile": "a"}), tmp_path / "resume-120.pt"
    add(saved, 40, 80, 120)
    assert saved.newest().file == newest.name and not (tmp_path / "resume-40.pt").exists()
    if damage == "flip":
        newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    elif damage == "truncate":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif damage == "remove":
        newest.unlink()
    else:  # killed between the state and its name
        (tmp_path / "resume-160.pt").write_bytes(b"whole, and not vouched for")
        assert saved.newest().iteration == 120
        newest.unlink()
    assert saved.newest().iteration == 80
    saved.clear()
    assert not list(tmp_path.iterdir())


def test_a_sharded_state_counts_file_by_file(tmp_path):
    saved, left = SavedStates(tmp_path, {}), tmp_path / f".resume-80.{'b' * 16}.aside"
    left.mkdir()
    (left / "of-a-killed-writer").write_bytes(b"old")
    add(saved, 40, 80, 120, sharded=True, execution={"ranks": 2})
    assert saved.newest(sharded=True).file == "resume-120" and saved.newest(sharded=True).execution == {
        "ranks": 2
    }
    assert not (tmp_path / "resume-40").exists() and not list(tmp_path.rglob("of-a-killed-writer"))
    (tmp_path / "resume-120" / "ep0" / "1.distcp").write_bytes(b"flipped")
    assert saved.newest(sharded=True).iteration == 80
    (tmp_path / "resume-80" / "ep0" / "1.distcp").unlink()
    assert saved.newest(sharded=True) is None
    saved.clear()
    assert not list(tmp_path.iterdir())


def test_a_state_that_could_not_be_written_leaves_the_ones_before(tmp_path):
    saved = SavedStates(tmp_path, {})
    add(saved, 40)
    with pytest.raises(OSError, match="full"), saved.adding(80) as aside:
        aside.write_bytes(b"half")
        raise OSError("disk full")
    assert saved.newest().iteration == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resume-40.pt", "resume.json"]


@pytest.mark.parametrize("sharded", [True, False])
def test_a_state_of_other_data_or_saved_otherwise_is_refused(tmp_path, sharded):
    add(SavedStates(tmp_path, {"pile": "a" * 64}), 8, sharded=sharded)
    with pytest.raises(UserError, match="sharded, and this run is.*'fsdp'"):
        SavedStates(tmp_path, {"pile": "a" * 64}).newest(not sharded)
    with pytest.raises(UserError, match=f"'pile'.*{'a' * 64}.*{'b' * 64}"):
        SavedStates(tmp_path, {"pile": "b" * 64}).newest(sharded)


@pytest.mark.parametrize(
    "file", ["../resume-8.pt", "/tmp/resume-8.pt", "evil.pt", "resume-8.pt/x", "resume-8.pt\n", ""]
)
def test_a_record_that_leads_to_another_file_is_refused(tmp_path, file):
    saved = SavedStates(tmp_path / "run", {})
    add(saved, 8)
    shutil.copy(tmp_path / "run" / "resume-8.pt", tmp_path / "resume-8.pt")
    shutil.copy(tmp_path / "run" / "resume-8.pt", tmp_path / "run" / "evil.pt")
    write_json(saved.record, [read_json(saved.record)[0] | {"file": file}])
    with pytest.raises(UserError, match=r"resume\.json: the key '0\.file' is wrong"):
        saved.newest()


def linked(path):
    shutil.move(path, path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("which", ["folder", "record", "state", "part"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (linked, "it is a link"),
        (lambda path: os.chown(path, os.geteuid() + 1, -1), f"belongs to another user .{os.geteuid() + 1}."),
        (lambda path: path.chmod(path.stat().st_mode | 0o020), "others may write to it.*chmod -R go-w"),
        (lambda path: path.chmod(path.stat().st_mode | 0o002), "others may write to it.*chmod -R go-w"),
    ],
    ids=["linked", "foreign", "of the group", "of all"],
)
def test_only_what_this_user_alone_wrote_is_gone_on_from(tmp_path, change, told, which, sharded):
    folder = tmp_path / "run"
    saved = SavedStates(folder, {})
    add(saved, 8, sharded=sharded)
    state = folder / saved.newest(sharded).file
    part = state / "ep0" / "1.distcp" if sharded else state
    path = {"folder": folder, "record": saved.record, "state": state, "part": part}[which]
    try:
        change(path)
    except PermissionError:
        pytest.skip("only root gives files away")
    with pytest.raises(UserError, match=f"^{path}: .*{told}"):
        saved.newest(sharded)


@pytest.mark.parametrize("sharded", [True, False])
def test_what_is_saved_is_closed_to_others_whatever_the_umask(tmp_path, sharded):
    folder, before = tmp_path / "run", os.umask(0)
    try:
        folder.mkdir()
        saved = SavedStates(folder, {})
        add(saved, 8, sharded=sharded)
    finally:
        os.umask(before)
    assert saved.newest(sharded).iteration == 8  # which refuses what others may write to
    assert not any(path.lstat().st_mode & 0o022 for path in (folder, *folder.rglob("*")))


@pytest.mark.parametrize("sharded", [True, False])
def test_a_planted_link_is_not_followed(tmp_path, sharded):
    """Beside the state and where it is to stand: what it leads to stays as it was."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (elsewhere / "mine").write_text("mine")
    suffix = "" if sharded else ".pt"
    planted = [folder / f".resume-8.{token}aside{suffix}" for token in ("", f"{'a' * 16}.")]
    for path in (*planted, folder / f"resume-8{suffix}"):
        path.symlink_to(elsewhere if sharded else elsewhere / "mine")
    saved = SavedStates(folder, {})
    add(saved, 8, sharded=sharded)
    assert saved.newest(sharded).iteration == 8 and not any(path.is_symlink() for path in folder.iterdir())
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]
    assert (elsewhere / "mine").read_text() == "mine"


@pytest.mark.parametrize("content", ["[", "{}", "3", '[{"iteration": -1}]', "[[]]"])
def test_a_record_that_is_none_is_one_sentence(tmp_path, content):
    saved = SavedStates(tmp_path, {})
    saved.record.write_text(content)
    with pytest.raises(UserError, match=r"resume\.json"):
        saved.newest()


# -- room


@pytest.mark.slow
def test_room_is_looked_for_before_anything_is_trained(world, trained, monkeypatch):
    own = world()
    run = own.run("pile")
    whole = kept_bytes(run.training, own.plan.kept(run.identity)) + state_bytes(run.training)
    there = sum(path.stat().st_size for path in trained.folder("pile").rglob("*") if path.is_file())
    for free, needed in ((whole, whole), (whole - there, whole - there)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        check_room(own.plan, [run, run], own.store)  # equal trainings need their room once
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free - 1))
        with pytest.raises(StorageError, match=f"{needed / GB:.3g} GB are needed"):
            check_room(own.plan, [run], own.store)
        if not own.folder("pile").exists():
            own.borrow(trained, "pile")  # what lies there already needs none
