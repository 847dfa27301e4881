"""What an architecture has to know of itself, and the registry of those that there are.

Formulas need neither torch nor transformers: an implementation imports these inside its functions.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cpt_repro.declarations.scale import Size

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Attention = Literal["full", "causal"]
#: Bytes per parameter: saved weights; the optimizer's two moments; all that is in memory, with gradients.
WEIGHTS, MOMENTS, IN_MEMORY = 4, 8, 16
GB = 1e9
#: Key of a scale's `architecture` -> the module whose `ARCHITECTURE` it is.
_MODULES = {"gpt_neox": "cpt_repro.models.neox"}
#: The name of `_without_mask` among the attentions of transformers.
_WITHOUT_MASK = "causal_without_mask"


class Architecture(Protocol):
    """A decoder of layers of one width, as a model of transformers."""

    #: Its key in the registry, and the `model_type` of its `config.json`.
    name: str
    #: How sentences call it.
    called: str
    #: Work of one trained token, both passes: N_matmul weights in products, L layers, width h, length s.
    formulas: dict[Attention, str] = {"full": "6 N_matmul + 12 L h s", "causal": "6 N_matmul + 6 L h s"}

    def check(self, size: Size) -> None:
        """Raises `ValueError` for a size that it cannot have."""

    def parameters(self, size: Size, vocabulary: int) -> int:
        """Its parameters at a size, with `vocabulary` rows of embedding."""

    def matmul_parameters(self, size: Size, vocabulary: int) -> int:
        """Weights that take part in matrix products: those of the layers and the output embedding."""

    def flops_per_token(
        self, size: Size, vocabulary: int, sequence_length: int, attention: Attention = "full"
    ) -> int:
        """FLOPs to train on one token, forward and backward, by the formula of that name in `formulas`.

        `full` counts the products of every query with every key, `causal` only those that a causal mask
        leaves. What is computed twice (activation checkpointing) does not count. Forward alone is a third.
        """
        pairs = {"full": 12, "causal": 6}[attention] * size.layers * size.width * sequence_length
        return 6 * self.matmul_parameters(size, vocabulary) + pairs

    def new(self, size: Size, vocabulary: int, sequence_length: int, seed: int) -> PreTrainedModel:
        """A model with its own initialisation, float32, from a seed; the global generator is left alone."""

    def empty(self, size: Size, vocabulary: int, sequence_length: int) -> PreTrainedModel:
        """A model without memory, on torch's meta device: its weights come from elsewhere."""

    def layers(self, model: PreTrainedModel) -> Iterable[torch.nn.Module]:
        """The layers, from the bottom: what is compiled, one like the other."""

    def is_layer(self, module: torch.nn.Module) -> bool:
        """Whether `module` is what FSDP gathers at a time: one layer. Embeddings and head are the root's."""

    def prepare_attention(self, model: PreTrainedModel, device: Literal["cpu", "gpu"]) -> None:
        """Sets the attention for training on a device, on whole sequences without a mask.

        On a GPU a mask of ones would be looked at in every forward pass, for which the GPU must be waited
        for; without one transformers builds its own. Under a name without a mask function it does neither.
        """
        if device == "gpu":
            from transformers import AttentionInterface

            AttentionInterface.register(_WITHOUT_MASK, _without_mask)
            model.set_attn_implementation(_WITHOUT_MASK)

    def described(self, config: dict[str, Any]) -> dict[str, Any]:
        """What decides a model's function but its vocabulary, by words, from a `config.json` of any
        transformers version; what the file does not say is what the architecture has by default."""

    def expected(self, size: Size) -> dict[str, Any]:
        """The same of a model here."""


def architecture(name: str) -> Architecture:
    """The architecture of a name; an unknown one is a `ValueError` with those that are known."""
    if name not in _MODULES:
        raise ValueError(f"the architecture '{name}' is unknown; known: {', '.join(_MODULES)}")
    return importlib.import_module(_MODULES[name]).ARCHITECTURE


@functools.cache
def warm_up(folder: Path) -> None:
    """Makes a model of each, for processes that are forked from this one: transformers imports an
    architecture, which takes half a second, with its first model."""
    for name in _MODULES:
        architecture(name).empty(Size(layers=1, width=8, heads=1), 8, 8)


def _without_mask(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    """Attention of whole sequences, which need no mask, so that torch may take its flash kernel."""
    from torch.nn.functional import scaled_dot_product_attention

    out = scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    return out.transpose(1, 2).contiguous(), None
