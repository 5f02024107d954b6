"""The mean over samples of each sample's minimum and maximum: one odd sample moves it little.

A plain mean in place of the usual exponential one, whose result hangs on the order of the data: this one is the same
in any order and over any number of workers.
"""

from __future__ import annotations

from edgeq.calibrate.summary import Summary
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema"})


def choose(summary: Summary, spec: QSpec) -> Range:
    """[mean of minima, mean of maxima], within the extrema without attention masks."""
    bounds = summary.bounds()
    extrema = summary.extrema
    masked = (bounds.lo, bounds.hi) != (extrema.lo, extrema.hi)
    mean = extrema.mean(near=masked)
    return Range(min(max(mean.lo, bounds.lo), bounds.hi), max(min(mean.hi, bounds.hi), bounds.lo))
