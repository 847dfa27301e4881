"""The whole pipeline by `snakemake`, in a throw-away project with a third paper that is nothing but declarations."""

import json
import os
import shutil
import signal
import time

import pytest
from tiny_project import Project


def test_everything_is_made(project):
    figures = project.folder / "figures" / "smoke" / "third2026"
    assert {p.name for p in figures.iterdir()} == {
        *(f"figure_01.{suffix}" for suffix in ("png", "svg", "json")),
        *(f"table_01.{suffix}" for suffix in ("csv", "md", "tex", "json")),
    }
    assert json.loads((figures / "table_01.json").read_text())["missing"] == []
    text = (figures / "table_01.md").read_text()
    assert "not run" not in text and "merged | not measured" in text
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
    changed = "  405m/german: {model: 405m, data: {german: 1}, iterations: 86000, schedule: {<<: *cosine, warmup_frac: 0.05}"
    declared.write_text(
        text.replace(
            "  405m/german: {model: 405m, data: {german: 1}, iterations: 86000, schedule: *cosine", changed
        )
    )
    before = project.receipts()
    running = project.start()
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
        for path in (
            "german/seed-0/receipt.json",
            "german/seed-0/evaluation.json",
            "ties/seed-0/evaluation.json",
        )
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
