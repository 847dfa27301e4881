"""One training: the same bits again, after interruptions and faults; what it takes over; what stops it."""

import shutil

import pytest
import torch
from short_runs import World, numbers

from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest
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
    state = torch.load(own.folder("sp") / saved.file, weights_only=False)["state"]["model"]
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
        "compile": False, "deterministic": True,
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
