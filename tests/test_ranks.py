"""Two ranks (processes, gloo): the same global order of samples as one, and the same losses up to rounding."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_repro.declarations.scale import Execution, load_scale
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import read_receipt, receipt_path
from cpt_repro.training.store import Store

REPOSITORY = Path(__file__).parent.parent
#: Billions of the paper's tokens between saved states.
SAVE_EVERY = 30
RUN = "ibrahim2024/405m/pile--sp-domains/stage-2"
#: One without parents.
SHORT = "ibrahim2024/405m/sp-3x100/cosine/split-1"
#: Sums over two halves of a batch are rounded otherwise than over the whole; nats after 78 updates.
TOLERANCE = 2e-3

#: One rank: trains the run's lineage, and writes down every batch that its loader gave, iteration by iteration.
SCRIPT = (
    f"SAVE_EVERY = {SAVE_EVERY}"
    + """
import hashlib, json, os, sys
from pathlib import Path
from cpt_repro.declarations.scale import Execution, load_scale
from cpt_repro.planning.plan import Plan
from cpt_repro.training import trainer
from cpt_repro.training.train import train_segments
from cpt_repro.training.store import Store

run, data, folder, workers, stop = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
execution = Execution.model_validate_json(sys.argv[6])
how = {"loader_workers": workers, "save_every": SAVE_EVERY, "execution": {"405m": execution}}
scale = load_scale("smoke").model_copy(update=how)
plan = Plan(scale)
own = plan.segments[run + "/seed-0"]
seen = open(folder / f"order-{os.environ['RANK']}.txt", "a")
whole = trainer.CausalLM.loss

def loss(self, outputs, batch):
    if self.training and current[0] is own:
        seen.write(" ".join(hashlib.sha1(row.numpy().tobytes()).hexdigest()[:12] for row in batch) + "\\n")
        seen.flush()
        if stop and sum(1 for _ in open(seen.name)) == stop:
            os._exit(9)
    return whole(self, outputs, batch)

trainer.CausalLM.loss, current = loss, [None]
for segment in plan.lineage(own.id):
    current[0] = segment
    train_segments(plan, [segment], data, folder / "results", Store("smoke", folder / "store"), print)
"""
)


def free_port():
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of_rank(rank, count, port):
    """What a launcher tells a rank of `count` on one machine."""
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }
    common |= {"MASTER_PORT": str(port), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _ranks(count, data, folder, workers=0, stop=0, run=RUN, execution="{}"):
    """Runs the script in `count` ranks; their exit codes."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = [sys.executable, "-c", SCRIPT, run, str(data), str(folder), str(workers), str(stop), execution]
    started = [
        subprocess.Popen(command, env={**os.environ, **environment_of_rank(rank, count, port)},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(count)
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[0] for process in started]
    codes = [process.returncode for process in started]
    assert stop or codes == [0] * count, told[0][-3000:]
    return codes


def _order(folder, count, microbatches=1):
    """Rows of every global batch in order, the ranks' parts put together, each of so many micro-batches."""
    parts = [
        [line.split() for line in (folder / f"order-{r}.txt").read_text().splitlines()] for r in range(count)
    ]
    n = microbatches
    parts = [[sum(part[k : k + n], []) for k in range(0, len(part), n)] for part in parts]
    return [[row for part in batch for row in part] for batch in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def one(smoke_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    _ranks(1, smoke_data, folder)
    return folder


def _receipt(folder, run=RUN):
    return read_receipt(receipt_path(folder / "results", "smoke", f"{run}/seed-0"))


def test_two_ranks_train_as_one(one, smoke_data, tmp_path, faults):
    two = tmp_path / "two"
    _ranks(2, smoke_data, two)
    assert _order(two, 2) == _order(one, 1)
    alone, both = _receipt(one), _receipt(two)
    assert alone.identity == both.identity and alone.learning_rate == both.learning_rate
    for corpus, curve in alone.curves.items():
        other = dict(both.curves[corpus])
        assert max(abs(loss - other[iteration]) for iteration, loss in curve) < TOLERANCE
    assert max(abs(a[1] - b[1]) for a, b in zip(alone.train_loss, both.train_loss, strict=True)) < TOLERANCE
    plan = Plan(load_scale("smoke"))
    own = plan.segments[f"{RUN}/seed-0"]
    assert Store("smoke", two / "store").finished(own, plan.checkpoints[own.id]) is not None
    faults(
        "2 ranks (gloo) instead of 1, with replay",
        1,
        "the same global order of samples, losses equal up to rounding",
    )


def test_two_ranks_in_micro_batches_that_compute_activations_twice(smoke_data, tmp_path):
    how = Execution(ranks_per_node=2, microbatch_sequences=2, activation_checkpointing=True)
    _ranks(1, smoke_data, tmp_path / "one", run=SHORT)
    _ranks(2, smoke_data, tmp_path / "two", run=SHORT, execution=how.model_dump_json())
    # Each rank has 8 of 16 sequences.
    assert _order(tmp_path / "two", 2, microbatches=4) == _order(tmp_path / "one", 1)
    alone, both = (_receipt(tmp_path / name, SHORT) for name in ("one", "two"))
    assert (
        both.measured["execution"]["microbatch_sequences"] == 2 and both.measured["execution"]["ranks"] == 2
    )
    for corpus, curve in alone.curves.items():
        other = dict(both.curves[corpus])
        assert max(abs(loss - other[iteration]) for iteration, loss in curve) < TOLERANCE


@pytest.mark.parametrize("workers", [1, 3])
def test_data_workers_and_a_stop_change_neither_order_nor_bits(one, smoke_data, tmp_path, workers, faults):
    """Stopped at a random step and gone on with: the order, and every number of the receipt, to the last bit."""
    other = tmp_path / "other"
    expected = _order(one, 1)
    stop = random.Random(workers).randint(31, len(expected) - 1)
    assert _ranks(1, smoke_data, other, workers=workers, stop=stop) == [9]
    _ranks(1, smoke_data, other, workers=workers)
    seen = _order(other, 1)
    every = load_scale("smoke").iterations(SAVE_EVERY)
    resumed = every * ((stop - 1) // every)
    assert seen[:stop] == expected[:stop]
    assert seen[stop:] == expected[resumed:]
    assert _receipt(other).model_dump(exclude={"measured"}) == _receipt(one).model_dump(exclude={"measured"})
    faults(
        f"stopped at a random step, {workers} data workers", 1, "the same order of samples and the same bits"
    )


def test_ranks_that_do_not_divide_the_batch_are_refused(smoke_data, tmp_path):
    environment = environment_of_rank(0, 3, free_port())
    command = [sys.executable, "-c", SCRIPT, RUN, str(smoke_data), str(tmp_path), "0", "0", "{}"]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode != 0
    assert "3 ranks do not divide the batch of 16 sequences" in result.stdout + result.stderr
    assert not list(tmp_path.rglob("receipt.json"))
    failure = json.loads(next(tmp_path.rglob("failure.json")).read_text())
    assert "do not divide" in failure["why"]
