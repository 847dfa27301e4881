"""One call of the workflow engine: what the Snakefile asks, and the lock against a second call."""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cpt_repro.errors import UserError
from cpt_repro.files import locked, writing
from cpt_repro.project import Project
from cpt_repro.workflow import warm
from cpt_repro.workflow.jobs import Workflow

#: The workflow engine's own folder.
NOTES = Path(".snakemake")


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """A `UserError` ends the call, and is all that is said."""
    try:
        with writing():
            yield
    except UserError as error:
        sys.exit(f"cpt-repro: {error}")


class Call:
    """The scales that one call is about, each read when its first file is asked for.

    `config`: `scale` is the one of targets that name none, `papers` those that are made, separated by commas.
    """

    @in_one_sentence()
    def __init__(self, config: dict[str, Any]):
        self.project, self.scale = Project.at(), str(config.get("scale", "smoke"))
        self.papers = tuple(filter(None, str(config.get("papers", "")).split(",")))
        self.options = f" --papers {shlex.quote(','.join(self.papers))}" if self.papers else ""
        self._workflows: dict[str, Workflow] = {}
        #: Scales of which everything was asked for.
        self._whole: set[str] = set()
        self._locks = ExitStack()
        self.here = Path.cwd()
        #: A folder that the engine works in where it may not write here.
        self.stand_in = self._stand_in()

    def of(self, scale: str) -> Workflow:
        """The jobs of a scale."""
        if scale not in self._workflows:
            self._workflows[scale] = Workflow(self.project, scale, self.papers)
        return self._workflows[scale]

    def ask(self, question: str, *wildcards: str, part: str | None = None) -> Callable[[Any], Any]:
        """A function of a job's wildcards: the answer of its scale's method `question` to some of them.

        `part`: a key of that answer.
        """

        @in_one_sentence()
        def answer(given: Any) -> Any:
            scale = getattr(given, "scale", self.scale)
            self._whole |= {scale} if question == "everything" else set()
            whole = getattr(self.of(scale), question)(*(getattr(given, name) for name in wildcards))
            return whole if part is None else whole[part]

        return answer

    @in_one_sentence()
    def begin(self, local: bool) -> None:
        """Claims the folder for the scales asked for until this process ends, however it ends.

        A second call at once is refused. `local`: jobs run on this machine, and so in children of a process
        that has everything imported.
        """
        if self.stand_in:
            do = "Make it writable, or look with -n."
            raise UserError("nothing may be written here.", where=str(self.here), do=do)
        for scale in sorted(self._workflows):

            def refuse(scale: str = scale) -> None:
                what = f"snakemake is already running for the scale '{scale}' in this folder."
                do = "Wait for it to end, or end it; what it finished is kept."
                raise UserError(what, where=str(self.here), do=do)

            self._locks.enter_context(locked(NOTES / f"{scale}.running", refuse))
        if local and self._workflows:
            warm.start(NOTES / f"{scale}.warm")

    def end(self) -> None:
        """Says what was made, of scales that were asked for as a whole."""
        from cpt_repro.workflow.summary import made

        for scale in sorted(self._whole):
            print("", *made(self.of(scale)), sep="\n", file=sys.stderr)

    def _stand_in(self) -> str | None:
        """Where this folder is read-only, one that shows all of it and has room for the engine's notes."""
        if os.access(NOTES if NOTES.exists() else Path(), os.W_OK):
            return None
        folder = tempfile.mkdtemp(prefix="cpt-repro-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for entry in Path().iterdir():
            if entry.name != NOTES.name:
                os.symlink(entry.resolve(), Path(folder) / entry.name)
        return folder
