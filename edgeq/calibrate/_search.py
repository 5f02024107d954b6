"""The range with the least expected |x - x'|**p, from a histogram: shared by the calibrators `mse` and `lp`.

First every pair of ends on a grid is rated in closed form. What is clipped at an end t of a side with masses n_j at
x_j costs Σ_{x_j > t} n_j (x_j - t)**p, and what is rounded with step s costs (s/2)**p / (p + 1) each, as a uniform
error does. Then the best of them, and a spread of others, are rated by really quantizing the centers of the bins,
which is what counts when the steps are few or the mass is lumped; the best of those wins.
"""

from __future__ import annotations

import numpy as np

from edgeq.calibrate.summary import Mass, Summary
from edgeq.numerics.affine import middle, qparams
from edgeq.types import PerTensor, QSpec, Range

_ENDS = 192  # candidates for each end
_BEST = 16
_SPREAD = np.linspace(0.15, 1.6, 30)  # factors around the best of the closed form


def search(summary: Summary, spec: QSpec, p: float) -> Range:
    """The range within `summary.bounds()` of least loss. Both ends are searched when the spec is asymmetric."""
    bounds, mass = summary.bounds(), summary.mass()
    if mass is None:
        return bounds
    negative, positive = mass.sides()
    if spec.symmetric:
        highs, clip, held = _side(negative + positive, p)
        lows, losses, inside = highs, clip, held
        step = highs / (spec.qmax - middle(spec))
        pairs = np.stack([np.arange(len(highs))] * 2, axis=1)
    else:
        lows, clip_low, held_low = _side(negative, p)
        highs, clip_high, held_high = _side(positive, p)
        pairs = np.stack(np.meshgrid(np.arange(len(lows)), np.arange(len(highs)), indexing="ij"), -1).reshape(-1, 2)
        losses = (clip_low[:, None] + clip_high).reshape(-1)
        inside = (held_low[:, None] + held_high).reshape(-1)
        step = (lows[:, None] + highs).reshape(-1) / (spec.qmax - spec.qmin)
    with np.errstate(divide="ignore"):
        rated = np.where(step > 0, losses + inside * (step / 2) ** p / (p + 1), np.inf)
    chosen = _shortlist(rated, pairs, len(lows), len(highs), spec.symmetric)
    low = np.maximum(-lows[pairs[chosen, 0]] * mass.width, bounds.lo)
    high = np.maximum(np.minimum(highs[pairs[chosen, 1]] * mass.width, bounds.hi), low)
    # A step of less than two bins lies between the centers in ways that mean nothing: keep the closed form there.
    exact = np.where(step[chosen] < 2, rated[chosen], _loss(mass, low, high, spec, p) / mass.width**p)
    best = int(np.argmin(exact))
    return Range(float(low[best]), float(high[best]))


def _side(counts: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidate ends of one side in bins, what each clips (in bins**p), and the mass that each leaves to be rounded.

    Bin 0 is left out of the latter: near 0 the error is no larger than the value, whatever the step.
    """
    top = int(np.flatnonzero(counts).max(initial=-1)) + 1
    if top == 0:
        return np.zeros(1), np.zeros(1), np.zeros(1)
    ends = np.unique(np.linspace(0, top, min(top, _ENDS) + 1).astype(np.intp))
    powers = (np.arange(top) + 0.5) ** p
    clipped = np.array([counts[t:top] @ powers[: top - t] for t in ends])
    held = np.concatenate([[0.0, 0.0], np.cumsum(counts[1:top])])[ends]
    return ends.astype(np.float64), clipped, held


def _shortlist(rated: np.ndarray, pairs: np.ndarray, n_low: int, n_high: int, symmetric: bool) -> np.ndarray:
    """Indices of the best of the closed form, of those in proportion to the very best, and of the full range."""
    best = np.argsort(rated, kind="stable")[:_BEST]
    last = np.array([n_low - 1, n_high - 1])
    spread = np.minimum(np.rint(_SPREAD[:, None] * pairs[best[0]]).astype(np.intp), last)
    more = spread[:, 1] if symmetric else spread[:, 0] * n_high + spread[:, 1]
    all_of = np.concatenate([best, more, [len(pairs) - 1]])
    return np.unique(all_of[np.isfinite(rated[all_of])])


def _loss(mass: Mass, low: np.ndarray, high: np.ndarray, spec: QSpec, p: float) -> np.ndarray:
    """Σ count |center - quantized center|**p for each range. low, high: (n,)."""
    params = qparams(low, high, QSpec(spec.dtype, spec.symmetric, PerTensor(), spec.narrow, spec.reduce_range))
    scale, zero = params.scale.astype(np.float64)[:, None], params.zero_point[:, None]
    held = mass.counts > 0
    x = mass.centers[held]
    codes = np.clip(np.rint(x / scale), spec.qmin - zero, spec.qmax - zero)
    error = np.abs(codes * scale - x)
    return (error * error if p == 2 else error**p) @ mass.counts[held]
