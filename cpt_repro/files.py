"""Files that are either whole or absent, canonical JSON, and hashes."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from cpt_repro.errors import StorageError, UserError

#: What a storage refuses -> (what is wrong, what to do).
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ("no space is left", "Make room")),
    errno.EFBIG: ("the file would be larger than is allowed", "Raise the limit (`ulimit -f`)"),
    errno.EROFS: ("the file system is read-only", "Make it writable"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
    errno.ENOTDIR: ("a file stands where a folder is to be", "Move it away"),
    **dict.fromkeys((errno.ELOOP, errno.ENXIO, errno.EISDIR), ("no plain file stands there", "Move it away")),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("permission is denied", "Give yourself the right")),
}

#: Bytes that a file may have at most that a program wrote, and one that people write.
RECORD_BYTES, DECLARATION_BYTES = 64 << 20, 1 << 20


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, shortest floats. NaN is refused, which a hash hides."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, to be read; a pipe, a device, a folder and a disk that fails are a `UserError`.

    A missing file is not.
    """
    try:
        # A pipe would be waited for.
        at_once = lambda name, flags: os.open(name, flags | os.O_NONBLOCK)  # noqa: E731
        with open(path, "rb", opener=at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UserError("it is no regular file.", where=str(path), do="Look at the file.")
            yield stream
    except FileNotFoundError:
        raise
    except OSError as error:
        what = f"it cannot be read ({error.strerror})."
        raise UserError(what, where=str(path), do="Look at the file.") from None


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of up to `most` bytes; a larger or missing one is a `UserError`."""
    try:
        with opened(path) as stream:
            content = stream.read(most + 1)
    except FileNotFoundError:
        do = "Run the rule that makes it first."
        raise UserError("the file does not exist.", where=str(path), do=do) from None
    if len(content) > most:
        what = f"it has more than the {most:,} bytes that such a file may have."
        raise UserError(what, where=str(path), do="Look at the file.")
    return content


def file_digest(path: Path, kind: str = "sha256") -> str:
    """Hash (hex) of a file's bytes."""
    with opened(path) as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


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
    """A full, read-only or forbidden storage becomes a `StorageError` with `path`, else the file refused."""
    try:
        yield
    except Exception as error:
        refused = _refusal(error)
        if isinstance(error, UserError) or refused is None:
            raise
        what, do = REFUSALS[refused.errno]
        where = str(path or refused.filename or "a temporary file")
        raise StorageError(f"{what}.", where=where, do=f"{do}, and run the same command again.") from error


def _own(path: str, flags: int) -> int:
    """Opens what stands at `path` itself: no link is followed, no pipe waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


@contextmanager
def _held(aside: Path, how: int = 0) -> Iterator[None]:
    """Locks a file or folder, as long as this process lives."""
    number = _own(str(aside), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(number)


def _aside(path: Path, stem: str, suffix: str = "") -> Path:
    """A name beside `path` that nobody foresees, so that nobody's link stands there; what killed writers of
    `path` left at such names is removed."""
    for left in path.parent.glob(f".{glob.escape(stem)}.{'[0-9a-f]' * 16}.aside{glob.escape(suffix)}"):
        with suppress(OSError), _held(left, fcntl.LOCK_NB):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
    return path.with_name(f".{stem}.{secrets.token_hex(8)}.aside{suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renamed onto `path` on success, removed on failure.

    The rename is atomic on POSIX, so a reader, or a later run after a kill, sees the old file or the new one.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last because writers such as matplotlib choose the format by it.
        aside = _aside(path, path.stem, path.suffix)
        try:
            open(aside, "x", opener=_own).close()
            with _held(aside):
                yield aside
                with open(aside, "rb", opener=_own) as stream:
                    os.fsync(stream.fileno())
                os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path` to fill; renamed onto `path` on success, removed on failure."""
    with writing(path):
        aside = _aside(path, path.name)
        try:
            aside.mkdir(parents=True)
            with _held(aside):
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
        stream = open(path, "a", opener=_own)  # noqa: SIM115
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
    """Reads JSON; a missing, broken or huge file, or one with NaN, infinity or half of a surrogate pair, is a
    `UserError` that names it."""
    try:
        text = read_bytes(path, RECORD_BYTES).decode("utf-8")
        value = json.loads(text, parse_constant=_no_number)
        if "\\u" in text:
            canonical_json(value).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"not valid JSON ({error}).", where=str(path), do="Remove it and run again; it will be made anew."
        ) from None


def code_commit(root: Path) -> str | None:
    """Commit of the checkout at `root`, "+changes" if code or declarations differ; None outside git."""

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


def between(text: str, parts: Mapping[str, str], where: str) -> str:
    """`text` with each part between its marks, <!-- name --> and <!-- end of name -->.

    Parts without marks are left out; a text with no marks of any of them is a `UserError`.
    """
    found = False
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if opened and closed:
            text, found = before + begin + part + end + after, True
    if not found:
        do = " Or: ".join(f"Put in <!-- {name} --> and <!-- end of {name} -->." for name in parts)
        raise UserError("marks for what is to be renewed are missing.", where=where, do=do)
    return text
