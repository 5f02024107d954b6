"""FULLY_CONNECTED: y = clamp(requantize((x - zx) @ (w - zw).T + bias)), weights per tensor or per output channel.

LiteRT's reference kernel differs from its convolutions here: it multiplies by the real multiplier in float64 and rounds
half away from zero, which `rounding="real"` does. NNAPI's uses the mantissa and shift, as in its convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeq.intops.matmul import exact_matmul, exact_type, largest, product_bound
from edgeq.intops.quant import Activation, Quant, activation_range, check_int32
from edgeq.numerics.fixedpoint import Rounding, multiplier, requantize, requantize_real


@dataclass(frozen=True, eq=False)
class FullyConnectedParams:
    """w_scale: () or (N,) float32. w_zero_point: 0 except for uint8 weights (per tensor)."""

    x: Quant
    w_scale: np.ndarray
    out: Quant
    w_zero_point: int = 0
    activation: Activation = "NONE"
    rounding: Rounding | Literal["real"] = "real"


def real_multiplier(x: Quant, w_scale: np.ndarray, out: Quant) -> np.ndarray:
    """s_x * s_w / s_out in float64 from the float32 scales; shape of w_scale, () for one channel."""
    scale = np.asarray(w_scale, np.float32).astype(np.float64)
    return np.asarray(x.scale * (scale.reshape(()) if scale.size == 1 else scale) / out.scale)


def add_bias(acc: np.ndarray, bias: np.ndarray | None, op: str, bound: float, wide: bool) -> np.ndarray:
    """acc (..., N) + bias (N,), still exact, checked against int32 unless the accumulator is `wide`: 64 bits."""
    if bias is not None and bias.size:
        bound += largest(bias)
        acc = acc.astype(exact_type(bound), copy=False)
        acc = acc + bias.astype(acc.dtype)
    if not wide:
        check_int32(acc, op, bound)
    return acc


def fully_connected(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, params: FullyConnectedParams) -> np.ndarray:
    """x (..., K), w (N, K), bias (N,) int32 of scale s_x * s_w or None -> (..., N) in params.out.dtype.

    Raises ModelError on an int32 overflow of an accumulator.
    """
    a = params.x.shifted(x.reshape(-1, x.shape[-1]))
    b = w.T.astype(np.int32) - params.w_zero_point
    acc = add_bias(exact_matmul(a, b), bias, "FULLY_CONNECTED", product_bound(a, b), params.x.dtype == "int16")
    m = real_multiplier(params.x, params.w_scale, params.out)
    zero_point, dtype = params.out.zero_point, params.out.dtype
    lo, hi = activation_range(params.activation, params.out)
    if params.rounding == "real":
        y = requantize_real(acc, m, zero_point, lo, hi, dtype)
    else:
        y = requantize(acc, *multiplier(m), zero_point, lo, hi, params.rounding, dtype=dtype)
    return y.reshape(*x.shape[:-1], w.shape[0])


OPS = {"FULLY_CONNECTED": fully_connected}
