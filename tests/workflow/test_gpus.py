"""Leases of GPUs, of which there are made-up ones."""

import fcntl
import os
import subprocess
import sys

import pytest
from third_study import REPOSITORY

from cpt_repro.errors import UserError
from cpt_repro.workflow import gpus

#: Takes a lease, says which GPUs, writes "+gpu" and "-gpu" to a log (appended whole), and holds it a while.
HOLDER = """
import os, sys, time
from cpt_repro.workflow import gpus
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
        command = [sys.executable, "-c", HOLDER, str(count), str(share), str(seconds), str(tmp_path / "log")]
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
        "import os; from cpt_repro.workflow import gpus; gpus.lease(4, 1, 'test', print).hand_on();"
        "os.execvp('sh', ['sh', '-c', 'echo took $CUDA_VISIBLE_DEVICES; exec sleep 60'])"
    )
    environment = os.environ | {"CPT_REPRO_GPUS": "4", "CPT_REPRO_GPU_LEASES": str(tmp_path / "leases")}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", script]
    execed = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
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


@pytest.mark.parametrize("number", ["two", "-1", "1e3", "9" * 12])
def test_a_number_of_gpus_that_is_none(machine, number):
    machine.setenv("CPT_REPRO_GPUS", number)
    with pytest.raises(UserError, match=f"'{number}' is no number of GPUs"):
        gpus.lease(1, 1, "desk", print)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: path.write_text(""), "File exists"),
        (lambda path: path.symlink_to(path.parent), "it is a link"),
        (lambda path: path.mkdir() or path.chmod(0o777), "others may write to it"),
        (lambda path: path.mkdir() or path.chmod(0o770), "others may write to it"),
    ],
    ids=["file", "link", "everybody's", "group's"],
)
@pytest.mark.parametrize("job", [None, "7"])
def test_a_folder_that_others_could_fill_is_refused(machine, tmp_path, make, fault, job):
    """Also where a Slurm job's own folder is below it."""
    make(tmp_path / "leases")
    if job:
        machine.setenv("SLURM_JOB_ID", job)
    with pytest.raises(
        UserError, match=f"folder of GPU leases cannot be used .{fault}.*Set CPT_REPRO_GPU_LEASES"
    ):
        gpus.lease(1, 1, "desk", print)


def test_a_folder_that_another_user_made_first_is_refused(machine, tmp_path):
    """As anybody may in /tmp."""
    (tmp_path / "leases").mkdir()
    machine.setattr(gpus.os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="it is not yours"):
        gpus.lease(1, 1, "desk", print)


def test_nobodys_files_are_touched(machine, tmp_path):
    """A folder of one's own scripts, some called like jobs and locks; a link to a file elsewhere is not
    followed.
    """
    folder, elsewhere = tmp_path / "leases", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_text("precious")
    for name in ("train_llama.job", "00000000001754000000-1.job", "lock", "gpu-1.lock"):
        (folder / name).write_text(name)
    (folder / "gpu-0.lock").symlink_to(elsewhere)
    (folder / "empty.job").touch()
    locked = os.open(folder / "empty.job", os.O_RDWR)
    fcntl.flock(locked, fcntl.LOCK_EX)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="gpu-0.lock: it cannot be opened .Too many levels of symbolic links"):
        gpus.lease(1, 1, "desk", print)
    machine.setenv("CUDA_VISIBLE_DEVICES", "1")
    gpus.lease(1, 1, "desk", print).close()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert elsewhere.read_text() == "precious"
    os.close(locked)


def test_a_name_of_a_gpu_leads_nowhere(machine, tmp_path):
    machine.setenv("CUDA_VISIBLE_DEVICES", "../../outside")
    gpus.lease(1, 1, "desk", print).close()
    assert {path.parent for path in tmp_path.rglob("*.lock")} == {tmp_path / "leases"}


def test_gpus_are_known_by_nvidia_smi(machine, tmp_path):
    machine.delenv("CPT_REPRO_GPUS")
    machine.delenv("CUDA_DEVICE_ORDER", raising=False)
    path = tmp_path / "nvidia-smi"
    path.write_text("#!/bin/bash\necho '0, GPU-aaaa-1'; echo '1, GPU-bbbb-2'\n")
    path.chmod(0o755)
    machine.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.visible() == ["0", "1"]
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    # The same GPU has one name however it is asked for.
    machine.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb")
    assert gpus.visible() == ["1"]


def test_jobs_of_slurm_do_not_contend_for_each_others_numbers(machine):
    outside = gpus.folders()[-1]
    machine.setenv("SLURM_JOB_ID", "7")
    one = gpus.folders()[-1]
    machine.setenv("SLURM_JOB_ID", "8")
    assert len({outside, one, gpus.folders()[-1]}) == 3
