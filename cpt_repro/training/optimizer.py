"""AdamW as the papers set it, its learning rate and the clipping of gradients."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from cpt_repro.planning.training import Training

#: Ibrahim Table 13; eps from the authors' configuration.
BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0


class NotFinite(Exception):
    """A loss or gradient is infinite or not a number: (which of them, iteration)."""


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW whose rate is set for every update; biases and norms are not decayed, as in GPT-NeoX."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1.0, betas=BETAS, eps=EPS, fused=True)


def learning_rate(training: Training, iteration: int) -> float:
    """Rate of the update after `iteration` updates."""
    return training.schedule(iteration, training.schedule_iterations)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Makes `rate` that of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: list[torch.nn.Parameter], iteration: int, excess: float = 1.0) -> None:
    """Clips the global gradient norm to `CLIP`; one that is not finite is `NotFinite`, and no weight's.

    `excess`: what gradients are divided by first (see `execution.gradient_excess`).
    """
    if excess != 1:
        for parameter in parameters:
            parameter.grad.div_(excess)
    norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if not torch.isfinite(norm):
        raise NotFinite("gradient", iteration)
