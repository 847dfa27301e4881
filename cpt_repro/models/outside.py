"""Models from outside, of the hub or a folder, in Hugging Face's format: what they are, and their weights.

Nothing of a repository is executed. What differs from the architecture here in anything that decides the
function is a `UserError`, where possible when a plan is made.
"""

from __future__ import annotations

import hashlib
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cpt_repro.declarations.runs import OutsideSize
from cpt_repro.declarations.scale import Size
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError, briefly
from cpt_repro.files import digest, file_digest, read_json
from cpt_repro.models.architecture import architecture
from cpt_repro.models.hub import Repository
from cpt_repro.project import HUB, Project

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
#: Those that the first pattern finds are read.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


class _Config(BaseModel, extra="allow"):
    vocab_size: int


def is_folder(model: str) -> bool:
    """Whether `init_from` names a folder, and not a repository of the hub."""
    return model.startswith(("/", "./"))


def outside_identity(project: Project, model: str) -> str:
    """What a model from outside is, for an identity; one of the hub is not looked at."""
    return Outside(project, model).identity if is_folder(model) else model


class Outside:
    """A model from outside: `<owner>/<name>`, with `@<revision>`, of the hub, or the path of a folder.

    `where`: who asks for it. No such folder, and a copy that may be another revision's: `UserError`.
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

    def files(self, pattern: str) -> list[Path]:
        """Its files at the top that fit `pattern`, fetched."""
        return sorted(self.folder.glob(pattern)) if self.folder else self.repository.fetch_fitting(pattern)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its `config.json`; one that names no rows of embedding is a `UserError`."""
        for path in self.files(CONFIG):
            return parse(_Config, read_json(path), f"{self.where}, {CONFIG}").model_dump()
        raise self.fault(f"it has no {CONFIG}.")

    @property
    def vocabulary(self) -> int:
        """Rows of its embedding, as its configuration says."""
        return self.config["vocab_size"]

    @cached_property
    def weights(self) -> list[Path]:
        """The files that hold its weights; none is a `UserError`."""
        for pattern in _WEIGHTS:
            if paths := self.files(pattern):
                return paths
        raise self.fault(f"it has no weights: none of {', '.join(_WEIGHTS)}.")

    @property
    def identity(self) -> str:
        """Of the hub name and revision, which the lock pins; of a folder the digest of what it holds."""
        if self.folder is None:
            return self.model
        paths = [*self.files(CONFIG), *self.weights]
        return digest({path.name: _digest_of(path, path.stat().st_mtime_ns) for path in paths})


@cache
def _digest_of(path: Path, changed: int) -> str:
    return file_digest(path)


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
            do = f"Start from a {ours.called} model of the size of {setting}."
            raise outside.fault(f"its architecture is another: {what} {theirs[what]}, and not {wanted}.", do)
    if rows not in (None, outside.vocabulary):
        fault = f"its embedding has {outside.vocabulary} rows, and the model here {rows}."
        do = f"Set 'vocab_size: {outside.vocabulary}' of {setting}, if its tokenizer is the scale's."
        raise outside.fault(fault, do)


def check_size(
    project: Project, model: str, told: OutsideSize | None, size: Size, rows: int, where: str, setting: str
) -> None:
    """What a plan can tell without a network: that a size told is the scale's, and that a folder fits."""
    ours = (size.layers, size.width, size.heads, rows)
    theirs = (told.layers, told.width, told.heads, told.vocab_size) if told else ours
    if theirs != ours:
        words = "{} layers, width {}, {} heads and {} rows of embedding".format
        fault = f"it starts from {model}, which has {words(*theirs)}; {setting} has {words(*ours)}."
        do = "Start from it at a scale where the model has this size, or leave out the variant that says so."
        raise UserError(fault, where=where, do=do)
    if is_folder(model):
        check_fits(Outside(project, model, where), size, rows, setting)


def check_tokenizer(outside: Outside, folder: Path) -> None:
    """That its tokenizer has the tokens of that in `folder`, where both are there; else `UserError`."""
    paths = [*outside.files(TOKENIZER), folder / TOKENIZER]
    if len(paths) < 2 or not paths[1].is_file():
        return
    from tokenizers import Tokenizer

    try:
        both = [Tokenizer.from_file(str(path)) for path in paths]
    except Exception as error:  # the library raises plain Exception
        raise outside.fault(f"its tokenizer, or ours, cannot be read ({error}).", "Restore it.") from None
    theirs, ours = (set(one.get_vocab(with_added_tokens=True).items()) for one in both)
    if theirs != ours:
        what = f"it was trained with another tokenizer: {len(ours - theirs)} of our {len(ours)} tokens are "
        raise outside.fault(f"{what}others in its.", "Give the scale its tokenizer (kind: pretrained).")


def load_outside(outside: Outside, model: PreTrainedModel, identity: str | None = None) -> str:
    """Puts its weights into `model` (of its size, float32); returns the SHA-256 over all tensors.

    The digest is of values and names, the same for every file format. Half precision becomes float32, which
    is exact. Missing and unknown tensors, other shapes, what is not finite, and what is no longer what it was
    when a run was planned (`identity`) are a `UserError`; so are pickles that hold more than tensors.
    """
    import torch
    from safetensors.torch import load_file

    tensors, paths = {}, outside.weights
    try:
        for path in paths:
            is_pickle = path.suffix == ".bin"
            tensors |= torch.load(path, "cpu", weights_only=True) if is_pickle else load_file(path)
        theirs, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are told
            output_loading_info=True,
        )
    except Exception as error:  # a damaged pickle raises anything
        fault = f"its weights are not whole, or not tensors alone ({briefly(error)})."
        raise outside.fault(fault) from None
    weights = theirs.state_dict()
    info["infinite"] = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    kinds = {"missing_keys": "missing", "unexpected_keys": "unknown", "mismatched_keys": "of another shape"}
    for kind, what in (kinds | {"infinite": "not finite"}).items():
        if names := info[kind]:
            raise outside.fault(f"{len(names)} of its tensors are {what}, such as {min(names)}.")
    if identity not in (None, outside.identity):
        fault = "it has changed since the run was planned."
        raise outside.fault(fault, "Restore it, or run again to train anew.")
    model.load_state_dict(weights)
    return digest({name: hashlib.sha256(tensor.numpy()).hexdigest() for name, tensor in weights.items()})
