"""Rows for `benchmarks/`: arms in turns, their ratios, and what every row says. Imports nothing heavy."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from cpt_repro import __version__
from cpt_repro.processes import cores, processor

#: As receipts name them -> as they are installed.
LIBRARIES = {
    "torch": "torch",
    "numpy": "numpy",
    "transformers": "transformers",
    "composer": "mosaicml",
    "streaming": "mosaicml-streaming",
}
T = TypeVar("T")


def in_turns(arms: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each arm gave in each round.

    Every other round begins with the last arm, so that none profits from what came before it.
    """
    out: dict[str, list[T]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in list(arms)[:: -1 if turn % 2 else 1]:
            out[arm].append(arms[arm]())
    return out


def least_to_most(values: list[float], digits: int = 4) -> list[float]:
    """Least, median and most over the rounds."""
    return [round(one, digits) for one in (min(values), statistics.median(values), max(values))]


def ratios(of: list[float], to: list[float]) -> list[float]:
    """Least, median and most of the ratio of two arms over the rounds."""
    return least_to_most([one / other for one, other in zip(of, to, strict=True)])


def measured_here(benchmark: str, scale: str | None, rounds: int) -> dict[str, Any]:
    """What every row says of where and when it was measured; `cores`: those that this process may use."""
    told = {"benchmark": benchmark} | ({"scale": scale} if scale else {})
    told |= {"rounds": rounds, "cpt_repro": __version__}
    told |= {"python": platform.python_version(), "hardware": processor(), "cores": cores()}
    for name, package in LIBRARIES.items():
        try:
            told[name] = version(package)
        except PackageNotFoundError:
            told[name] = None
    return told | {"date": datetime.date.today().isoformat()}
