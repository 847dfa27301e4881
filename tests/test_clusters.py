"""GPU leases, launches of several ranks, and the Slurm executor: with made-up GPUs, nodes and Slurm commands."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
import yaml
from tiny_project import REPOSITORY, Project

from cpt_repro import gpus, launch
from cpt_repro.declarations.scale import Execution, load_scale
from cpt_repro.errors import UserError
from cpt_repro.planning.plan import Plan
from cpt_repro.workflow.jobs import Workflow

PYTHON = sys.executable


def _eventually(true, seconds=60, why=""):
    until = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < until, why
        time.sleep(0.05)
    return value


# -- GPUs

#: Takes a lease, says which GPUs, writes "+gpu" and "-gpu" to a log (appended whole), and holds it for a while.
HOLDER = """
import os, sys, time
from cpt_repro import gpus
gpus.POLL = 0.05
count, share, seconds, log = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
with gpus.lease(count, share, "test", lambda line: print(line, flush=True)) as held:
    print("took", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(stream, "".join(f"+{gpu} {share}\\n" for gpu in held.gpus).encode())
    time.sleep(seconds)
    os.write(stream, "".join(f"-{gpu} {share}\\n" for gpu in held.gpus).encode())
"""


@pytest.fixture
def holders(tmp_path):
    """`start(count, share, seconds)` -> a process that leases some of 4 GPUs; all are ended at the end."""
    started = []
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}
    environment |= {"CPT_REPRO_GPUS": "4", "CPT_REPRO_GPU_LEASES": str(tmp_path / "leases")}
    environment["PYTHONPATH"] = str(REPOSITORY)

    def start(count, share=1, seconds=60.0, **more):
        command = [PYTHON, "-c", HOLDER, str(count), str(share), str(seconds), str(tmp_path / "log")]
        process = subprocess.Popen(
            command, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _taken(process):
    line = process.stdout.readline()
    assert line.startswith("took "), line
    return set(line.split()[1].split(","))


def test_gpus_are_not_assigned_twice_and_a_killed_holder_frees_them(holders):
    first = holders(3)
    three = _taken(first)
    second = holders(2)
    assert second.stdout.readline().startswith("waiting for 2 of the GPUs 0, 1, 2, 3")
    first.kill()
    two = _taken(second)
    assert len(three) == 3 and len(two) == 2
    third = holders(2)
    assert _taken(third) == {"0", "1", "2", "3"} - two


def test_small_jobs_share_a_gpu_and_go_to_the_emptiest(holders):
    one = _taken(holders(1, share=2, CUDA_VISIBLE_DEVICES="0,1"))
    other = _taken(holders(1, share=2, CUDA_VISIBLE_DEVICES="0,1"))
    assert one | other == {"0", "1"}
    small = holders(1, share=4, CUDA_VISIBLE_DEVICES="0")
    assert _taken(small) == {"0"}
    # 1/2 + 1/4 are taken of GPU 0, so a half is too much and a quarter is not.
    half = holders(1, share=2, CUDA_VISIBLE_DEVICES="0")
    assert half.stdout.readline().startswith("waiting")
    small.kill()
    assert _taken(half) == {"0"}


def test_whoever_came_first_takes_first(holders):
    """A job that wants all is not passed by small ones, and those of other GPUs do not wait behind it."""
    first = holders(1, CUDA_VISIBLE_DEVICES="0,1")
    (gpu,) = _taken(first)
    whole = holders(2, CUDA_VISIBLE_DEVICES="0,1")
    assert whole.stdout.readline().startswith("waiting")
    late = holders(1, CUDA_VISIBLE_DEVICES="0,1")
    assert late.stdout.readline().startswith("waiting")  # though one of the two is free
    assert _taken(holders(2, CUDA_VISIBLE_DEVICES="2,3")) == {"2", "3"}
    first.kill()
    assert _taken(whole) == {"0", "1"}
    whole.kill()
    assert len(_taken(late)) == 1


def test_many_at_once_never_take_too_much(holders, tmp_path):
    wanted = [(2, 1), (4, 1), (1, 2), (1, 2), (1, 4), (3, 1), (1, 1), (2, 1)]
    processes = [holders(count, share, seconds=0.1) for count, share in wanted]
    for process in processes:
        told = process.communicate(timeout=120)[0]
        assert process.returncode == 0, told
    used = dict.fromkeys("0123", 0.0)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2 * sum(count for count, _ in wanted)
    for line in lines:
        gpu, share = line.split()
        used[gpu[1]] += (1 if gpu[0] == "+" else -1) / int(share)
        assert used[gpu[1]] <= 1, lines


def test_a_lease_outlives_exec_and_ends_with_the_new_program(holders, tmp_path):
    """As where a training becomes its launcher."""
    script = (
        "import os, sys; from cpt_repro import gpus; held = gpus.lease(4, 1, 'test', print); held.hand_on();"
        "os.execvp('sh', ['sh', '-c', 'echo took $CUDA_VISIBLE_DEVICES; exec sleep 60'])"
    )
    environment = {**os.environ, "CPT_REPRO_GPUS": "4", "CPT_REPRO_GPU_LEASES": str(tmp_path / "leases")}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    execed = subprocess.Popen([PYTHON, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert _taken(execed) == set("0123")
    waiting = holders(1)
    assert waiting.stdout.readline().startswith("waiting")
    execed.kill()
    execed.communicate()
    assert len(_taken(waiting)) == 1


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """This process on a machine of 2 GPUs, outside Slurm."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CPT_REPRO_GPUS", "2")
    monkeypatch.setenv("CPT_REPRO_GPU_LEASES", str(tmp_path / "leases"))
    return monkeypatch


