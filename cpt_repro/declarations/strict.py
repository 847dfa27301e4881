"""Declarations read from YAML: strict models, unknown keys refused with a hint."""

from __future__ import annotations

import difflib
import math
import pickle
from collections.abc import Hashable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cpt_repro.errors import UserError
from cpt_repro.files import DECLARATION_BYTES, read_bytes, read_json

Share = Annotated[float, Field(ge=0, le=1)]
#: Of tokens, above 0.
Billions = Annotated[float, Field(gt=0, le=1e9)]
#: What becomes a folder, a file or a word of a command.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Strict(BaseModel):
    """Base of every declaration: frozen; an unknown key is an error, and so are NaN and infinity."""

    # What fields must fulfil together is checked in `model_post_init`: pydantic tells its ValueErrors too.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The safe loader, refusing a key given twice; on libyaml where there is one: seven times as fast."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    own = set()
    for key_node, _ in node.value:
        if key_node.tag.endswith(":merge"):
            continue
        key = loader.construct_object(key_node, deep=True)
        plain = isinstance(key, Hashable)
        if not plain or key in own:
            what = f"the key {key!r} {'stands twice' if plain else 'is no plain value'}"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        own.add(key)
    return loader.construct_mapping(node, deep=True)


def _printable_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    str(value)  # raises where it has too many digits to be told, as a hexadecimal one may
    return value


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _printable_int)

#: Nodes of a YAML file, aliases written out; and their depth, with which libyaml's time and stack grow.
_MOST_NODES, _DEEPEST = 1_000_000, 100


def _check_size(text: str) -> None:
    nodes, below, around = 0, {}, []  # below: anchor -> nodes that it stands for; endless within itself
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            below[anchor] = nodes - before
        elif isinstance(event, yaml.NodeEvent):
            nodes += below.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, nodes - 1))
            below[event.anchor] = math.inf
        if len(around) > _DEEPEST:
            raise ValueError("it nests too deep")
        if nodes > _MOST_NODES:
            raise ValueError("its aliases, written out, are too many values")


@lru_cache(maxsize=64)
def _read(text: str) -> bytes:
    """What a text says, pickled, so that every reader has its own; libyaml takes ten times as long."""
    _check_size(text)
    return pickle.dumps(_Loader(text).get_single_data())


def warm_up(folder: Path) -> None:
    """Reads the declarations of the project in a folder, for processes that are forked from this one."""
    for path in (*folder.glob("configs/**/*.yaml"), *folder.glob("data_manifests/*.yaml")):
        with suppress(UserError):  # who needs it says so
            read_yaml(path)


def read_yaml(path: Path) -> Any:
    """Reads YAML with the safe loader; what is wrong with it is a `UserError` naming file and line."""
    if not Path(path).exists():
        do = nearest(Path(path).stem, sorted(other.stem for other in Path(path).parent.glob("*.yaml")))
        raise UserError("the file does not exist.", where=str(path), do=do)
    try:
        text = read_bytes(path, DECLARATION_BYTES).decode("utf-8")
        return pickle.loads(_read(text))  # noqa: S301  made by this process
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bad UTF-8, impossible dates
        fault = " ".join(str(error).split())
        raise UserError(f"not valid YAML ({fault}).", where=str(path), do="Correct it.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest known one, else all that are known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(known) or 'none'}."


T = TypeVar("T", bound=BaseModel)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type such as dict[str, Model | None] is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _known_keys(model: type[BaseModel], location: tuple) -> list[str]:
    """Keys allowed where a validation error arose, as far as the model's plain nesting tells."""
    models = [model]
    for part in location:
        # The tag of a union stands in a location before the keys of its member.
        tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        fields = {field.alias or name: field for name, field in models[0].model_fields.items()}
        models = tagged or (_models_in(fields[part].annotation) if part in fields else []) or models
    return [field.alias or name for name, field in models[0].model_fields.items()]


def parse(model: type[T], value: Any, where: str, context: Any = None) -> T:
    """Validates `value` (validators get `context`); the first fault is a `UserError` naming file and key."""
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        fault = error.errors()[0]
        location, given = fault["loc"], fault.get("input")
        key = ".".join(str(part) for part in location) or "(top level)"
        if fault["type"] == "extra_forbidden":
            what, do = "unknown", nearest(str(location[-1]), _known_keys(model, location[:-1]))
        else:
            told = "" if isinstance(given, dict | list) else f" (given: {given!r:.60})"
            what, do = f"wrong: {fault['msg'].removeprefix('Value error, ')}{told}", "Correct the value."
        raise UserError(f"the key '{key}' is {what}.", where=where, do=do) from None


def load(model: type[T], path: Path) -> T:
    """Reads one file of YAML, or of JSON, as `model`."""
    return parse(model, read_json(path) if path.suffix == ".json" else read_yaml(path), str(path))
