"""Sizes and work of the papers' architecture, GPT-NeoX, by formula. Imports no torch."""

from __future__ import annotations

from typing import Literal

from cpt_repro.declarations.scale import ModelSize

Attention = Literal["full", "causal"]
#: Work of one trained token, forward and backward: N_matmul weights in matrix products, L layers, width h, length s.
FORMULAS: dict[Attention, str] = {"full": "6 N_matmul + 12 L h s", "causal": "6 N_matmul + 6 L h s"}
#: Bytes per parameter: saved weights, the optimizer's two moments, and weights, gradients and moments in memory.
WEIGHTS, MOMENTS, IN_MEMORY = 4, 8, 16
GB = 1e9


def parameters(size: ModelSize, vocabulary: int) -> int:
    """Parameters of a GPT-NeoX model with untied embeddings, biases and layer norms: L(12h^2+13h) + 2h + 2Vh."""
    h = size.width
    return size.layers * (12 * h * h + 13 * h) + 2 * h + 2 * vocabulary * h


def matmul_parameters(size: ModelSize, vocabulary: int) -> int:
    """Weights that take part in matrix products: those of the layers and the output embedding, not the input one."""
    return size.layers * 12 * size.width**2 + vocabulary * size.width


def flops_per_token(
    size: ModelSize, vocabulary: int, sequence_length: int, attention: Attention = "full"
) -> int:
    """FLOPs to train on one token, forward and backward, by the formula of that name in `FORMULAS`.

    `full` counts the products of every query with every key, `causal` only those that a causal mask leaves. What is
    computed twice (activation checkpointing) is not counted. The forward pass alone is a third.
    """
    pairs = {"full": 12, "causal": 6}[attention]
    return 6 * matmul_parameters(size, vocabulary) + pairs * size.layers * size.width * sequence_length
