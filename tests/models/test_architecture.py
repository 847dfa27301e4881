"""The architecture: formulas against real models, initialisation, attention."""

import json
import math
import subprocess
import sys

import pytest
import torch
from tiny_models import fresh

from cpt_repro.declarations.scale import Size
from cpt_repro.models.architecture import architecture

NEOX = architecture("gpt_neox")
#: Model of the papers -> size, rows, parameters as printed.
PUBLISHED = {
    "405m": (Size(layers=24, width=1024, heads=16), 50304, 405_334_016),
    "10b": (Size(layers=36, width=4608, heads=36), 50688, 9_642_249_216),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_the_papers_print(model):
    size, rows, printed = PUBLISHED[model]
    assert NEOX.parameters(size, rows) == printed


@pytest.mark.parametrize("size", [(1, 16, 1), (2, 32, 2), (3, 96, 4)])
def test_parameters_are_those_of_the_model(size):
    size = Size(**dict(zip(("layers", "width", "heads"), size, strict=True)))
    model = NEOX.empty(size, 300, 64)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert NEOX.parameters(size, 300) == sum(p.numel() for p in model.parameters())
    # Biases and layer norms are vectors; the input embedding is looked up.
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed_in" not in name]
    assert NEOX.matmul_parameters(size, 300) == sum(p.numel() for p in matrices)
    assert sum(map(NEOX.is_layer, model.modules())) == size.layers == len(list(NEOX.layers(model)))


def test_flops_per_token():
    size = PUBLISHED["405m"][0]
    full, causal = (NEOX.flops_per_token(size, 50304, 2048, kind) for kind in ("full", "causal"))
    # Each query meets every key, or on average half of them; a product and its two gradients, 2 FLOPs a term.
    pairs = 24 * 2 * 2048 * 1024 * 2 * 3
    assert full == 6 * 353_501_184 + pairs and causal == 6 * 353_501_184 + pairs // 2
    assert NEOX.flops_per_token(size, 50304, 2048) == full and round(full / 1e9, 3) == 2.725
    assert set(NEOX.formulas) == {"full", "causal"}


@pytest.mark.parametrize(("width", "heads", "words"), [(32, 3, "must divide"), (36, 3, "even number")])
def test_sizes_that_cannot_be(width, heads, words):
    with pytest.raises(ValueError, match=words):
        NEOX.check(Size(layers=2, width=width, heads=heads))
    NEOX.check(Size(layers=2, width=32, heads=4))


@pytest.mark.parametrize(("fraction", "rotated"), [(0.25, 6), (0.5, 12), (1, 24)])
def test_the_rotated_share_of_a_head_is_the_sizes(fraction, rotated):
    size = Size(layers=1, width=48, heads=2, rotary_fraction=fraction)
    NEOX.check(size)
    model = NEOX.empty(size, 300, 64)
    assert model.gpt_neox.layers[0].attention.rotary_ndims == rotated
    assert NEOX.described(model.config.to_dict()) == NEOX.expected(size)
    assert Size(layers=1, width=48, heads=2).model_dump(exclude_defaults=True).keys() == {
        "layers",
        "width",
        "heads",
    }


def test_an_unknown_architecture_is_told_with_the_known():
    with pytest.raises(ValueError, match="'mamba' is unknown; known: gpt_neox"):
        architecture("mamba")


def test_initialisation():
    """Standard deviations of the authors' configuration, from a seed of its own."""
    size = Size(layers=2, width=128, heads=2)
    before = torch.random.get_rng_state()
    model, other = NEOX.new(size, 300, 64, 1), NEOX.new(size, 300, 64, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    small, wang = math.sqrt(2 / (5 * 128)), 2 / (2 * math.sqrt(128))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            value = 1.0 if name.endswith("norm.weight") else 0.0
            assert (parameter == value).all(), name
        else:
            wanted = wang if ".attention.dense." in name or "4h_to_h" in name else small
            assert parameter.std().item() == pytest.approx(wanted, rel=0.03), name
    assert not torch.equal(model.get_input_embeddings().weight, other.get_input_embeddings().weight)
    again = NEOX.new(size, 300, 64, 1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_what_is_expected_is_what_is_made():
    """The installed transformers says the same of our configuration as we do without it."""
    size = Size(layers=2, width=32, heads=2)
    config = json.loads(NEOX.empty(size, 300, 64).config.to_json_string(use_diff=False))
    assert NEOX.described(config) == NEOX.expected(size)
    # As later versions write it.
    later = {key: value for key, value in config.items() if not key.startswith(("rotary", "rope"))}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    assert NEOX.described(later | {"rope_parameters": rope}) == NEOX.expected(size)


def test_attention_without_a_mask_is_the_same():
    model, tokens = fresh(), torch.arange(24).view(3, 8)
    masked = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    before = model.config._attn_implementation
    NEOX.prepare_attention(model, "cpu")
    assert model.config._attn_implementation == before
    NEOX.prepare_attention(model, "gpu")
    assert model.config._attn_implementation != before
    assert torch.allclose(masked, model(input_ids=tokens, use_cache=False).logits, atol=1e-6)
    # Nothing of it is in the folder that is saved.
    assert model.config._attn_implementation not in json.dumps(model.config.to_diff_dict())


def test_formulas_need_neither_torch_nor_transformers():
    code = "import sys; from cpt_repro.models.architecture import architecture; architecture('gpt_neox'); "
    code += "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