def test_more_gpus_than_there_are_are_refused_at_once(machine):
    with pytest.raises(UserError, match="3 GPUs are asked for, and here are 2"):
        gpus.lease(3, 1, "configs/scales/desk.yaml", print)
    machine.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(UserError, match="2 GPUs are asked for, and here are 1"):
        gpus.lease(2, 1, "configs/scales/desk.yaml", print)
    for hidden in ("", "-1"):
        machine.setenv("CUDA_VISIBLE_DEVICES", hidden)
        with pytest.raises(UserError, match="asks for a GPU, and there is none"):
            gpus.lease(1, 1, "configs/scales/desk.yaml", print)


def test_a_number_of_gpus_that_is_none_and_a_folder_that_cannot_be_used(machine, tmp_path):
    machine.setenv("CPT_REPRO_GPUS", "two")
    with pytest.raises(UserError, match="'two' is no number of GPUs"):
        gpus.lease(1, 1, "desk", print)
    machine.setenv("CPT_REPRO_GPUS", "2")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        machine.setenv("CPT_REPRO_GPU_LEASES", str(folder))
        with pytest.raises(UserError, match="folder of GPU leases cannot be used.*Set CPT_REPRO_GPU_LEASES"):
            gpus.lease(1, 1, "desk", print)
    # One that another user put there first, as anybody may in /tmp.
    machine.setenv("CPT_REPRO_GPU_LEASES", str(tmp_path / "taken"))
    machine.setattr(gpus.os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="it is not yours to write to"):
        gpus.lease(1, 1, "desk", print)


def test_gpus_are_known_by_nvidia_smi(machine, tmp_path):
    machine.delenv("CPT_REPRO_GPUS")
    machine.delenv("CUDA_DEVICE_ORDER", raising=False)
    _script(tmp_path / "nvidia-smi", "echo '0, GPU-aaaa-1'; echo '1, GPU-bbbb-2'")
    machine.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.visible() == ["0", "1"]
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    # The same GPU has one name however it is asked for.
    machine.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb")
    assert gpus.visible() == ["1"]


def test_jobs_of_slurm_do_not_contend_for_each_others_numbers(machine):
    outside = gpus.folder()
    machine.setenv("SLURM_JOB_ID", "7")
    one = gpus.folder()
    machine.setenv("SLURM_JOB_ID", "8")
    assert len({outside, one, gpus.folder()}) == 3


# -- launches


def _script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


