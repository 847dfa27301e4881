"""Models from outside, of the hub or a folder, in Hugging Face's format: what they are, and their weights.

Nothing of a repository is executed. What differs from the architecture here in anything that decides the
function is a `UserError`, where possible when a plan is made. Only the files named here are read, each
checked by the hub's lock; `from_pretrained` would also follow an adapter's configuration and make up what is
missing.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_repro.declarations.runs import OutsideSize
from cpt_repro.declarations.scale import Size
from cpt_repro.errors import UserError
from cpt_repro.files import digest, file_digest, read_json
from cpt_repro.models.architecture import architecture
from cpt_repro.models.hub import Repository
from cpt_repro.project import HUB, Project

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
#: Of these the first that is there is read, or the files that an index names.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_WEIGHTS = [name for whole in _WHOLE for name in (whole, f"{whole}.index.json")]


def is_folder(model: str) -> bool:
    """Whether `init_from` names a folder, and not a repository of the hub."""
    return model.startswith(("/", "./"))


def outside_identity(project: Project, model: str) -> str:
    """What a model from outside is, for an identity; one of the hub is not looked at."""
    return Outside(project, model).identity if is_folder(model) else model


class Outside:
    """A model from outside: `<owner>/<name>`, with `@<revision>`, of the hub, or the path of a folder.

    `where`: who asks for it, for messages. A folder that is not there, and a copy that may be of another
    revision, are a `UserError`.
    """

    def __init__(self, project: Project, model: str, where: str = ""):
        self.model, self.folder, self.repository = model, None, None
        self.where = f"{where}, {model}" if where else model
        if is_folder(model):
            self.folder = project.root / model
            if not self.folder.is_dir():
                raise self.fault("the folder does not exist.", "Correct the path in 'init_from'.")
            return
        name, _, revision = model.partition("@")
        self.repository = Repository(project, "model", name, revision or None)
        copy = self.repository.copy
        if revision and copy and not str(copy).endswith(f"@{revision}"):
            # One repository has the checkpoints of many steps, and a copy of another one looks the same.
            do = f"Rename it {copy.name}@{revision} if it is that revision, or unset ${HUB}."
            raise UserError(f"the copy does not say that it is revision {revision}.", where=str(copy), do=do)

    def fault(self, what: str, do: str = "Name another model.") -> UserError:
        """An error of this model."""
        return UserError(what, where=self.where, do=do)

    @cached_property
    def files(self) -> list[str]:
        """Names of its files."""
        if self.folder:
            return sorted(path.name for path in self.folder.iterdir() if path.is_file())
        try:
            return self.repository.files()
        except UserError:
            # Compute nodes often have no network: what was taken before may still lie in the hub's cache.
            if self.repository.copy or not set(_WEIGHTS) & set(self.repository.known_files):
                raise
            return self.repository.known_files

    def fetch(self, file: str) -> Path:
        """The local path of a file; a missing one is a `UserError`."""
        if file not in self.files:
            do = "Name a model in Hugging Face's format, or complete its files."
            raise self.fault(f"it has no file {file}.", do)
        return self.folder / file if self.folder else self.repository.fetch(file)

    def _mapping(self, file: str) -> dict[str, Any]:
        content = read_json(self.fetch(file))
        if not isinstance(content, dict):
            raise self.fault(f"its {file} is not what it should be.", "Restore the file.")
        return content

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its `config.json`."""
        return self._mapping(CONFIG)

    @property
    def vocabulary(self) -> int:
        """Rows of its embedding, as its configuration says."""
        rows = self.config.get("vocab_size")
        if not isinstance(rows, int) or rows < 1:
            raise self.fault(f"its {CONFIG} gives {rows!r} for 'vocab_size'.", "Restore the file.")
        return rows

    @cached_property
    def weight_files(self) -> list[str]:
        """Names of the files that hold its weights; none is a `UserError`."""
        first = next((file for file in _WEIGHTS if file in self.files), None)
        if first is None:
            fault = f"it has no weights: none of {', '.join(_WEIGHTS)}."
            raise self.fault(fault, "Name a revision that has them.")
        if first in _WHOLE:
            return [first]
        shards = self._mapping(first).get("weight_map")
        return sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []

    @property
    def identity(self) -> str:
        """Of the hub its name and revision, which the lock pins; of a folder, wherever it lies, the digest of
        its configuration and weights."""
        if self.folder is None:
            return self.model
        paths = [self.fetch(file) for file in (CONFIG, *self.weight_files)]
        return digest({path.name: _digest_of(path, path.stat().st_mtime_ns) for path in paths})


@cache
def _digest_of(path: Path, changed: int) -> str:
    return file_digest(path)


# -- does it fit


