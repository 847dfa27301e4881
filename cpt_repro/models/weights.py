"""Model folders: `config.json`, `model.safetensors`, and the optimizer's state with its hash."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, read_json, whole_folder, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, OPTIMIZER = "config.json", "model.safetensors", "optimizer.pt"
#: SHA-256 of the optimizer's state.
_RECORD = "optimizer.json"


def save_model(
    model: PreTrainedModel,
    folder: Path,
    optimizer: dict[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> str:
    """Writes a model and, if given, the optimizer's state as `folder`, which appears whole or not at all.

    `weights`: of a sharded model the whole tensors. Returns the weights' SHA-256.
    """
    import torch
    from safetensors.torch import save_file

    weights = model.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with whole_folder(folder) as aside:
        model.config.save_pretrained(aside)
        save_file(tensors, aside / WEIGHTS)
        if optimizer is not None:
            # Through Python's file, whose errors say what the storage refused.
            with open(aside / OPTIMIZER, "wb") as stream:
                torch.save(optimizer, stream)
            write_json(aside / _RECORD, {"sha256": file_digest(aside / OPTIMIZER)})
        return file_digest(aside / WEIGHTS)


def check_weights(folder: Path, expected: str | None = None) -> str:
    """The SHA-256 of a folder's weights; without any, or with another than `expected`, a `UserError`."""
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError("the weights are missing.", where=str(path), do="Train the run again.")
    actual = file_digest(path)
    if expected not in (None, actual):
        fault = f"the weights are altered: SHA-256 {expected} was written, {actual} is there."
        raise UserError(fault, where=str(path), do="Remove the folder of this run and train it again.")
    return actual


def load_weights(model: PreTrainedModel, folder: Path, expected: str | None = None) -> str:
    """Loads a folder's weights into `model` and returns their SHA-256.

    Weights that are missing, of another shape or of another hash than `expected` are a `UserError`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, actual = folder / WEIGHTS, check_weights(folder, expected)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, ValueError, SafetensorError) as error:
        fault = f"its weights do not fit this model ({str(error).splitlines()[0]})."
        raise UserError(fault, where=str(path), do="Check model sizes.") from None
    return actual


def load_optimizer(folder: Path, mapped: bool = False) -> dict[str, Any]:
    """A folder's optimizer state, as tensors and plain values only; a missing or altered one: `UserError`.

    `mapped`: tensors are the file's pages, read when used and shared by the processes of a machine.
    """
    import torch

    path, record, do = folder / OPTIMIZER, folder / _RECORD, "Train the parent again."
    if not (path.exists() and record.exists()):
        raise UserError("the optimizer's state is missing.", where=str(path), do=do)
    # torch.load takes a flipped bit without a word.
    expected, actual = read_json(record), {"sha256": file_digest(path)}
    if expected != actual:
        fault = f"the optimizer's state is altered: {expected} was written, {actual} is there."
        raise UserError(fault, where=str(path), do=do)
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        fault = f"not an optimizer's state ({str(error).partition(chr(10))[0]})."
        raise UserError(fault, where=str(path), do=do) from None


def load_model_folder(folder: Path) -> PreTrainedModel:
    """Reads a model folder in float32, for inference; what is not a whole model is a `UserError`."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        fault = f"the model cannot be read ({' '.join(str(error).split())[:300]})."
        raise UserError(fault, where=str(folder), do="Train the model again.") from None
    return model.eval()