#: Stands for the training: takes its place among the ranks as `cpt-repro train` does, and does as it is told.
RANK = """
import os, signal, sys, time
from cpt_repro.errors import UserError
from cpt_repro.workflow.launch import join

rank, told = os.environ["RANK"], sys.argv[1]
if told == "long" and rank == "1":
    time.sleep(3)  # long enough for the launcher to be gone
join()
print(f"rank {rank} of {os.environ['WORLD_SIZE']} on node {os.environ['NODE_RANK']}", flush=True)

def fail():
    if rank == "1":
        raise UserError("the disk of rank 1 is full.") if told == "refused" else RuntimeError("out of memory")
    time.sleep(600)

if told == "killed" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if told in ("killed", "long"):
    time.sleep(600)
if told in ("refused", "broken"):
    from torch.distributed.elastic.multiprocessing.errors import record
    try:
        record(fail)()
    except UserError:
        sys.exit(2)
if told == "sum":
    import torch
    import torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.tensor([float(rank) + 1])
    dist.all_reduce(total)
    if rank == "0":
        print("sum", total.item(), flush=True)
time.sleep(1)
"""


@pytest.fixture
def stand_in(tmp_path):
    """`command(execution, fault)`: the launch of a rank that stands for `cpt-repro`; and its environment."""
    (tmp_path / "stand_in.py").write_text(RANK)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK"))}
    environment |= {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}

    def command(execution, told):
        line = launch.command(execution, 1, [told])
        assert f"-m cpt_repro.cli {told}" in " ".join(line)
        return [part.replace("cpt_repro.cli", "stand_in") for part in line]

    return command, environment


def _ended(command, environment):
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout, result.stderr


def test_two_launches_at_once_have_ports_of_their_own(stand_in):
    command, environment = stand_in
    line = command(Execution(ranks_per_node=2), "nothing")
    both = [
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        told, faults = process.communicate(timeout=300)
        assert process.returncode == 0, faults
        assert told.splitlines() == ["rank 0 of 2 on node 0"]  # and nothing of rank 1


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        ("killed", 128 + 9, "rank 1 failed, and the others were ended: killed by SIGKILL"),
        ("refused", 2, "rank 1 failed, and the others were ended: the disk of rank 1 is full."),
        ("broken", 1, "RuntimeError: out of memory"),
    ],
)
def test_a_rank_that_dies_ends_the_launch_with_its_status(stand_in, fault, status, told):
    command, environment = stand_in
    began = time.monotonic()
    code, _, faults = _ended(command(Execution(ranks_per_node=2), fault), environment)
    assert code == status and told in faults
    if fault != "broken":  # that alone needs a traceback
        assert faults == f"cpt-repro: {told}\n"
    assert time.monotonic() - began < 120  # rank 0 would sleep for ten minutes


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_ranks_end_with_their_launcher(stand_in, number, status):
    command, environment = stand_in
    line = command(Execution(ranks_per_node=2), "long")
    process = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "rank 0 of 2 on node 0\n"
    ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    ranks = [int(pid) for pid in ranks.stdout.split()]
    assert len(ranks) == 2
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    if number == signal.SIGTERM:
        assert "ended by SIGTERM; the same command goes on" in process.stderr.read()
    _eventually(lambda: not any(_alive(pid) for pid in ranks), why="ranks live on without their launcher")


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_of_several_nodes_find_each_other(stand_in, tmp_path):
    command, environment = stand_in
    environment |= fake_slurm.install(tmp_path / "slurm") | {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "n[1-2]",
    }
    line = command(Execution(nodes=2, ranks_per_node=1), "sum")
    code, told, faults = _ended(line, environment)
    assert code == 0, faults
    assert sorted(told.splitlines()) == ["rank 0 of 2 on node 0", "rank 1 of 2 on node 1", "sum 3.0"]
    asked = json.loads((tmp_path / "slurm" / "srun.json").read_text())
    nodes = ["--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1"]
    assert asked[:10] == [*nodes, "--cpus-per-task", "1", "--kill-on-bad-exit=1", "bash"]


# -- what jobs ask for


