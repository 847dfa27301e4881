"""What jobs ask of a cluster, and whole calls with commands that stand for Slurm's."""

import json
import os
import shlex
import subprocess
import sys
import time

import fake_slurm
import pytest
from tiny_project import PAPER, Pipeline

from cpt_repro.errors import UserError
from cpt_repro.files import read_json
from cpt_repro.workflow.jobs import Workflow

# -- what jobs ask for


@pytest.fixture(scope="module")
def workflow(repository, tmp_path_factory):
    """`workflow(scale)`, with an empty store and no results."""
    folder = tmp_path_factory.mktemp("empty")
    places = {name: folder / name for name in ("results", "data", "store", "figures")}
    return lambda scale: Workflow(repository.with_(**places), scale)


def asked(work, model):
    run = next(run for run in work.plan.runs.values() if run.model_name == model)
    return work.training_resources(run.id)


def test_what_the_jobs_of_the_papers_own_scale_ask_for(workflow):
    paper = workflow("paper")
    execution = paper.scale.execution["10b"]
    assert execution.nodes > 1
    assert asked(paper, "10b") == {
        "nodes": execution.nodes,
        "tasks": execution.nodes,
        "cpus_per_task": execution.ranks_per_node * (paper.scale.threads + paper.scale.loader_workers),
        "mem_mb": execution.memory_gb * 1000,
        "runtime": execution.hours * 60,
        "gpu_percent": 100 * execution.ranks_per_node,
        "slurm_extra": f"--gres=gpu:{execution.ranks_per_node}",
        "mpi": "srun",
    }
    assert (asked(paper, "405m")["nodes"], asked(paper, "405m")["mpi"]) == (1, "")
    evaluated = {paper.evaluation_resources(model)["slurm_extra"] for model in paper.models}
    assert evaluated == {"--gres=gpu:1"}


