"""SOFTMAX over the last axis, from int8 or uint8 to the fixed output 1/256, zero point the lowest code.

Two arithmetics, as LiteRT has them:

* "fixed": the reference kernel. exp of the scaled difference to the row's maximum in Q5.26, its sum in Q12.19, a
  reciprocal by three Newton steps (gemmlowp fixedpoint.h: exp_on_negative_values,
  one_over_one_plus_x_for_x_in_0_1).
* "table": the optimized kernel. 256 float32 values exp(-s * beta * d), summed in float32 in order, one float32
  reciprocal, + 0.5 and truncated.

Every value is a raw int32 mantissa held in int64; Qn.m says that it stands for raw / 2**m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeq.intops.quant import Quant
from edgeq.numerics.fixedpoint import INT32_MAX, INT32_MIN, multiplier, rounding_divide_by_pot, srdhm

_INTEGER_BITS, _SUM_BITS = 5, 12


@dataclass(frozen=True)
class SoftmaxParams:
    x: Quant
    beta: float = 1.0
    arithmetic: Literal["fixed", "table"] = "fixed"


def _saturating_shift(x: np.ndarray, bits: int) -> np.ndarray:
    return np.clip(x << bits, INT32_MIN, INT32_MAX)


def _q31(value: float) -> int:
    return round(value * 2.0**31)


def exp_on_negative_values(a: np.ndarray) -> np.ndarray:
    """exp(a) in Q0.31 of a <= 0 in Q5.26.

    a = r - n/4 with r in [-1/4, 0): a fourth-order polynomial around -1/8 for exp(r), then one multiplication by
    exp(-2**k) for every bit of n/4. exp(0) is the largest Q0.31.
    """
    quarter = 1 << 24
    remainder = (a & (quarter - 1)) - quarter
    x = _saturating_shift(remainder, _INTEGER_BITS) + (1 << 28)  # r + 1/8, in Q0.31
    x2 = srdhm(x, x)
    x3, x4 = srdhm(x2, x), srdhm(x2, x2)
    tail = rounding_divide_by_pot(srdhm(rounding_divide_by_pot(x4, 2) + x3, _q31(1 / 3)) + x2, 1)
    result = _q31(math.exp(-1 / 8)) + srdhm(_q31(math.exp(-1 / 8)), x + tail)
    steps = remainder - a
    for exponent in range(-2, _INTEGER_BITS):
        factor = _q31(math.exp(-(2.0**exponent)))
        result = np.where(steps & (1 << (26 + exponent)), srdhm(result, factor), result)
    return np.where(a == 0, INT32_MAX, result)


def reciprocal(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, bits) with 1 / total = m * 2**-bits in Q0.31, for total > 0 in Q12.19: normalized to 1 + x, 0 <= x < 1,
    then Newton's iteration for 2 / (1 + x) from 48/17 - 32/17 d in Q2.29."""
    leading = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    fraction = (total << leading) - (1 << 31)
    half = (fraction + INT32_MAX + 1) >> 1  # (1 + x) / 2, rounded half up; the sum is never negative
    one = 1 << 29
    x = round(48 / 17 * one) + srdhm(half, round(-32 / 17 * one))
    for _ in range(3):
        x = x + _saturating_shift(srdhm(x, one - srdhm(half, x)), 2)
    return _saturating_shift(x, 1), _SUM_BITS - leading


def exp_table(scale: float, beta: float = 1.0) -> np.ndarray:
    """exp(-scale · beta · d) in Q0.31 for d = 0 to 255, int64; 0 where Q5.26 can't hold the argument."""
    q, shift = (int(v) for v in multiplier(min(beta * scale * 2.0 ** (31 - _INTEGER_BITS), 2.0**31 - 1)))
    smallest = -math.floor((2**_INTEGER_BITS - 1) * 2.0 ** (31 - _INTEGER_BITS) / 2.0**shift)
    steps = np.arange(0, -256, -1)
    return np.where(steps >= smallest, exp_on_negative_values(srdhm(np.maximum(steps, smallest) << shift, q)), 0)


def softmax(x: np.ndarray, params: SoftmaxParams) -> np.ndarray:
    """x (..., N) codes -> codes of scale 1/256 and the lowest code as zero point, in x's type."""
    lo, hi = params.x.lo, params.x.hi
    difference = x.astype(np.int64) - x.max(axis=-1, keepdims=True)
    if params.arithmetic == "table":
        slope = np.float32(-params.x.scale) * np.float32(params.beta)
        table = np.exp((slope * np.arange(256, dtype=np.float32)).astype(np.float64)).astype(np.float32)
        values = table[-difference]
        total = np.add.accumulate(values, axis=-1, dtype=np.float32)[..., -1:]
        scaled = values * (np.float32(1.0) / (total * np.float32(1 / 256)))
        return np.clip((scaled + np.float32(0.5)).astype(np.int64) + lo, lo, hi).astype(x.dtype)
    exp = exp_table(params.x.scale, params.beta)  # of every difference there is
    numerator = exp[-difference]
    scale, bits = reciprocal(rounding_divide_by_pot(numerator, _SUM_BITS).sum(axis=-1, keepdims=True))
    y = rounding_divide_by_pot(srdhm(scale, numerator), bits + 23)
    return np.clip(y + lo, lo, hi).astype(x.dtype)


OPS = {"SOFTMAX": softmax}
