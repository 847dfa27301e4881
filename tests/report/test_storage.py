"""A full or read-only disk and an interruption: what lies in `figures` stays whole, the next call goes on."""

import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest

from .test_shared_files import complete, cpt  # noqa: F401  fixtures

WRITTEN = {
    "draw third2026/figure_01": [f"third2026/figure_01.{suffix}" for suffix in ("png", "svg", "pdf", "json")],
    "draw third2026/table_01": [f"third2026/table_01.{suffix}" for suffix in ("csv", "md", "tex", "json")],
    "claims --write": ["claims.json", "claims.md", "values.csv"],
    "report": ["index.html", "index.json"],
}
commands = pytest.mark.parametrize("command", WRITTEN)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def aged(complete):  # noqa: F811
    """`aged(folder, command)`: a copy of all figures there, what the command writes being older."""

    def make(folder, command):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(complete / "figures", folder)
        for name in WRITTEN[command]:
            (folder / "pocket" / name).write_bytes(b"older")
        return contents(folder)

    return make


@contextmanager
def small_files():
    """No file may grow beyond some hundred bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(folder):
    with open(folder.parent / "filler", "wb", buffering=0) as stream:
        for size in (1 << 16, 1):
            try:
                while stream.write(bytes(size)) == size:
                    pass
            except OSError:
                pass


@contextmanager
def mounted(folder):
    """A file system of its own above `folder`; skips without the right to mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "cpt_repro", str(folder.parent)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder.parent)], check=True)


def read_only(folder):
    subprocess.run(["mount", "-o", "remount,ro", str(folder.parent)], check=True)


@commands
def test_no_room_for_a_file(cpt, complete, aged, tmp_path, command, faults):  # noqa: F811
    figures = tmp_path / "figures"
    before = aged(figures, command)
    with small_files():
        status, _, errors = cpt(complete, f"{command} --out {figures}")
    assert status == 2 and errors.count("\n") == 1 and f"{figures}/" in errors
    assert "the file would be larger than is allowed. Raise the limit" in errors
    assert contents(figures) == before
    assert cpt(complete, f"{command} --out {figures}")[0] == 0
    assert contents(figures) == contents(complete / "figures")
    faults("no room for a figure, table, ledger or page", 1, "named; with room again the same bytes")


@commands
@pytest.mark.parametrize(
    ("spoil", "told"), [(fill, "no space is left. Make room"), (read_only, "the file system is read-only.")]
)
def test_a_disk_that_takes_nothing(cpt, complete, aged, tmp_path, command, spoil, told, faults):  # noqa: F811
    figures = tmp_path / "disk" / "figures"
    figures.parent.mkdir()
    with mounted(figures):
        before = aged(figures, command)
        spoil(figures)
        status, _, errors = cpt(complete, f"{command} --out {figures}")
        assert status == 2 and errors.count("\n") == 1 and f"{figures}/" in errors and told in errors
        assert contents(figures) == before
    faults("a full or read-only disk under figures (tmpfs)", 1, "named; the files there stay whole")


@commands
def test_an_interruption_leaves_whole_files(cpt, complete, aged, tmp_path, command, monkeypatch, faults):  # noqa: F811
    """At each file that is to be written: those before it are new, it and those after it as before."""
    figures, new, flush = tmp_path / "figures", contents(complete / "figures"), os.fsync
    for number in range(len(WRITTEN[command])):
        old, written = aged(figures, command), []

        def interrupt(descriptor, written=written, number=number):
            flush(descriptor)
            written.append(descriptor)
            if len(written) > number:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            status, _, errors = cpt(complete, f"{command} --out {figures}")
        assert (status, errors) == (130, "cpt-repro: interrupted; run the same command again to go on.\n")
        left = contents(figures)
        assert {name for name in old if left[name] != old[name]} == {
            f"pocket/{name}" for name in WRITTEN[command][:number]
        }
        assert left.keys() == old.keys() and all(left[name] in (old[name], new[name]) for name in old)
    assert cpt(complete, f"{command} --out {figures}")[0] == 0 and contents(figures) == new
    faults("Ctrl-C at each file of draw, claims, report", number + 1, "whole files; the next call goes on")
