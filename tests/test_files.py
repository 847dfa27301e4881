"""Files that are whole or absent, storage that refuses, locks that the kernel frees."""

import errno
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpt_repro.errors import StorageError, UserError
from cpt_repro.files import locked, read_json, whole_file, write_text, writing


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
    "text", ["NaN", "-Infinity", '{"a": [Infinity]}', "[" * 100_000, "9" * 5000, "\ufeff{}", None, ""]
)
def test_json_that_bites(tmp_path, text):
    path = tmp_path / "bad.json"
    path.mkdir() if text is None else path.write_text(text)
    with pytest.raises(UserError, match="bad.json"):
        read_json(path)


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
