"""The model: Hugging Face's GPT-NeoX with GPT-NeoX's own initialisation, saved as an ordinary model folder."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM

from cpt_repro.declarations.scale import ModelSize
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, read_json, whole_folder, write_json
from cpt_repro.training.store import OPTIMIZER

WEIGHTS = "model.safetensors"


def neox_config(size: ModelSize, vocabulary: int, sequence_length: int) -> GPTNeoXConfig:
    """The papers' architecture: rotary on a quarter of each head, parallel residual, untied (Ibrahim Table 13)."""
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=sequence_length,
        rotary_pct=0.25,
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


def new_model(config: GPTNeoXConfig, seed: int) -> GPTNeoXForCausalLM:
    """A model with GPT-NeoX's initialisation from a seed of its own (the global generator is left alone).

    small_init (std sqrt(2 / (5 width))) everywhere, wang_init (std 2 / (layers sqrt(width))) for the two projections
    back into the residual stream; biases 0, layer norms 1 (authors' configs/pythia/410M.yml).
    """
    with torch.random.fork_rng(devices=[]):
        model = GPTNeoXForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    small = math.sqrt(2 / (5 * config.hidden_size))
    wang = 2 / (config.num_hidden_layers * math.sqrt(config.hidden_size))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                residual = name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight"))
                parameter.normal_(0.0, wang if residual else small, generator=generator)
    return model


def empty_model(config: GPTNeoXConfig) -> GPTNeoXForCausalLM:
    """A model without memory, on torch's meta device: its weights come from another rank."""
    with torch.device("meta"):
        return GPTNeoXForCausalLM(config)


def save_model(
    model: GPTNeoXForCausalLM,
    folder: Path,
    optimizer: dict[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> str:
    """Writes `config.json`, `model.safetensors` and, if given, the optimizer's state as `optimizer.pt`.

    `weights`: of a sharded model the whole tensors. The folder appears whole or not at all. Returns the weights'
    SHA-256.
    """
    weights = model.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with whole_folder(folder) as aside:
        model.config.save_pretrained(aside)
        save_file(tensors, aside / WEIGHTS)
        if optimizer is not None:
            # Through Python's file, whose errors say what the storage refused.
            with open(aside / OPTIMIZER, "wb") as stream:
                torch.save(optimizer, stream)
            write_json(_record(aside), {"sha256": file_digest(aside / OPTIMIZER)})
        return file_digest(aside / WEIGHTS)


def check_weights(folder: Path, expected: str | None = None) -> str:
    """The SHA-256 of a saved folder's weights; missing ones, and another hash than `expected`, are a `UserError`."""
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError(
            "the weights are missing.", where=str(path), do="Train the run that makes them again."
        )
    found = file_digest(path)
    if expected is not None and found != expected:
        fault = f"the weights are altered: SHA-256 {expected} was written, {found} is there."
        raise UserError(fault, where=str(path), do="Remove the folder of this run and train it again.")
    return found


def load_weights(model: GPTNeoXForCausalLM, folder: Path, expected: str | None = None) -> str:
    """Loads a saved folder's weights and returns their SHA-256.

    Weights that are missing, of another architecture, or of another hash than `expected` are a `UserError`.
    """
    path, found = folder / WEIGHTS, check_weights(folder, expected)
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"its weights do not fit this model ({first}).", where=str(path), do="Check model sizes."
        ) from None
    return found


def _record(folder: Path) -> Path:
    return (folder / OPTIMIZER).with_suffix(".json")


def load_optimizer(folder: Path, mapped: bool = False) -> dict[str, Any]:
    """The optimizer's state of a saved folder, as tensors and plain values only; missing or altered: `UserError`.

    `mapped`: tensors are the file's pages, read when used and shared by the processes of a machine.
    """
    path, record, do = folder / OPTIMIZER, _record(folder), "Train the parent again."
    if not path.exists():
        raise UserError("the optimizer's state is missing.", where=str(path), do=do)
    # torch.load takes a flipped bit without a word. Folders of earlier versions have no record.
    expected, found = read_json(record) if record.exists() else None, {"sha256": file_digest(path)}
    if expected not in (None, found):
        fault = f"the optimizer's state is altered: {expected} was written, {found} is there."
        raise UserError(fault, where=str(path), do=do)
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"not an optimizer's state ({first}).", where=str(path), do=do) from None
