"""TIES merging (Yadav et al. 2023), as mergekit 0.0.4 does it for Ibrahim 2024, A.2 and Tables 6 and 7."""

from __future__ import annotations

from collections.abc import Mapping

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


def ties_merge(base: Tensors, task: Tensors, density: float) -> dict[str, torch.Tensor]:
    """Merges `task` into `base`: float32 of the same names and shapes; `density` in (0, 1].

    The trimmed difference is added with weight 1. With one task model, as the paper's merges have it, TIES
    elects every sign and averages nothing. Other names or shapes are a `UserError`.
    """
    shapes, theirs = ({name: tuple(one[name].shape) for name in one} for one in (base, task))
    if shapes != theirs:
        name = min(name for name, _ in shapes.items() ^ theirs.items())
        what = f"the tensor '{name}' is {shapes.get(name)} in the base "
        what += f"and {theirs.get(name)} in the task model."
        raise UserError(what, do="Merge models of one architecture, size and vocabulary.")
    return {name: tensor + trim(task[name] - tensor, density) for name, tensor in base.items()}
