"""Two ranks (processes, gloo), with whole and with sharded parameters: the same training as one, up to
rounding.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from short_runs import SHORT, World, numbers
from two_ranks import BRANCH, FOUR, ROOT

from cpt_repro.models.architecture import architecture
from cpt_repro.models.weights import load_optimizer, load_weights
from cpt_repro.records.receipts import Receipt, read_record

pytestmark = pytest.mark.slow
TESTS = Path(__file__).resolve().parent.parent
#: Sums over parts of a batch are rounded otherwise than over the whole; nats after 30 updates.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def two(built, tmp_path_factory):
    """What two ranks made, started as by a launcher: worlds by name, what they saw, and how they ended."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    common |= {"MASTER_PORT": str(port), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "two_ranks.py"), str(built.root), str(built.data), str(folder)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert (folder / "seen.json").is_file(), outputs[0][-3000:] + outputs[1][-3000:]
    worlds = {
        f"{name}_world": World(built, folder / name, **SHORT) for name in ("whole", "sharded", "stopped")
    }
    codes = [process.returncode for process in started]
    return SimpleNamespace(
        codes=codes, outputs=outputs, **json.loads((folder / "seen.json").read_text()), **worlds
    )


def receipt(world, name):
    return read_record(Receipt, world.folder(name) / "receipt.json")


def assert_same_up_to_rounding(one, other):
    for corpus, losses in one.losses.items():
        pairs = zip(losses.curve, other.losses[corpus].curve, strict=True)
        assert max(abs(a[1] - b[1]) for a, b in pairs) < TOLERANCE
        assert len(other.losses[corpus].of_sequences) == len(losses.of_sequences) == 13  # two cannot halve it
    assert one.parameters == other.parameters and one.learning_rate == other.learning_rate
    pairs = zip(one.train_loss, other.train_loss, strict=True)
    assert max(abs(a[1] - b[1]) for a, b in pairs) < TOLERANCE


@pytest.mark.parametrize("name", ["pile", "pile--sp/replay-0.05"])
def test_two_ranks_train_as_one(name, trained, two, faults):
    both = two.whole_world.records.receipt(two.whole_world.run(name))
    assert both.measured.execution["ranks"] == 2
    assert_same_up_to_rounding(trained.records.receipt(trained.run(name)), both)
    assert two.whole_world.store.finished(both.identity, two.whole_world.plan.kept(both.identity)) == both
    faults("2 ranks (gloo) instead of 1, with replay", 1, "losses equal up to rounding")


def test_two_ranks_with_sharded_parameters_train_as_one(trained, two, world):
    assert (
        two.sharded and all(two.wrapped) and len(two.wrapped) == 1 + trained.run(ROOT).training.model.layers
    )
    assert_same_up_to_rounding(receipt(trained, ROOT), receipt(two.sharded_world, ROOT))
    own = world()
    own.borrow(trained, ROOT)
    branch = receipt(two.sharded_world, BRANCH)
    # It began with its parent's optimizer: without it the first updates differ by 100 times the tolerance.
    assert_same_up_to_rounding(own.fit(BRANCH), branch)
    assert branch.parent_weights == receipt(two.sharded_world, ROOT).checkpoints[29]


def test_weights_and_optimizer_of_sharded_training_are_saved_whole(trained, two):
    training, shape = trained.run(ROOT).training, architecture("gpt_neox")
    models, states = [], []
    for world in (trained, two.sharded_world):
        models.append(shape.new(training.model, training.vocabulary, training.sequence_length, 1))
        load_weights(models[-1], world.model(ROOT))
        states.append(load_optimizer(world.model(ROOT)))
    for (name, a), (other, b) in zip(*(model.state_dict().items() for model in models), strict=True):
        assert name == other and a.shape == b.shape and (a - b).abs().max() < 1e-3
    assert list(states[0]["state"]) == list(states[1]["state"])
    for number, values in states[0]["state"].items():
        for key, value in values.items():
            assert torch.allclose(value, states[1]["state"][number][key], atol=1e-4)


def test_sharded_training_goes_on_from_its_saved_state_with_the_same_bits(two, faults):
    assert {"resume-6/ep0-ba6/__0_0.distcp", "resume-12/ep0-ba12/__1_0.distcp"} <= set(two.files)
    resumed, whole = receipt(two.stopped_world, ROOT), receipt(two.sharded_world, ROOT)
    assert resumed.measured.resumed_at == 12
    # The micro-batch is that of the state, though more would now fit.
    assert resumed.measured.execution["microbatch_sequences"] == FOUR.microbatch_sequences
    assert numbers(resumed) == numbers(whole)
    faults("2 ranks with sharded parameters (FSDP, gloo), stopped", 1, "the same bits as never stopped")


def test_a_rank_that_fails_alone_ends_all(two, faults):
    """It does not wait in vain for the one that is still in a step, nor that one for it."""
    assert 0 not in two.codes and "ValueError: this rank alone" in two.outputs[1]
    faults("one of 2 ranks fails by itself", 1, "all end, none waits")
