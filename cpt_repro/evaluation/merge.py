"""TIES merging (Yadav et al. 2023), as mergekit 0.0.4 does it for Ibrahim 2024, A.2 and Tables 6 and 7."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cpt_repro.errors import UserError
from cpt_repro.files import whole_folder
from cpt_repro.models.weights import CONFIG, WEIGHTS

Tensors = Mapping[str, torch.Tensor]


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Keeps the int(density * n) entries of the largest magnitude (at least one), sets the others to 0.

    Among equal magnitudes the first entries stay, so that the result does not depend on the machine.
    """
    if density >= 1:
        return delta
    flat = delta.flatten()
    keep = torch.argsort(flat.abs(), descending=True, stable=True)[: max(1, int(density * flat.numel()))]
    trimmed = torch.zeros_like(flat)
    trimmed[keep] = flat[keep]
    return trimmed.view_as(delta)


def ties_merge(base: Tensors, task_models: Sequence[Tensors], density: float) -> dict[str, torch.Tensor]:
    """Merges `task_models` into `base`: tensors of the same names and shapes; `density` in (0, 1].

    Per tensor: trim each difference from the base, elect for each entry the sign of the sum of the
    differences, average those that have it (and were not trimmed), add that to the base with weight 1.
    Tensors that are not of floats are the base's. Computed in float32, returned in the base's type. Others
    are a `UserError`.
    """
    for model in task_models:
        shapes = [{name: tuple(tensor.shape) for name, tensor in one.items()} for one in (base, model)]
        for name in sorted(set(base) | set(model)):
            before, after = (shape.get(name) for shape in shapes)
            if before != after:
                what = f"the tensor '{name}' is {before} in the base and {after} in a task model."
                raise UserError(what, do="Merge models of one architecture, size and vocabulary.")
    merged = {}
    for name, tensor in base.items():
        if not tensor.is_floating_point() or not tensor.numel():
            merged[name] = tensor.clone()
            continue
        deltas = torch.stack([trim(model[name].float() - tensor.float(), density) for model in task_models])
        # Of two differences that cancel, mergekit elects the positive one.
        elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
        agree = deltas.sign() == elected
        mean = (deltas * agree).sum(0) / agree.sum(0).clamp(min=1)
        merged[name] = (tensor.float() + mean).to(tensor.dtype)
    return merged


def merge_folders(base: Path, tasks: Sequence[Path], density: float, out: Path) -> Path:
    """Merges model folders into a new one with the base's configuration, `out`, which is whole or absent."""
    merged = ties_merge(_read(base), [_read(folder) for folder in tasks], density)
    with whole_folder(out) as aside:
        shutil.copyfile(base / CONFIG, aside / CONFIG)
        # transformers refuses weights that do not say which library wrote them.
        save_file(merged, aside / WEIGHTS, metadata={"format": "pt"})
    return out


def _read(folder: Path) -> Tensors:
    path = folder / WEIGHTS
    if not path.is_file() or not (folder / CONFIG).is_file():
        what = f"not a model folder: {CONFIG} or {WEIGHTS} is missing."
        raise UserError(what, where=str(folder), do="Train the model first.")
    try:
        return load_file(path)
    except SafetensorError as error:
        fault = f"not valid safetensors ({error})."
        raise UserError(fault, where=str(path), do="Make the model again.") from None
