"""How training is spread over hardware: micro-batches, sharding over two ranks (gloo), compiling, `bench gpu`."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ranks import environment_of_rank, free_port

from cpt_repro.declarations.scale import Execution, ModelSize, load_scale
from cpt_repro.errors import UserError
from cpt_repro.planning.plan import Plan
from cpt_repro.training.store import SavedStates, Store

RUN = "ibrahim2024/405m/sp-3x100/infinite-cosine/split-1"
#: Sums over halves of a batch are rounded otherwise than over the whole; nats after 24 updates.
TOLERANCE = 1e-4


def short(plan):
    """A short trunk and a branch that keeps its optimizer; 45 validation sequences, which two ranks cannot halve."""
    few = {"iterations": 24, "evaluations": (0, 10, 24), "closing": (10, 24), "validation_sequences": 45}
    trunk = plan.segments[f"{RUN}/seed-0"].model_copy(update=few)
    end = {
        "iterations": 6,
        "evaluations": (0, 6),
        "closing": (0, 6),
        "parent_iteration": 24,
        "batch_offset": 24,
    }
    branch = plan.segments[f"{RUN}-annealed/seed-0"].model_copy(update=few | end)
    return trunk, branch


@pytest.fixture(scope="module")
def plan():
    return Plan(load_scale("smoke"))


@pytest.fixture(scope="module")
def one(plan, smoke_data, tmp_path_factory):
    """Trunk and branch trained by one rank: (receipts, store)."""
    from cpt_repro.training import trainer

    store, (trunk, branch) = Store("smoke", tmp_path_factory.mktemp("one")), short(plan)
    corpora = trainer.Corpora(smoke_data)
    first = trainer.train(trunk, None, corpora, store, {24: True})
    return (first, trainer.train(branch, trunk, corpora, store, {6: False})), store


# -- sharded over two ranks

SHARDED = """
import json, sys
from pathlib import Path
import torch
from torch.distributed.fsdp import FSDPModule
from cpt_repro.declarations.scale import Execution, load_scale
from cpt_repro.planning.plan import Plan
from cpt_repro.training import trainer
from cpt_repro.training.store import SavedStates, Store
from test_execution import short

data, folder = Path(sys.argv[1]), Path(sys.argv[2])
trunk, branch = short(Plan(load_scale("smoke")))
corpora, made, train = trainer.Corpora(data), [], trainer.train
prepare, forward = trainer.spread.prepare, trainer.CausalLM.forward
trainer.spread.prepare = lambda model, *how: (made.append(model), prepare(model, *how))
four = Execution(ranks_per_node=2, fsdp=True, activation_checkpointing=True, microbatch_sequences=4)
auto = four.model_copy(update={"microbatch_sequences": "auto"})
told = {}

def uninterrupted():
    store = Store("smoke", folder / "whole")
    told["trunk"] = train(trunk, None, corpora, store, {24: True}, execution=four)
    told["branch"] = train(branch, trunk, corpora, store, {6: False}, execution=four)
    layers = [module for module in made[0].modules() if trainer.spread.is_layer(module)]
    told["wrapped"] = [isinstance(module, FSDPModule) for module in (made[0], *layers)]
    told["sharded"] = all(isinstance(p, trainer.spread.DTensor) for p in made[0].parameters())

def interrupted():
    # Killed after the state of iteration 16, of a rank that had room for 4 sequences; goes on with room for all.
    store = Store("smoke", folder / "stopped")
    def little_room(self, batch):
        if self.training and len(batch) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch)
    def stop(self, state, logger):
        if state.timestamp.batch.value == 19:
            raise KeyboardInterrupt
    trainer.CausalLM.forward, batch_end = little_room, trainer.Pace.after_dataloader
    trainer.Pace.batch_end = stop
    try:
        train(trunk, None, corpora, store, {24: True}, save_every=8, execution=auto)
    except KeyboardInterrupt:
        pass
    trainer.CausalLM.forward = forward
    del trainer.Pace.batch_end
    trainer.dist.barrier()
    told["files"] = sorted(str(p.relative_to(store.folder(trunk))) for p in store.folder(trunk).rglob("*"))
    told["resumed"] = train(trunk, None, corpora, store, {24: True}, save_every=8, execution=auto)

