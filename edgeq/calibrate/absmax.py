"""The greatest magnitude on both sides of 0: a symmetric range for any spec."""

from __future__ import annotations

from edgeq.calibrate.summary import Summary
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema"})


def choose(summary: Summary, spec: QSpec) -> Range:
    """[-m, m] with m = max(|min|, |max|); a single value keeps its own range, in which it is exact."""
    bounds = summary.bounds()
    if bounds.lo == bounds.hi:
        return bounds
    reach = max(-bounds.lo, bounds.hi)
    return Range(-reach, reach)