def test_small_jobs_ask_for_a_part_of_a_gpu_and_those_of_cpus_for_none(workflow):
    desk, smoke = workflow("desk"), workflow("smoke")
    share = desk.scale.execution["405m"].jobs_per_gpu
    some = asked(desk, "405m")
    assert (some["gpu_percent"], some["slurm_extra"]) == (100 // share, "--gres=gpu:1")
    none = asked(smoke, "405m")
    assert none["cpus_per_task"] == smoke.scale.threads == 1
    assert (none["gpu_percent"], none["slurm_extra"], none["mpi"]) == (0, "", "")


def test_jobs_that_start_ranks_or_need_a_gpu_run_by_themselves(workflow):
    run = next(iter(workflow("smoke").plan.runs))
    assert "warm" in workflow("smoke").job(run)[0]
    assert {workflow(scale).job(run)[0].split()[-1] for scale in ("desk", "paper")} == {"cpt_repro.cli"}


def test_models_spread_differently_are_not_trained_by_one_process(workflow):
    paper = workflow("paper")
    with pytest.raises(UserError, match="10b, 405m are spread differently over hardware"):
        paper.execution_of(paper.plan.runs.values())


# -- whole calls


#: Snakemake whose plugin does not wait for 40 seconds between two questions to Slurm.
HURRIED = """
import asyncio, sys
sleep = asyncio.sleep
asyncio.sleep = lambda seconds, *more: sleep(min(seconds, 0.5), *more)
from snakemake.cli import main
sys.exit(main())
"""
RUN = f"{PAPER}/german/seed-0"
#: Sums over two halves of a batch are rounded otherwise than over the whole; nats.
TOLERANCE = 2e-3
RECEIPT = f"results/smoke/runs/{RUN}/receipt.json"


class Cluster(Pipeline):
    """The tiny project with its corpora built; and commands that stand for Slurm's."""

    def __init__(self, folder, complete):
        super().__init__(folder)
        profile = folder / "profiles" / "slurm" / "config.yaml"
        self.unedited = profile.read_text()
        edited = self.unedited.replace("slurm_account=EDIT_ME", "slurm_account=team")
        profile.write_text(edited.replace("slurm_partition=EDIT_ME", "slurm_partition=gpu"))
        (folder / "data").symlink_to(complete.folder / "data")

    def submit(self, *arguments, faults=()):
        """Snakemake with the Slurm profile; its result, and what was submitted."""
        slurm = self.folder / f"slurm-{time.time_ns()}"
        hurried = [sys.executable, "-c", HURRIED, "--profile", "profiles/slurm", "--latency-wait", "5"]
        result = self.run([*hurried, *arguments], **fake_slurm.install(slurm, faults))
        return result, fake_slurm.jobs(slurm)


@pytest.fixture(scope="module")
def cluster(complete, tmp_path_factory):
    return Cluster(tmp_path_factory.mktemp("cluster") / "project", complete)


@pytest.fixture
def declared(cluster):
    """`declare(...)` for one test."""
    before = cluster.scale.read_text()
    yield cluster.declare
    cluster.scale.write_text(before)


@pytest.mark.slow
def test_jobs_for_gpus_on_several_nodes_are_submitted_so(cluster, declared):
    spread = {"405m": {"nodes": 2, "ranks_per_node": 4, "hours": 1.5}}
    declared(device="gpu", threads=3, execution=spread)
    result, (job,) = cluster.submit(RECEIPT, "--retries", "0", faults=["CANCELLED"])
    assert result.returncode != 0 and "SLURM status is: 'CANCELLED'" in result.stdout + result.stderr
    call = " ".join(job["call"]).partition("--wrap")[0]
    wanted = "-A team -p gpu -t 90 --mem 8000 --nodes=2 --ntasks=2 --cpus-per-task=12 --gres=gpu:4"
    assert wanted in call and "--requeue" in call
    assert not any(word in call.replace("--gres=gpu:4", "") for word in ("gpu:", "--gpus", "per-gpu"))


@pytest.mark.slow
def test_a_job_that_is_preempted_and_then_out_of_time_goes_on(cluster, complete):
    """To the bits of the same training by the process that has everything imported."""
    result, jobs = cluster.submit(RECEIPT, faults=["PREEMPTED", "TIMEOUT"])
    assert result.returncode == 0, result.stdout + result.stderr
    preempted = ["PENDING", "RUNNING", "PREEMPTED", "PENDING", "RUNNING", "TIMEOUT"]
    assert [job["states"] for job in jobs] == [preempted, ["PENDING", "RUNNING", "COMPLETED"]]
    receipt, warm = read_json(cluster.folder / RECEIPT), read_json(complete.folder / RECEIPT)
    assert receipt["measured"]["resumed_at"] > 0
    assert receipt | {"measured": None} == warm | {"measured": None}


@pytest.mark.slow
def test_two_ranks_are_started_where_the_scale_asks_for_them(cluster, complete, declared, tmp_path):
    """Of a run that was trained with one elsewhere."""
    declared(execution={"405m": {"ranks_per_node": 2}})
    receipt = cluster.folder / RECEIPT
    receipt.unlink(missing_ok=True)
    elsewhere = {"CPT_REPRO_STORE": str(tmp_path / "store")}
    shown = cluster.cpt("train", RUN, "--dry-run", **elsewhere)
    ours = f"-m cpt_repro.cli train {RUN} --scale smoke"
    torchrun = "-m cpt_repro.workflow.launch --standalone --local-addr 127.0.0.1 --nproc-per-node 2"
    assert shlex.split(shown.stdout) == [sys.executable, *torchrun.split(), *ours.split()]
    assert not receipt.exists()
    result = cluster.cpt("train", RUN, **elsewhere)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("tokens/s") == 1  # what the first rank says, once
    two, one = read_json(receipt), read_json(complete.folder / RECEIPT)
    assert two["identity"] == one["identity"] and two["measured"]["execution"]["ranks"] == 2
    for corpus, losses in one["losses"].items():
        curve, other = losses["curve"], two["losses"][corpus]["curve"]
        assert [i for i, _ in curve] == [i for i, _ in other]
        assert max(abs(a - b) for (_, a), (_, b) in zip(curve, other, strict=True)) < TOLERANCE


@pytest.mark.slow
def test_what_a_training_cannot_have_is_refused(cluster, declared, tmp_path):
    (cluster.folder / RECEIPT).unlink(missing_ok=True)
    declared(device="gpu", execution={"405m": {"ranks_per_node": 4}})
    machine = {"CPT_REPRO_GPUS": "2", "CPT_REPRO_GPU_LEASES": str(tmp_path / "leases")}
    machine |= {"CPT_REPRO_STORE": str(tmp_path / "store")}
    result = cluster.cpt("train", RUN, **machine)
    assert result.returncode == 2
    assert "execution.405m: 4 GPUs are asked for, and here are 2." in result.stderr
    declared(device="gpu", execution={"405m": {"nodes": 2}})
    result = cluster.cpt("train", RUN, **machine)
    assert result.returncode == 2 and "not inside a Slurm job" in result.stderr


@pytest.mark.slow
def test_what_failed_by_itself_is_tried_anew_by_a_new_call_only(cluster, complete, declared, tmp_path):
    (cluster.folder / RECEIPT).unlink(missing_ok=True)
    failure = (cluster.folder / RECEIPT).with_name("failure.json")
    identity = read_json(complete.folder / RECEIPT)["identity"]
    failure.parent.mkdir(parents=True, exist_ok=True)
    failure.write_text(json.dumps({"identity": identity, "why": "the loss is not finite."}))
    elsewhere = {"CPT_REPRO_STORE": str(tmp_path / "store")}
    again = cluster.cpt("train", RUN, "--attempt", "2", **elsewhere)
    assert again.returncode == 2 and failure.exists()
    assert "it failed in an earlier attempt: the loss is not finite." in again.stderr
    # A new call forgets it; of what then happens only that it goes on to ask for a GPU matters here.
    declared(device="gpu")
    new = cluster.cpt("train", RUN, **elsewhere, CUDA_VISIBLE_DEVICES="")
    assert "there is none" in new.stderr and not failure.exists()


@pytest.mark.slow
def test_a_profile_with_an_unknown_key_or_without_an_account_is_refused(cluster):
    profile = cluster.folder / "profiles" / "slurm" / "config.yaml"
    edited = profile.read_text()
    target = RECEIPT.replace("german", "pile")  # which no other test makes
    try:
        profile.write_text(edited + "slurm-partitions: gpu\n")
        result, jobs = cluster.submit(target)
        assert result.returncode != 0 and "slurm-partitions" in result.stderr and not jobs
        profile.write_text(cluster.unedited)
        result, jobs = cluster.submit(target, "--retries", "0")
        assert result.returncode != 0 and not jobs
        told = "account EDIT_ME appears to be invalid. Available accounts:\nteam"
        assert told in result.stdout + result.stderr
    finally:
        profile.write_text(edited)


@pytest.mark.slow
def test_the_whole_graph_of_the_papers_own_scale_needs_no_network(repository, tmp_path):
    for name in ("Snakefile", "configs", "data_manifests", "profiles"):
        (tmp_path / name).symlink_to(repository.root.resolve() / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CPT_REPRO"))}
    environment |= {"https_proxy": "http://127.0.0.1:9"}
    look = [sys.executable, "-m", "snakemake", "-n", "--profile", "profiles/slurm"]
    command = [*look, "figures/", "--config", "scale=paper"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "\ntrain " in result.stdout and "training ibrahim2024/10b/pile/seed-0 (paper)" in result.stdout
