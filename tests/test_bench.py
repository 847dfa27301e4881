"""What is measured of speed: rows that `cpt-repro plan` reads, with ratios taken in one run."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from third_study import REPOSITORY, put_third_study

from cpt_repro import cli
from cpt_repro.bench.rows import in_turns, rows_of, table
from cpt_repro.declarations.manifests import load_manifest
from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.files import between
from cpt_repro.planning.plan import Plan
from cpt_repro.workflow.cost import Measurement

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench():
    """Imported here, for it takes long."""
    from cpt_repro.bench import training

    return training


@pytest.fixture(scope="module")
def plan(built):
    return Plan(built, load_scale(built, "smoke"))


def test_arms_take_turns():
    called = []
    arms = {arm: lambda arm=arm: called.append(arm) or len(called) for arm in "abc"}
    assert in_turns(arms, 3) == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_training_against_a_plain_loop(bench, plan, third_project):
    """On the scale's shards, and on random tokens where there are none."""
    rows = bench.bench_training(plan, "405m", steps=4, rounds=2)
    assert {row["arm"] for row in rows[1:-1]} == {"composer", "library", "whole_logits"}
    assert (rows[0]["arm"], rows[-1]["arm"]) == ("plain", "deterministic")
    assert {(row["tokens"], row["scale"], row["rounds"]) for row in rows} == {
        ("the scale's shards", "smoke", 2)
    }
    for row in rows:
        assert row["tokens_per_second"] > 0 and row["gpus"] == 0
        assert row["mfu"] is row["peak_memory_gb"] is None and row["parameters"] > 1000
        assert row["ratio_range"][0] <= row["ratio_to_composer"] <= row["ratio_range"][1]
        assert Measurement(**row).tokens_per_second == row["tokens_per_second"]
    by_arm = {row["arm"]: row for row in rows}
    assert (rows[0]["overhead_share"], by_arm["composer"]["ratio_to_composer"]) == (0, 1)
    for row in rows:
        least, most = row["tokens_per_second_range"]
        assert least <= row["tokens_per_second"] <= most
        shares = row["shares"]
        assert sum(shares.values()) == pytest.approx(1 if shares else 0, abs=0.01)
        assert bool(shares) == (row["arm"] in bench.LOOPS)
    unbuilt = Plan(third_project, load_scale(third_project, "smoke"))
    assert bench.bench_training(unbuilt, None, steps=1)[0]["tokens"] == "random"


def test_a_build_against_the_tokenizer_alone(tmp_path):
    """And one of hub files, by one process and by two; nothing is written to the project."""
    from cpt_repro.bench.data import bench_data

    project = put_third_study(tmp_path / "project")
    own, hub = bench_data(Plan(project, load_scale(project, "smoke")), rounds=1)
    for row in (own, hub):
        assert row["benchmark"] == "data" and row["build"] > 0 < row["two_processes"]
        assert row["ratio"] == pytest.approx(row["build"] / row["tokenizer"], abs=1e-3)
    assert (own["corpus"], hub["corpus"]) == ("sp", "bench") and hub["vocabulary"] > own["vocabulary"]
    assert not project.data.exists() and not project.hub_lock.exists()
    with pytest.raises(UserError):
        load_manifest(project, "bench")


def test_utilisation_and_memory_of_a_gpu(bench, plan_of):
    """As on one that trains 163,000 tokens/s of the papers' smaller model."""
    run = plan_of("paper").runs["ibrahim2024/405m/pile/seed-0"]
    training = bench._shortened(run, batch_sequences=138).training
    step = {"step_seconds": 138 * 2048 / 163_000, "loader_wait_share": 0.001, "peak_memory_gb": 60.0}
    slow = step | {"step_seconds": step["step_seconds"] * 1.25}
    measured = {"composer": [step], "plain": [step], "deterministic": [slow]}
    row = bench._speeds("deterministic", measured, training, "NVIDIA H100 80GB HBM3")
    assert (row["tokens_per_second"], row["ratio_to_composer"], row["peak_memory_gb"]) == (130_400, 0.8, 60)
    # 2.725 GFLOP a token, 2.423 where half of the attention is masked.
    assert row["mfu"] == pytest.approx(130_400 * 2.725e9 / 989e12, rel=1e-3)
    assert row["mfu_causal"] == pytest.approx(130_400 * 2.423e9 / 989e12, rel=1e-3)
    assert row["overhead_share"] == 0.2
    assert bench._speeds("composer", measured, training, "an unknown GPU")["mfu"] is None


