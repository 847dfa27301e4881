"""Where everything of a project lies. One object holds every path and is handed down."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_repro.errors import UserError

#: Variables that move a part of a project elsewhere.
STORE, CORPORA = "CPT_REPRO_STORE", "CPT_REPRO_CORPORA"
HUB, SHARDS = "CPT_REPRO_HUB", "CPT_REPRO_SHARDS_REMOTE"
#: What every project has.
_SCALES = "configs/scales"


def _below(path: str) -> property:
    """A path below a project's root."""
    return property(lambda project: project.root / path)


@dataclass(frozen=True)
class Project:
    """The folders of a project: declarations below `root`, and what is made from them."""

    root: Path
    results: Path
    figures: Path
    #: shards, tokenizer and benchmark tasks of all scales
    data: Path
    #: checkpoints of all scales
    store: Path
    #: extracted text of `files` corpora
    corpora: Path
    #: copies of the hub's repositories, read instead of the network
    hub_copies: Path | None = None
    #: where shards that are not here are fetched from
    shards_remote: str | None = None

    @classmethod
    def at(cls, root: Path | None = None) -> Project:
        """The project in a folder; without one that of the current folder or the nearest one above it.

        `$CPT_REPRO_STORE`, `$CPT_REPRO_CORPORA`, `$CPT_REPRO_HUB` and `$CPT_REPRO_SHARDS_REMOTE` are read
        here alone; one that is no usable name is a `UserError`, and so is a place without a project.
        """
        if root is None:
            here = Path.cwd()
            found = next((folder for folder in (here, *here.parents) if (folder / _SCALES).is_dir()), here)
            root = Path() if found == here else found  # of the current folder, names stay short
        root = Path(root)
        if not (root / _SCALES).is_dir():
            do = f"Go to a folder that has '{_SCALES}' (a clone of the repository)."
            raise UserError("there is no project here.", where=str(root.resolve()), do=do)
        told = {name: os.environ.get(name) for name in (STORE, CORPORA, HUB, SHARDS)}
        for name, value in told.items():
            if value is not None and not value.strip():
                fault = "the variable is set and empty"
            elif value and re.search(r"^~|[\x00-\x1f\x7f]", value):
                fault = "it begins with ~, which only a shell replaces, or holds a line break or the like"
            else:
                continue
            raise UserError(f"{fault}.", where=f"${name}", do="Unset it, or give it a folder.")
        return cls(
            root=root,
            results=root / "results",
            figures=root / "figures",
            data=root / "data",
            store=Path(told[STORE] or root / "store"),
            corpora=Path(told[CORPORA] or root / "data" / "corpora"),
            hub_copies=Path(told[HUB]) if told[HUB] else None,
            shards_remote=told[SHARDS],
        )

    def with_(self, **places: Path | None) -> Project:
        """The same project with some places elsewhere; None leaves one where it is."""
        return replace(self, **{name: place for name, place in places.items() if place is not None})

    # -- declarations

    scales = _below(_SCALES)
    papers = _below("configs/papers")
    benchmarks = _below("configs/benchmarks")
    manifests = _below("data_manifests")
    #: commits and hashes of what was taken from the hub
    hub_lock = _below("data_manifests/hub.lock.json")
    #: speeds measured so far, one JSON object a line
    measurements = _below("benchmarks")
    citation = _below("CITATION.cff")
