"""The one module that knows the Hugging Face hub: files of a repository at a pinned commit, checked by a lock file.

`data_manifests/hub.lock.json` records, at the first use of a repository, its commit and the SHA-256 of every file
taken from it. Later uses must find the same, wherever they run: a changed file or revision is an error and never
silently used. `$CPT_REPRO_HUB` may name a folder of copies, `<datasets|models>/<owner>/<name>/<file>` or, of one
revision, `.../<name>@<revision>/<file>`, which is then read instead of the network. Nothing of a repository is ever
executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, locked, read_json, write_json
from cpt_repro.project import MANIFESTS

LOCK = MANIFESTS / "hub.lock.json"
MIRROR_VARIABLE = "CPT_REPRO_HUB"

Kind = Literal["dataset", "model"]


class Repository:
    """A repository of the hub, or its copy below `$CPT_REPRO_HUB`.

    `revision`: a commit, a tag or a branch; None takes the default branch at first use. Whatever it is, the commit is
    pinned by the lock file from then on. `gating`: what a manifest says about access, for the error message.
    """

    def __init__(
        self, kind: Kind, name: str, revision: str | None = None, gating: str = "", lock: Path | None = None
    ):
        self.kind, self.name, self.revision, self.gating = kind, name, revision, gating
        self.lock = lock or LOCK
        self.key = f"{kind}:{name}@{revision or 'default'}"
        root = os.environ.get(MIRROR_VARIABLE)
        # A copy of one revision may say so in its name.
        copies = [Path(root) / f"{kind}s" / told for told in (f"{name}@{revision}", name)] if root else []
        self.copy = next((copy for copy in copies if copy.is_dir()), None)

    def _locked_entry(self) -> dict[str, Any]:
        return (read_json(self.lock) if self.lock.exists() else {}).get(self.key, {})

    def _remember(self, **told: Any) -> None:
        with locked(self.lock.with_name(f".{self.lock.name}.lock")):
            everything = read_json(self.lock) if self.lock.exists() else {}
            entry = everything.setdefault(self.key, {"commit": None, "files": {}})
            entry["commit"] = told.get("commit", entry["commit"])
            entry["files"] |= told.get("files", {})
            write_json(self.lock, everything)

    def _failed(self, error: Exception, file: str = "") -> UserError:
        from huggingface_hub import errors

        where = f"{self.kind} {self.name}, revision {self.revision or 'default'}" + (
            f", {file}" if file else ""
        )
        copies = f"or put a copy below ${MIRROR_VARIABLE}/{self.kind}s/{self.name}"
        if isinstance(error, errors.GatedRepoError):
            access = f" ({self.gating})" if self.gating else ""
            do = f"Accept its conditions on the hub and log in with `hf auth login`, {copies}."
            return UserError(f"access to it is restricted{access}.", where=where, do=do)
        if isinstance(error, errors.RevisionNotFoundError):
            return UserError(
                "this revision does not exist (any more).", where=where, do=f"Pin another, {copies}."
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            said = f" ({self.gating})" if self.gating else ""
            return UserError(
                f"the repository does not exist, or is private{said}.", where=where, do=f"Log in, {copies}."
            )
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(
            error, errors.LocalEntryNotFoundError
        ):
            return UserError(
                "the file does not exist there.", where=where, do="Correct the name in the declaration."
            )
        told = " ".join(str(error).split())[:200]
        return UserError(
            f"the hub cannot be reached ({told}).", where=where, do=f"Try again with a network, {copies}."
        )

    @property
    def known_files(self) -> list[str]:
        """Files taken before, by the lock: all that can be told of a repository without a network."""
        return sorted(self._locked_entry().get("files", {}))

    @property
    def commit(self) -> str | None:
        """The commit that is read; None of a local copy, whose files alone are compared."""
        pinned = self._locked_entry().get("commit")
        if self.copy or pinned:
            return pinned
        from huggingface_hub import HfApi

        try:
            info = HfApi().repo_info(self.name, revision=self.revision, repo_type=self.kind)
        except Exception as error:  # its errors have no common base
            raise self._failed(error) from error
        self._remember(commit=info.sha)
        return info.sha

    def files(self, pattern: str = "*") -> list[str]:
        """Paths of the repository's files that fit `pattern` (* also matches /), sorted; none is a `UserError`."""
        if self.copy:
            found = [str(p.relative_to(self.copy)) for p in self.copy.rglob("*") if p.is_file()]
        else:
            from huggingface_hub import HfApi

            commit = self.commit
            try:
                found = HfApi().list_repo_files(self.name, revision=commit, repo_type=self.kind)
            except Exception as error:
                raise self._failed(error) from error
        fitting = sorted(name for name in found if fnmatchcase(name, pattern))
        lost = {name for name in self._locked_entry().get("files", {}) if fnmatchcase(name, pattern)} - set(
            fitting
        )
        if lost:
            what = f"{len(lost)} files that were used before are missing, {min(lost)} among them."
            where = str(self.copy or f"{self.kind} {self.name}")
            raise UserError(what, where=where, do=f"Restore them, or remove '{self.key}' from {self.lock}.")
        if not fitting:
            where = f"{self.kind} {self.name}" + (f" in {self.copy}" if self.copy else "")
            raise UserError(
                f"no file fits '{pattern}'.", where=where, do="Correct the pattern or complete the copy."
            )
        return fitting

    def fetch(self, file: str) -> Path:
        """The local path of a file, downloaded if need be; one that differs from the lock's hash is a `UserError`."""
        return self.fetch_all([file])[0]

    def fetch_all(self, files: Iterable[str]) -> list[Path]:
        """As `fetch`, for many files at once: the lock is read and written once."""
        commit = None if self.copy else self.commit
        known, new, paths = self._locked_entry().get("files", {}), {}, []
        for file in files:
            path = self._get(file, commit)
            found, expected = file_digest(path), known.get(file)
            if expected is None:
                new[file] = found
            elif found != expected:
                raise UserError(
                    f"it changed since it was first used: SHA-256 {expected} is locked, {found} found.",
                    where=str(path),
                    do=f"Restore the file; or, to accept the change, remove '{self.key}' from {self.lock}.",
                )
            paths.append(path)
        if new:
            self._remember(files=new)
        return paths

    def _get(self, file: str, commit: str | None) -> Path:
        if self.copy:
            path = self.copy / file
            if not path.resolve().is_relative_to(self.copy.resolve()):
                raise UserError(
                    "it leads out of the copy.", where=str(path), do="Copy the file itself, not a link."
                )
            if not path.is_file():
                raise UserError("the file is missing in the copy.", where=str(path), do="Complete the copy.")
            return path
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.name, file, revision=commit, repo_type=self.kind))
        except Exception as error:
            raise self._failed(error, file) from error
