"""MEAN over any axes: one multiplication by s_x / s_y, with 1 / count folded into its mantissa."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeq.intops.quant import Quant
from edgeq.numerics.fixedpoint import Rounding, multiplier, requantize


@dataclass(frozen=True)
class ReduceParams:
    x: Quant
    out: Quant
    axes: tuple[int, ...]
    keep_dims: bool = True
    rounding: Rounding = "double"


def mean(x: np.ndarray, params: ReduceParams) -> np.ndarray:
    """MEAN: the mantissa q << k is divided by the count, truncating, with k = floor(log2(count)) at most 32 and at
    most 31 + shift, and the shift lowered by k (TFLite, reference/reduce.h, QuantizedMeanOrSum)."""
    count = math.prod(x.shape[a] for a in {a % x.ndim for a in params.axes})
    q, shift = (int(v) for v in multiplier(params.x.scale / params.out.scale))
    k = min(count.bit_length() - 1, 32, 31 + shift)
    total = params.x.shifted(x).sum(axis=params.axes, keepdims=params.keep_dims, dtype=np.int64)
    out = params.out
    return requantize(
        total, (q << k) // count, shift - k, out.zero_point, out.lo, out.hi, params.rounding, dtype=out.dtype
    )


OPS = {"MEAN": mean}
