"""A process that has everything imported and forks a child for each job, so that no job pays for imports.

`start` begins it beside the workflow engine, with which it ends. `python -m cpt_repro.workflow.warm
ARGUMENTS` is `cpt-repro ARGUMENTS`, run by such a child where $CPT_REPRO_WARM names the socket, and else by
itself. The child has the caller's folder, environment and open files. It gets the signals that end the
caller, and where that is killed outright it is killed too, with all that it started.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cpt_repro.processes import end_with

SOCKET = "CPT_REPRO_WARM"
#: Names a file to which each job adds a line: its command, and for how many seconds processors worked on it.
WORKED = "CPT_REPRO_WARM_WORKED"
#: What every command needs, and command -> what else takes long to import, in the order in which commands
#: of a replication follow each other; imported when the first job of a kind comes, or before it while
#: there is nothing else to do, also where a command imports it late. What `warm_up` finds out is kept too.
_ALL = ("cpt_repro.cli", "cpt_repro.declarations.strict", "cpt_repro.workflow.jobs")
_MODULES = {
    "corpus": "cpt_repro.data.build",
    "suites": "cpt_repro.evaluation.suites",
    "train": "cpt_repro.training.train cpt_repro.training.composer cpt_repro.models.architecture",
    "measure": "cpt_repro.training.train cpt_repro.models.architecture",
    "evaluate": "cpt_repro.evaluation.evaluate cpt_repro.evaluation.generate cpt_repro.evaluation.harness "
    "cpt_repro.models.architecture",
    "draw": "cpt_repro.exhibits.draw cpt_repro.exhibits.style seaborn matplotlib.figure "
    "matplotlib.backends.backend_agg matplotlib.backends.backend_svg matplotlib.backends.backend_pdf",
    "claims": "cpt_repro.claims.ledger scipy.stats",
    "report": "cpt_repro.report.page",
}
_LENGTH = struct.Struct("!I")


def imports_of(command: str) -> tuple[str, ...]:
    """What a command needs that takes long to import."""
    return (*_ALL, *_MODULES.get(command, "").split())


def _after(command: str) -> list[str]:
    """What the commands that follow this one need."""
    commands = list(_MODULES)
    following = commands[commands.index(command) + 1 :] if command in _MODULES else []
    return [module for one in following for module in _MODULES[one].split()]


def _import(modules: Iterable[str], folder: str) -> None:
    for module in modules:
        with suppress(Exception):  # the child that needs it will say it
            if warm_up := getattr(importlib.import_module(module), "warm_up", None):
                warm_up(Path(folder))


def start(path: Path) -> None:
    """Begins the process, and names its socket `path` to all that this one will run."""
    path.unlink(missing_ok=True)
    listener, mask = socket.socket(socket.AF_UNIX), os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(64)
    handed = listener.fileno()
    command = [sys.executable, "-m", "cpt_repro.workflow.warm", "--serve", str(os.getpid()), str(handed)]
    files = {"stdin": subprocess.DEVNULL, "pass_fds": [handed]}
    subprocess.Popen(command, **files, start_new_session=True)  # noqa: S603  this program, no shell
    listener.close()
    os.environ[SOCKET] = str(path)
    atexit.register(path.unlink, missing_ok=True)


def _serve(listener: socket.socket, parent: int) -> int:
    """Takes jobs until the parent ends; returns in the child of a job, with its exit status."""
    end_with(parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    last: list[tuple[socket.socket, int]] = []  # of a child: whom to tell its status
    atexit.register(lambda: [_tell(*end) for end in last])  # before anything is imported, so it comes last
    server, own, later = os.getpid(), set(os.environ), []
    gc.disable()  # what is imported stays: to look for garbage in it takes a quarter of the time
    while True:
        caller = listener.accept()[0]
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        files: list[int] = []
        try:
            header, files, _, _ = socket.recv_fds(caller, _LENGTH.size, 3)
            content = caller.recv(_LENGTH.unpack(header)[0], socket.MSG_WAITALL)
            arguments, folder, environment = json.loads(content)
        except (OSError, ValueError, struct.error):  # the caller has gone
            arguments = None
        if arguments:
            _import(imports_of(arguments[0]), folder)
        gc.freeze()
        if arguments is not None and os.fork() == 0:
            end_with(server)
            gc.enable()
            os.setsid()
            listener.close()
            for standard, file in enumerate(files):
                os.dup2(file, standard)
            os.chdir(folder)
            imports = {name: value for name, value in os.environ.items() if name not in own}
            os.environ.clear()
            os.environ.update(imports | environment)
            threading.Thread(target=_obey, args=[caller], daemon=True).start()
            last.append((caller, status := _run(arguments)))
            _note_work(arguments[0])
            return status
        for file in files:
            os.close(file)
        caller.close()
        if arguments:
            later = _after(arguments[0])
        while later and not select.select([listener], [], [], 0)[0]:
            _import([later.pop(0)], folder)


def _obey(caller: socket.socket) -> None:
    """In a child: gets the caller's signals, and when the caller has gone kills all of the job."""
    with suppress(OSError):
        while number := caller.recv(1):
            os.kill(os.getpid(), number[0])
    os.killpg(0, signal.SIGKILL)


def _run(arguments: list[str]) -> int:
    """The exit status of `cpt-repro ARGUMENTS`."""
    from cpt_repro.cli import main

    sys.argv = ["cpt-repro", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _note_work(command: str) -> None:
    """In a child: adds what the job and its own children cost to the file of `WORKED`, if one is named."""
    if path := os.environ.get(WORKED):
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{command} {sum(one.ru_utime + one.ru_stime for one in spent):.3f}\n")


def _tell(caller: socket.socket, status: int) -> None:
    """The end of a child: tearing down all that it did not import itself would take half a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):
        caller.sendall(bytes([status & 0xFF]))
    os._exit(status & 0xFF)


def _connected() -> socket.socket | None:
    """To the process that $CPT_REPRO_WARM names, if it is there and this user's."""
    if not (path := os.environ.pop(SOCKET, None)):
        return None
    server = socket.socket(socket.AF_UNIX)
    with suppress(OSError):
        server.connect(path)
        _, user, _ = struct.unpack("3i", server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user == os.getuid():
            return server
    return None


def main(arguments: list[str]) -> int:
    """Runs one command of `cpt-repro` by the process, or here; its exit status."""
    server = _connected()
    if server is None:
        return _run(arguments)
    content = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # until the job is there, which is told of them
    socket.send_fds(server, [_LENGTH.pack(len(content))], [0, 1, 2])
    server.sendall(content)
    for number in ending:
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
    status = server.recv(1)
    if not status:
        print("cpt-repro: the process of this job was killed.", file=sys.stderr)
    return status[0] if status else 128 + signal.SIGKILL


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        sys.exit(_serve(socket.socket(fileno=int(sys.argv[3])), int(sys.argv[2])))
    sys.exit(main(sys.argv[1:]))
