"""GPT-NeoX, the papers' architecture: Hugging Face's model with GPT-NeoX's own initialisation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cpt_repro.declarations.scale import Size
from cpt_repro.models.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from transformers import GPTNeoXForCausalLM

#: The projections back into the residual stream.
_RESIDUAL = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")


class GPTNeoX(Architecture):
    """Rotary on a share of each head, parallel residual, biases, untied embeddings (Ibrahim Table 13)."""

    name, called = "gpt_neox", "GPT-NeoX"

    def check(self, size: Size) -> None:
        if size.width % size.heads:
            raise ValueError(f"heads ({size.heads}) must divide width ({size.width})")
        rotated = size.width // size.heads * size.rotary_fraction
        if rotated % 2:
            shares = f"width / heads ({size.width // size.heads}) times {size.rotary_fraction:g}"
            raise ValueError(f"{shares} must be an even number: dimensions are rotated in pairs")

    def parameters(self, size: Size, vocabulary: int) -> int:
        """L (12 h^2 + 13 h) + 2 h + 2 V h."""
        h = size.width
        return size.layers * (12 * h * h + 13 * h) + 2 * h + 2 * vocabulary * h

    def matmul_parameters(self, size: Size, vocabulary: int) -> int:
        return size.layers * 12 * size.width**2 + vocabulary * size.width

    def _model(self, size: Size, vocabulary: int, sequence_length: int) -> GPTNeoXForCausalLM:
        from transformers import GPTNeoXConfig
        from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM

        config = GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            max_position_embeddings=sequence_length,
            rotary_pct=size.rotary_fraction,
            use_parallel_residual=True,
            tie_word_embeddings=False,
            hidden_act="gelu",
            attention_dropout=0.0,
            hidden_dropout=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            attn_implementation="sdpa",
        )
        return GPTNeoXForCausalLM(config)

    def new(self, size: Size, vocabulary: int, sequence_length: int, seed: int) -> GPTNeoXForCausalLM:
        """small_init (std sqrt(2 / (5 width))) everywhere, wang_init (std 2 / (layers sqrt(width))) for the
        two projections back into the residual stream; biases 0, norms 1 (authors' pythia/410M.yml)."""
        import torch

        with torch.random.fork_rng(devices=[]):
            model = self._model(size, vocabulary, sequence_length)
        generator = torch.Generator().manual_seed(seed)
        small, wang = math.sqrt(2 / (5 * size.width)), 2 / (size.layers * math.sqrt(size.width))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() < 2:
                    parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                else:
                    parameter.normal_(0.0, wang if name.endswith(_RESIDUAL) else small, generator=generator)
        return model

    def empty(self, size: Size, vocabulary: int, sequence_length: int) -> GPTNeoXForCausalLM:
        import torch
        from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401  before the device is set

        with torch.device("meta"):  # torch's compiler, which comes along, cannot be imported in here
            return self._model(size, vocabulary, sequence_length)

    def layers(self, model: GPTNeoXForCausalLM) -> Iterable[torch.nn.Module]:
        return model.gpt_neox.layers

    def is_layer(self, module: torch.nn.Module) -> bool:
        from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

        return isinstance(module, GPTNeoXLayer)

    def described(self, config: dict[str, Any]) -> dict[str, Any]:
        """A context length is not among it: there is no table of positions."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope = rope if isinstance(rope, dict) else {"rope_type": rope}
        base = config.get("rotary_emb_base", config.get("rope_theta", 10000))
        share = config.get("rotary_pct", config.get("partial_rotary_factor", 0.25))
        return {
            "model_type": config.get("model_type"),
            "layers": config.get("num_hidden_layers"),
            "width": config.get("hidden_size"),
            "heads": config.get("num_attention_heads"),
            "width of the feed-forward part": config.get("intermediate_size"),
            "activation": config.get("hidden_act", "gelu"),
            "parallel residual": config.get("use_parallel_residual", True),
            "biases in the attention": config.get("attention_bias", True),
            "tied embeddings": config.get("tie_word_embeddings", False),
            "epsilon of the layer norms": config.get("layer_norm_eps", 1e-5),
            "kind of rotary embedding": rope.get("rope_type", rope.get("type", "default")),
            "rotated share of a head": rope.get("partial_rotary_factor", share),
            "base of the rotary embedding": rope.get("rope_theta", base),
        }

    def expected(self, size: Size) -> dict[str, Any]:
        """By hand: a plan has no time to import transformers."""
        sizes = {"num_hidden_layers": size.layers, "hidden_size": size.width}
        sizes |= {"num_attention_heads": size.heads, "intermediate_size": 4 * size.width}
        return self.described({"model_type": self.name, **sizes, "rotary_pct": size.rotary_fraction})


ARCHITECTURE = GPTNeoX()
