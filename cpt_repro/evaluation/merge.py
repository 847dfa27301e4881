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

Tensors = dict[str, torch.Tensor]


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


def ties_merge(base: Mapping[str, torch.Tensor], task_models: Sequence[Mapping], density: float) -> Tensors:
    """Merges `task_models` into `base`: dicts of the same names, shapes and kinds of tensors; `density` in (0, 1].

    Per tensor: trim each difference from the base, elect for each entry the sign of the sum of the differences, average
    those that have it (and were not trimmed), add that to the base with weight 1. Tensors that are not of floats are
    the base's. Computed in float32, returned in the base's type. `UserError` if names, shapes or density are unfit.
    """
    if not 0 < density <= 1:
        raise UserError(f"the density is {density}, and must lie in (0, 1].", do="Correct it.")
    if not task_models:
        raise UserError("no task model is given.", do="Name at least one.")
    for model in task_models:
        odd = sorted(set(base) ^ set(model))
        if odd:
            do = "Merge models of one architecture."
            raise UserError(f"the tensor '{odd[0]}' is in only one of the models.", do=do)
        for name, tensor in base.items():
            if tensor.shape != model[name].shape:
                shapes = f"{list(tensor.shape)} in the base and {list(model[name].shape)} in a task model"
                what = f"the tensor '{name}' is {shapes}."
                raise UserError(what, do="Merge models of one size and vocabulary.")
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


def merge_folders(base_dir: Path, task_dirs: Sequence[Path], density: float, out_dir: Path) -> Path:
    """Merges model folders (`config.json`, `model.safetensors`) into a new one with the base's other files.

    The folder appears whole or not at all; an existing one is replaced. Returns `out_dir`.
    """
    out_dir = Path(out_dir)
    merged = ties_merge(_read(Path(base_dir)), [_read(Path(folder)) for folder in task_dirs], density)
    with whole_folder(out_dir) as aside:
        for name in ("config.json", "generation_config.json"):
            if (Path(base_dir) / name).is_file():
                shutil.copyfile(Path(base_dir) / name, aside / name)
        # transformers refuses weights that do not say which library wrote them.
        save_file(merged, aside / "model.safetensors", metadata={"format": "pt"})
    return out_dir


def _read(folder: Path) -> Tensors:
    path = folder / "model.safetensors"
    if not path.is_file() or not (folder / "config.json").is_file():
        what = "not a model folder: config.json or model.safetensors is missing."
        raise UserError(what, where=str(folder), do="Train the model first.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"not valid safetensors ({error}).", where=str(path), do="Make the model again."
        ) from None
