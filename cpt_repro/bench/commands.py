"""Seconds and memory of whole commands in fresh processes: starts, exhibits, a main job, a large study."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cpt_repro.bench.rows import in_turns, least_to_most, measured_here
from cpt_repro.declarations.runs import number
from cpt_repro.declarations.scale import Scale, load_scale
from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.processes import cores
from cpt_repro.project import Project
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Receipt, read_record
from cpt_repro.report.making import make_all
from cpt_repro.workflow.warm import WORKED, imports_of

#: Commands that are timed as far as their imports; the others ask, and are timed whole.
JOBS = ("corpus", "suites", "train", "measure", "evaluate", "draw", "claims", "report")
#: What a checkout needs for a job beside the installed package.
PARTS = ("Snakefile", "CITATION.cff", "configs", "data_manifests", "profiles")
#: Of the large study: the scale, and shares of replay; as many rates as runs are asked for.
SCALE, REPLAYED = "smoke", [round(0.01 * k, 2) for k in range(100)]
_MAKE_ALL = "import sys; from cpt_repro.bench.commands import make_here; make_here(*sys.argv[1:])"


class Spent(NamedTuple):
    """What a process took, its children included."""

    seconds: float
    cpu_seconds: float
    #: resident memory of the largest process at its most
    gib: float


def timed(command: list[str], folder: Path, **environment: str) -> Spent:
    """Runs a command, `environment` added to this process's; its failure is a `UserError`."""
    with tempfile.TemporaryFile() as told:
        began = time.perf_counter()
        with subprocess.Popen(  # noqa: S603  our own commands
            command, cwd=folder, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=told
        ) as process:
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            told.seek(0)
            words = told.read().decode(errors="replace").strip()[-300:]
            what = f"it ended with status {process.returncode}: {words}"
            raise UserError(what, where=" ".join(command), do="Run it by itself.")
    kibibyte = 1 if sys.platform == "darwin" else 1024  # in which memory is counted
    return Spent(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * kibibyte / 2**30)


def _row(
    benchmark: str, scale: str, rounds: int, measured: dict[str, list[Spent]], digits: dict[str, int], **about
) -> dict[str, Any]:
    """A row: `about`, the load, and of what `digits` names least, median and most (`<arm>_<what>`)."""
    row = measured_here(benchmark, scale, rounds) | about | {"load": os.getloadavg()[0]}
    return row | {
        f"{arm}_{what}": least_to_most([getattr(one, what) for one in of], places)
        for arm, of in measured.items()
        for what, places in digits.items()
    }


def bench_imports(root: Path, scale: str, rounds: int) -> dict[str, Any]:
    """A row: seconds of the start of each command, in a project.

    `pass` is an empty Python; `status` and `plan` are whole, the other commands what they import. Numbers are
    least, median and most over the rounds.
    """
    commands = {"pass": ["-c", "pass"]}
    commands |= {name: ["-m", "cpt_repro.cli", name, "--scale", scale] for name in ("status", "plan")}
    commands |= {name: ["-c", f"import {', '.join(imports_of(name))}"] for name in JOBS}
    arms = {name: partial(timed, [sys.executable, *command], root) for name, command in commands.items()}
    measured = in_turns(arms, rounds)
    seconds = {name: least_to_most([one.seconds for one in of], 3) for name, of in measured.items()}
    cpu = {name: [one.cpu_seconds for one in of] for name, of in measured.items()}
    median = {name: statistics.median(of) for name, of in cpu.items()}
    return measured_here("imports", scale, rounds) | {
        "seconds": seconds,
        "cpu_seconds": {name: least_to_most(of, 3) for name, of in cpu.items()},
        "ratio_to_pass": {name: round(of / median["pass"], 1) for name, of in median.items()},
        "load": os.getloadavg()[0],
    }


def make_here(scale: str, folder: str) -> None:
    """Makes all of a scale below `folder`: a process of its own, whose start counts."""
    from cpt_repro.workflow.jobs import Workflow

    work = Workflow(Project.at(), scale)
    list(make_all(work.catalogue, work.records, Path(folder)))


