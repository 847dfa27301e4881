"""A small third study beside the two real ones: declarations alone, put into a copy of the project's."""

import shutil
from pathlib import Path

from cpt_repro.project import Project

REPOSITORY = Path(__file__).resolve().parent.parent

#: It goes on from a run of another paper, repeats one of that paper's trainings under another name, and names
#: a model and a corpus that smoke lacks.
RUNS = """
paper: third2026
reference: "A made-up third paper (arXiv 2601.00001)"
batch: {sequences: 1104, sequence_length: 2048}
unit: {billions: 200, name: 200B tokens}
corpora:
  pile: {role: old, called: upstream, stands_for: the Pile}
  german: {role: new, called: downstream, stands_for: German CC}
  finnish: {role: new, called: downstream, stands_for: Finnish CC}
models: {405m: 405M, 70b: 70B}
schedules:
  cosine: &cosine {kind: cosine, eta_max: 3.0e-4, eta_min: 3.0e-5, warmup_frac: 0.01}
runs:
  german-alone:
    {model: 405m, data: {german: 1}, iterations: 86000, schedule: *cosine, validate: [pile, german]}
  "continued/replay-{r}":
    each: {r: [0.02, 0.25]}
    model: 405m
    init_from: {run: ibrahim2024/405m/pile}
    data: {german: 1}
    replay_fraction: "{r}"
    iterations: 86000
    schedule: *cosine
    validate: [pile, german]
  finnish:
    {model: 405m, init_from: {run: ibrahim2024/405m/pile}, data: {finnish: 1},
     iterations: 86000, schedule: *cosine, validate: [pile]}
  large: {model: 70b, data: {pile: 1}, iterations: 132366, schedule: *cosine, validate: [pile]}
  after-large:
    {model: 70b, init_from: {run: large}, data: {german: 1}, iterations: 86000,
     schedule: *cosine, validate: [pile]}
merges:
  ties: {base: continued/replay-0.02, task: german-alone, density: 0.5}
"""
EXHIBITS = """
paper: third2026
styles:
  "*/replay-0": {label: "0 %", colour: blue, dash: solid, marker: s}
  "*/replay-0.02": {label: "2 %", colour: green, dash: dotted, marker: x}
  "*/replay-0.25": {label: "25 %", colour: orange, dash: dashed, marker: o}
exhibits:
  figure_01:
    kind: curves
    title: Replay
    see: Less is forgotten, here and in another paper.
    panels:
      - {y: pile, xlim: [0, 200], curves: [continued/replay-0.02, ibrahim2024/405m/pile--german/replay-0]}
  table_01:
    kind: rows
    title: Final losses and suites
    see: All.
    columns:
      - {show: name, heading: Run}
      - {show: loss, heading: D0, corpus: pile}
      - {show: average, heading: German, suite: german}
    rows:
      - ibrahim2024/405m/pile
      - german-alone
      - continued/replay-0.02
      - continued/replay-0.25
      - {run: finnish, new: finnish}
      - {merge: ties, name: merged}
"""
CLAIMS = """
paper: third2026
claims:
  - id: 1
    statement: Two percent of replay forget less than none.
    source: made up
    tests:
      - kind: ordering
        says: old loss
        rising: [continued/replay-0.02 pile, ibrahim2024/405m/pile--german/replay-0 pile]
"""


def put_third_study(folder: Path) -> Project:
    """Copies the project's declarations (no results) to `folder`, the third study beside them."""
    for name in ("configs", "data_manifests", "benchmarks"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "CITATION.cff", folder)
    third = folder / "configs" / "papers" / "third2026"
    third.mkdir()
    for name, text in (("runs.yaml", RUNS), ("exhibits.yaml", EXHIBITS), ("claims.yaml", CLAIMS)):
        (third / name).write_text(text, encoding="utf-8")
    return Project.at(folder)
