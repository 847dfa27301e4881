"""TIES merging (Yadav et al. 2023), as mergekit 0.0.4 does it for Ibrahim 2024, A.2 and Tables 6 and 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cpt_repro.errors import UserError

Tensors = Mapping[str, torch.Tensor]


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Keeps the int(density * n) entries of the largest magnitude (at least one), sets the others to 0.

    Among equal magnitudes the first entries stay, so that the result does not depend on the machine.
    """
    flat = delta.flatten()
    keep = torch.argsort(flat.abs(), descending=True, stable=True)[: max(1, int(density * flat.numel()))]
    trimmed = torch.zeros_like(flat)
    trimmed[keep] = flat[keep]
    return trimmed.view_as(delta)


def ties_merge(base: Tensors, task_models: Sequence[Tensors], density: float) -> dict[str, torch.Tensor]:
    """Merges `task_models` into `base`: float32 of the same names and shapes; `density` in (0, 1].

    Per tensor: trim each difference from the base, elect for each entry the sign of the sum of the
    differences, average those that have it (and were not trimmed), add that to the base with weight 1.
    Other names or shapes are a `UserError`.
    """
    for model in task_models:
        for name in sorted({*base, *model}):
            before, after = (tuple(one[name].shape) if name in one else None for one in (base, model))
            if before != after:
                what = f"the tensor '{name}' is {before} in the base and {after} in a task model."
                raise UserError(what, do="Merge models of one architecture, size and vocabulary.")
    merged = {}
    for name, tensor in base.items():
        deltas = torch.stack([trim(model[name] - tensor, density) for model in task_models])
        # Of two differences that cancel, mergekit elects the positive one.
        elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
        agree = deltas.sign() == elected
        merged[name] = tensor + (deltas * agree).sum(0) / agree.sum(0).clamp(min=1)
    return merged
