"""Whether what lies in `figures/` is what the records say."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.files import file_digest
from cpt_repro.records.lookup import Records
from cpt_repro.report.citation import Key, read_drawn
from cpt_repro.report.making import REPORT, make_all
from cpt_repro.report.page import Recorded


@dataclass
class File:
    """One file as it lies, or by the hash that its sidecar recorded, and as it was made again."""

    state: Literal["equal", "differs", "missing"]
    there: str | None
    again: str


@dataclass
class Verification:
    """What `verify` found."""

    scale: str
    #: file below `figures/<scale>` -> what of it
    files: dict[str, File] = field(default_factory=dict)
    #: what could not be read or made -> why
    failed: dict[str, str] = field(default_factory=dict)
    #: exhibit -> records whose digest is not the one that it was drawn from
    changed: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every file is equal."""
        return not self.failed and all(file.state == "equal" for file in self.files.values())

    def as_json(self) -> dict[str, Any]:
        """For machines: all of it, and `ok`."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> list[str]:
        """In lines: what is wrong, then the counts."""
        changed = "drawn from other records than those there now"
        lines = [f"{exhibit}: {changed}: {', '.join(names)}" for exhibit, names in self.changed.items()]
        lines += [f"not made: {what}: {why}" for what, why in self.failed.items()]
        lines += [
            f"{file.state}: {name}: {file.there} there, {file.again} from the records"
            for name, file in self.files.items()
            if file.state != "equal"
        ]
        states = [file.state for file in self.files.values()]
        counts = [states.count(state) for state in ("equal", "differs", "missing")]
        return [*lines, "{} files equal, {} differ, {} missing".format(*counts)]


def verify(
    catalogue: Catalogue,
    records: Records,
    figures: Path | None = None,
    keys: Iterable[Key] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Makes exhibits, ledger and report again from the records and compares them with what lies in `figures`.

    `keys` are the exhibits to draw, all by default.
    """
    figures = Path(figures or catalogue.plan.project.figures)
    folder = figures / catalogue.plan.scale.name
    out = Verification(catalogue.plan.scale.name)
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / out.scale

        def known(name: str, reader: Callable[[Path], Any]) -> Any:
            try:
                return reader(folder / name)
            except UserError as error:
                out.failed[name] = str(error)

        for made in make_all(catalogue, records, Path(place), keys):
            sidecar, states = f"{made.what}.json", set()
            there = known(sidecar, read_drawn) if "/" in made.what else None
            recorded = there.files if there else {}
            if made.what == REPORT:
                recorded = known("index.json", Recorded.of) or {}
            for path in made.paths:
                name = path.relative_to(again).as_posix()
                file, now = folder / name, file_digest(path)
                old = file_digest(file) if file.exists() else recorded.get(file.name)
                state = "missing" if old is None else "equal" if old == now else "differs"
                out.files[name] = File(state, old, now)
                states.add(state)
            if made.failed:
                out.failed[made.what] = str(made.failed)
            told = f"not made ({made.failed})" if made.failed else ", ".join(sorted(states))
            say(f"{made.what}: {told}")
            new = read_drawn(again / sidecar) if there else None
            if new and (differing := {*there.sha256.items()} ^ {*new.sha256.items()}):
                out.changed[made.what] = sorted({record for record, _ in differing})
    return out
