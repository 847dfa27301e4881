"""Weights of models from outside, put into our model: safetensors or torch's files, whole or in shards.

Torch's files may hold tensors alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_repro.errors import UserError
from cpt_repro.files import digest, read_json, write_json
from cpt_repro.models.outside import CONFIG, TOKENIZER, Outside, check_fits
from cpt_repro.planning.plan import Segment

if TYPE_CHECKING:
    import torch

#: What older versions of transformers saved beside the weights: the causal mask and the rotary frequencies, which
#: follow from the configuration.
BUFFERS = re.compile(
    r"gpt_neox\.((layers\.\d+\.attention\.)?rotary_emb\.inv_freq|layers\.\d+\.attention\.(masked_)?bias)"
)
#: In a segment's folder: the digest of what it started from.
START = "start.json"


def check_tokenizer(outside: Outside, tokenizer: Path) -> None:
    """That it was trained with the tokens of the folder `tokenizer`, where both are there; else `UserError`."""
    if TOKENIZER not in outside.files or not (tokenizer / TOKENIZER).is_file():
        return
    from cpt_repro.data.tokenizer import load_tokenizer

    folders = (outside.fetch(TOKENIZER).parent, tokenizer)
    theirs, ours = (load_tokenizer(folder).get_vocab(with_added_tokens=True) for folder in folders)
    other = sum(theirs.get(token) != number for token, number in ours.items())
    if other or len(theirs) != len(ours):
        fault = (
            f"it was trained with another tokenizer: {other} of our {len(ours)} tokens are other ones in its."
        )
        raise UserError(fault, where=outside.model, do="Give the scale its tokenizer (kind: pretrained).")


# -- reading


def _damaged(path: Path, error: Exception, what: str) -> UserError:
    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"not {what} ({first}).", where=str(path), do="Restore the file, or name another model.")


def _from_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            for name in stream.keys():  # noqa: SIM118 - no dict
                yield name, stream.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error, "whole safetensors") from None


def _from_torch(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import pickle
    import zipfile

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:
        raise _damaged(path, error, "a file of tensors alone") from None
    pairs = loaded.items() if isinstance(loaded, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs):
        raise _damaged(path, ValueError("no dict of tensors"), "a file of tensors alone")
    yield from pairs


def load_outside(model: torch.nn.Module, outside: Outside) -> str:
    """Puts the weights of `outside` into `model` (of its size, float32); returns the SHA-256 over all its tensors.

    The digest is of values and names, the same for every file format. Half precision becomes float32, which is exact.
    Missing and unknown tensors, other shapes, kinds other than float16, bfloat16 and float32, and values that are not
    finite are a `UserError`.
    """
    import hashlib

    import torch

    def wrong(fault: str, do: str = "Name another model.") -> UserError:
        return UserError(fault, where=outside.model, do=do)

    wanted, digests = model.state_dict(), {}
    for file in outside.weight_files:
        read = _from_safetensors if file.endswith(".safetensors") else _from_torch
        for name, tensor in read(outside.fetch(file)):
            if BUFFERS.fullmatch(name):
                continue
            if name not in wanted:
                raise wrong(f"{file} has a tensor that no GPT-NeoX language model has: {name}.")
            if name in digests:
                raise wrong(f"the tensor {name} stands in two of its files.")
            if tensor.shape != wanted[name].shape:
                shapes = f"{list(tensor.shape)}, and not {list(wanted[name].shape)}"
                raise wrong(f"the tensor {name} is {shapes}: its {CONFIG} says another size.")
            if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
                raise wrong(
                    f"the tensor {name} is {tensor.dtype}; only weights in 16 or 32 bit floats are taken."
                )
            whole = tensor.float().contiguous()
            if not torch.isfinite(whole).all():
                raise wrong(f"the tensor {name} has values that are not finite.")
            with torch.no_grad():
                wanted[name].copy_(whole)
            digests[name] = hashlib.sha256(whole.numpy()).hexdigest()
    if missing := sorted(wanted.keys() - digests.keys()):
        raise wrong(f"{len(missing)} tensors are missing, the first is {missing[0]}.")
    return digest(digests)


def start_outside(model: torch.nn.Module, segment: Segment, folder: Path, tokenizer: Path | None) -> str:
    """Puts the model that `segment` starts from into `model`; returns the digest of its tensors.

    `folder` is the segment's in the store: a run that goes on must find the weights that it began with. `tokenizer` is
    the folder of the tokenizer that its data was made with.
    """
    outside = Outside(segment.external.model)
    setting = f"the model {segment.model_name} in the scale file"
    check_fits(outside, segment.model, segment.vocabulary, setting, segment.id)
    if tokenizer is not None:
        check_tokenizer(outside, tokenizer)
    found, record = load_outside(model, outside), folder / START
    if record.exists() and (before := read_json(record).get("weights")) != found:
        fault = f"the model has changed since the run began: {before} was read, {found} is there."
        do = f"Restore it, or remove {folder} to train anew."
        raise UserError(fault, where=outside.model, do=do)
    if os.environ.get("RANK", "0") == "0":
        write_json(record, {"model": outside.model, "weights": found})
    return found
