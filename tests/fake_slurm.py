"""Stands for the commands of Slurm on a machine without it, and writes down what was asked of them.

`install(folder, faults)` makes the commands. A job runs at once on this machine; `faults` are what befalls
the runs to come, one after another: PREEMPTED (killed, and queued again under its number, as Slurm does),
TIMEOUT (told to end once a training state lies in the store, and failed), CANCELLED (failed without having
run).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

NAMES = ("sbatch", "srun", "scontrol", "sacct", "sshare", "sinfo", "scancel")


def install(folder: Path, faults: tuple[str, ...] = ()) -> dict[str, str]:
    """Makes the commands in `folder`/bin; the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    for name in NAMES:
        path = folder / "bin" / name
        path.write_text(f'#!/bin/bash\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        path.chmod(0o755)
    _put(folder / "faults.json", list(faults))
    return {"FAKE_SLURM": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "USER": "somebody"}


def jobs(folder: Path) -> list[dict]:
    """What was submitted: number, comment, the whole call, and the states it went through."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("job-*.json"))]


def _put(path: Path, value: dict) -> None:
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(value))
    aside.replace(path)


def sbatch(arguments: list[str], root: Path) -> None:
    """Starts the job in a session of its own and prints its number."""
    parser = argparse.ArgumentParser()
    for option in ("--job-name", "--output", "--comment", "--wrap", "-D"):
        parser.add_argument(option)
    known, _ = parser.parse_known_args(arguments)
    number = 1000 + len(list(root.glob("job-*.json")))
    path = root / f"job-{number}.json"
    _put(path, {"id": number, "comment": known.comment, "call": arguments, "states": ["PENDING"]})
    log = open(known.output.replace("%j", str(number)), "a")  # noqa: SIM115
    command = [sys.executable, __file__, "run", str(number), known.wrap]
    environment = {**os.environ, "SLURM_JOB_ID": str(number)}
    options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
    subprocess.Popen(command, cwd=known.D, env=environment, **options)
    print(number)


def run(arguments: list[str], root: Path) -> None:
    """Runs a job as often as it is queued again, and keeps its state."""
    number, script = arguments
    path = root / f"job-{number}.json"

    def state(name: str) -> None:
        job = json.loads(path.read_text())
        _put(path, job | {"states": [*job["states"], name]})

    while True:
        fault, *others = [*json.loads((root / "faults.json").read_text()), ""]
        _put(root / "faults.json", others[:-1])
        if fault == "CANCELLED":
            state(fault)
            return
        state("RUNNING")
        code = _run(script, fault)
        state(fault or ("FAILED" if code else "COMPLETED"))
        if fault != "PREEMPTED":
            return
        time.sleep(1)
        state("PENDING")


def _run(script: str, fault: str) -> int:
    """Exit status of a job's script, cut off as `fault` says."""
    process = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    if fault == "PREEMPTED":
        time.sleep(2)
        _end(process.pid, signal.SIGKILL)
    elif fault == "TIMEOUT":
        while process.poll() is None and not list(Path("store").rglob("resume.json")):
            time.sleep(0.1)
        _end(process.pid, signal.SIGTERM)
    return process.wait()


def _end(session: int, number: int) -> None:
    """Signals all processes of a session, as Slurm does with those of a job."""
    told = subprocess.run(["ps", "-o", "pid=", "--sid", str(session)], capture_output=True, text=True).stdout
    for pid in map(int, told.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def srun(arguments: list[str], root: Path) -> None:
    """Runs a command once for each task, at the same time; ends all when one fails."""
    parser = argparse.ArgumentParser()
    for option in ("--nodes", "--ntasks-per-node", "--cpus-per-task", "--cpu-bind", "--kill-on-bad-exit"):
        parser.add_argument(option)
    parser.add_argument("-n", "--ntasks", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    known = parser.parse_args(arguments)
    _put(root / "srun.json", arguments)
    tasks = [
        subprocess.Popen(
            known.command, env={**os.environ, "SLURM_NODEID": str(task), "SLURM_PROCID": str(task)}
        )
        for task in range(known.ntasks)
    ]
    while any(task.poll() is None for task in tasks):
        if any(task.poll() for task in tasks):
            for task in tasks:
                task.terminate()
        time.sleep(0.1)
    sys.exit(max(abs(task.wait()) for task in tasks))


def main() -> None:
    """One of the commands, by its name."""
    name, arguments, root = sys.argv[1], sys.argv[2:], Path(os.environ["FAKE_SLURM"])
    if name in ("sbatch", "srun", "run"):
        globals()[name](arguments, root)
    elif name == "sacct":
        for job in jobs(root):
            print(f"{job['id']}|{job['states'][-1]}")
    else:
        print({"sshare": "team", "sinfo": "PARTITION gpu*", "scontrol": "localhost", "scancel": ""}[name])


if __name__ == "__main__":
    main()
