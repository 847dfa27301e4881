"""Training: bits, resumption, faults, and the papers' main orders at smoke scale."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.files import write_json
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import read_receipt, receipt_path
from cpt_repro.training.train import train_segments
from cpt_repro.training.store import SavedStates, Store

PAPER = "ibrahim2024/405m"
GOLDEN = Path(__file__).with_name("golden.json")
#: On another kind of machine, in nats: rounding grows over 300 updates.
GOLDEN_TOLERANCE = 0.02


@pytest.fixture(scope="module")
def plan():
    return Plan(load_scale("smoke"))


def segment(plan, name):
    return plan.segments[f"{PAPER}/{name}/seed-0"]


@pytest.fixture(scope="module")
def trained(plan, smoke_data, tmp_path_factory):
    """The runs that the main orders speak of, really trained: losses by run and corpus."""
    folder = tmp_path_factory.mktemp("trained")
    names = [
        "pile",
        "sp",
        "pile--sp/replay-0",
        "pile--sp/replay-0.05",
        "pile--sp/replay-0.5",
        "pile--sp/eta_max-1.5e-4",
        "pile--sp/eta_max-6e-4",
        "pile--sp/constant-3e-5",
        "pile--german/replay-0",
        "pile--german/replay-0.25",
        "pile--sp/keep-optimizer",
    ]
    segments = [segment(plan, name) for name in names]
    train_segments(plan, segments, smoke_data, folder / "results", Store("smoke", folder / "store"), print)
    return folder, {
        n: read_receipt(receipt_path(folder / "results", "smoke", f"{PAPER}/{n}/seed-0")) for n in names
    }


def loss(trained, name, corpus):
    return trained[1][name].final[corpus].loss


def test_higher_eta_max_forgets_more_and_adapts_more(trained):
    rates = ["constant-3e-5", "eta_max-1.5e-4", "replay-0", "eta_max-6e-4"]
    upstream = [loss(trained, f"pile--sp/{rate}", "pile") for rate in rates]
    downstream = [loss(trained, f"pile--sp/{rate}", "sp") for rate in rates]
    assert upstream == sorted(upstream)
    assert downstream == sorted(downstream, reverse=True)


def test_replay_reduces_forgetting_at_little_cost(trained):
    upstream = [loss(trained, f"pile--sp/replay-{r}", "pile") for r in ("0", "0.05", "0.5")]
    assert upstream == sorted(upstream, reverse=True)
    saved = upstream[0] - upstream[1]
    cost = loss(trained, "pile--sp/replay-0.05", "sp") - loss(trained, "pile--sp/replay-0", "sp")
    assert saved > 2 * cost
    assert (
        loss(trained, "pile--german/replay-0.25", "pile") < loss(trained, "pile--german/replay-0", "pile") - 1
    )


def test_a_stronger_shift_forgets_more(trained):
    start = loss(trained, "pile", "pile")
    weak = loss(trained, "pile--sp/replay-0", "pile") - start
    strong = loss(trained, "pile--german/replay-0", "pile") - start
    assert 0.1 < weak < strong / 4


def test_continual_pretraining_beats_training_from_scratch(trained):
    for corpus in ("pile", "sp"):
        assert loss(trained, "pile--sp/replay-0", corpus) < loss(trained, "sp", corpus)


def test_golden_losses(trained):
    """Loss curves of three runs are those committed: to the last bit on the same kind of machine, else nearly.

    `make golden` writes them anew, after a change that is meant to change numbers.
    """
    now = {
        "machine": {name: trained[1]["pile"].environment[name] for name in ("hardware", "torch", "numpy")},
        "curves": {
            name: {
                corpus: [list(point) for point in curve] for corpus, curve in trained[1][name].curves.items()
            }
            for name in ("pile", "pile--sp/replay-0.05", "pile--german/replay-0.25")
        },
    }
    if os.environ.get("CPT_REPRO_GOLDEN") == "write":
        write_json(GOLDEN, now)
    golden = json.loads(GOLDEN.read_text())
    if golden["machine"] == now["machine"]:
        assert now["curves"] == golden["curves"]
    for name, curves in golden["curves"].items():
        for corpus, curve in curves.items():
            again = now["curves"][name][corpus]
            assert [i for i, _ in again] == [i for i, _ in curve]
            assert max(abs(a - b) for (_, a), (_, b) in zip(again, curve, strict=True)) < GOLDEN_TOLERANCE


def test_losses_stay_above_the_entropy_rate(trained):
    for receipt in trained[1].values():
        for corpus, final in receipt.final.items():
            assert final.loss > receipt.entropy_floor[corpus] > 0


def test_receipts_say_what_was_done(trained, plan):
    receipt = trained[1]["pile--sp/replay-0"]
    parent = trained[1]["pile"]
    own = receipt.segment
    assert own == segment(plan, "pile--sp/replay-0")
    assert receipt.parent_weights == parent.checkpoints[parent.segment.iterations]
    assert [i for i, _ in receipt.curves["sp"]] == list(own.evaluations)
    # The first validation is the parent's last: weights were carried over, exactly.
    assert receipt.curves["sp"][0][1] == parent.curves["sp"][-1][1]
    assert dict(receipt.learning_rate)[0] == 0.0
    assert max(rate for _, rate in receipt.learning_rate) <= own.schedule.eta_max
    for corpus, losses in receipt.sequence_losses.items():
        assert len(losses) == own.validation_sequences
        assert sum(losses) / len(losses) == pytest.approx(receipt.curves[corpus][-1][1], abs=1e-5)


def test_kept_optimizer_state_changes_the_start_only(trained):
    kept, dropped = (dict(trained[1][f"pile--sp/{n}"].curves["sp"]) for n in ("keep-optimizer", "replay-0"))
    assert kept[0] == dropped[0]
    assert kept[6] != dropped[6]
    assert abs(kept[39] - dropped[39]) < 0.1


def test_the_same_bits_again_and_after_interruptions(trained, plan, smoke_data, tmp_path):
    """Killed twice during training (with replay): weights, curves and receipt as if never stopped."""
    from cpt_repro.training import trainer

    folder, receipts = trained
    own = segment(plan, "pile--sp/replay-0.05")
    store = Store("smoke", tmp_path)
    parent = segment(plan, "pile")
    shutil.copytree(Store("smoke", folder / "store").folder(parent), store.folder(parent))
    corpora = trainer.Corpora(smoke_data)

    class Killed(Exception):
        pass

    for stop in (100, 250):

        def progress(done, stop=stop):
            if done == stop:
                raise Killed

        with pytest.raises(Killed):
            trainer.train(
                own, parent, corpora, store, plan.checkpoints[own.id], save_every=40, progress=progress
            )
    assert sorted(p.name for p in store.folder(own).glob("resume*")) == [
        "resume-200.pt",
        "resume-240.pt",
        "resume.json",
    ]
    again = trainer.train(own, parent, corpora, store, plan.checkpoints[own.id], save_every=40)
    assert again.measured["resumed_at"] == 240
    before = receipts["pile--sp/replay-0.05"].model_dump(exclude={"measured"})
    assert again.model_dump(exclude={"measured"}) == before
    assert not list(store.folder(own).glob("*resume*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "unnamed"])
def test_only_a_whole_saved_state_is_gone_on_from(tmp_path, damage):
    saved = SavedStates(tmp_path, {"pile": "a"})
    for iteration in (40, 80, 120):
        with saved.adding(iteration) as aside:
            aside.write_bytes(bytes([iteration]) * 1000)
    newest = tmp_path / "resume-120.pt"
    assert saved.newest() == (120, newest) and not (tmp_path / "resume-40.pt").exists()
    if damage == "flip":
        newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    elif damage == "truncate":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif damage == "remove":
        newest.unlink()
    else:  # killed between the state and its name
        (tmp_path / "resume-160.pt").write_bytes(b"whole, and not vouched for")
        assert saved.newest() == (120, newest)
        newest.unlink()
    assert saved.newest() == (80, tmp_path / "resume-80.pt")


def test_a_state_that_could_not_be_written_leaves_the_ones_before(tmp_path):
    saved = SavedStates(tmp_path, {})
    with saved.adding(40) as aside:
        aside.write_bytes(b"good")
    with pytest.raises(OSError, match="full"), saved.adding(80) as aside:
        aside.write_bytes(b"half")
        raise OSError("disk full")
    assert saved.newest() == (40, tmp_path / "resume-40.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resume-40.pt", "resume.json"]


def test_altered_weights_of_a_parent_are_refused(trained, plan, smoke_data, tmp_path):
    from cpt_repro.training import trainer

    parent, child = segment(plan, "pile"), segment(plan, "pile--sp/replay-0")
    store = Store("smoke", tmp_path)
    shutil.copytree(Store("smoke", trained[0] / "store").folder(parent), store.folder(parent))
    path = store.weights(parent, parent.iterations) / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="altered"):
        trainer.train(child, parent, trainer.Corpora(smoke_data), store, {})
    assert not store.folder(child).exists()


def test_resuming_on_other_data_is_refused(plan, smoke_data, tmp_path):
    from cpt_repro.training import trainer

    own, store = segment(plan, "pile"), Store("smoke", tmp_path / "store")
    corpora = trainer.Corpora(smoke_data)

    class Killed(Exception):
        pass

    def progress(done):
        raise Killed

    with pytest.raises(Killed):
        trainer.train(own, None, corpora, store, {}, save_every=20, progress=progress)
    corpora.fingerprint("pile")["fingerprint"] = "0" * 64
    with pytest.raises(UserError, match="0000000000"):
        trainer.train(own, None, corpora, store, {}, save_every=20)


def test_a_missing_or_altered_shard_stops_before_training(plan, smoke_data, tmp_path):
    from cpt_repro.training import trainer

    root = tmp_path / "data"
    shutil.copytree(smoke_data, root)
    shard = next((root / "sp" / "train").rglob("*.mds"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(UserError, match=shard.name):
        trainer.train(
            segment(plan, "sp"), None, trainer.Corpora(root), Store("smoke", tmp_path / "store"), {}
        )
    assert not (tmp_path / "store").exists()


def test_a_failed_segment_does_not_stop_the_others(plan, smoke_data, tmp_path):
    """Without its parent's weights a child fails, by name; its neighbour is trained and published."""
    child, neighbour = segment(plan, "pile--sp/warmup-0"), segment(plan, "sp-3x100/infinite-cosine/split-1")
    with pytest.raises(UserError, match="pile--sp/warmup-0.*weights are missing"):
        train_segments(
            plan, [child, neighbour], smoke_data, tmp_path, Store("smoke", tmp_path / "store"), print
        )
    assert receipt_path(tmp_path, "smoke", neighbour.id).exists()
    assert not receipt_path(tmp_path, "smoke", child.id).exists()
    failure = json.loads(receipt_path(tmp_path, "smoke", child.id).with_name("failure.json").read_text())
    assert failure["identity"] == child.identity and "weights are missing" in failure["why"]


