"""Launches of several ranks, by torchrun and by a stand-in for srun."""

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import fake_slurm
import pytest
from third_study import REPOSITORY

from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError
from cpt_repro.workflow import launch

pytestmark = pytest.mark.slow


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
    code, _, faults = _ended(command(Execution(ranks_per_node=2), fault), environment)
    assert code == status and told in faults
    if fault != "broken":  # that alone needs a traceback
        assert faults == f"cpt-repro: {told}\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_ranks_end_with_their_launcher(stand_in, number, status, wait_for):
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
    wait_for(lambda: not any(_alive(pid) for pid in ranks), "the end of ranks without their launcher")


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


def test_several_nodes_need_a_slurm_job_of_as_many(monkeypatch, tmp_path):
    two = Execution(nodes=2, ranks_per_node=1)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(
        UserError, match="2 nodes are asked for, and this is not inside a Slurm job.*profiles/"
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


@pytest.mark.parametrize("nodes", [1, 2])
def test_arguments_reach_the_ranks_as_they_are(nodes):
    """Whatever they hold: a shell reads what `--dry-run` prints, and on every node what srun starts."""
    told = ["train", 'it\'s "x"; touch ATTACKED', "$(touch ATTACKED)", "a\nb"]
    execution = Execution(nodes=nodes, ranks_per_node=2)
    line = shlex.split(shlex.join(launch.command(execution, 1, told)))
    started = shlex.split(line[-1]) if nodes > 1 else line
    assert started[-len(told) :] == told
