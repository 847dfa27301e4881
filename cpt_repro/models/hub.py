"""The one module that knows the Hugging Face hub: files of repositories at pinned commits, checked by a lock.

The project's `hub.lock.json` records, at the first use of a repository, its commit and the SHA-256 of every
file taken from it. Later uses must find the same, wherever they run: a changed file or revision is an error
and never silently used. A project may have a folder of copies, `<datasets|models>/<owner>/<name>/<file>` or,
of one revision, `.../<name>@<revision>/<file>`, which is read instead of the network. Nothing is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import RootModel

from cpt_repro.declarations.strict import Strict, parse
from cpt_repro.errors import UserError, briefly
from cpt_repro.files import file_digest, locked, read_json, write_json
from cpt_repro.project import HUB, Project

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class _Locked(Strict):
    commit: str | None = None
    #: file -> SHA-256
    files: dict[str, str] = {}


class _Lock(RootModel[dict[str, _Locked]]):
    """`<kind>:<owner>/<name>@<revision>` -> what is known."""


class Repository:
    """A repository of the hub, or the project's copy of it; a name that leads elsewhere is a `UserError`.

    `revision`: a commit, a tag or a branch, None for the default; its commit is pinned by the lock file at
    first use. `gating`: what a manifest says about access, for the error message.
    """

    def __init__(
        self,
        project: Project,
        kind: Literal["dataset", "model"],
        name: str,
        revision: str | None = None,
        gating: str = "",
    ):
        self.kind, self.name, self.revision, self.gating = kind, name, revision, gating
        self.lock, self.key = project.hub_lock, f"{kind}:{name}@{revision or 'default'}"
        if ".." in self.key or name.startswith("/"):
            do = "Write <owner>/<name>, or <owner>/<name>@<revision>."
            raise UserError("no name of a repository: it leads elsewhere.", where=self.key, do=do)
        copies = project.hub_copies and project.hub_copies / f"{kind}s"
        folders = [copies / folder for folder in (f"{name}@{revision}", name)] if copies else []
        #: the copy that is read instead of the network
        self.copy = next((folder for folder in folders if folder.is_dir()), None)
        #: what errors name
        self.where = str(self.copy or self)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}, revision {self.revision or 'default'}"

    def _entries(self) -> dict[str, _Locked]:
        return parse(_Lock, read_json(self.lock), str(self.lock)).root if self.lock.exists() else {}

    @property
    def _locked(self) -> _Locked:
        return self._entries().get(self.key, _Locked())

    def _remember(self, commit: str | None, files: dict[str, str]) -> None:
        with locked(self.lock.with_name(f".{self.lock.name}.lock")):
            entry = _Locked(commit=commit, files=self._locked.files | files)
            write_json(self.lock, _Lock(self._entries() | {self.key: entry}).model_dump())

    @contextmanager
    def _asking(self) -> Iterator[tuple[HfApi, dict[str, str]]]:
        """The hub's client, and the commit and kind to ask for; what it raises becomes one sentence."""
        from huggingface_hub import HfApi

        try:
            hub, kind = HfApi(), {"repo_type": self.kind}
            if (commit := self._locked.commit) is None:
                commit = hub.repo_info(self.name, revision=self.revision, **kind).sha
                self._remember(commit, {})
            yield hub, {"revision": commit, **kind}
        except UserError:
            raise
        except Exception as error:  # its errors have no common base
            gating = f" ({self.gating})" if self.gating else ""
            what = f"the hub does not give it{gating}: {briefly(error)}."
            do = "Look at name, revision and network; for restricted access accept the conditions on the "
            do += f"hub and run `hf auth login`; or put a copy below ${HUB}/{self.kind}s/{self.name}."
            raise UserError(what, where=str(self), do=do) from None

    @property
    def commit(self) -> str | None:
        """The commit of what was fetched; None of a local copy, whose files alone are compared."""
        return self._locked.commit

    def files(self, pattern: str) -> list[str]:
        """Sorted paths of the repository's files that fit `pattern` (* also matches /); none: `UserError`."""
        if self.copy:
            listed = [str(path.relative_to(self.copy)) for path in self.copy.rglob("*") if path.is_file()]
        else:
            with self._asking() as (hub, there):
                listed = hub.list_repo_files(self.name, **there)
        fitting = sorted(name for name in listed if fnmatchcase(name, pattern))
        if lost := {name for name in self._locked.files if fnmatchcase(name, pattern)} - set(fitting):
            what = f"{len(lost)} files that were used before are missing, {min(lost)} among them."
            do = f"Restore them, or remove '{self.key}' from {self.lock}."
            raise UserError(what, where=self.where, do=do)
        if not fitting:
            do = "Correct the pattern or complete the copy."
            raise UserError(f"no file fits '{pattern}'.", where=self.where, do=do)
        return fitting

    def fetch(self, *files: str) -> list[Path]:
        """The local paths of files, downloaded if need be; another hash than the lock's is a `UserError`."""
        if self.copy:
            return self._checked({file: self.copy / file for file in files})
        with self._asking() as (hub, there):
            paths = {file: Path(hub.hf_hub_download(self.name, file, **there)) for file in files}
        return self._checked(paths)

    def fetch_fitting(self, pattern: str) -> list[Path]:
        """As `fetch`, of the files at the top that fit `pattern`; without a network those taken before."""
        if not (folder := self.copy):
            with self._asking() as (hub, there):
                folder = Path(hub.snapshot_download(self.name, **there, allow_patterns=pattern))
        return self._checked({path.name: path for path in sorted(folder.glob(pattern))})

    def _checked(self, paths: dict[str, Path]) -> list[Path]:
        """Compares files with the lock, which is read and written once, and pins those that are new."""
        known, new = self._locked.files, {}
        for file, path in paths.items():
            inside = not self.copy or path.resolve().is_relative_to(self.copy.resolve())
            if not (inside and path.is_file()):
                what = "the file is missing in the copy, or leads out of it."
                raise UserError(what, where=str(path), do="Complete the copy.")
            new[file] = file_digest(path)
            if known.get(file, new[file]) != new[file]:
                what = f"it changed since it was first used: SHA-256 {known[file]} locked, {new[file]} found."
                do = f"Restore the file; or, to accept the change, remove '{self.key}' from {self.lock}."
                raise UserError(what, where=str(path), do=do)
        if new.keys() - known.keys():
            self._remember(self._locked.commit, new)
        return [*paths.values()]
