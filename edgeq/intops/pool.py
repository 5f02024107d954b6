"""AVERAGE_POOL_2D and MAX_POOL_2D on NHWC codes.

Input and output share scale and zero point; padding is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import ModelError
from edgeq.intops.quant import Activation, Quant, activation_range
from edgeq.intops.windows import Pads, Pair, padded, taps


@dataclass(frozen=True)
class PoolParams:
    out: Quant
    kernel: Pair
    strides: Pair = (1, 1)
    pads: Pads = ((0, 0), (0, 0))
    activation: Activation = "NONE"


def divide_half_away(total: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """total / count rounded to the nearest integer, ties away from zero: (total ± count // 2) / count, truncated."""
    magnitude = (np.abs(total) + np.asarray(count) // 2) // count
    return np.where(total > 0, magnitude, -magnitude)


def average_pool_2d(x: np.ndarray, params: PoolParams) -> np.ndarray:
    """x (N, H, W, C) -> (N, OH, OW, C): the mean of the codes (not of code - zero_point) under the window.

    Raises ModelError for a window that lies in the padding altogether.
    """
    n, _, _, c = x.shape
    inside = taps(padded(np.ones((1, *x.shape[1:3], 1), np.int32), params.pads, 0), params.kernel, params.strides)
    count = inside.sum(axis=(3, 4))
    if (count == 0).any():
        raise ModelError("AVERAGE_POOL_2D: a window lies in the padding altogether")
    seen = taps(padded(x.astype(np.int32), params.pads, 0), params.kernel, params.strides)
    total = np.zeros((n, *count.shape[1:3], c), np.int32)
    for i in range(params.kernel[0]):
        for j in range(params.kernel[1]):
            total += seen[:, :, :, i, j]
    lo, hi = activation_range(params.activation, params.out)
    return np.clip(divide_half_away(total, count), lo, hi).astype(x.dtype)


def max_pool_2d(x: np.ndarray, params: PoolParams) -> np.ndarray:
    """x (N, H, W, C) -> (N, OH, OW, C): the largest code under the window."""
    seen = taps(padded(x, params.pads, params.out.lo), params.kernel, params.strides)
    best = seen[:, :, :, 0, 0].copy()
    for i in range(params.kernel[0]):
        for j in range(params.kernel[1]):
            np.maximum(best, seen[:, :, :, i, j], out=best)
    lo, hi = activation_range(params.activation, params.out)
    return np.clip(best, lo, hi).astype(x.dtype)


OPS = {"AVERAGE_POOL_2D": average_pool_2d, "MAX_POOL_2D": max_pool_2d}