def bench_exhibits(
    catalogue: Catalogue, records: Records, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """A row: all exhibits, claims and report of a scale from its records, in fresh processes; and `verify`.

    `say` gets a table by exhibit, of one process that makes them one after the other. Raises `UserError`
    where something cannot be made, or where `verify` finds a difference.
    """
    root, scale = catalogue.plan.project.root, catalogue.plan.scale.name
    with tempfile.TemporaryDirectory() as folder:
        one_by_one = list(make_all(catalogue, records, Path(folder) / "each", processes=1))
        for made in one_by_one:
            if made.failed:
                raise UserError(str(made.failed), where=made.what, do="Draw it by itself.")
        spent = [(one.what, one.seconds, one.cpu_seconds) for one in one_by_one]
        spent.sort(key=lambda one: -one[2])
        say("| made | seconds | CPU seconds |")
        say("| --- | --- | --- |")
        for line in (*spent, ("all", sum(one[1] for one in spent), sum(one[2] for one in spent))):
            say("| {} | {:.2f} | {:.2f} |".format(*line))
        commands = {
            "exhibits": ["-c", _MAKE_ALL, scale, str(Path(folder) / "all")],
            "verify": ["-m", "cpt_repro.cli", "verify", "--scale", scale],
        }
        arms = {name: partial(timed, [sys.executable, *command], root) for name, command in commands.items()}
        measured = in_turns(arms, rounds)
    about = {"exhibits": len(catalogue.exhibits), "processes": cores()}
    row = _row("exhibits", scale, rounds, measured, {"seconds": 2, "cpu_seconds": 2}, **about)
    return row | {"each_cpu_seconds": {made.what: round(made.cpu_seconds, 3) for made in one_by_one}}


def busy() -> float:
    """Seconds that the processors worked since the start of the machine, for whomever (Linux; else 0).

    The warm process outlives the call that started it, so that its work is in no count of children.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _put_project(project: Project, folder: Path) -> None:
    """Copies what a checkout needs for a job, and no results, to `folder`."""
    for part in PARTS:
        copy = shutil.copytree if (project.root / part).is_dir() else shutil.copy
        copy(project.root / part, folder / part)


def _worked_for(folder: Path, scale: str, notes: Path, whole: float) -> dict[str, float]:
    """What a job's processors worked for, in seconds: by command, and what no command says of itself.

    Of training the receipts say how long the loop ran, and how long of it was validation: seconds of a clock,
    which are those of a processor where no more processes run than there are cores.
    """
    spent: Counter[str] = Counter()
    for line in notes.read_text(encoding="utf-8").splitlines():
        command, seconds = line.split()
        spent[command] += float(seconds)
    receipts = (folder / "results" / scale / "runs").glob("**/receipt.json")
    measured = [read_record(Receipt, path).measured for path in receipts]
    validation = sum(one.validation_seconds for one in measured)
    loop = sum(one.seconds for one in measured) - validation
    parts = {"steps of training": loop, "validation": validation}
    parts["starting and saving trainings"] = max(spent.pop("train", 0) - loop - validation, 0)
    parts |= spent
    return parts | {"starting and the workflow engine": max(whole - sum(parts.values()), 0)}


def bench_job(
    project: Project, scale: str, figure: str, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """A row: the main job of a scale from nothing, what a second call costs, and one `figure` drawn again.

    Least, median and most over the rounds; core-seconds are those of the whole machine, and `worked_for` says
    what for, the median of each part. A job that fails is a `UserError`.
    """
    spent: dict[str, list[Spent]] = {"whole": [], "again": [], "one_figure": []}
    worked: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "figures/", "--config", f"scale={scale}"]
    for turn in range(1, rounds + 1):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            _put_project(project, folder)
            before, notes = busy(), folder / "worked"
            spent["whole"].append(timed(command, folder, **{WORKED: str(notes)}))
            worked.append(busy() - before)
            for part, seconds in _worked_for(folder, scale, notes, worked[-1]).items():
                parts[part].append(seconds)
            spent["again"].append(timed(command, folder))
            (folder / "figures" / scale / f"{figure}.png").unlink()
            spent["one_figure"].append(timed(command, folder))
        say(f"[{turn}/{rounds}] {spent['whole'][-1].seconds:.0f} s, {worked[-1] / 60:.1f} core-minutes")
    row = _row("job", scale, rounds, spent, {"seconds": 1}, processes=cores())
    worked_for = {part: round(statistics.median(seconds), 1) for part, seconds in parts.items()}
    return row | {"whole_core_seconds": least_to_most(worked, 1), "worked_for": worked_for}


def _grid(scale: Scale, runs: int) -> dict[str, Any]:
    """Declarations by file of a study that goes on from one run in at least `runs` ways, all in one table."""
    model, (old, new, *_) = next(iter(scale.models)), scale.corpora
    rates = [1e-4 + 1e-6 * k for k in range(-(-runs // len(REPLAYED)))]
    trained = {"model": model, "iterations": 86000, "validate": [old, new]}
    base = trained | {"data": {old: 1}, "schedule": {"kind": "constant", "eta_const": 3e-4}}
    more = trained | {"data": {new: 1}, "init_from": {"run": "base"}, "replay_fraction": "{r}"}
    more |= {"schedule": {"kind": "constant", "eta_const": "{eta}"}, "each": {"r": REPLAYED, "eta": rates}}
    study = {"paper": "grid", "reference": "A made-up grid", "models": {model: model}}
    study |= {"batch": {"sequences": 1104, "sequence_length": 2048}}
    study |= {"unit": {"billions": 300, "name": "300B tokens"}}
    roles = {"old": old, "new": new}.items()
    study |= {"corpora": {name: {"role": role, "called": role, "stands_for": name} for role, name in roles}}
    study |= {"runs": {"base": base, "replay-{r}/eta-{eta}": more}}
    columns = [{"show": "name", "heading": "Run"}, {"show": "loss", "heading": "loss", "corpus": old}]
    rows = [f"replay-{number(r)}/eta-{number(eta)}" for r in REPLAYED for eta in rates]
    table = {"kind": "rows", "title": "Grid", "see": "Every run.", "columns": columns, "rows": rows}
    return {"runs": study, "exhibits": {"paper": "grid", "exhibits": {"table_01": table}}}


def bench_grid(project: Project, runs: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """A row: `plan` of a made-up study of at least `runs` runs, and the graph of all its jobs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _put_project(project, folder)
        study = folder / "configs" / "papers" / "grid"
        study.mkdir()
        files = _grid(load_scale(project, SCALE), runs)
        for name, content in files.items():
            (study / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        ask = {
            "plan": ["cpt_repro.cli", "plan", "--scale", SCALE, "--papers", "grid"],
            "graph": ["snakemake", "figures/", "--rulegraph", "--config", f"scale={SCALE}", "papers=grid"],
        }

        def arm(command: list[str]) -> Spent:
            spent = timed([sys.executable, "-m", *command], folder)
            say(f"{command[0]}: {spent.seconds:.1f} s, {spent.gib:.2f} GiB")
            return spent

        measured = in_turns({name: partial(arm, command) for name, command in ask.items()}, rounds)
    made = 1 + len(files["exhibits"]["exhibits"]["table_01"]["rows"])
    return _row("grid", SCALE, rounds, measured, {"seconds": 1, "gib": 2}, runs=made)
