"""Files that are either whole or absent, canonical JSON, and hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpt_repro.errors import StorageError, UserError

#: What a storage refuses -> (what is wrong, what to do).
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ("no space is left", "Make room")),
    errno.EFBIG: ("the file would be larger than is allowed", "Raise the limit (`ulimit -f`)"),
    errno.EROFS: ("the file system is read-only", "Make it writable"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("permission is denied", "Give yourself the right")),
}


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, shortest floats. NaN is refused, so that no hash hides
    one."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refusal(error: BaseException | None) -> OSError | None:
    """The refusal of a storage behind `error`, if there is one."""
    while error is not None:
        # Libraries in Rust tell the number in words.
        told = re.search(r"os error (\d+)", str(error))
        refused = error if isinstance(error, OSError) else OSError(int(told[1]), "") if told else None
        if refused is not None and refused.errno in REFUSALS:
            return refused
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def writing(path: Path | None = None) -> Iterator[None]:
    """A full, read-only or forbidden storage becomes one `StorageError` that names `path`, else the file
    refused."""
    try:
        yield
    except Exception as error:
        refused = _refusal(error)
        if isinstance(error, UserError) or refused is None:
            raise
        what, do = REFUSALS[refused.errno]
        where = str(path or refused.filename or "a temporary file")
        raise StorageError(f"{what}.", where=where, do=f"{do}, and run the same command again.") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renamed onto `path` on success, removed on failure.

    The rename is atomic on POSIX, so a reader, or a later run after a kill, sees the old file or the new one.
    """
    path = Path(path)
    # The suffix stays last because writers such as matplotlib choose the format by it.
    aside = path.with_name(f".{path.stem}.{os.getpid()}.aside{path.suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            with open(aside, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path` to fill; renamed onto `path` on success, removed on failure."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.aside")
    with writing(path):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            yield aside
            shutil.rmtree(path, ignore_errors=True)
            os.replace(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def locked(path: Path, busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock file `path`; where another process does, calls `busy`, then waits.

    The kernel frees it when the holder dies, however it dies; the file stays.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a")  # noqa: SIM115
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text with Unix line ends, whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def read_json(path: Path) -> Any:
    """Reads JSON; a missing or broken file, or one with NaN or infinity, is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise UserError(
            "the file does not exist.", where=str(path), do="Run the rule that makes it first."
        ) from None
    except OSError as error:
        raise UserError(
            f"it cannot be read ({error.strerror}).", where=str(path), do="Look at the file."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"not valid JSON ({error}).", where=str(path), do="Remove it and run again; it will be made anew."
        ) from None


def code_commit(root: Path) -> str | None:
    """Commit of the checkout at `root`, with "+changes" where code or declarations differ from it; None
    outside git."""

    def git(*command: str) -> str:
        told = ["git", "-C", str(root), *command]
        result = subprocess.run(told, capture_output=True, text=True, check=True)  # noqa: S603  no shell
        return result.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", "cpt_repro", "configs", "data_manifests")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")
