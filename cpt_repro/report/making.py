"""All that is made from records, in as many processes as there are cores; the bytes do not depend on it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from cpt_repro.errors import UserError
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.processes import cores, end_with
from cpt_repro.records.lookup import Records
from cpt_repro.report.citation import Key

CLAIMS, REPORT = "claims", "report"


@dataclass(frozen=True)
class Made:
    """One exhibit (`<paper>/<key>`), the claims or the report, as they were made."""

    what: str
    #: the files; none where it failed
    paths: tuple[Path, ...]
    failed: UserError | None
    #: by the clock, and of CPU
    seconds: float
    cpu_seconds: float


class _Maker:
    """What makes one thing at a time."""

    def __init__(self, catalogue: Catalogue, records: Records, out: Path):
        self.catalogue, self.records, self.out = catalogue, records, out

    def make(self, what: str) -> Made:
        wall, cpu, paths, failed = time.perf_counter(), time.process_time(), [], None
        try:
            paths = self._paths(what)
        except UserError as error:
            failed = error
        return Made(what, tuple(paths), failed, time.perf_counter() - wall, time.process_time() - cpu)

    def _paths(self, what: str) -> list[Path]:
        """Imports what it needs, for not everything is made by every process."""
        catalogue, records = self.catalogue, self.records
        if what == CLAIMS:
            from cpt_repro.claims.ledger import build_ledger, write_ledger
            from cpt_repro.report.values import write_values

            folder = self.out / catalogue.plan.scale.name
            ledger = write_ledger(build_ledger(catalogue, records), folder)
            return [*ledger, write_values(catalogue, records, folder)]
        if what == REPORT:
            from cpt_repro.report.page import write_report

            return [write_report(catalogue, records, self.out)]
        from cpt_repro.exhibits.draw import draw

        return draw(catalogue, records, *what.split("/"), self.out)


#: Of a process that was forked.
_maker: _Maker | None = None


def _begin(maker: _Maker, parent: int) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells of it, and ends its children
    end_with(parent)
    _maker = maker


def _make(what: str) -> Made:
    return _maker.make(what)


def make_all(
    catalogue: Catalogue,
    records: Records,
    out: Path,
    keys: Iterable[Key] | None = None,
    processes: int | None = None,
) -> Iterator[Made]:
    """Makes exhibits (`keys`, all by default), claims and, from these, the report below `out`; in this order.

    `processes`: as many as there are cores without it. What cannot be made says so in `failed`.
    """
    maker, processes = _Maker(catalogue, records, out), processes or cores()
    names = [f"{paper}/{key}" for paper, key in (catalogue.exhibits if keys is None else keys)]
    if processes == 1:
        yield from map(maker.make, [*names, CLAIMS, REPORT])
        return
    if any("/figure_" in name for name in names):
        import matplotlib.figure  # noqa: F401  once, before there are children

        from cpt_repro.exhibits import style

        with style.drawing():
            pass  # imports, and reads fonts
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, fork, initializer=_begin, initargs=(maker, os.getpid())) as pool:
        try:
            # The claims take longest, so they come first.
            claims, *drawings = [pool.submit(_make, name) for name in (CLAIMS, *names)]
            for made in (*drawings, claims):
                yield made.result()
        except BrokenProcessPool:
            do = "Run again; with `taskset --cpu-list 0` there is one process only."
            raise UserError("a drawing process was killed, perhaps for lack of memory.", do=do) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    yield maker.make(REPORT)
