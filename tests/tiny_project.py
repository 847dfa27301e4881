"""A throw-away project with a third paper that is nothing but declarations, to be run by `snakemake`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2"]

RUNS = """
paper: third2026
reference: "A made-up third paper"
batch: {sequences: 1104, sequence_length: 2048}
schedules:
  cosine: &cosine {kind: cosine, eta_max: 3.0e-4, eta_min: 3.0e-5, warmup_frac: 0.01}
runs:
  405m/pile: {model: 405m, data: {pile: 1}, iterations: 132366, schedule: *cosine, validate: [pile, german]}
  405m/german: {model: 405m, data: {german: 1}, iterations: 86000, schedule: *cosine, validate: [pile, german]}
  "405m/pile--german/replay-{r}":
    each: {r: [0, 0.25]}
    model: 405m
    init_from: {run: 405m/pile}
    data: {german: 1}
    replay_fraction: "{r}"
    iterations: 86000
    schedule: *cosine
    validate: [pile, german]
merges:
  405m/ties: {base: 405m/pile, task: 405m/german, density: 0.5}
"""
EXHIBITS = """
paper: third2026
corpora:
  pile: {role: upstream, stands_for: the Pile}
  german: {role: downstream, stands_for: German CC}
sizes: {405m: 405M}
styles:
  "*/replay-0": {label: "0 %", colour: blue, dash: solid, marker: s}
  "*/replay-0.25": {label: "25 %", colour: orange, dash: dashed, marker: o}
exhibits:
  figure_01:
    kind: curves
    title: Replay
    see: Less is forgotten.
    panels:
      - {y: pile, xlim: [0, 200], curves: [405m/pile--german/replay-0, 405m/pile--german/replay-0.25]}
  table_01:
    kind: rows
    title: Final losses and suites
    see: All.
    columns:
      - {show: name, heading: Run}
      - {show: loss, heading: D0, corpus: pile}
      - {show: average, heading: German, suite: german}
    rows:
      - 405m/pile
      - 405m/german
      - 405m/pile--german/replay-0
      - 405m/pile--german/replay-0.25
      - {merge: 405m/ties, name: merged}
"""


class Project:
    """A copy of the repository's code with small declarations of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("cpt_repro", "data_manifests", "profiles"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Snakefile", "CITATION.cff"):
            shutil.copy(REPOSITORY / name, folder)
        papers = folder / "configs" / "papers" / "third2026"
        papers.mkdir(parents=True)
        (papers / "runs.yaml").write_text(RUNS)
        (papers / "exhibits.yaml").write_text(EXHIBITS)
        scale = yaml.safe_load((REPOSITORY / "configs" / "scales" / "smoke.yaml").read_text())
        # `save_every`: a training state every 6 iterations.
        scale |= {
            "tokens_per_billion": 300,
            "save_every": 20,
            "corpora": {"pile": "smoke_upstream", "german": "smoke_strong"},
        }
        scale["suites"]["german"]["tasks"]["continuation_de"]["documents"] = 20
        scale["suites"]["german"]["tasks"]["last_word_de"]["documents"] = 20
        del scale["suites"]["english"]
        self.scale = folder / "configs" / "scales" / "smoke.yaml"
        self.scale.parent.mkdir()
        self.scale.write_text(yaml.safe_dump(scale))
        self.environment = {**os.environ, "PYTHONPATH": str(folder)}
        self.environment.pop("CPT_REPRO_STORE", None)

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [*SNAKEMAKE, *(arguments or ["figures/"])]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Starts snakemake in a process group of its own; what it says is on `stderr`."""
        return subprocess.Popen(
            [*SNAKEMAKE, *(arguments or ["figures/"])],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def receipts(self) -> dict[str, int]:
        return {
            str(p.relative_to(self.folder)): p.stat().st_mtime_ns
            for p in self.folder.glob("results/**/*.json")
        }
