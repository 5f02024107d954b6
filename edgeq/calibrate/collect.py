"""Stream the calibration samples once through a session and let every accumulator see what it asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.errors import CalibrationError
from edgeq.registry import load

SUBSAMPLE = 1 << 14  # elements a sample that feed a histogram; extrema see all of them


class Runs(Protocol):
    """The part of a runner's session that collection needs."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def collect(
    session: Runs,
    samples: Iterable[Mapping[str, np.ndarray]],
    calibrators: Mapping[str, str],
    outputs: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Summary], int]:
    """Summaries of the values named in `calibrators` (value → calibrator), and how many samples were seen.

    outputs: value → name under which the session returns it, where the two differ. Values that no sample reached
    have no summary. Raises CalibrationError for NaN among the inputs.
    """
    wants_histogram = {v: "histogram" in load("edgeq.calibrate", c, "choose").NEEDS for v, c in calibrators.items()}
    found: dict[str, Summary] = {}
    count = 0
    for feeds in samples:
        check_finite(feeds, count)
        results = {**feeds, **session.run(feeds)}
        for value in calibrators:
            array = results[(outputs or {}).get(value, value)]
            if array.size == 0:
                continue
            if value not in found:
                found[value] = Summary(histogram=Histogram() if wants_histogram[value] else None)
            found[value].update(array, stride(array.size))
        count += 1
        progress(count)
    return found, count


def stride(size: int) -> int:
    """Every how many elements a histogram looks: odd, so that it doesn't fall in step with rows of even length."""
    return max(size // SUBSAMPLE, 1) | 1 if size > 2 * SUBSAMPLE else 1


def check_finite(feeds: Mapping[str, np.ndarray], index: int) -> None:
    for name, array in feeds.items():
        if np.issubdtype(array.dtype, np.floating) and np.isnan(np.sum(array)) and np.isnan(array).any():
            raise CalibrationError(f"sample {index} of the calibration data has NaN in input {name!r}: clean the data")
