"""A throw-away project with one small study that is nothing but declarations, to be run by `snakemake`."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from third_study import REPOSITORY

from cpt_repro.declarations.scale import load_scale
from cpt_repro.planning.plan import Plan
from cpt_repro.project import Project

PAPER = "tiny2026"
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--cores", "2")
RUNS = f"""
paper: {PAPER}
reference: "A made-up paper"
batch: {{sequences: 1104, sequence_length: 2048}}
unit: {{billions: 300, name: 300B tokens}}
corpora:
  pile: {{role: old, called: upstream, stands_for: the Pile}}
  german: {{role: new, called: downstream, stands_for: German CC}}
models: {{405m: 405M}}
schedules:
  cosine: &cosine {{kind: cosine, eta_max: 3.0e-4, eta_min: 3.0e-5, warmup_frac: 0.01}}
runs:
  pile: {{model: 405m, data: {{pile: 1}}, iterations: 132366, schedule: *cosine, validate: [pile, german]}}
  german: {{model: 405m, data: {{german: 1}}, iterations: 86000, schedule: *cosine, validate: [pile, german]}}
  "update/replay-{{r}}":
    each: {{r: [0, 0.25]}}
    model: 405m
    init_from: {{run: pile}}
    data: {{german: 1}}
    replay_fraction: "{{r}}"
    iterations: 86000
    schedule: *cosine
    validate: [pile, german]
merges:
  ties: {{base: pile, task: german, density: 0.5}}
"""
EXHIBITS = f"""
paper: {PAPER}
styles:
  "*/replay-0": {{label: "0 %", colour: blue, dash: solid, marker: s}}
  "*/replay-0.25": {{label: "25 %", colour: orange, dash: dashed, marker: o}}
exhibits:
  figure_01:
    kind: curves
    title: Replay
    see: Less is forgotten.
    panels:
      - {{y: pile, xlim: [0, 200], curves: [update/replay-0, update/replay-0.25]}}
  table_01:
    kind: rows
    title: Final losses and suites
    see: All.
    columns:
      - {{show: name, heading: Run}}
      - {{show: loss, heading: D0, corpus: pile}}
      - {{show: average, heading: German, suite: german}}
    rows:
      - pile
      - german
      - update/replay-0
      - update/replay-0.25
      - {{merge: ties, name: merged}}
"""


#: Importing snakemake takes seconds: once here, in a process of which each call is a child.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["snakemake.cli", "snakemake.report"])


def _called(arguments: list[str], folder: Path, environment: dict[str, str], streams: list[str]) -> None:
    """`snakemake` in this process."""
    for descriptor, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main(arguments)


class Pipeline:
    """The repository's declarations in a folder of their own, with the small study and a tiny scale alone."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("data_manifests", "profiles"):
            shutil.copytree(REPOSITORY / name, folder / name)
        for name in ("Snakefile", "CITATION.cff"):
            shutil.copy(REPOSITORY / name, folder)
        self.runs = folder / "configs" / "papers" / PAPER / "runs.yaml"
        self.runs.parent.mkdir(parents=True)
        self.runs.write_text(RUNS)
        self.runs.with_name("exhibits.yaml").write_text(EXHIBITS)
        self.scale = folder / "configs" / "scales" / "smoke.yaml"
        self.scale.parent.mkdir()
        scale = yaml.safe_load((REPOSITORY / "configs" / "scales" / "smoke.yaml").read_text())
        # A training state every 6 iterations; the first corpus is the one that the tokenizer is made from.
        scale |= {
            "tokens_per_billion": 300,
            "save_every": 20,
            "papers": [PAPER],
            "models": {"405m": scale["models"]["405m"]},
        }
        scale |= {"corpora": {"pile": "smoke_upstream", "german": "smoke_strong"}}
        for task in scale["suites"]["german"]["tasks"].values():
            task["documents"] = 20
        del scale["suites"]["english"]
        self.scale.write_text(yaml.safe_dump(scale, sort_keys=False))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CPT_REPRO"))}
        self.environment["PYTHONPATH"] = str(REPOSITORY)

    def declare(self, **scale) -> None:
        """Changes the scale."""
        self.scale.write_text(yaml.safe_dump(yaml.safe_load(self.scale.read_text()) | scale, sort_keys=False))

    @property
    def plan(self) -> Plan:
        """As declared now."""
        project = Project.at(self.folder)
        return Plan(project, load_scale(project, "smoke"))

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess:
        """A command in the folder; what it says is text."""
        environment = self.environment | environment
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def cpt(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """`cpt-repro`."""
        return self.run([sys.executable, "-m", "cpt_repro.cli", *arguments], **environment)

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """`snakemake` on two cores; without arguments all of the scale."""
        arguments = ["--cores", "2", *(arguments or ["figures/"])]
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as errors:
            streams = [out.name, errors.name]
            process = _forks.Process(
                target=_called, args=(arguments, self.folder, self.environment | environment, streams)
            )
            process.start()
            process.join()
            return subprocess.CompletedProcess(arguments, process.exitcode, out.read(), errors.read())

    def start(self, *arguments: str) -> subprocess.Popen:
        """Starts snakemake in a process group of its own; what it says is on `stderr`."""
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        command = [*SNAKEMAKE, *(arguments or ["figures/"])]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, **silent, start_new_session=True
        )

    def records(self) -> dict[str, int]:
        """Receipts and other records, with their times."""
        paths = self.folder.glob("results/**/*.json")
        return {str(path.relative_to(self.folder)): path.stat().st_mtime_ns for path in paths}
