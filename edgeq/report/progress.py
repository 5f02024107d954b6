"""Progress bars for the long steps: count, rate, time left and memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bars(silent: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A callback (step, done, total) that draws on stderr, or does nothing when silent."""
    if silent:
        yield lambda step, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[memory]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, int] = {}

        def show(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total, rate="", memory="")
            task = progress.tasks[progress.task_ids.index(tasks[step])]  # type: ignore[arg-type]
            rate = f"{task.speed:.1f}/s" if task.speed else ""
            progress.update(tasks[step], completed=done, total=total, rate=rate, memory=f"{peak_mb():.0f} MB")  # type: ignore[arg-type]

        yield show


def peak_mb() -> float:
    """Peak resident memory of this process in megabytes (Linux counts it in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1024
