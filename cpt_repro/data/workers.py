"""A function run in other processes, with a bounded queue; nothing outlives a failure."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from cpt_repro.data.shards import preload
from cpt_repro.errors import UserError
from cpt_repro.processes import end_with


def _begin(parent: int) -> None:
    """Lets the parent answer an interrupt; a worker whose parent was killed would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def run_each(
    function: Callable[..., None], calls: Iterable[tuple[Any, ...]], processes: int, folder: Path
) -> None:
    """Calls `function` with each of `calls`, in this process or in several.

    On failure, of `calls` too, the processes are killed, and what they have begun below `folder` is removed.
    """
    if processes == 1:
        for arguments in calls:
            function(*arguments)
        return
    preload()
    others, pending = set(multiprocessing.active_children()), set[Future]()
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, mp_context=fork, initializer=_begin, initargs=(os.getpid(),))
    pool.submit(int).result()  # forks now, before a progress bar starts its thread
    children = set(multiprocessing.active_children()) - others
    try:
        for arguments in calls:
            if len(pending) == 2 * processes:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            pending.add(pool.submit(function, *arguments))
        for future in pending:
            future.result()
    except BaseException as error:
        # A part may take minutes more, and a child may have inherited handlers of signals that can be caught.
        for child in children:
            child.kill()
        pool.shutdown(cancel_futures=True)
        for aside in list(folder.rglob(".*.aside")):
            shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, BrokenProcessPool):
            do = "Run again, with fewer processes; finished parts are kept."
            what = "a building process was killed, perhaps for lack of memory."
            raise UserError(what, where=str(folder), do=do) from None
        raise
    pool.shutdown()
