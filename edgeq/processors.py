"""How many of this machine's processors this process has, and what takes one of them whatever there are.

Threads that wait for each other lose far more than they win where there are more of them than processors: four
processes whose matrix products had all sixteen each took eight times as long for a trial of a tuning.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from threadpoolctl import threadpool_limits

_processes = 1


def processors() -> int:
    """All of the machine's, or the share of one of several processes. For what any number of threads gives the same."""
    return max((os.cpu_count() or 1) // _processes, 1)


@contextlib.contextmanager
def shared(processes: int) -> Iterator[None]:
    """While this is open, this process is one of so many."""
    global _processes
    before, _processes = _processes, processes
    try:
        yield
    finally:
        _processes = before


def single_products() -> contextlib.AbstractContextManager[object]:
    """While this is open, numpy's matrix products have a thread each: their last bits depend on how many they have.

    So they are the same with any number of processors and of processes, and several may run side by side.
    """
    return threadpool_limits(1, user_api="blas")