@pytest.fixture
def workflow(monkeypatch, tmp_path):
    """`workflow(scale)`, with an empty store and no results."""
    monkeypatch.setenv("CPT_REPRO_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Workflow


def test_what_the_jobs_of_the_papers_own_scale_ask_for(workflow):
    paper = workflow("paper")
    large = next(job for job in paper.training() if job.name.startswith("10b"))
    execution = paper.plan.scale.execution["10b"]
    assert execution.nodes > 1
    assert large.resources == {
        "nodes": execution.nodes,
        "tasks": execution.nodes,
        "cpus_per_task": execution.ranks_per_node
        * (paper.plan.scale.threads + paper.plan.scale.loader_workers),
        "mem_mb": execution.memory_gb * 1000,
        "runtime": execution.hours * 60,
        "gpu_percent": 100 * execution.ranks_per_node,
        "slurm_extra": f"--gres=gpu:{execution.ranks_per_node}",
        "mpi": "srun",
    }
    small = next(job for job in paper.training() if job.name.startswith("405m"))
    assert small.resources["nodes"] == 1 and "mpi" not in small.resources
    assert {job.resources["slurm_extra"] for job in paper.evaluating()} <= {"--gres=gpu:1"}


def test_small_jobs_ask_for_a_part_of_a_gpu_and_those_of_cpus_for_none(workflow):
    desk = workflow("desk")
    share = desk.plan.scale.execution["405m"].jobs_per_gpu
    job = next(job for job in desk.training() if job.name.startswith("405m"))
    assert (job.resources["gpu_percent"], job.resources["slurm_extra"]) == (100 // share, "--gres=gpu:1")
    smoke = workflow("smoke")
    for job in [*smoke.training(), *smoke.evaluating()]:
        assert job.cores == smoke.plan.scale.threads == 1
        assert not {"gpu_percent", "slurm_extra", "mpi", "gpu"} & set(job.resources)


def test_models_spread_differently_are_not_trained_by_one_process(workflow):
    with pytest.raises(UserError, match="10b, 405m are spread differently over hardware"):
        workflow("paper").execution_of({"405m", "10b"})


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_runs():
    scale = load_scale("paper")
    spread = scale.execution | {"405m": Execution(ranks_per_node=7)}
    with pytest.raises(
        UserError, match="7 ranks do not divide its batch.*'ranks_per_node' in execution.405m"
    ):
        Plan(scale.model_copy(update={"execution": spread}))


def test_several_nodes_need_a_slurm_job_of_as_many(monkeypatch, tmp_path):
    two = Execution(nodes=2, ranks_per_node=1)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(
        UserError, match="2 nodes are asked for, and this is not inside a Slurm job.*profiles/slurm"
    ):
        launch.check(two, "desk")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(UserError, match="there is no srun here"):
        launch.check(two, "desk")
    monkeypatch.setenv("PATH", fake_slurm.install(tmp_path)["PATH"])
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    with pytest.raises(UserError, match="this Slurm job has 1"):
        launch.check(two, "desk")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    launch.check(two, "desk")


# -- whole calls


#: Snakemake whose plugin does not wait for 40 seconds between two questions to Slurm.
HURRIED = """
import asyncio, sys
sleep = asyncio.sleep
asyncio.sleep = lambda seconds, *more: sleep(min(seconds, 0.5), *more)
from snakemake.cli import main
sys.exit(main())
"""
RUN = "third2026/405m/german/seed-0"
#: Sums over two halves of a batch are rounded otherwise than over the whole; nats.
TOLERANCE = 2e-3
RECEIPT = f"results/smoke/runs/{RUN}/receipt.json"


class Cluster(Project):
    """A tiny project, each run a job of its own, its corpora built; and commands that stand for Slurm's."""

    def __init__(self, folder, corpora):
        super().__init__(folder)
        # The first corpus is the one that the tokenizer is made from.
        self.declare(bundle=0, corpora={"pile": "smoke_upstream", "german": "smoke_strong"})
        profile = folder / "profiles" / "slurm" / "config.yaml"
        self.unedited = profile.read_text()
        edited = self.unedited.replace("slurm_account=EDIT_ME", "slurm_account=team")
        profile.write_text(edited.replace("slurm_partition=EDIT_ME", "slurm_partition=gpu"))
        self.environment = {k: v for k, v in self.environment.items() if not k.startswith("SLURM")}
        # With its times: the tokenizer is no newer than what it made.
        shutil.copytree(corpora, folder / "data" / "smoke")

    def declare(self, **scale):
        told = yaml.safe_load(self.scale.read_text()) | scale
        self.scale.write_text(yaml.safe_dump(told, sort_keys=False))

    def cpt(self, *arguments, **environment):
        command = [PYTHON, "-m", "cpt_repro.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True
        )

    def submit(self, *arguments, faults=()):
        """Snakemake with the Slurm profile; its result, and what was submitted."""
        slurm = self.folder / f"slurm-{time.time_ns()}"
        environment = self.environment | fake_slurm.install(slurm, faults)
        command = [PYTHON, "-c", HURRIED, "--profile", "profiles/slurm", "--latency-wait", "5", *arguments]
        result = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        return result, fake_slurm.jobs(slurm)


@pytest.fixture(scope="module")
def cluster(smoke_data, tmp_path_factory):
    return Cluster(tmp_path_factory.mktemp("cluster"), smoke_data)


def test_jobs_for_gpus_on_several_nodes_are_submitted_so(cluster):
    before = cluster.scale.read_text()
    cluster.declare(
        device="gpu", threads=3, execution={"405m": {"nodes": 2, "ranks_per_node": 4, "hours": 1.5}}
    )
    try:
        result, (job,) = cluster.submit(RECEIPT, "--retries", "0", faults=["CANCELLED"])
    finally:
        cluster.scale.write_text(before)
    assert result.returncode != 0 and "SLURM status is: 'CANCELLED'" in result.stdout + result.stderr
    asked = " ".join(job["call"]).partition("--wrap")[0]
    for option in (
        "-A team -p gpu -t 90 --mem 8000 --nodes=2 --ntasks=2 --cpus-per-task=12 --gres=gpu:4",
        "--requeue",
    ):
        assert option in asked
    assert (
        "gpu:" not in asked.replace("--gres=gpu:4", "") and "--gpus" not in asked and "per-gpu" not in asked
    )


def test_a_job_that_is_preempted_and_then_out_of_time_goes_on(cluster):
    result, jobs = cluster.submit(RECEIPT, faults=["PREEMPTED", "TIMEOUT"])
    assert result.returncode == 0, result.stdout + result.stderr
    preempted = ["PENDING", "RUNNING", "PREEMPTED", "PENDING", "RUNNING", "TIMEOUT"]
    assert [job["states"] for job in jobs] == [preempted, ["PENDING", "RUNNING", "COMPLETED"]]
    receipt = json.loads((cluster.folder / RECEIPT).read_text())
    assert receipt["measured"]["resumed_at"] > 0


@pytest.fixture
def declared(cluster):
    """`declare(...)` for one test."""
    before = cluster.scale.read_text()
    yield cluster.declare
    cluster.scale.write_text(before)


def test_two_ranks_are_started_where_the_scale_asks_for_them(cluster, declared, tmp_path):
    """Of the same run as in the test above, which trained it with one."""
    declared(execution={"405m": {"ranks_per_node": 2}})
    call = ["train", "405m-0-001", "--results", "two"]
    shown = cluster.cpt(*call, "--dry-run", CPT_REPRO_STORE=str(tmp_path))
    ours = "-m cpt_repro.cli train 405m-0-001 --scale smoke --results two"
    torchrun = "-m cpt_repro.launch --standalone --local-addr 127.0.0.1 --nproc-per-node 2"
    assert shlex.split(shown.stdout) == [PYTHON, *torchrun.split(), *ours.split()]
    assert not (cluster.folder / "two").exists()
    result = cluster.cpt(*call, CPT_REPRO_STORE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.count("nats") + result.stdout.count("tokens/s") == 1
    )  # what the first rank says, once
    two = json.loads((cluster.folder / RECEIPT.replace("results", "two")).read_text())
    one = json.loads((cluster.folder / RECEIPT).read_text())
    assert two["identity"] == one["identity"]
    for corpus, curve in one["curves"].items():
        assert [i for i, _ in two["curves"][corpus]] == [i for i, _ in curve]
        for (_, loss), (_, other) in zip(curve, two["curves"][corpus], strict=True):
            assert abs(loss - other) < TOLERANCE


def test_an_empty_store_is_no_reason_to_build_corpora_again(cluster, tmp_path):
    """As where it was moved, or where corpora were built by hand."""
    cluster.environment["CPT_REPRO_STORE"] = str(tmp_path)
    try:
        planned = cluster.snakemake("-n", "results/smoke/runs/third2026/405m/pile/seed-0/receipt.json")
        (cluster.folder / "data" / "smoke" / "pile" / "fingerprint.json").rename(
            tmp_path / "fingerprint.json"
        )
        missing = cluster.snakemake("-n", "results/smoke/runs/third2026/405m/pile/seed-0/receipt.json")
    finally:
        del cluster.environment["CPT_REPRO_STORE"]
        (tmp_path / "fingerprint.json").rename(
            cluster.folder / "data" / "smoke" / "pile" / "fingerprint.json"
        )
    # Lines of the table of jobs begin with a rule's name.
    assert "\ntrain_405m-0-000 " in planned.stdout and "\ncorpus " in missing.stdout
    assert "\ncorpus " not in planned.stdout and "\ntokenizer " not in planned.stdout


def test_a_training_for_more_gpus_than_there_are_is_refused(cluster, declared, tmp_path):
    declared(device="gpu", execution={"405m": {"ranks_per_node": 4}})
    machine = {"CPT_REPRO_GPUS": "2", "CPT_REPRO_GPU_LEASES": str(tmp_path), "CPT_REPRO_STORE": str(tmp_path)}
    result = cluster.cpt("train", "405m-0-001", "--results", "four", **machine)
    assert result.returncode == 2
    assert "execution.405m: 4 GPUs are asked for, and here are 2." in result.stderr
    declared(device="gpu", execution={"405m": {"nodes": 2}})
    result = cluster.cpt("train", "405m-0-001", "--results", "four", **machine)
    assert result.returncode == 2 and "not inside a Slurm job" in result.stderr


def test_what_failed_by_itself_is_tried_anew_by_a_new_call_only(cluster, declared, tmp_path):
    failure = cluster.folder / RECEIPT.replace("results", "failed").replace("receipt", "failure")
    identity = json.loads((cluster.folder / RECEIPT).read_text())["identity"]
    failure.parent.mkdir(parents=True)
    failure.write_text(json.dumps({"identity": identity, "why": "the loss is not finite."}))
    call = ["train", "405m-0-001", "--results", "failed"]
    again = cluster.cpt(*call, "--attempt", "2", CPT_REPRO_STORE=str(tmp_path))
    assert (
        again.returncode == 2 and "it failed in an earlier attempt: the loss is not finite." in again.stderr
    )
    assert failure.exists()
    # A new call forgets it; of what then happens only that it goes on to ask for a GPU matters here.
    declared(device="gpu")
    new = cluster.cpt(*call, CPT_REPRO_STORE=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert "there is none" in new.stderr and not failure.exists()


def test_a_profile_with_an_unknown_key_or_without_an_account_is_refused(cluster):
    profile = cluster.folder / "profiles" / "slurm" / "config.yaml"
    edited = profile.read_text()
    try:
        profile.write_text(edited + "slurm-partitions: gpu\n")
        result, jobs = cluster.submit("figures/")
        assert result.returncode != 0 and "slurm-partitions" in result.stderr and not jobs
        profile.write_text(cluster.unedited)
        # A file that no other test makes.
        result, jobs = cluster.submit(
            "results/smoke/runs/third2026/405m/pile/seed-0/receipt.json", "--retries", "0"
        )
        assert result.returncode != 0 and not jobs
        assert (
            "account EDIT_ME appears to be invalid. Available accounts:\nteam"
            in result.stdout + result.stderr
        )
    finally:
        profile.write_text(edited)


def test_the_whole_graph_of_the_papers_own_scale_needs_no_network(tmp_path):
    for name in ("Snakefile", "cpt_repro", "configs", "data_manifests", "profiles"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"https_proxy": "http://127.0.0.1:9", "CPT_REPRO_STORE": str(tmp_path / "store")}
    command = [
        PYTHON,
        "-m",
        "snakemake",
        "-n",
        "--profile",
        "profiles/slurm",
        "figures/",
        "--config",
        "scale=paper",
    ]
    began = time.monotonic()
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\ntrain_10b") > 1 and result.stdout.count("\ntrain_405m") > 50
    assert time.monotonic() - began < 120
