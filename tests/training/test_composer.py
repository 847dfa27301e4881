"""One training: the same bits again, after interruptions and faults; what it takes over; what stops it."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from short_runs import World, numbers
from torch.distributed import checkpoint

from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, read_json, write_json
from cpt_repro.training.composer import PLAIN, _loading
from cpt_repro.training.store import SavedStates

pytestmark = pytest.mark.slow
CHILD = "pile--sp/replay-0.05"


def test_the_same_bits_after_interruptions(trained, world, killed_at):
    """Ended twice, with replay: weights, losses and receipt as if never stopped."""
    own = world()
    own.borrow(trained, "pile")
    for iteration in (8, 20):
        killed_at(own, CHILD, iteration)
    assert sorted(path.name for path in own.folder(CHILD).glob("resume*")) == [
        "resume-12.pt", "resume-18.pt", "resume.json",
    ]  # fmt: skip
    again = own.fit(CHILD)
    assert again.measured.resumed_at == 18
    assert numbers(again) == numbers(trained.records.receipt(trained.run(CHILD)))
    assert file_digest(own.model(CHILD) / "model.safetensors") == again.checkpoints[29]
    assert not list(own.folder(CHILD).glob("*resume*"))


def test_a_child_begins_where_its_parent_ended(trained):
    parent, child = (trained.records.receipt(trained.run(name)) for name in ("pile", CHILD))
    assert child.parent_weights == parent.checkpoints[29]
    for corpus in ("pile", "sp"):
        # Weights were carried over, exactly.
        assert child.losses[corpus].curve[0][1] == parent.losses[corpus].curve[-1][1]
    assert dict(child.learning_rate)[0] == 0.0
    assert max(rate for _, rate in child.learning_rate) <= child.training.schedule.eta_max


@pytest.mark.parametrize("keep", ["optimizer", "data"])
def test_what_is_kept_of_a_parent_changes_updates_and_not_the_start(trained, world, keep):
    own = world()
    if keep == "optimizer":
        shutil.copytree(trained.folder("pile"), own.folder("pile"))
        kept, dropped = own.fit("pile--sp/keep-optimizer"), trained.records.receipt(trained.run(CHILD))
        curves = [dict(receipt.losses["sp"].curve) for receipt in (kept, dropped)]
        assert curves[0][0] == curves[1][0] and curves[0][4] != curves[1].get(4)
        (own.model("pile") / "optimizer.json").write_text("{}")
        with pytest.raises(UserError, match="optimizer's state is altered"):
            own.fit("pile--sp/keep-optimizer")
        return
    trunk = "sp-3x100/infinite-cosine/split-1"
    before = own.fit(trunk)
    batches, seen = {}, own.corpora
    from cpt_repro.training.batches import Batches

    for name in (trunk, f"{trunk}-annealed"):
        batches[name] = Batches(own.run(name).training, seen)
    # A branch reads on where it left its trunk, with its trunk's optimizer.
    assert torch.equal(batches[f"{trunk}-annealed"][0], batches[trunk][8])
    branch = own.fit(f"{trunk}-annealed")
    assert branch.parent_weights == before.checkpoints[8]


class Boom:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


class Loaded(Boom):
    """Calls what is allowed with what is not: numpy would unpickle it."""

    def __reduce__(self):
        return np.ndarray, ((1,), np.dtype("O"), pickle.dumps(Boom(self.mark)))


HOSTILE = {
    "all of it": lambda state, mark: Boom(mark),
    "beside the rest": lambda state, mark: state | {"more": Boom(mark)},
    "within the rest": lambda state, mark: state["state"]["callbacks"].update(Pace=Boom(mark)),
    "in an array": lambda state, mark: state | {"more": Loaded(mark)},
    "none": lambda state, mark: {"state": 3},
    "of another size": lambda state, mark: state["state"]["model"].update(
        {name: torch.zeros(3) for name in state["state"]["model"]}
    ),
}


def test_a_saved_state_runs_no_code(world, killed_at, tmp_path, monkeypatch):
    """Its record is right in every other respect; at last a text that Composer would evaluate."""
    # As in a job of the warm process, where the import lies before the environment.
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    own, mark = world(), tmp_path / "code was run"
    killed_at(own, "sp", 20)
    record = own.folder("sp") / "resume.json"
    newest, older = read_json(record)
    path = own.folder("sp") / newest["file"]

    def plant(change):
        with torch.serialization.safe_globals(PLAIN):
            state = torch.load(path)
        changed = change(state)
        path.unlink()
        torch.save(changed if isinstance(changed, (dict, Boom)) else state, path)
        write_json(record, [newest | {"sha256": file_digest(path)}, older])

    whole = path.read_bytes()
    for change in HOSTILE.values():
        plant(lambda state, change=change: change(state, mark))
        with pytest.raises(UserError, match=f"^{path}: it is no state of this training"):
            own.fit("sp")
        path.write_bytes(whole)
    for content in (pickle.dumps(Boom(mark)), b"", whole[:5000]):
        path.write_bytes(content)
        write_json(record, [newest | {"sha256": file_digest(path)}, older])
        with pytest.raises(UserError, match=f"^{path}: it is no state of this training"):
            own.fit("sp")
    path.write_bytes(whole)
    code = f"Alibi.__init__.__globals__['__builtins__']['open']({str(mark)!r}, 'w')"
    plant(lambda state: state["state"].update(algorithms=[("Alibi", {"repr": code})]))
    again = own.fit("sp")
    assert again.measured.resumed_at == newest["iteration"] and not mark.exists()
    assert numbers(again) == numbers(world("whole").fit("sp"))


def sharded(folder, change=lambda described: None, more=None):
    """A sharded state of one rank; what is read of it by torch as Composer has it read."""
    inner = folder / "ep0-ba8"
    state = {"weight": torch.ones(3), "time": more}
    checkpoint.save(state, storage_writer=checkpoint.FileSystemWriter(inner), no_dist=True)
    path = inner / ".metadata"
    described = pickle.loads(path.read_bytes())
    changed = change(described)
    path.write_bytes(changed if isinstance(changed, bytes) else pickle.dumps(described))
    read = {"weight": torch.zeros(3), "time": None}
    with _loading(folder, True) as load_path:
        checkpoint.load(read, storage_reader=checkpoint.FileSystemReader(load_path), no_dist=True)
    return read


def led_elsewhere(described):
    first = next(iter(described.storage_data.values()))
    first.relative_path = "../elsewhere"


#: Sets an attribute of a type: BUILD on what a name stands for, with state for slots.
ALTERED = b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n(N}X\x04\0\0\0evilK\x01stb."


@pytest.mark.parametrize("where", ["described", "elsewhere", "altered", "in a part", "no folder", "two"])
def test_a_sharded_state_runs_no_code(tmp_path, where):
    folder, mark = tmp_path / "resume-8", tmp_path / "code was run"
    more = np.random.RandomState(1).get_state()
    read = sharded(folder, more=more)
    assert torch.equal(read["weight"], torch.ones(3)) and np.array_equal(read["time"][1], more[1])
    changes = {
        "described": {"change": lambda described: setattr(described, "planner_data", Boom(mark))},
        "elsewhere": {"change": led_elsewhere},
        "altered": {"change": lambda described: ALTERED},
        "in a part": {"more": Boom(mark)},
    }
    shutil.copy(next(folder.rglob("*.distcp")), folder / "elsewhere")
    if where == "two":
        shutil.copytree(folder / "ep0-ba8", folder / "another")
    if where == "no folder":
        shutil.rmtree(folder / "ep0-ba8")
        folder = tmp_path / "resume-16"
        folder.mkdir()
    with pytest.raises(UserError, match=f"^{folder}: it is no state of this training"):
        if where == "no folder":
            with _loading(folder, True):
                pass
        else:
            sharded(folder, **{"more": more} | changes.get(where, {}))
    assert not mark.exists() and not hasattr(checkpoint.metadata.Metadata, "evil")


def test_altered_weights_of_a_parent_are_refused(trained, world):
    own = world()
    shutil.copytree(trained.folder("pile"), own.folder("pile"))
    path = own.model("pile") / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="altered"):
        own.fit(CHILD)
    assert not own.folder(CHILD).exists()


def test_going_on_after_another_start_or_on_other_data_is_refused(trained, world, killed_at):
    own, corpora = world(), trained.corpora
    shutil.copytree(trained.folder("pile"), own.folder("pile"))
    killed_at(own, CHILD, 8)
    built = corpora.fingerprint("sp")
    corpora._fingerprints["sp"] = built.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(UserError, match="'sp'.*0000000000"):
        own.fit(CHILD, corpora)
    (own.folder("pile") / "receipt.json").unlink()
    from safetensors.torch import load_file, save_file

    path = own.model("pile") / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match="start weights"):
        own.fit(CHILD)


def test_an_altered_shard_or_another_tokenizer_stops_before_training(built, tmp_path):
    own = World(built.with_(data=tmp_path / "data"), tmp_path, tokens_per_billion=100)
    shutil.copytree(built.data, own.project.data)
    root = own.project.data / "smoke"
    shard = next((root / "sp" / "train").rglob("*.mds"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=shard.name):
        own.fit("sp")
    shard.write_bytes(whole)
    with (root / "tokenizer" / "tokenizer.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(UserError, match="it was made with another tokenizer"):
        own.fit("sp")
    assert not own.store.root.exists()


def test_a_loss_that_is_not_finite_stops(world, monkeypatch):
    from cpt_repro.training.loss import CausalLM

    monkeypatch.setattr(CausalLM, "loss", lambda self, outputs, batch: outputs.sum() * torch.nan)
    with pytest.raises(UserError, match="batch 0 is not finite; its sequences: sp/"):
        world().fit("sp")


def test_a_gradient_that_is_not_finite_reaches_no_weight_and_no_saved_state(world, monkeypatch):
    own, seen, whole = world(), [], torch.nn.utils.clip_grad_norm_

    def explode(parameters, limit):
        seen.append(None)
        return torch.tensor(torch.inf) if len(seen) == 16 else whole(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    with pytest.raises(UserError, match="gradient of batch 15 is not finite"):
        own.fit("sp")
    saved = SavedStates(own.folder("sp"), {}).newest()
    assert saved.iteration == 12
    with torch.serialization.safe_globals(PLAIN):
        state = torch.load(own.folder("sp") / saved.file)["state"]["model"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_micro_batches_are_halved_until_they_fit(world, monkeypatch, faults):
    from cpt_repro.training.loss import CausalLM

    forward, tried = CausalLM.forward, []
    four = world("four").fit("sp", execution=Execution(microbatch_sequences=4))
    assert four.measured.execution["microbatch_sequences"] == 4

    def little_room(self, batch):
        tried.append(len(batch))
        if self.training and len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch)

    monkeypatch.setattr(CausalLM, "forward", little_room)
    auto = world("auto").fit("sp", execution=Execution(microbatch_sequences="auto"))
    assert tried[:3] == [16, 8, 4] and max(tried[3:]) == 4
    assert auto.measured.execution["microbatch_sequences"] == 4 and numbers(auto) == numbers(four)
    faults(
        "a GPU's memory runs out (simulated) while the micro-batch is sought",
        2,
        "half of it, and the run goes on",
    )


def test_receipts_say_how_training_was_spread(trained, world):
    whole = trained.records.receipt(trained.run("pile"))
    assert whole.measured.execution == {
        "ranks": 1, "microbatch_sequences": 16, "fsdp": False, "activation_checkpointing": False,
        "compile": False, "deterministic": True, "loss_in_rows": True,
    }  # fmt: skip
    assert 0 <= whole.measured.loader_wait_share < 1 and whole.measured.step_seconds > 0
    again = world().fit("pile", execution=Execution(deterministic=False, activation_checkpointing=True))
    assert not torch.are_deterministic_algorithms_enabled()
    assert (
        not again.measured.execution["deterministic"] and again.measured.execution["activation_checkpointing"]
    )
    # What is computed twice is computed alike.
    assert again.losses == whole.losses


def test_ranks_that_do_not_divide_the_batch_and_a_missing_gpu_are_refused(world, monkeypatch):
    own = world()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="asks for a GPU, and there is none"):
            own.fit("sp", device="gpu")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 ranks do not divide the batch of 16 sequences"):
        own.fit("sp")
