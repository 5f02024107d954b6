"""The range whose quantized histogram has the least Kullback-Leibler divergence from the original one.

Migacz, "8-bit Inference with TensorRT", GTC 2017: for a candidate range, P is the histogram inside it with what lies
outside added to its outermost bins, Q is the histogram inside it merged into as many levels as the type has and
spread again evenly over the bins that are not empty in P. Symmetric types look at |x|; asymmetric ones clip both
ends at ± the same threshold, as far as each reaches.
"""

from __future__ import annotations

import numpy as np

from edgeq.calibrate.summary import Mass, Summary
from edgeq.numerics.affine import middle
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema", "histogram"})
_CANDIDATES = 256
_SMOOTH = 1e-4  # elements that an empty level of Q is taken to hold


def choose(summary: Summary, spec: QSpec) -> Range:
    """argmin over thresholds of KL(P, Q); the full range where a type has more levels than there are bins."""
    bounds, mass = summary.bounds(), summary.mass()
    if mass is None:
        return bounds
    if spec.symmetric:
        negative, positive = mass.sides()
        counts = (negative + positive)[: int(max(-bounds.lo, bounds.hi) / mass.width) + 1]
        counts[0] = counts[min(1, len(counts) - 1)]  # zeros cost nothing, and must not rule the shape
        center, levels = 0, spec.qmax - middle(spec) + 1
    else:
        counts, center = _linear(mass)
        levels = spec.qmax - spec.qmin + 1
    longest = max(center + 1, len(counts) - center)
    reach = np.unique(np.linspace(min(levels, longest), longest, _CANDIDATES).astype(np.intp))
    starts, stops = np.maximum(center + 1 - reach, 0), np.minimum(center + reach, len(counts))
    if spec.symmetric:
        starts = np.zeros_like(stops)
    enough = stops - starts >= levels
    if not enough.any():
        return bounds
    reach = reach[enough]
    best = int(np.argmin(divergences(counts, starts[enough], stops[enough], levels)))
    threshold = float(reach[best] * mass.width)
    low = max(bounds.lo, min(-threshold, bounds.hi))
    return Range(low, max(low, min(bounds.hi, threshold)))


def _linear(mass: Mass) -> tuple[np.ndarray, int]:
    """Counts from the lowest bin or 0 to the highest bin or 0, and the place of bin 0, whose own mass is smoothed."""
    negative, positive = mass.sides()
    below, above = (int(np.flatnonzero(side).max(initial=0)) for side in (negative, positive))
    positive[0] = negative[1] + positive[1]  # bin 0 is twice as wide; its zeros cost nothing
    return np.concatenate([negative[1 : below + 1][::-1], positive[: above + 1]]), below


def divergences(counts: np.ndarray, starts: np.ndarray, stops: np.ndarray, levels: int) -> np.ndarray:
    """KL(P, Q) in nats for each candidate, whose bins are counts[start:stop].

    With N the total mass, M_l the mass inside of level l, P_l the same with what lies outside, and z_l the bins of
    the level that are not empty in P, Q is M_l / z_l in each of them and

        KL = (Σ p log p - Σ_l P_l log(M_l / z_l)) / N - log N + log Σ_l M_l

    so that prefix sums of counts, of bins not empty and of p log p serve all candidates at once. Where P has mass
    and Q none (an outermost level of tails alone), M_l is `_SMOOTH`, lest KL be infinite for every useful range.
    """
    total = counts.sum()
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    xlogx = np.concatenate([[0.0], np.cumsum(_xlogx(counts))])
    edges = starts[:, None] + (np.arange(levels + 1) * (stops - starts)[:, None]) // levels
    inside = np.diff(mass[edges], axis=1)
    bins = np.diff(filled[edges], axis=1)
    with_tails = inside.copy()
    plogp = xlogx[stops] - xlogx[starts]
    for level, at, tail in ((0, starts, mass[starts]), (-1, stops - 1, total - mass[stops])):
        with_tails[:, level] += tail
        bins[:, level] += (counts[at] == 0) & (tail > 0)
        plogp += _xlogx(counts[at] + tail) - _xlogx(counts[at])
    logs = with_tails * np.log(np.maximum(inside, _SMOOTH) / np.maximum(bins, 1))
    held = np.maximum(mass[stops] - mass[starts], _SMOOTH)
    return (plogp - logs.sum(1)) / total - np.log(total) + np.log(held)


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1.0))
