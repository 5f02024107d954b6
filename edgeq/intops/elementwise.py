"""ADD, SUB, MUL, MAXIMUM and MINIMUM of two quantized arrays, with NumPy's broadcasting.

ADD and SUB bring both operands to the scale 2 * max(s1, s2) after a left shift of n = 20 bits (15 of int16), add, and
requantize:

    y = requantize(requantize((x1 - z1) << n, s1 / 2m) ± requantize((x2 - z2) << n, s2 / 2m), 2m / (2**n s_y))

with m = max(s1, s2). MUL requantizes the product by s1 * s2 / s_y, computed in float32 as TFLite does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import ModelError
from edgeq.intops.quant import Activation, Quant, activation_range
from edgeq.numerics.fixedpoint import Rounding, multiplier, multiply, requantize

LEFT_SHIFT, LEFT_SHIFT_16 = 20, 15


@dataclass(frozen=True)
class BinaryParams:
    x: Quant
    y: Quant
    out: Quant
    activation: Activation = "NONE"
    rounding: Rounding = "double"


def add(x: np.ndarray, y: np.ndarray, params: BinaryParams) -> np.ndarray:
    """ADD of int8, uint8 or int16 arrays.

    Raises ModelError where the output scale is below 2**-19 (2**-14 of int16) of the larger input's.
    """
    return _sum(x, y, params, 1)


def sub(x: np.ndarray, y: np.ndarray, params: BinaryParams) -> np.ndarray:
    """SUB, x - y; otherwise as `add`."""
    return _sum(x, y, params, -1)


def _sum(x: np.ndarray, y: np.ndarray, params: BinaryParams, sign: int) -> np.ndarray:
    left = LEFT_SHIFT_16 if params.out.dtype == "int16" else LEFT_SHIFT
    twice = 2.0 * max(params.x.scale, params.y.scale)
    outer = twice / (params.out.scale * 2.0**left)
    if outer >= 1.0:
        raise ModelError(
            f"ADD or SUB to scale {params.out.scale:g} from {twice / 2:g}: the output scale must be above "
            f"2**-{left - 1} of the larger input scale"
        )
    sides = []
    for array, quant in ((x, params.x), (y, params.y)):
        # one table of all codes instead of the arithmetic for every element
        table = multiply(
            (np.arange(quant.lo, quant.hi + 1) - quant.zero_point) << left,
            *multiplier(quant.scale / twice),
            params.rounding,
        )
        sides.append(table[array.astype(np.int32) - quant.lo])
    q, shift = multiplier(outer)
    lo, hi = activation_range(params.activation, params.out)
    out = params.out
    return requantize(sides[0] + sign * sides[1], q, shift, out.zero_point, lo, hi, params.rounding, dtype=out.dtype)


def mul(x: np.ndarray, y: np.ndarray, params: BinaryParams) -> np.ndarray:
    """MUL of int8, uint8 or int16 arrays."""
    acc = params.x.shifted(x) * params.y.shifted(y)
    scale = np.float32(params.x.scale) * np.float32(params.y.scale) / np.float32(params.out.scale)
    q, shift = multiplier(float(scale))
    lo, hi = activation_range(params.activation, params.out)
    return requantize(acc, q, shift, params.out.zero_point, lo, hi, params.rounding, dtype=params.out.dtype)


def _same(params: BinaryParams, op: str) -> None:
    if not params.x == params.y == params.out:
        raise ModelError(f"{op}: inputs and output must share one scale and zero point; requantize them first")


def maximum(x: np.ndarray, y: np.ndarray, params: BinaryParams) -> np.ndarray:
    """MAXIMUM of codes. Raises ModelError unless all three quantizations are one."""
    _same(params, "MAXIMUM")
    return np.maximum(x, y)


def minimum(x: np.ndarray, y: np.ndarray, params: BinaryParams) -> np.ndarray:
    """MINIMUM of codes. Raises ModelError unless all three quantizations are one."""
    _same(params, "MINIMUM")
    return np.minimum(x, y)


OPS = {"ADD": add, "SUB": sub, "MUL": mul, "MAXIMUM": maximum, "MINIMUM": minimum}
