"""How training is spread over hardware: rows of ranks, micro-batches that fit, checkpointing, compiling."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from cpt_repro.declarations.scale import Execution, Size
from cpt_repro.errors import UserError
from cpt_repro.models.architecture import architecture
from cpt_repro.training import execution as spread
from cpt_repro.training.batches import Batches, batch_loader
from cpt_repro.training.loss import CausalLM

SHAPE = architecture("gpt_neox")


class Counting:
    """Sequences of 3 tokens that are their own number, counted as they are read."""

    def __init__(self):
        self.taken = 0

    def __len__(self):
        return 1000

    def take(self, indices):
        self.taken += len(indices)
        return np.repeat(np.asarray(indices, dtype=np.uint16)[:, None], 3, axis=1)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_read_their_own_rows_of_one_global_order(world, ranks):
    training, read = world().run("pile--sp/replay-0.05").training, Counting()
    corpora = SimpleNamespace(sequences=lambda corpus, domain: read)
    whole = [Batches(training, corpora)[k] for k in range(5)]
    read.taken = 0
    parts = [Batches(training, corpora, rank, ranks) for rank in range(ranks)]
    loaders = [list(batch_loader(part, seed=0, first=2)) for part in parts]
    assert len(loaders[0]) == training.iterations - 2
    for k in (2, 3, 4):
        assert torch.equal(torch.cat([loader[k - 2] for loader in loaders]), whole[k])
    assert read.taken == (training.iterations - 2) * training.batch_sequences
    assert "sp/" in parts[0].described(0)


# -- micro-batches


def out_of_memory(above):
    def attempt(size):
        if size > above:
            raise torch.OutOfMemoryError("out of memory")

    return attempt


def test_the_largest_micro_batch_that_fits():
    fits = spread.fits_by_trial(out_of_memory(above=5))
    assert spread.largest_that_fits(16, fits, bool, "a run") == 4
    with pytest.raises(UserError, match="a run: not even one sequence fits"):
        spread.largest_that_fits(8, spread.fits_by_trial(out_of_memory(above=0)), bool, "a run")

    def broken(size):
        raise RuntimeError("another one")

    with pytest.raises(RuntimeError, match="another one"):
        spread.largest_that_fits(8, spread.fits_by_trial(broken), bool, "a run")
    # Of all ranks the smallest room counts.
    others = iter([138, 69, 34, 17, 8, 4, 2])
    assert (
        spread.largest_that_fits(138, lambda size: True, lambda fits: fits and next(others) <= 3, "a run")
        == 2
    )


def test_the_room_of_a_sharded_model_is_extrapolated():
    attempted = []
    fits = spread.fits_by_measure(attempted.append, lambda: 30 + 5 * attempted[-1], 100)
    # 90 of 100 may be used: 30 + 5 * 12.
    assert attempted == [1, 2] and fits(12) and not fits(13)


# -- kernels and compiling


def tiny():
    return SHAPE.new(Size(layers=3, width=16, heads=2), 64, 8, 0)


@pytest.mark.slow
def test_layers_share_one_compilation_and_compute_activations_twice(monkeypatch):
    """Without inductor, which takes a minute on a CPU: what is traced is the same."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model, tokens = tiny(), torch.arange(36).view(4, 9)
    wrapped = CausalLM(model)
    names = list(wrapped.state_dict())
    spread.prepare_model(model, SHAPE, Execution(activation_checkpointing=True), "cpu")
    computed = []
    layer = list(SHAPE.layers(model))[1]
    hook = layer.attention.register_forward_hook(lambda *_: computed.append(1))
    expected = wrapped.loss(wrapped(tokens), tokens)
    expected.backward()
    assert len(computed) == 2
    hook.remove()
    gradients = [p.grad.clone() for p in wrapped.parameters()]
    wrapped.zero_grad()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    spread.compile_parts(wrapped, SHAPE)
    loss = wrapped.loss(wrapped(tokens), tokens)
    loss.backward()
    assert counter.frame_count == 2  # a layer, and the loss
    assert abs(loss - expected) < 1e-5
    for parameter, gradient in zip(wrapped.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)
    assert list(wrapped.state_dict()) == names


def test_losses_of_sequences_are_those_of_the_whole_whatever_their_number_at_once():
    wrapped, tokens = (
        CausalLM(tiny()).eval(),
        torch.randint(64, (7, 9), generator=torch.Generator().manual_seed(0)),
    )
    losses = wrapped.sequence_losses(tokens, at_once=3)
    assert losses.shape == (7,) and losses.dtype == torch.float64
    assert torch.allclose(losses, wrapped.sequence_losses(tokens), atol=1e-6)
    assert losses.mean().item() == pytest.approx(wrapped.loss(wrapped(tokens), tokens).item(), abs=1e-5)


def test_what_the_papers_say_of_every_run_is_what_training_uses(repository):
    """The rows `everywhere` of a table of settings are text in a declaration; this ties them to the code."""
    from cpt_repro.training.optimizer import CLIP, adamw

    text = (repository.papers / "ibrahim2024" / "exhibits.yaml").read_text()
    model = tiny()
    optimizer, config = adamw(model), model.config
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    used = {
        "Optimizer": type(optimizer).__name__,
        "β1, β2": ", ".join(str(beta) for beta in optimizer.param_groups[0]["betas"]),
        "Activation": {"gelu": "GeLU"}[config.hidden_act],
        "Weight decay": str(optimizer.param_groups[0]["weight_decay"]),
        "Gradient clipping": str(CLIP),
        "Positional embedding": "Rotary" if model.gpt_neox.rotary_emb is not None else "none",
        "GPT-J residual": str(config.use_parallel_residual),
        "Weight tying": str(tied),
    }
    rows = yaml.safe_load(text)["exhibits"]["table_13"]["rows"]
    assert {row["label"]: row["everywhere"] for row in rows if row.get("everywhere")} == used


def test_logits_made_in_rows_give_the_same_loss_and_gradients():
    """Against plain cross-entropy of all logits; 3 x 87 positions are two whole groups of rows and a rest."""
    model = SHAPE.new(Size(layers=2, width=16, heads=2), 64, 87, 0)
    tokens = torch.randint(64, (3, 88), generator=torch.Generator().manual_seed(0))
    results = []
    for in_rows in (True, False):
        wrapped = CausalLM(model)
        wrapped.in_rows = in_rows
        wrapped.zero_grad()
        loss = 0.5 * wrapped.loss(wrapped(tokens), tokens)
        loss.backward()
        with torch.no_grad():
            each = wrapped.sequence_losses(tokens)
        results.append([loss.detach(), *(p.grad.clone() for p in wrapped.parameters()), each.float()])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6, rtol=1e-5)
    assert len(results[0]) > 20 and all(one.abs().sum() for one in results[0])