def test_what_cannot_be_measured_is_refused(bench, plan):
    with pytest.raises(UserError, match="there is no GPU to measure"):
        bench.bench_training(plan, "405m", steps=1, device="gpu")
    with pytest.raises(UserError, match="no run of scale 'smoke' trains the model '405M'.*Known: 10b, 405m"):
        bench.bench_training(plan, "405M", steps=1)


def test_starts_of_commands_beside_an_empty_python(third_project):
    from cpt_repro.bench.commands import JOBS, bench_imports, timed

    row = bench_imports(third_project.root, "smoke", rounds=1)
    assert set(row["seconds"]) == set(row["cpu_seconds"]) == {"pass", "status", "plan", *JOBS}
    assert row["ratio_to_pass"]["pass"] == 1 < row["ratio_to_pass"]["train"]
    assert all(least <= median <= most for least, median, most in row["seconds"].values())
    with pytest.raises(UserError, match="it ended with status 3: oh"):
        timed([sys.executable, "-c", "import sys; print('oh', file=sys.stderr); sys.exit(3)"], Path())


def test_exhibits_from_records_and_their_verification(third_project):
    """Every exhibit has its seconds; figures that differ from the records are told, and not timed."""
    from cpt_repro.bench.commands import bench_exhibits
    from cpt_repro.report.making import make_all
    from cpt_repro.workflow.jobs import Workflow

    scale = third_project.scales / "smoke.yaml"
    told = scale.read_text()
    scale.write_text(re.sub(r"(?m)^papers:.*\n", "", told) + "\npapers: [third2026]\n")
    work, lines = Workflow(third_project, "smoke"), []
    with pytest.raises(UserError, match="it ended with status 1"):
        bench_exhibits(work.catalogue, work.records, 1, lines.append)
    list(make_all(work.catalogue, work.records, third_project.figures))
    row = bench_exhibits(work.catalogue, work.records, 1, lines.append)
    names = {"third2026/figure_01", "third2026/table_01", "claims", "report"}
    assert set(row["each_cpu_seconds"]) == names and all(
        any(name in line for line in lines) for name in names
    )
    assert row["exhibits"] == 2 and row["verify_seconds"][0] > 0 < row["exhibits_cpu_seconds"][0]


def test_a_whole_job_is_timed_in_a_folder_of_its_own(third_project, monkeypatch):
    from cpt_repro.bench import commands
    from cpt_repro.bench.commands import Spent
    from cpt_repro.workflow.warm import WORKED

    calls, measured = [], iter((12.0, 10.0))  # seconds of training, of each round

    def made(command, folder, **environment):
        assert folder != third_project.root and (folder / "configs" / "scales" / "smoke.yaml").is_file()
        figure = folder / "figures" / "smoke" / "p" / "figure_01.png"
        calls.append((command[2:], figure.exists()))
        figure.parent.mkdir(parents=True, exist_ok=True)
        figure.write_text("")
        if environment:
            notes = f"train {next(measured)}\nevaluate 2.5\ntrain 1.5\ndraw 0.5\n"
            Path(environment[WORKED]).write_text(notes)
        return Spent(2.0, 1.0, 0.1)

    monkeypatch.setattr(commands, "timed", made)
    (third_project.root / "Snakefile").touch()
    (third_project.root / "profiles").mkdir(exist_ok=True)
    row = commands.bench_job(third_project, "smoke", "p/figure_01", rounds=2, say=lambda _: None)
    whole = ["snakemake", "--cores", "all", "figures/", "--config", "scale=smoke"]
    assert calls == [(whole, False), (whole, True), (whole, False)] * 2
    assert row["again_seconds"] == row["one_figure_seconds"] == [2.0] * 3 and row["rounds"] == 2
    assert row["whole_core_seconds"][0] >= 0 and commands.busy() > 0
    parts = {"steps of training": 0, "validation": 0, "starting and saving trainings": 12.5}
    parts |= {"evaluate": 2.5, "draw": 0.5, "starting and the workflow engine": 0}
    assert row["worked_for"] == parts


