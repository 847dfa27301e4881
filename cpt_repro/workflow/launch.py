"""How ranks are started: one in the process at hand, several by torchrun, over several nodes with srun.

Torchrun and not Composer's launcher: that one leaves its ranks behind when Slurm or a user terminates it, and
imports Composer once more. Composer reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT, which torchrun sets, and NODE_RANK, which it calls GROUP_RANK.

`python -m cpt_repro.workflow.launch` is torchrun that shows the output of the first rank of a node and, where
a rank fails, ends all others and says in a sentence which and why.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile

from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError, redacted
from cpt_repro.processes import end_with

#: Of a launch over nodes: two jobs on a node differ by their number; below what the kernel hands out.
_PORT = "$((10000 + SLURM_JOB_ID % 20000))"
#: Tells ranks the process that started them.
_LAUNCHER = "CPT_REPRO_LAUNCHER"


def join() -> None:
    """What a rank does before it trains: takes the node's number, and from now on ends with its launcher."""
    os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    # A launcher that is killed outright cannot end its ranks, and they would hold GPUs that look free.
    if launcher := os.environ.get(_LAUNCHER):
        end_with(int(launcher))


def command(execution: Execution, cpus: int, arguments: list[str]) -> list[str]:
    """The command that starts all ranks of `cpt-repro <arguments>`; over nodes, for inside a Slurm job.

    `cpus`: cores that the ranks of one node use.
    """
    ours = [sys.executable, "-m", "cpt_repro.workflow.launch"]
    ranks = ["--nproc-per-node", str(execution.ranks_per_node)]
    job = ["-m", "cpt_repro.cli", *arguments]
    if execution.ranks == 1:
        return [sys.executable, *job]
    if execution.nodes == 1:
        # The port is one that the kernel has free; the name of a machine need not resolve to itself.
        return [*ours, "--standalone", "--local-addr", "127.0.0.1", *ranks, *job]
    # Fixed places and no election: Slurm knows the nodes. It ends all of them when one fails.
    first = '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"'
    place = f'--node-rank "$SLURM_NODEID" --master-addr {first} --master-port {_PORT}'
    torchrun = shlex.join([*ours, "--nnodes", str(execution.nodes), *ranks])
    nodes = ["--nodes", str(execution.nodes), "--ntasks", str(execution.nodes), "--ntasks-per-node", "1"]
    srun = ["srun", *nodes, "--cpus-per-task", str(cpus), "--kill-on-bad-exit=1"]
    return [*srun, "bash", "-c", f"exec {torchrun} {place} {shlex.join(job)}"]


def check(execution: Execution, where: str) -> None:
    """Raises `UserError` where several nodes are asked for and this is no Slurm job of as many."""
    if execution.nodes == 1:
        return
    if "SLURM_JOB_ID" not in os.environ:
        fault = "this is not inside a Slurm job"
        do = "Start it by snakemake --profile profiles/slurm, or inside an allocation (salloc, sbatch)."
    elif shutil.which("srun") is None:
        fault, do = "there is no srun here", "Put Slurm's commands on PATH."
    elif (given := int(os.environ.get("SLURM_JOB_NUM_NODES", execution.nodes))) < execution.nodes:
        fault, do = f"this Slurm job has {given}", "Ask Slurm for as many, or lower 'nodes'."
    else:
        return
    raise UserError(f"{execution.nodes} nodes are asked for, and {fault}.", where=where, do=do)


def main(arguments: list[str]) -> int:
    """Runs torchrun with `arguments`; the exit status: that of the rank that failed first."""
    logging.disable(logging.ERROR)  # what torchrun would log of a failure is said below
    os.environ[_LAUNCHER] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    with tempfile.TemporaryDirectory(prefix="cpt-repro-launch-") as logs:
        try:
            torchrun(["--log-dir", logs, "--local-ranks-filter", "0", *arguments])
            return 0
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
        except (SignalException, KeyboardInterrupt) as error:
            number = signal.Signals(getattr(error, "sigval", signal.SIGINT))
            goes_on = "the same command goes on from the last checkpoint"
            print(f"cpt-repro: ended by {number.name}; {goes_on}.", file=sys.stderr)
            return 128 + number
    record = failure.message if isinstance(failure.message, dict) else {}
    if failure.exitcode == 2:  # a UserError, which the first rank of a node has shown
        why = record.get("message", "its message is above").removeprefix("UserError: ")
    elif failure.exitcode < 0:
        why = f"killed by {failure.signal_name()}"
    else:
        why = record.get("extraInfo", {}).get("py_callstack") or f"status {failure.exitcode}"
    print(f"cpt-repro: rank {rank} failed, and the others were ended: {redacted(why)}", file=sys.stderr)
    return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
