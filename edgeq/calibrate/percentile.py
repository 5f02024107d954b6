"""The range that holds 99.99 % of the values: outliers are clipped by their count, however far they are."""

from __future__ import annotations

import numpy as np

from edgeq.calibrate.summary import Summary
from edgeq.errors import RecipeError
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema", "histogram"})


def choose(summary: Summary, spec: QSpec, percentile: float = 99.99) -> Range:
    """Symmetric: ± the `percentile` of |x|. Asymmetric: half of the rest is cut at each end.

    Interpolated linearly in the histogram, so within one bin (1/1024 of the greatest magnitude) of the true quantile.
    Raises RecipeError for a percentile outside 0 to 100.
    """
    if not 0 < percentile <= 100:
        raise RecipeError(f"percentile {percentile} is not above 0 and up to 100")
    bounds, mass = summary.bounds(), summary.mass()
    if mass is None:
        return bounds
    if spec.symmetric:
        ends = np.abs(np.stack([mass.edges[:-1], mass.edges[1:]]))
        straddles = mass.edges[:-1] * mass.edges[1:] < 0
        inner, outer = np.where(straddles, 0.0, ends.min(0)), ends.max(0)
        order = np.argsort(outer, kind="stable")
        cut = _quantile(mass.counts[order], inner[order], outer[order], percentile / 100)
        return Range(max(bounds.lo, min(-cut, bounds.hi)), min(bounds.hi, max(cut, bounds.lo)))
    tail = (1 - percentile / 100) / 2
    low = _quantile(mass.counts, mass.edges[:-1], mass.edges[1:], tail)
    high = _quantile(mass.counts, mass.edges[:-1], mass.edges[1:], 1 - tail)
    return Range(low, max(low, high))


def _quantile(counts: np.ndarray, starts: np.ndarray, ends: np.ndarray, q: float) -> float:
    """The value below which the fraction `q` of the mass lies, spread evenly in each bin."""
    reached = np.cumsum(counts)
    target = q * reached[-1]
    held = np.flatnonzero(counts)
    i = held[min(int(np.searchsorted(reached[held], target)), len(held) - 1)]
    within = (target - (reached[i] - counts[i])) / counts[i]
    return float(starts[i] + (ends[i] - starts[i]) * np.clip(within, 0.0, 1.0))