uninterrupted()
interrupted()
if trainer.dist.get_global_rank() == 0:
    dumped = {k: v.model_dump(mode="json") if hasattr(v, "model_dump") else v for k, v in told.items()}
    (folder / "told.json").write_text(json.dumps(dumped))
"""


@pytest.fixture(scope="module")
def sharded(smoke_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    port, path = free_port(), os.pathsep.join((str(Path(__file__).parent.parent), str(Path(__file__).parent)))
    started = [
        subprocess.Popen([sys.executable, "-c", SHARDED, str(smoke_data), str(folder)],
                         env={**os.environ, **environment_of_rank(rank, 2, port), "PYTHONPATH": path},
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]  # fmt: skip
    out = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], out[0][-3000:]
    return json.loads((folder / "told.json").read_text()), folder


def test_two_ranks_with_sharded_parameters_train_as_one(one, sharded):
    (trunk, branch), _ = one
    told, _ = sharded
    assert told["sharded"] and all(told["wrapped"]) and len(told["wrapped"]) == 1 + trunk.segment.model.layers
    for alone, both in ((trunk, told["trunk"]), (branch, told["branch"])):
        for corpus, curve in alone.curves.items():
            assert (
                max(abs(a[1] - b[1]) for a, b in zip(curve, both["curves"][corpus], strict=True)) < TOLERANCE
            )
            assert len(both["sequence_losses"][corpus]) == 45
        assert alone.parameters == both["parameters"]
    # The branch began with the trunk's optimizer: without it the first updates differ by 100 times the tolerance.
    assert told["branch"]["parent_weights"] == told["trunk"]["checkpoints"]["24"]


def test_weights_and_optimizer_of_sharded_training_are_saved_whole(one, sharded, plan):
    from cpt_repro.models.neox import load_optimizer, load_weights, neox_config, new_model

    (alone, _), store = one
    trunk, _ = short(plan)
    size = neox_config(trunk.model, trunk.vocabulary, trunk.sequence_length)
    models, states = [], []
    for where in (store, Store("smoke", sharded[1] / "whole")):
        models.append(new_model(size, 1))
        load_weights(models[-1], where.weights(trunk, 24))
        states.append(load_optimizer(where.weights(trunk, 24)))
    for (name, a), (other, b) in zip(*(model.state_dict().items() for model in models), strict=True):
        assert name == other and a.shape == b.shape
        assert (a - b).abs().max() < 1e-3
    assert list(states[0]["state"]) == list(states[1]["state"])
    for number, values in states[0]["state"].items():
        for key, value in values.items():
            assert value.shape == states[1]["state"][number][key].shape
            assert torch.allclose(value, states[1]["state"][number][key], atol=1e-4)


def test_sharded_training_goes_on_from_its_saved_state_with_the_same_bits(sharded, faults):
    told, _ = sharded
    assert {"resume-8/ep0-ba8/__0_0.distcp", "resume-16/ep0-ba16/__1_0.distcp"} <= set(told["files"])
    resumed, whole = told["resumed"], told["trunk"]
    assert resumed["measured"]["resumed_at"] == 16
    # The micro-batch is that of the state, though more would now fit.
    assert resumed["measured"]["execution"]["microbatch_sequences"] == 4
    assert {k: v for k, v in resumed.items() if k != "measured"} == {
        k: v for k, v in whole.items() if k != "measured"
    }
    faults("2 ranks with sharded parameters (FSDP, gloo), stopped", 1, "the same bits as never stopped")


def test_a_sharded_state_counts_file_by_file(tmp_path):
    saved = SavedStates(tmp_path, {"pile": "a"})
    for iteration in (40, 80, 120):
        (tmp_path / f".resume-{iteration}.aside").mkdir()
        (tmp_path / f".resume-{iteration}.aside" / "of-a-killed-writer").write_bytes(b"old")
        with saved.adding(iteration, sharded=True, execution={"ranks": 2}) as aside:
            (aside / "ep0").mkdir(parents=True)
            for rank in range(2):
                (aside / "ep0" / f"{rank}.distcp").write_bytes(bytes([iteration, rank]) * 1000)
    assert saved.newest() == (120, tmp_path / "resume-120") and saved.execution(120) == {"ranks": 2}
    assert not (tmp_path / "resume-40").exists() and not list(tmp_path.rglob("of-a-killed-writer"))
    (tmp_path / "resume-120" / "ep0" / "1.distcp").write_bytes(b"flipped")
    assert saved.newest() == (80, tmp_path / "resume-80")
    (tmp_path / "resume-80" / "ep0" / "1.distcp").unlink()
    assert saved.newest() == (0, None)
    saved.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sharded", [True, False])
def test_a_state_saved_otherwise_is_refused(tmp_path, sharded):
    from cpt_repro.training.trainer import _newest

    saved = SavedStates(tmp_path, {})
    with saved.adding(8, sharded=not sharded) as aside:
        if sharded:
            aside.write_bytes(b"whole")
        else:
            (aside / "ep0-ba8").mkdir(parents=True)
            (aside / "ep0-ba8" / "part").write_bytes(b"part")
    assert _newest(saved, not sharded)[:2] == (
        8,
        tmp_path / ("resume-8.pt" if sharded else "resume-8/ep0-ba8"),
    )
    with pytest.raises(UserError, match="'fsdp'"):
        _newest(saved, sharded)


# -- micro-batches


def test_auto_halves_the_micro_batch_until_it_fits(plan, one, smoke_data, tmp_path, monkeypatch, faults):
    from cpt_repro.training import trainer

    trunk, _ = short(plan)
    corpora, forward, tried = trainer.Corpora(smoke_data), trainer.CausalLM.forward, []

    def little_room(self, batch):
        tried.append(len(batch))
        if self.training and len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch)

    four = trainer.train(
        trunk,
        None,
        corpora,
        Store("smoke", tmp_path / "four"),
        {},
        execution=Execution(microbatch_sequences=4),
    )
    monkeypatch.setattr(trainer.CausalLM, "forward", little_room)
    auto = Execution(microbatch_sequences="auto")
    found = trainer.train(trunk, None, corpora, Store("smoke", tmp_path / "auto"), {}, execution=auto)
    assert tried[:3] == [16, 8, 4] and max(tried[3:]) == 4
    assert found.measured["execution"]["microbatch_sequences"] == 4
    assert found.model_dump(exclude={"measured"}) == four.model_dump(exclude={"measured"})
    alone = one[0][0].curves["sp"]
    assert max(abs(a[1] - b[1]) for a, b in zip(alone, found.curves["sp"], strict=True)) < TOLERANCE
    faults(
        "a GPU's memory runs out (simulated) while the micro-batch is sought",
        2,
        "half of it, and the run goes on",
    )


def test_what_does_not_fit_at_all_is_said_and_other_errors_are_not_hidden():
    from cpt_repro.training import execution as spread

    def attempt(size):
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="a run: not even one sequence fits"):
        spread.largest_that_fits(8, spread.fits_by_trial(attempt), bool, "a run")

    def broken(size):
        raise RuntimeError("another one")

    with pytest.raises(RuntimeError, match="another one"):
        spread.largest_that_fits(8, spread.fits_by_trial(broken), bool, "a run")


def test_ranks_agree_on_the_smallest_room():
    from cpt_repro.training import execution as spread

    # Another rank has room for 3.
    asked = iter([138, 69, 34, 17, 8, 4, 2])
    agree = lambda fits: fits and next(asked) <= 3  # noqa: E731
    assert spread.largest_that_fits(138, lambda size: True, agree, "a run") == 2


def test_the_room_of_a_sharded_model_is_extrapolated():
    from cpt_repro.training import execution as spread

    attempted = []
    fits = spread.fits_by_measure(attempted.append, lambda: 30 + 5 * attempted[-1], 100)
    # 90 of 100 may be used: 30 + 5 * 12.
    assert attempted == [1, 2]
    assert fits(12) and not fits(13)
    assert spread.largest_that_fits(23, fits, bool, "a run") == 11


# -- data


class _Counting:
    def __init__(self):
        self.taken = 0

    def __len__(self):
        return 1000

    def take(self, indices):
        self.taken += len(indices)
        return np.repeat(np.asarray(indices, dtype=np.uint16)[:, None], 3, axis=1)


def test_a_rank_reads_its_own_rows_only(plan, monkeypatch):
    from cpt_repro.training import trainer

    segment, read = plan.segments["ibrahim2024/405m/pile--sp/replay-0.05/seed-0"], _Counting()
    corpora = type("All", (), {"sequences": lambda self, corpus, domain: read})()
    batches = trainer.Batches(segment, corpora)
    whole = [batches[k] for k in range(5)]
    read.taken = 0
    monkeypatch.setattr(trainer.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(trainer.dist, "get_global_rank", lambda: 2)
    size = segment.batch_sequences // 4
    for k in range(5):
        assert torch.equal(batches[k], whole[k][2 * size : 3 * size])
    assert read.taken == 5 * size


def test_another_tokenizer_than_the_corpus_was_made_with_is_refused(smoke_data, tmp_path):
    from cpt_repro.training.trainer import Corpora

    for name in ("pile/fingerprint.json", "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(smoke_data / name, tmp_path / name)
    assert Corpora(tmp_path).fingerprint("pile")["name"]
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="pile: it was made with another tokenizer"):
        Corpora(tmp_path).fingerprint("pile")


# -- kernels and compiling


def _tiny():
    from cpt_repro.models.neox import neox_config, new_model

    return new_model(neox_config(ModelSize(layers=3, width=16, heads=2, eta_factor=1), 64, 8), 0)


def test_attention_without_a_mask_is_the_same():
    from transformers import AttentionInterface

    from cpt_repro.training import execution as spread

    model, tokens = _tiny(), torch.arange(24).view(3, 8)
    masked = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    AttentionInterface.register(spread.CAUSAL, spread._causal_attention)
    model.set_attn_implementation(spread.CAUSAL)
    assert torch.allclose(masked, model(input_ids=tokens, use_cache=False).logits, atol=1e-6)
    # Nothing of it is in the folder that is saved.
    assert spread.CAUSAL not in json.dumps(model.config.to_diff_dict())


def test_layers_share_one_compilation_and_keep_their_names(monkeypatch):
    """Without inductor, which takes a minute on a CPU: what is traced is the same."""
    from torch._dynamo.testing import CompileCounterWithBackend

    from cpt_repro.training import execution as spread
    from cpt_repro.training.trainer import CausalLM, bare

    model = _tiny()
    wrapped, tokens = CausalLM(model), torch.arange(36).view(4, 9)
    names = list(wrapped.state_dict())
    spread.prepare(model, Execution(activation_checkpointing=True), "cpu")
    computed = []
    hook = model.gpt_neox.layers[1].attention.register_forward_hook(lambda *_: computed.append(1))
    expected = wrapped.loss(wrapped(tokens), tokens)
    expected.backward()
    assert len(computed) == 2
    hook.remove()
    gradients = [p.grad.clone() for p in wrapped.parameters()]
    wrapped.zero_grad()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    spread.compile_parts(wrapped)
    loss = wrapped.loss(wrapped(tokens), tokens)
    loss.backward()
    assert counter.frame_count == 2  # a layer, and the loss
    assert abs(loss - expected) < 1e-5
    for parameter, gradient in zip(wrapped.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)
    assert list(wrapped.state_dict()) == names and bare(wrapped).model is model


def test_receipts_say_how_training_was_spread(one, plan, smoke_data, tmp_path):
    from cpt_repro.training import trainer

    (alone, _), _ = one
    assert alone.measured["execution"] == {
        "ranks": 1, "microbatch_sequences": 16, "fsdp": False, "activation_checkpointing": False, "compile": False,
        "deterministic": True,
    }  # fmt: skip
    assert 0 <= alone.measured["loader_wait_share"] < 1 and alone.measured["step_seconds"] > 0
    free = Execution(deterministic=False, activation_checkpointing=True)
    again = trainer.train(
        short(plan)[0], None, trainer.Corpora(smoke_data), Store("smoke", tmp_path), {}, execution=free
    )
    assert not torch.are_deterministic_algorithms_enabled()
    assert (
        not again.measured["execution"]["deterministic"]
        and again.measured["execution"]["activation_checkpointing"]
    )
    # What is computed twice is computed alike.
    assert again.curves == alone.curves


# -- bench gpu


def test_bench_gpu_dry_run(tmp_path):
    from cpt_repro.bench import bench_gpu

    rows = bench_gpu("smoke", "405m", tmp_path, steps=4, device="cpu")
    assert [row["arm"] for row in rows] == ["plain", "composer", "deterministic"]
    for row in rows:
        assert row["benchmark"] == "gpu" and row["tokens"] == "random" and row["hardware"] and row["date"]
        assert row["tokens_per_second"] > 0 and 0 <= row["loader_wait_share"] < 1
        assert row["gpus"] == 0 and row["mfu"] is None and row["peak_memory_gb"] is None
        assert row["mfu_formula"] == "6 N_matmul + 12 L h s" and row["microbatch_sequences"] == 16
    assert [row["overhead_share"] is None for row in rows] == [True, False, True]
    assert rows[1]["overhead_share"] == pytest.approx(1 - 1 / rows[0]["ratio_to_composer"], abs=1e-3)


def test_bench_gpu_names_utilisation_and_memory(plan):
    """As on a GPU that trains 163,000 tokens/s of the papers' smaller model."""
    from cpt_repro.bench import _gpu_speeds

    size = ModelSize(layers=24, width=1024, heads=16, eta_factor=1, vocab_size=50304)
    update = {"model": size, "vocabulary": 50304, "sequence_length": 2048, "batch_sequences": 138}
    segment = plan.segments[f"{RUN}/seed-0"].model_copy(update=update)
    run = {"step_seconds": 138 * 2048 / 163_000, "loader_wait_share": 0.001, "peak_memory_gb": 60.0}
    slow = {**run, "step_seconds": run["step_seconds"] * 1.25}
    told = {"composer": [run], "plain": [run], "deterministic": [slow]}
    row = _gpu_speeds("deterministic", told, segment, "NVIDIA H100 80GB HBM3")
    assert (
        row["tokens_per_second"] == 130_400
        and row["ratio_to_composer"] == 0.8
        and row["peak_memory_gb"] == 60
    )
    # 2.725 GFLOP a token, 2.423 where half of the attention is masked.
    assert row["mfu"] == pytest.approx(130_400 * 2.725e9 / 989e12, rel=1e-3)
    assert row["mfu_causal"] == pytest.approx(130_400 * 2.423e9 / 989e12, rel=1e-3)
    assert _gpu_speeds("composer", told, segment, "NVIDIA H100 80GB HBM3")["overhead_share"] == 0
    assert _gpu_speeds("composer", told, segment, "an unknown GPU")["mfu"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_gpu_without_a_gpu_or_a_model(tmp_path):
    from cpt_repro.bench import bench_gpu

    with pytest.raises(UserError, match="there is no GPU"):
        bench_gpu("paper", "405m", tmp_path)
    with pytest.raises(UserError, match="trains the model '405M'"):
        bench_gpu("smoke", "405M", tmp_path, device="cpu")


@pytest.mark.parametrize("wrong", [["--microbatch", "0"], ["--microbatch", "many"], ["--device", "tpu"]])
def test_bench_gpu_options(wrong):
    from typer.testing import CliRunner

    from cpt_repro.cli import app

    result = CliRunner().invoke(app, ["bench", "gpu", *wrong])
    assert isinstance(result.exception, UserError) and wrong[1] in str(result.exception)
