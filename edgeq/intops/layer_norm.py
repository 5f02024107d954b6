"""Layer normalization over the last axis, in integers alone: TFLite and NNAPI have no such kernel, so this is ours.

For a row of N codes c, with D = N c - Σc and W = N Σc² - (Σc)² + E, E = round(epsilon N² / s_x²), at least 1,

    (x - mean) / sqrt(variance + epsilon) = D / sqrt(W)

exactly, since scale and zero point cancel. 1/sqrt(W) is r / 2^(e/2), W < 2^e with e even and r in (1, 2] as Q2.29 from
a table of 192 entries and two Newton steps, so that

    n = D r 2^(16 - e/2), rounded half up      the normalized value in Q.16
    y = (n q + b + 2^39) >> 40                  q = round(gamma / s_y 2^24), b = round((beta / s_y + z_y) 2^40)

The error of n is below 2^-14 of the value's own size, that of y is a rounding's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import ModelError
from edgeq.intops.quant import Quant

FRACTION, SHIFT, ONE = 16, 40, 1 << 29
LONGEST = 1 << 12  # features: |n| is below sqrt(N) in Q.16, and its product with q fits 62 bits


@dataclass(frozen=True, eq=False)
class LayerNormParams:
    """gamma, beta: (N,) float; epsilon: added to the variance."""

    x: Quant
    gamma: np.ndarray
    beta: np.ndarray
    out: Quant
    epsilon: float = 1e-5


@dataclass(frozen=True, eq=False)
class LayerNormConstants:
    """What the formula needs, as integers: epsilon is E; q, b: (N,) int64."""

    epsilon: int
    q: np.ndarray
    b: np.ndarray


def reciprocal_root_table() -> np.ndarray:
    """1/sqrt(a) in Q2.29 at the middle of each 256th of [1/4, 1), int64 (192,)."""
    return np.rint(ONE / np.sqrt((np.arange(64, 256) + 0.5) / 256)).astype(np.int64)


def constants(params: LayerNormParams) -> LayerNormConstants:
    """Raises ModelError where the integers would leave their range."""
    n = params.gamma.size
    if n > LONGEST:
        raise ModelError(f"LAYER_NORM: rows have {n} features, {LONGEST} at the most are summed exactly")
    epsilon = max(1, round(params.epsilon * n * n / params.x.scale**2))
    q = np.rint(params.gamma.astype(np.float64) / params.out.scale * 2.0 ** (SHIFT - FRACTION))
    b = np.rint((params.beta.astype(np.float64) / params.out.scale + params.out.zero_point) * 2.0**SHIFT)
    if epsilon >= 1 << 40 or np.abs(q).max() >= 1 << 38 or np.abs(b).max() >= 1 << 60:
        raise ModelError("LAYER_NORM: gamma, beta or epsilon is too large for the scales of its input and output")
    return LayerNormConstants(epsilon, q.astype(np.int64), b.astype(np.int64))


def reciprocal_root(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r in Q2.29, e / 2) with 1/sqrt(w) = r / 2^(e/2), for 0 < w < 2^62."""
    half = np.searchsorted(4 ** np.arange(31), w, side="right")  # the powers of 4 that are not above it
    up, down = np.maximum(30 - 2 * half, 0), np.maximum(2 * half - 30, 0)
    a = np.left_shift(w, up) >> down  # Q0.30 in [1/4, 1)
    r = reciprocal_root_table()[(a >> 22) - 64]
    for _ in range(2):
        square = (r * r) >> 29
        r = (r * ((3 << 29) - ((a * square) >> 30))) >> 30
    return r, half


def layer_norm(x: np.ndarray, params: LayerNormParams) -> np.ndarray:
    """x (..., N) codes -> (..., N) in params.out.dtype. Raises ModelError as `constants` does."""
    c = x.astype(np.int64) - params.x.lo
    n, k = c.shape[-1], constants(params)
    total = c.sum(axis=-1, keepdims=True)
    r, half = reciprocal_root(n * (c * c).sum(axis=-1, keepdims=True) - total * total + k.epsilon)
    shift = 29 - FRACTION + half
    normal = ((n * c - total) * r + np.left_shift(1, shift - 1)) >> shift
    y = (normal * k.q + k.b + (1 << (SHIFT - 1))) >> SHIFT
    return np.clip(y, params.out.lo, params.out.hi).astype(params.out.dtype)


OPS = {"LAYER_NORM": layer_norm}