def check_fits(outside: Outside, size: Size, rows: int | None, setting: str) -> None:
    """That a model is of the architecture and size `size` and has `rows` rows of embedding (None: any).

    `setting`: where the scale says the model's size. Anything else is a `UserError`.
    """
    for key, what in (("auto_map", "code of its own"), ("quantization_config", "quantized weights")):
        if outside.config.get(key):
            raise outside.fault(f"it has {what}, which is not taken: {outside.config[key]}.")
    ours = architecture(size.architecture)
    theirs = ours.described(outside.config)
    for what, wanted in ours.expected(size).items():
        if theirs[what] != wanted:
            fault = f"its architecture is another: {what} {theirs[what]}, and not {wanted}."
            raise outside.fault(fault, f"Start from a {ours.called} model of the size of {setting}.")
    if outside.vocabulary != (rows or outside.vocabulary):
        fault = f"its embedding has {outside.vocabulary} rows, and the model here {rows}."
        do = f"Set 'vocab_size: {outside.vocabulary}' of {setting}, if its tokenizer is the scale's."
        raise outside.fault(fault, do)


def check_size(
    project: Project, model: str, told: OutsideSize | None, size: Size, rows: int, where: str, setting: str
) -> None:
    """What a plan can tell without a network: that a size told is the scale's, that a folder fits."""
    theirs = (told.layers, told.width, told.heads, told.vocab_size) if told else None
    ours = (size.layers, size.width, size.heads, rows)
    if theirs not in (None, ours):
        words = "{} layers, width {}, {} heads and {} rows of embedding".format
        fault = f"it starts from {model}, which has {words(*theirs)}; {setting} has {words(*ours)}."
        do = "Start from it at a scale where the model has this size, or leave out the variant that says so."
        raise UserError(fault, where=where, do=do)
    if is_folder(model):
        check_fits(Outside(project, model, where), size, rows, setting)


def check_tokenizer(outside: Outside, folder: Path) -> None:
    """That its tokenizer has the tokens of that in `folder`, where both are there; else `UserError`."""
    if TOKENIZER not in outside.files or not (folder / TOKENIZER).is_file():
        return
    theirs, ours = _vocabulary(outside.fetch(TOKENIZER)), _vocabulary(folder / TOKENIZER)
    other = sum(theirs.get(token) != number for token, number in ours.items())
    if other or len(theirs) != len(ours):
        fault = f"it was trained with another tokenizer: {other} of our {len(ours)} tokens are others in its."
        raise outside.fault(fault, "Give the scale its tokenizer (kind: pretrained).")


# -- reading


def _damaged(path: Path, what: str, error: object) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"not {what} ({reason}).", where=str(path), do="Restore it, or name another model.")


def _vocabulary(path: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises plain Exception
        raise _damaged(path, "a tokenizer", error) from None


def _tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file of safetensors or of torch's, which may hold tensors alone."""
    import torch
    from safetensors.torch import load_file

    safe = path.suffix == ".safetensors"
    try:
        if safe:
            return load_file(path)
        mapped = zipfile.is_zipfile(path)  # older files cannot be
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors.items()):
            raise ValueError("no dict of tensors")
    except Exception as error:  # a damaged pickle raises anything
        raise _damaged(path, "whole safetensors" if safe else "a file of tensors alone", error) from None
    return tensors


def load_outside(outside: Outside, model: PreTrainedModel, size: Size, identity: str | None = None) -> str:
    """Puts its weights into `model` (of that size, float32); returns the SHA-256 over all tensors.

    The digest is of values and names, the same for every file format. Half precision becomes float32, which
    is exact. Missing and unknown tensors, other shapes, what is no finite number, and what is no longer what
    it was when a run was planned (`identity`) are a `UserError`.
    """
    import torch

    ours, missing = architecture(size.architecture), set(model.state_dict())
    for file in outside.weight_files:
        tensors = {n: t for n, t in _tensors(outside.fetch(file)).items() if not ours.is_buffer(n)}
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise outside.fault(f"the tensor {name} ({tensor.dtype}) has values that are not finite.")
        try:
            unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
        except RuntimeError as error:  # another shape
            reason = re.sub(r"\s+", " ", str(error).partition("\n")[2])[:300]
            raise outside.fault(f"{file} does not fit its {CONFIG} ({reason}).") from None
        if unknown:
            raise outside.fault(f"{file} has a tensor that no {ours.called} model has: {unknown[0]}.")
        missing -= tensors.keys()
    if missing:
        raise outside.fault(f"{len(missing)} tensors are missing, the first is {min(missing)}.")
    if identity not in (None, outside.identity):
        do = "Restore it, or run again to train anew."
        raise outside.fault("it has changed since the run was planned.", do)
    weights = model.state_dict().items()
    return digest({name: hashlib.sha256(tensor.contiguous().numpy()).hexdigest() for name, tensor in weights})
