"""Child processes that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def end_with(parent: int) -> None:
    """From now on this process is killed when its parent, of that number, ends, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
