"""Stream the calibration samples once through a session and let every accumulator see what it asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue

import numpy as np

from edgeq.calibrate.extrema import Extrema
from edgeq.calibrate.glance import Glance, glance, share
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.errors import CalibrationError
from edgeq.registry import load

Run = Callable[[Mapping[str, np.ndarray], bool], Mapping[str, np.ndarray | Glance]]
"""What gives the values of one sample by name, or what is left of them: run(feeds, whether a part is wanted)."""


def collect(
    run: Run,
    samples: Iterable[Mapping[str, np.ndarray]],
    calibrators: Mapping[str, str],
    outputs: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
    workers: int = 1,
    channels: Collection[str] = (),
    position: Callable[[int], int] = lambda index: index,
) -> tuple[dict[str, Summary], int]:
    """Summaries of the values named in `calibrators` (value → calibrator), and how many samples were seen.

    outputs: value → name under which `run` gives it, where the two differ. Values that no sample reached
    have no summary. workers: samples in flight, each in a thread of its own with accumulators of its own; merging is
    exact, so the result doesn't depend on it. channels: values whose extrema are also kept for each index of the last
    axis. position: of a sample in all of the data, by its index here, which says how closely it is looked at
    (`share`). Raises CalibrationError for NaN among the inputs.
    """
    given = [(v, (outputs or {}).get(v, v)) for v in calibrators]
    wants_histogram = {v: needs_histogram(c) for v, c in calibrators.items()}
    free: Queue[dict[str, Summary]] = Queue()
    parts: list[dict[str, Summary]] = [{} for _ in range(max(workers, 1))]
    for part in parts:
        free.put(part)

    def work(feeds: Mapping[str, np.ndarray], times: int, found: dict[str, Summary]) -> None:
        try:
            results = {**feeds, **run(feeds, times > 0)}
            for value, name in given:
                seen = results.pop(name)
                if isinstance(seen, np.ndarray) and seen.size == 0:  # the branch that computes it was not taken
                    continue
                if value not in found:
                    extrema = Extrema(axis=-1 if value in channels else None)
                    found[value] = Summary(extrema, Histogram() if wants_histogram[value] else None)
                found[value].add(seen if isinstance(seen, Glance) else glance(seen), times)
        finally:
            free.put(found)

    count, jobs = 0, deque[Future[None]]()
    with ThreadPoolExecutor(len(parts)) as pool:  # samples are drawn here, so that Ctrl-C reaches a slow source
        for count, feeds in enumerate(samples, 1):
            check_finite(feeds, count - 1)
            jobs.append(pool.submit(work, feeds, share(position(count - 1)), free.get()))
            while jobs and (jobs[0].done() or len(jobs) > 2 * len(parts)):
                jobs.popleft().result()
            progress(count)
        while jobs:
            jobs.popleft().result()
    merged: dict[str, Summary] = {}
    for part in parts:
        for value, summary in part.items():
            if value in merged:
                merged[value].merge(summary)
            else:
                summary.settle()
                merged[value] = summary
    return merged, count


def needs_histogram(calibrator: str) -> bool:
    return "histogram" in load("edgeq.calibrate", calibrator, "choose").NEEDS


def check_finite(feeds: Mapping[str, np.ndarray], index: int) -> None:
    for name, array in feeds.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities, which are no NaN
            suspect = np.isnan(np.sum(array))
        if suspect and np.isnan(array).any():
            raise CalibrationError(f"sample {index} of the calibration data has NaN in input {name!r}: clean the data")
