"""Files that are whole or absent, storage that refuses, locks that the kernel frees."""

import errno
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpt_repro import files
from cpt_repro.declarations.strict import read_yaml
from cpt_repro.errors import StorageError, UserError, briefly, redacted
from cpt_repro.files import file_digest, locked, read_json, whole_file, whole_folder, write_text, writing


@contextmanager
def at_most(size):
    """Files of this process may not grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_a_storage_refuses_is_told_once():
    """Also where the refusal is behind another error, or told by a library in Rust; other errors pass."""
    with pytest.raises(StorageError, match="there: no space is left"), writing(Path("there")):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("a writer failed") from None
    with pytest.raises(StorageError, match="no space is left"), writing():
        raise ValueError("I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match="elsewhere: permission is denied"), writing():
        raise PermissionError(errno.EACCES, "Permission denied", "elsewhere")
    with pytest.raises(FileNotFoundError), writing():
        Path("/nowhere/at/all").read_text()


def test_an_error_behind_a_lost_file_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(StorageError), whole_file(tmp_path / "file") as aside, at_most(3):
        aside.write_text("new and longer")
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "-Infinity",
        '{"a": [Infinity]}',
        "[" * 100_000,
        "9" * 5000,
        "\ufeff{}",
        '{"a": ["\\ud800"]}',
        "",
    ],
)
def test_json_that_bites(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match="bad.json"):
        read_json(path)


@pytest.fixture
def soon():
    """What would wait for ever fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def lies_at(path, kind):
    """Puts something that is no regular file of a bounded size at `path`."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind == "folder":
        path.mkdir()
    elif kind:
        path.symlink_to(kind)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("pipe", "it is no regular file"),
        ("/dev/zero", "it is no regular file"),
        ("folder", "Is a directory"),
        ("/proc/self/mem", "it cannot be read"),  # a regular file whose reading fails, as on a broken disk
        ("huge", "bytes that such a file may have"),
        (None, "the file does not exist"),
    ],
)
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, soon, kind, told):
    lies_at(tmp_path / "record", kind)
    # Weights, which are hashed, may have any size.
    for read in (read_json, read_yaml, *([] if kind in ("huge", None) else [file_digest])):
        with pytest.raises(UserError, match=told):
            read(tmp_path / "record")


def test_a_link_to_a_regular_file_is_read(tmp_path):
    write_text(tmp_path / "file", "{}")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link") == read_yaml(tmp_path / "link") == {}


# -- links that somebody planted


@pytest.fixture
def victim(tmp_path):
    """Somebody's file, which must stay as it is."""
    path = tmp_path / "victim" / "file"
    write_text(path, "precious")
    yield path
    assert contents(path.parent) == {"file": b"precious"}


@pytest.mark.parametrize("name", [".file.{pid}.aside.json", ".file.aside.json", ".file.json.aside"])
def test_a_link_at_a_foreseeable_name_is_not_followed(tmp_path, victim, name):
    link = tmp_path / name.format(pid=os.getpid())
    link.symlink_to(victim)
    write_text(tmp_path / "file.json", "new")
    assert (tmp_path / "file.json").read_text() == "new" and link.is_symlink()


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_link_at_every_name_is_not_followed(tmp_path, victim, monkeypatch, whole):
    """As many links as there are names: one of them is at the name taken."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / f".file.{'0' * 16}.aside").symlink_to(victim if whole is whole_file else victim.parent)
    with pytest.raises(FileExistsError), whole(tmp_path / "file"):
        pytest.fail("somebody else's link was taken")


def test_a_link_put_there_meanwhile_does_not_become_the_file(tmp_path, victim):
    with pytest.raises(StorageError, match="no plain file"), whole_file(tmp_path / "file") as aside:
        aside.unlink()
        aside.symlink_to(victim)
    assert not os.path.lexists(tmp_path / "file")


@pytest.mark.parametrize("kind", ["victim/new", "victim/file", "pipe", "folder"])
def test_a_lock_is_a_file_of_its_own(tmp_path, victim, soon, kind):
    lies_at(tmp_path / "lock", kind)
    with pytest.raises(StorageError, match="lock: no plain file stands there"), locked(tmp_path / "lock"):
        pytest.fail("it is held")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_rights_are_those_that_the_user_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "")
        with whole_folder(tmp_path / "folder"):
            pass
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    rights = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert rights == {"file": 0o666 & ~mask, "lock": 0o666 & ~mask, "folder": 0o777 & ~mask}


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path, whole):
    """Not what somebody else named so, and not what another writer of the same file still writes."""
    path, other = tmp_path / "[file]", tmp_path / ".[file].mine.aside"
    other.mkdir()
    if (child := os.fork()) == 0:
        with whole(path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    with whole(path) as first, whole(path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([other, first, second])
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


# -- secrets

REMOTE = "foo://KEYKEY:SEC%2FRET+1@bucket/x?sig=SIGN%3DED&se=2030"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"Unsupported remote path: {REMOTE}", "Unsupported remote path: foo://***@bucket/x?***"),
        ("s3://other:hidden@there/y: no", "s3://***@there/y: no"),
        ("s3://AB:with/slash@there/y", "s3://***@there/y"),
        ("https://there/y?Signature=hidden&x=1, retried", "https://there/y?*** retried"),
        ('the bucket "KEYKEY:SEC%2fRET+1@bucket" is none', 'the bucket "***@bucket" is none'),
        ("of SEC/RET+1, sec%2Fret%2B1", "of ***, ***"),
        ("GET /x?sig=SIGN=ED", "GET /x?sig=***"),
        ("s3://there/y@v1? no", "s3://***@v1?*** no"),
        ("git@host:x; a?b; file:///x; https://host:80/y", "git@host:x; a?b; file:///x; https://host:80/y"),
    ],
)
def test_secrets_of_addresses_are_hidden(monkeypatch, text, left):
    monkeypatch.setenv("CPT_REPRO_SHARDS_REMOTE", REMOTE)
    assert redacted(text) == redacted(left) == left
    assert str(UserError(text)) == left


def test_secrets_are_hidden_before_a_text_is_cut():
    assert briefly(ValueError("x" * 190 + " s3://KEYKEY:SECRET@bucket")) == "x" * 190 + " s3://***@"


def test_secrets_of_arguments_are_hidden(monkeypatch):
    monkeypatch.setattr("sys.argv", ["cpt-repro", "corpus", "pile", "--upload", "s3://K:hidden@bucket"])
    assert redacted("the bucket K:hidden@bucket") == "the bucket ***@bucket"


def test_an_error_is_one_line_that_moves_no_cursor():
    text = "a\x1b[2J\r\n\x9b31m\u202ez\u2028\udc80 ü"
    assert str(UserError(text)) == r"a\x1b[2J\r\n\x9b31m\u202ez\u2028\udc80 ü"
    assert str(UserError(str(UserError(text)))) == str(UserError(text))


# -- locks


def test_a_lock_is_waited_for_and_freed_by_death(tmp_path, wait_for):
    path, told = tmp_path / "file.lock", []
    child = os.fork()
    if child == 0:
        with locked(path):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    wait_for((tmp_path / "held").exists, "the lock")

    def busy():
        told.append("busy")
        os.kill(child, signal.SIGKILL)

    with locked(path, busy):
        assert told == ["busy"]
    os.waitpid(child, 0)