def test_what_training_is_spent_on_is_told_by_receipts(repository, tmp_path):
    from cpt_repro.bench.commands import _worked_for

    some = next((repository.results / "pocket" / "runs" / "ibrahim2024").glob("**/receipt.json"))
    receipt = json.loads(some.read_text())
    for seed, (seconds, validation) in enumerate(((5.0, 0.5), (4.0, 1.5))):
        receipt["measured"] |= {"seconds": seconds, "validation_seconds": validation}
        path = tmp_path / "results" / "smoke" / "runs" / "p" / f"seed-{seed}" / "receipt.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(receipt))
    notes = tmp_path / "worked"
    notes.write_text("corpus 3\ntrain 5.5\ntrain 4.5\ncorpus 1\n")
    assert _worked_for(tmp_path, "smoke", notes, whole=20.0) == {
        "steps of training": 7.0,
        "validation": 2.0,
        "starting and saving trainings": 1.0,
        "corpus": 4.0,
        "starting and the workflow engine": 6.0,
    }


def test_a_grid_of_runs_is_planned_and_its_graph_made(third_project):
    from cpt_repro.bench.commands import bench_grid

    shutil.copy(REPOSITORY / "Snakefile", third_project.root)
    shutil.copytree(REPOSITORY / "profiles", third_project.root / "profiles", dirs_exist_ok=True)
    row = bench_grid(third_project, runs=150, rounds=1, say=lambda _: None)
    assert row["runs"] == 1 + 100 * 2  # shares of replay by rates, and what all go on from
    assert row["plan_seconds"][0] > 0 < row["graph_seconds"][0] and 0.01 < row["graph_gib"][0] < 10
    with pytest.raises(UserError, match="300000 combinations are too many"):
        bench_grid(third_project, runs=300_000, rounds=1, say=lambda _: None)


def test_the_latest_rows_are_a_table(repository):
    old = {
        "benchmark": "job",
        "scale": "smoke",
        "rounds": 1,
        "hardware": "X",
        "cores": 2,
        "date": "2030-01-01",
    }
    old |= {"whole_seconds": [300, 310, 320.5], "whole_core_seconds": [400, 410, 420]}
    old |= {"worked_for": {"steps of training": 300, "validation": 100}}
    new = old | {"date": "2030-01-02", "whole_seconds": [200, 210, 220]}
    train = {"benchmark": "train", "scale": "pocket", "arm": "plain", "parameters": 63648, "rounds": 3}
    train |= {
        "hardware": "X",
        "date": "2030-01-01",
        "tokens_per_second": 7e4,
        "tokens_per_second_range": [6e4, 8e4],
        "shares": {"forward": 0.404, "backward": 0.596},
    }
    lines = table([old, new, train, old | {"benchmark": "data"}, train | {"arm": "unknown"}])
    assert lines[2:] == [
        "| smoke: the same, work of the cores | 410 s (400 to 420) | 1 rounds, 2 cores of X, 2030-01-02 |",
        "| smoke: what they work for | steps of training 75%, validation 25% "
        "| 1 rounds, 2 cores of X, 2030-01-02 |",
        "| smoke: main job, whole | 210 s (200 to 220) | 1 rounds, 2 cores of X, 2030-01-02 |",
        "| pocket, 63,648 parameters: the same with our loss | 70,000 tokens/s (60,000 to 80,000) "
        "| 3 rounds, ? cores of X, 2030-01-01 |",
        "| pocket, 63,648 parameters: the same with our loss: a step | forward 40.4%, backward 59.6% "
        "| 3 rounds, ? cores of X, 2030-01-01 |",
    ]
    text = (repository.root / "docs" / "scales.md").read_text(encoding="utf-8")
    kept = "\n".join([*table(rows_of(repository.measurements)), ""])
    assert (
        between(text, {"benchmarks": kept}, "docs/scales.md") == text
    )  # `cpt-repro bench table --into` renews it


def test_rows_are_appended(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for number in (1, 2):
        cli._say_rows([{"row": number}], path)
    assert path.read_text() == capsys.readouterr().out == '{"row": 1}\n{"row": 2}\n'
