"""The range whose quantized histogram diverges least from the original one (Kullback-Leibler).

Migacz, "8-bit Inference with TensorRT", GTC 2017: for a candidate range, P is the histogram inside it with what lies
outside added to its outermost bins, Q is the histogram inside it merged into as many levels as the type has and
spread again evenly over the bins that are not empty in P. Symmetric types look at |x|; asymmetric ones clip both
ends at ± the same threshold, as far as each reaches. Two things differ from the talk:

* Q keeps the mass it has. Normalized again it would equal P, and cost nothing, for a range that leaves a single bin
  of a tensor that lies far from 0: what is clipped must not be forgotten.
* There are at most `_BINS` bins a level (the talk has 16), so half of the greatest magnitude is the least threshold.
  Divergence does not ask how far out the clipped values were, and with more bins it prefers ranges so narrow that
  most nets lose their outliers: 1/16 costs PP-OCRv4's recogniser every line.
"""

from __future__ import annotations

import numpy as np

from edgeq.calibrate.summary import Mass, Summary
from edgeq.numerics.affine import middle
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema", "histogram"})
_BINS = 2  # a level at most
_SMOOTH = 1e-4  # elements that an empty level of Q is taken to hold


def choose(summary: Summary, spec: QSpec) -> Range:
    """argmin over thresholds of KL(P, Q); the full range where a type has more levels than there are bins."""
    bounds, mass = summary.bounds(), summary.mass()
    if mass is None:
        return bounds
    below, above = _halves(mass)
    if spec.symmetric:
        levels = spec.qmax - middle(spec) + 1
        longest = max(len(below), len(above))
        below, above = np.zeros(0), _longer(below, longest) + _longer(above, longest)
    else:
        levels = spec.qmax - spec.qmin + 1
    width = mass.width
    while len(below) + len(above) > _BINS * levels:
        below, above, width = _paired(below), _paired(above), 2 * width
    reach = np.arange(1, max(len(below), len(above)) + 1)
    starts, stops = np.maximum(len(below) - reach, 0), len(below) + np.minimum(reach, len(above))
    enough = stops - starts >= levels
    if not enough.any():
        return bounds
    costs = divergences(np.concatenate([below[::-1], above]), starts[enough], stops[enough], levels)
    threshold = float(reach[enough][np.argmin(costs)] * width)
    low = max(bounds.lo, min(-threshold, bounds.hi))
    return Range(low, max(low, min(bounds.hi, threshold)))


def _halves(mass: Mass) -> tuple[np.ndarray, np.ndarray]:
    """Counts outwards from 0, of negative and positive values, as far as there are any.

    Bin 0 of each takes the count of its neighbour: zeros cost nothing, and must not rule the shape.
    """
    below, above = (side[: int(np.flatnonzero(side).max(initial=-1)) + 1] for side in mass.sides())
    for side in (below, above):
        side[:1] = side[1:2].sum()
    return below, above


def _longer(counts: np.ndarray, length: int) -> np.ndarray:
    return np.pad(counts, (0, length - len(counts)))


def _paired(counts: np.ndarray) -> np.ndarray:
    """The counts that bins twice as wide would have had."""
    return _longer(counts, len(counts) + len(counts) % 2).reshape(-1, 2).sum(1)


def divergences(counts: np.ndarray, starts: np.ndarray, stops: np.ndarray, levels: int) -> np.ndarray:
    """KL(P, Q) in nats for each candidate, whose bins are counts[start:stop].

    With N the total mass, M_l the mass inside of level l, P_l the same with what lies outside, and z_l the bins of
    the level that are not empty in P, Q is M_l / (N z_l) in each of them and

        KL = Σ p log(p / q) - Σ p + Σ q = (Σ n log n - Σ_l P_l log(M_l / z_l) + Σ_l M_l) / N - 1,  n = N p

    which is the divergence of masses that need not add up to the same. Prefix sums of counts, of bins not empty and
    of n log n serve all candidates at once. Where P has mass and Q none (an outermost level of tails alone), M_l is
    `_SMOOTH`, lest KL be infinite for every useful range.
    """
    total = counts.sum()
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    nlogn = np.concatenate([[0.0], np.cumsum(_nlogn(counts))])
    edges = starts[:, None] + (np.arange(levels + 1) * (stops - starts)[:, None]) // levels
    inside = np.diff(mass[edges], axis=1)
    bins = np.diff(filled[edges], axis=1)
    with_tails = inside.copy()
    sums = nlogn[stops] - nlogn[starts]
    for level, at, tail in ((0, starts, mass[starts]), (-1, stops - 1, total - mass[stops])):
        with_tails[:, level] += tail
        bins[:, level] += (counts[at] == 0) & (tail > 0)
        sums += _nlogn(counts[at] + tail) - _nlogn(counts[at])
    logs = with_tails * np.log(np.maximum(inside, _SMOOTH) / np.maximum(bins, 1))
    return (sums - logs.sum(1) + mass[stops] - mass[starts]) / total - 1


def _nlogn(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1.0))
