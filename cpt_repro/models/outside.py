"""Models from outside, of the hub or a folder, in Hugging Face's format: what they consist of, and whether they fit.

Nothing of a repository is executed. What differs from our architecture in anything that decides the function is a
`UserError`, where possible when a plan is made.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from cpt_repro.declarations.runs import OutsideSize
from cpt_repro.declarations.scale import ModelSize
from cpt_repro.errors import UserError
from cpt_repro.files import read_json
from cpt_repro.models.hub import MIRROR_VARIABLE, Repository

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
#: Of these the first that is there is read.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Outside:
    """A model from outside: `<owner>/<name>`, with `@<revision>`, of the hub, or the path of a folder."""

    def __init__(self, model: str):
        self.model, self.folder, self.repository = model, None, None
        if model.startswith(("/", "./")):
            self.folder = Path(model)
            if not self.folder.is_dir():
                raise UserError(
                    "the folder does not exist.", where=model, do="Correct the path in 'init_from'."
                )
            return
        if ".." in model:
            do = "Write <owner>/<name>@<revision>, or a path that begins with / or ./."
            raise UserError("'..' stands in the name of a model.", where=model, do=do)
        name, _, revision = model.partition("@")
        self.repository = Repository("model", name, revision or None)
        copy = self.repository.copy
        if revision and copy and not str(copy).endswith(f"@{revision}"):
            # One repository has the checkpoints of many steps; a copy of another one would be taken without a word.
            do = f"Rename it {copy.name}@{revision} if it is that revision, or unset ${MIRROR_VARIABLE}."
            raise UserError(f"the copy does not say that it is revision {revision}.", where=str(copy), do=do)

    @cached_property
    def files(self) -> list[str]:
        """Names of its files."""
        if self.folder:
            return sorted(path.name for path in self.folder.iterdir() if path.is_file())
        try:
            return self.repository.files()
        except UserError:
            # Compute nodes often have no network: what was taken before may still lie in the hub's cache.
            if self.repository.copy or not set(WEIGHTS) & set(self.repository.known_files):
                raise
            return self.repository.known_files

    def fetch(self, file: str) -> Path:
        """The local path of a file; a missing one is a `UserError`."""
        if file not in self.files:
            do = "Name a model in Hugging Face's format, or complete its files."
            raise UserError(f"it has no file {file}.", where=self.model, do=do)
        return self.folder / file if self.folder else self.repository.fetch(file)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its `config.json`."""
        told = read_json(self.fetch(CONFIG))
        if not isinstance(told, dict):
            raise UserError(f"its {CONFIG} is no configuration.", where=self.model, do="Correct the file.")
        return told

    def _count(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key, default)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"its {CONFIG} gives {value!r} for '{key}'.", where=self.model, do="Correct the file."
            )
        return value

    @property
    def vocabulary(self) -> int:
        """Rows of its embedding, as its configuration says."""
        return self._count("vocab_size")

    @property
    def context(self) -> int:
        """Tokens of its context."""
        return self._count("max_position_embeddings", 2048)

    @property
    def commit(self) -> str | None:
        """The commit of its repository; None of a folder or a copy."""
        return self.repository.commit if self.repository else None

    @cached_property
    def weight_files(self) -> list[str]:
        """Names of the files that hold its weights; none, or a missing shard, is a `UserError`."""
        found = next((file for file in WEIGHTS if file in self.files), None)
        if found is None:
            fault = f"it has no weights: none of {', '.join(WEIGHTS)}."
            raise UserError(fault, where=self.model, do="Name a revision that has them.")
        if not found.endswith(".index.json"):
            return [found]
        told = read_json(self.fetch(found))
        shards = told.get("weight_map") if isinstance(told, dict) else None
        named = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        missing = [name for name in named if name not in self.files]
        if missing or not named:
            fault = (
                f"{found} names the shard {missing[0]}, which is not there."
                if missing
                else f"{found} is no index."
            )
            raise UserError(fault, where=self.model, do="Complete its files.")
        return named


# -- does it fit


def architecture(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a model's function but its vocabulary, by words, from a `config.json` of any transformers version.

    What the file does not say is what GPT-NeoX has by default. A context length is not among it: there is no table of
    positions.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    base = config.get("rotary_emb_base", config.get("rope_theta", 10000))
    share = config.get("rotary_pct", config.get("partial_rotary_factor", 0.25))
    return {
        "model_type": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "width": config.get("hidden_size"),
        "heads": config.get("num_attention_heads"),
        "width of the feed-forward part": config.get("intermediate_size"),
        "activation": config.get("hidden_act", "gelu"),
        "parallel residual": config.get("use_parallel_residual", True),
        "biases in the attention": config.get("attention_bias", True),
        "tied embeddings": config.get("tie_word_embeddings", False),
        "epsilon of the layer norms": config.get("layer_norm_eps", 1e-5),
        "kind of rotary embedding": rope.get("rope_type", rope.get("type", "default")),
        "rotated share of a head": rope.get("partial_rotary_factor", share),
        "base of the rotary embedding": rope.get("rope_theta", base),
        "code of its own": config.get("auto_map"),
    }


def our_architecture(size: ModelSize) -> dict[str, Any]:
    """The same of the papers' architecture at a size (`training.model.neox_config` without its imports)."""
    told = {"model_type": "gpt_neox", "num_hidden_layers": size.layers, "hidden_size": size.width}
    return architecture(told | {"num_attention_heads": size.heads, "intermediate_size": 4 * size.width})


def check_fits(outside: Outside, size: ModelSize, rows: int | None, setting: str, where: str = "") -> None:
    """That a model is of our architecture and `size` and has `rows` rows of embedding (None: any); else `UserError`.

    `setting`: where the scale says the model's size.
    """
    where = f"{where}, {outside.model}" if where else outside.model
    theirs = architecture(outside.config)
    for what, ours in our_architecture(size).items():
        if theirs[what] != ours:
            fault = f"its architecture is another: {what} {theirs[what]}, and not {ours}."
            raise UserError(fault, where=where, do=f"Start from a GPT-NeoX model of the size of {setting}.")
    if rows is not None and outside.vocabulary != rows:
        fault = f"its embedding has {outside.vocabulary} rows, and the model here {rows}."
        do = f"Set 'vocab_size: {outside.vocabulary}' of {setting}, if its tokenizer is the scale's."
        raise UserError(fault, where=where, do=do)


def check_size(
    model: str, told: OutsideSize | None, size: ModelSize, rows: int, where: str, setting: str
) -> None:
    """What a plan can tell without a network: that a declared size is the scale's, that a local folder fits."""
    if told is not None:
        theirs = (told.layers, told.width, told.heads, told.vocab_size)
        words = "{} layers, width {}, {} heads and {} rows of embedding"
        if theirs != (size.layers, size.width, size.heads, rows):
            here = words.format(size.layers, size.width, size.heads, rows)
            fault = f"it starts from {model}, which has {words.format(*theirs)}; {setting} has {here}."
            do = "Start from it at a scale where the model has this size (paper), or leave out the variant that says so."
            raise UserError(fault, where=where, do=do)
    if model.startswith(("/", "./")):
        check_fits(Outside(model), size, rows, setting, where)