def test_a_loss_that_is_not_finite_stops(plan, smoke_data, tmp_path, monkeypatch):
    from cpt_repro.training import trainer

    monkeypatch.setattr(trainer.CausalLM, "loss", lambda self, outputs, batch: outputs.sum() * torch.nan)
    own = segment(plan, "sp")
    with pytest.raises(UserError, match="batch 0 is not finite; its sequences: sp/"):
        trainer.train(own, None, trainer.Corpora(smoke_data), Store("smoke", tmp_path), {})


def test_a_gradient_that_is_not_finite_reaches_no_weight_and_no_saved_state(
    plan, smoke_data, tmp_path, monkeypatch
):
    from cpt_repro.training import trainer

    own, store, seen = segment(plan, "sp"), Store("smoke", tmp_path), []
    whole = torch.nn.utils.clip_grad_norm_

    def explode(parameters, limit):
        seen.append(None)
        return torch.tensor(torch.inf) if len(seen) == 51 else whole(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    with pytest.raises(UserError, match="gradient of batch 50 is not finite"):
        trainer.train(own, None, trainer.Corpora(smoke_data), store, {}, save_every=20)
    iteration, path = SavedStates(store.folder(own), {}).newest()
    assert iteration == 40
    state = torch.load(path, weights_only=False)["state"]["model"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_finished_segments_are_published_without_training(trained, plan, smoke_data, tmp_path, monkeypatch):
    folder, _ = trained
    import cpt_repro.training.trainer as trainer

    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    own = segment(plan, "pile")
    train_segments(plan, [own], smoke_data, tmp_path, Store("smoke", folder / "store"), print)
    assert json.loads(receipt_path(tmp_path, "smoke", own.id).read_text())["identity"] == own.identity


def test_what_table_13_says_of_every_run_is_what_training_uses():
    """Its rows `everywhere` are text in the declaration; this ties them to the code."""
    from cpt_repro.declarations.exhibits import load_exhibits
    from cpt_repro.training import trainer
    from cpt_repro.models.neox import neox_config, new_model

    told = {
        row.label: row.everywhere for row in load_exhibits("ibrahim2024")["table_13"].rows if row.everywhere
    }
    config = neox_config(load_scale("smoke").models["405m"], 640, 64)
    model = new_model(config, 0)
    optimizer = trainer.adamw(model)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert told == {
        "Optimizer": type(optimizer).__name__,
        "β1, β2": ", ".join(str(beta) for beta in optimizer.param_groups[0]["betas"]),
        "Activation": {"gelu": "GeLU"}[config.hidden_act],
        "Weight decay": str(optimizer.param_groups[0]["weight_decay"]),
        "Gradient clipping": str(trainer.CLIP),
        "Positional embedding": "Rotary" if model.gpt_neox.rotary_emb is not None else "none",
        "GPT-J residual": str(config.use_parallel_residual),
        "Weight tying": str(tied),
        "Rotary share": str(config.rotary_pct),
    }
