"""The process that has everything imported: its jobs are like commands run by themselves."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from third_study import REPOSITORY

from cpt_repro.workflow import warm

#: Stands for the workflow engine: starts the process, says that it did, and lives until it is told to end.
ENGINE = """
import sys
from pathlib import Path
from cpt_repro.workflow import warm
warm.start(Path("socket"))
print("up", flush=True)
sys.stdin.read()
"""
#: Stands for the command line; what it does is its first argument.
COMMANDS = """
import os, subprocess, sys, time

def main():
    what = sys.argv[1]
    given = sys.stdin.read() if what == "reads" else ""
    print(what, os.getcwd(), os.environ.get("OF_CALLER"), given, flush=True)
    if what == "claims":
        print(os.environ["SET_BY_IMPORT"], os.environ["OF_BOTH"], os.environ["WARMED_UP"])
    if what == "fails":
        sys.exit(2)
    if what == "breaks":
        raise RuntimeError("out of memory")
    if what == "dies":
        os.abort()
    if what == "works":
        while time.process_time() < 0.3:
            pass
    if what == "mixes":
        for number in range(3):
            print("out", number)
            print("error", number, file=sys.stderr, flush=True)
    if what == "calls":
        print(subprocess.run(["sh", "-c", "exit 7"]).returncode)
    if what == "long":
        child = subprocess.Popen(["sleep", "600"])
        try:
            print(os.getpid(), child.pid, flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            child.kill()
            child.wait()
            sys.exit(130)
"""

#: Stands for what `claims` takes long to import, and is imported by the process alone.
IMPORTED = """
import os
os.environ.setdefault("SET_BY_IMPORT", "yes")
os.environ.setdefault("OF_BOTH", "no")

def warm_up(folder):
    os.environ["WARMED_UP"] = str(folder)
    (folder / "imported").touch()
"""

#: Stands for what the report takes long to import.
BROKEN = """
import pathlib
pathlib.Path("broken").touch()
raise RuntimeError("a library of another version")
"""


@pytest.fixture
def engine(tmp_path):
    """(the engine's process, the folder); its `cpt_repro.cli` is the stand-in above."""
    package = tmp_path / "code" / "cpt_repro"
    package.mkdir(parents=True)
    for path in (REPOSITORY / "cpt_repro").iterdir():
        (package / path.name).symlink_to(path)
    (package / "cli.py").unlink()
    (package / "cli.py").write_text(COMMANDS)
    (package / "claims").unlink()
    (package / "claims").mkdir()
    (package / "claims" / "ledger.py").write_text(IMPORTED)
    (package / "report").unlink()
    (package / "report").mkdir()
    (package / "report" / "page.py").write_text(BROKEN)
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    yield process, tmp_path
    process.kill()
    process.communicate()


def client(folder, *arguments, socket="socket", **more):
    environment = os.environ | {"PYTHONPATH": str(folder / "code"), warm.SOCKET: socket}
    command = [sys.executable, "-m", "cpt_repro.workflow.warm", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment | more, **streams)


def ended(folder, *arguments, text=None, **more):
    process = client(folder, *arguments, **more)
    out, errors = process.communicate(text, timeout=120)
    return process.returncode, out, errors


@pytest.mark.parametrize("socket", ["socket", "nowhere"], ids=["by the process", "by itself"])
@pytest.mark.parametrize(
    ("command", "status", "out", "errors"),
    [
        ("succeeds", 0, "", ""),
        ("fails", 2, "", ""),
        ("breaks", 1, "", "RuntimeError: out of memory\n"),
        ("calls", 0, "7\n", ""),
    ],
)
def test_a_command_is_as_if_run_by_itself(engine, command, status, out, errors, socket):
    code, said, faults = ended(engine[1], command, socket=socket, OF_CALLER="here")
    assert (code, said) == (status, f"{command} {engine[1]} here \n{out}")
    assert faults.endswith(errors) and bool(faults) == bool(errors)


def test_what_jobs_cost_is_noted_where_it_is_asked_for(engine):
    notes = engine[1] / "worked"
    for command in ("works", "fails", "works"):
        ended(engine[1], command, **{warm.WORKED: str(notes)})
    ended(engine[1], "works")  # asks for nothing
    told = [line.split() for line in notes.read_text().splitlines()]
    assert [command for command, _ in told] == ["works", "fails", "works"]
    assert all(float(seconds) >= (0.3 if command == "works" else 0) for command, seconds in told)


def test_variables_that_imports_set_hold_for_jobs(engine):
    """Modules are there already when a job begins, warmed up in its folder, and do not set them again."""
    for _ in range(2):
        out = ended(engine[1], "claims", OF_BOTH="of the caller")[1]
        assert out.splitlines()[1] == f"yes of the caller {engine[1]}"


def test_what_follows_is_imported_while_there_is_nothing_to_do(engine, wait_for):
    """After exhibits come claims, then the report; what of it cannot be imported does no harm."""
    assert warm.imports_of("claims")[-2:] == ("cpt_repro.claims.ledger", "scipy.stats")
    assert warm._after("works") == [] == warm._after("report")
    assert warm._after("claims") == list(warm.imports_of("report"))[-1:]
    assert ended(engine[1], "succeeds")[0] == 0
    assert ended(engine[1], "draw")[0] == 0
    wait_for((engine[1] / "broken").exists, "what claims need, then the report", 120)
    assert (engine[1] / "imported").exists()
    notes = engine[1] / "worked"
    assert ended(engine[1], "works", **{warm.WORKED: str(notes)})[0] == 0
    assert notes.exists()  # by the process, which is still there


@pytest.mark.slow
@pytest.mark.parametrize("command", warm._MODULES)
def test_what_a_command_needs_can_be_imported_first(command):
    """In a fresh process, and warmed up: what goes wrong there is kept quiet for the sake of other jobs."""
    program = """
import importlib, sys
from pathlib import Path
from cpt_repro.workflow import warm
for module in warm.imports_of(sys.argv[1]):
    getattr(importlib.import_module(module), "warm_up", print)(Path())
"""
    subprocess.run([sys.executable, "-c", program, command], cwd=REPOSITORY, check=True, timeout=600)


def test_output_keeps_its_order_and_input_arrives(engine):
    """Both streams into one file, as by itself; and text from a pipe."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "shell": True}
    environment = os.environ | {"PYTHONPATH": str(engine[1] / "code")}

    def told(command, socket):
        return subprocess.run(
            command, cwd=engine[1], env=environment | {warm.SOCKET: socket}, **streams
        ).stdout

    run = f"{sys.executable} -m cpt_repro.workflow.warm"
    for command in (f"{run} mixes", f"echo hello | {run} reads"):
        assert told(command, "socket") == told(command, "nowhere")
    assert "hello" in told(command, "socket")


def test_jobs_run_at_once_and_are_forgotten(engine):
    many = [client(engine[1], "succeeds") for _ in range(8)]
    assert [process.communicate(timeout=120)[1] for process in many] == [""] * 8
    assert {process.returncode for process in many} == {0}
    assert ended(engine[1], "succeeds")[0] == 0


def test_a_job_that_dies_is_told(engine):
    code, _, errors = ended(engine[1], "dies")
    assert code == 128 + signal.SIGKILL
    assert errors.endswith("cpt-repro: the process of this job was killed.\n")


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def long_job(engine):
    """(engine, caller, numbers of the job's process and of what it started)."""
    caller = client(engine[1], "long")
    caller.stdout.readline()
    return engine[0], caller, [int(pid) for pid in caller.stdout.readline().split()]


def test_a_caller_that_is_killed_takes_its_job_along(long_job, wait_for):
    _, caller, job = long_job
    caller.kill()
    caller.communicate()
    wait_for(lambda: not any(map(_alive, job)), "the end of the job", 60)


def test_a_signal_is_passed_on(long_job):
    """As Ctrl-C is, which the terminal sends to the caller alone."""
    _, caller, job = long_job
    caller.send_signal(signal.SIGINT)
    assert caller.communicate(timeout=60)[0] == "interrupted\n" and caller.returncode == 130
    assert not _alive(job[1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_ends_with_the_engine(long_job, wait_for, number):
    engine, caller, job = long_job
    engine.send_signal(number)
    engine.wait()
    assert caller.wait(timeout=60) == 128 + signal.SIGKILL
    wait_for(lambda: not _alive(job[0]), "the end of the job", 60)


def test_the_socket_is_the_users_and_gone_at_the_end(engine, monkeypatch):
    path = engine[1] / "socket"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv(warm.SOCKET, str(path))
    monkeypatch.setattr(warm.os, "getuid", lambda: 12345)
    assert warm._connected() is None  # what another user listens at is told nothing
    engine[0].communicate("", timeout=60)
    assert not path.exists()
