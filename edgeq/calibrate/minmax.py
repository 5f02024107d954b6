"""Minimum and maximum of everything seen: nothing is clipped, one outlier costs everyone resolution."""

from __future__ import annotations

from edgeq.calibrate.summary import Summary
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema"})


def choose(summary: Summary, spec: QSpec) -> Range:
    """[min, max] without attention masks."""
    return summary.bounds()
