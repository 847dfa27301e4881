"""The whole pipeline by `snakemake`, in a throw-away project with a third paper that is nothing but declarations."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent

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
        for name in ("cpt_repro", "data_manifests"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "Snakefile", folder)
        papers = folder / "configs" / "papers" / "third2026"
        papers.mkdir(parents=True)
        (papers / "runs.yaml").write_text(RUNS)
        (papers / "exhibits.yaml").write_text(EXHIBITS)
        scale = yaml.safe_load((REPOSITORY / "configs" / "scales" / "smoke.yaml").read_text())
        scale |= {"tokens_per_billion": 300, "corpora": {"pile": "smoke_upstream", "german": "smoke_strong"}}
        scale["suites"]["german"]["tasks"]["continuation_de"]["documents"] = 20
        scale["suites"]["german"]["tasks"]["last_word_de"]["documents"] = 20
        del scale["suites"]["english"]
        self.scale = folder / "configs" / "scales" / "smoke.yaml"
        self.scale.parent.mkdir()
        self.scale.write_text(yaml.safe_dump(scale))
        self.environment = {**os.environ, "PYTHONPATH": str(folder)}
        self.environment.pop("CPT_REPRO_STORE", None)

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *(arguments or ["figures/"])]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def receipts(self) -> dict[str, int]:
        return {str(p.relative_to(self.folder)): p.stat().st_mtime_ns for p in self.folder.glob("results/**/*.json")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    built = Project(tmp_path_factory.mktemp("project"))
    result = built.snakemake()
    assert result.returncode == 0, result.stderr[-3000:]
    return built


def test_everything_is_made(project):
    figures = project.folder / "figures" / "smoke" / "third2026"
    assert {p.name for p in figures.iterdir()} == {
        *(f"figure_01.{suffix}" for suffix in ("png", "svg", "json")),
        *(f"table_01.{suffix}" for suffix in ("csv", "md", "tex", "json")),
    }
    assert json.loads((figures / "table_01.json").read_text())["missing"] == []
    text = (figures / "table_01.md").read_text()
    assert "not run" not in text and "merged" in text
    assert len(list(project.folder.glob("results/smoke/runs/**/receipt.json"))) == 4
    assert len(list(project.folder.glob("results/smoke/runs/**/evaluation.json"))) == 5


def test_records_name_what_they_depend_on_and_no_path(project):
    suites = json.loads((project.folder / "data" / "smoke" / "suites" / "fingerprint.json").read_text())
    for path in project.folder.glob("results/**/*.json"):
        assert str(project.folder) not in path.read_text()
    for path in project.folder.glob("results/**/evaluation.json"):
        record = json.loads(path.read_text())
        assert record["suites_fingerprint"] == suites["fingerprint"]
        assert set(record["environment"]) == {"lm_eval", "transformers", "torch", "threads", "batch_size"}
        assert 0 <= record["suites"]["german"]["average"] <= 1


def test_a_second_call_has_nothing_to_do(project):
    before = project.receipts()
    result = project.snakemake()
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout + result.stderr
    assert project.receipts() == before


def test_one_figure_is_drawn_again_alone(project):
    figure = project.folder / "figures" / "smoke" / "third2026" / "figure_01.png"
    table = figure.with_name("table_01.csv")
    before, bytes_before, receipts = table.stat().st_mtime_ns, figure.read_bytes(), project.receipts()
    figure.unlink()
    result = project.snakemake()
    assert result.returncode == 0
    assert figure.read_bytes() == bytes_before
    assert table.stat().st_mtime_ns == before
    assert project.receipts() == receipts


def test_receipts_alone_redraw_everything(project, tmp_path):
    """As in a fresh clone of a frozen replication: no data, no weights, no training."""
    clone = Project(tmp_path / "clone")
    shutil.copytree(project.folder / "results", clone.folder / "results")
    shutil.copy(project.scale, clone.scale)
    result = clone.snakemake()
    assert result.returncode == 0, result.stderr[-3000:]
    assert not (clone.folder / "data").exists() and not list(clone.folder.rglob("*.safetensors"))
    for path in (project.folder / "figures").rglob("*.*"):
        assert (clone.folder / path.relative_to(project.folder)).read_bytes() == path.read_bytes(), path.name


def test_a_changed_schedule_trains_what_depends_on_it(project):
    """Interrupted on the way, the next call goes on; what does not depend on the change stays as it is."""
    declared = project.folder / "configs" / "papers" / "third2026" / "runs.yaml"
    text = declared.read_text()
    changed = (
        "  405m/german: {model: 405m, data: {german: 1}, iterations: 86000, schedule: {<<: *cosine, warmup_frac: 0.05}"
    )
    declared.write_text(
        text.replace("  405m/german: {model: 405m, data: {german: 1}, iterations: 86000, schedule: *cosine", changed)
    )
    before = project.receipts()
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "figures/"]
    running = subprocess.Popen(
        command, cwd=project.folder, env=project.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in running.stderr:
        if "training 1 segments" in line:
            break
    time.sleep(3)
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=120)
    assert running.returncode != 0
    assert not list(project.folder.rglob("*.aside*"))
    result = project.snakemake()
    assert result.returncode == 0, result.stderr[-3000:]
    after = project.receipts()
    touched = {path for path in after if after[path] != before.get(path)}
    assert touched == {
        f"results/smoke/runs/third2026/405m/{path}"
        for path in ("german/seed-0/receipt.json", "german/seed-0/evaluation.json", "ties/seed-0/evaluation.json")
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["figures/", "--config", "scale=poket"], "the scale 'poket' is unknown"),
        (["figures/smoke/third2026/figure_07.png"], "figure_07"),
    ],
)
def test_what_is_unknown_is_named(project, arguments, told):
    result = project.snakemake(*arguments)
    assert result.returncode != 0
    assert told in result.stdout + result.stderr


def test_a_bad_declaration_is_one_paragraph_before_anything_runs(project):
    declared = project.folder / "configs" / "papers" / "third2026" / "runs.yaml"
    good = declared.read_text()
    try:
        declared.write_text(good.replace('replay_fraction: "{r}"', "replay_fraction: -0.1"))
        result = project.snakemake()
    finally:
        declared.write_text(good)
    assert result.returncode != 0
    told = result.stdout + result.stderr
    assert "replay_fraction" in told and "runs.yaml" in told and "Traceback" not in told
