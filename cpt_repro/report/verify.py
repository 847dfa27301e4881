"""Whether what lies in `figures/` is what the records say."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from cpt_repro.claims.ledger import build_ledger, write_ledger
from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.draw import draw
from cpt_repro.files import file_digest
from cpt_repro.records.lookup import Records
from cpt_repro.report.citation import Key, read_drawn
from cpt_repro.report.page import Recorded, write_report

T = TypeVar("T")


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

        def make(what: str, work: Callable[[], list[Path]], recorded: dict[str, str]) -> None:
            try:
                made = {path.relative_to(again).as_posix(): path for path in work()}
            except UserError as error:
                out.failed[what] = str(error)
                say(f"{what}: not made ({error})")
                return
            for name, path in made.items():
                file, new = folder / name, file_digest(path)
                old = file_digest(file) if file.exists() else recorded.get(file.name)
                state = "missing" if old is None else "equal" if old == new else "differs"
                out.files[name] = File(state, old, new)
            say(f"{what}: {', '.join(sorted({out.files[name].state for name in made}))}")

        def known(name: str, reader: Callable[[Path], T]) -> T | None:
            try:
                return reader(folder / name)
            except UserError as error:
                out.failed[name] = str(error)

        for paper, key in catalogue.exhibits if keys is None else keys:
            name = f"{paper}/{key}"
            there = known(f"{name}.json", read_drawn)
            drawing = partial(draw, catalogue, records, paper, key, Path(place))
            make(name, drawing, there.files if there else {})
            new = read_drawn(again / f"{name}.json") if there else None
            if new and (differing := {*there.sha256.items()} ^ {*new.sha256.items()}):
                out.changed[name] = sorted({record for record, _ in differing})
        make("claims", lambda: write_ledger(build_ledger(catalogue, records), again), {})
        hashes = known("index.json", Recorded.of) or {}
        make("report", lambda: [write_report(catalogue, records, Path(place))], hashes)
    return out
