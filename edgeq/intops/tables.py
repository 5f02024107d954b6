"""Activations of one 8-bit operand: each is a table of 256 codes, whichever arithmetic fills it.

LOGISTIC, TANH, GELU: the function in float32, times float32(1 / s_y), rounded half away from zero.
RELU, RELU6, RELU_N1_TO_1, LEAKY_RELU: one requantization, LEAKY_RELU with a second multiplier below zero.
HARD_SWISH: the 16-bit fixed-point arithmetic of TFLite's reference (hard_swish.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeq.errors import ModelError
from edgeq.intops.quant import Activation, Quant, activation_range
from edgeq.numerics.fixedpoint import INT32_MAX, Rounding, multiplier, multiply, rounding_divide_by_pot

FixedOutput = Quant(1 / 256, -128)


@dataclass(frozen=True)
class TableParams:
    """alpha: LEAKY_RELU's slope. approximate: GELU by tanh."""

    x: Quant
    out: Quant
    alpha: float = 0.0
    approximate: bool = False
    rounding: Rounding = "double"


def _codes(quant: Quant) -> np.ndarray:
    return np.arange(quant.lo, quant.hi + 1, dtype=np.int64) - quant.zero_point


def lookup(x: np.ndarray, table: np.ndarray, quant: Quant) -> np.ndarray:
    """table[x - lowest code]."""
    return np.asarray(table[x.astype(np.int64) - quant.lo])


def float_table(function: Callable[[np.ndarray], np.ndarray], x: Quant, out: Quant) -> np.ndarray:
    """256 codes of out: function at each dequantized code of x, evaluated in float64 and rounded to float32."""
    real = np.float32(x.scale) * _codes(x).astype(np.float32)
    return real_table(function(real.astype(np.float64)), out)


def real_table(real: np.ndarray, out: Quant) -> np.ndarray:
    """Real values as codes of out: rounded to float32, times float32(1 / s_y), rounded half away from zero."""
    scaled = real.astype(np.float32) * (np.float32(1) / np.float32(out.scale))
    steps = scaled.astype(np.float64)
    rounded = np.trunc(steps + np.copysign(0.5, steps)) + out.zero_point
    return np.clip(rounded, out.lo, out.hi).astype(out.dtype)


def _sigmoid(v: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-v) may be infinite, which is right
        e = np.exp(-v).astype(np.float32)
    return np.float32(1) / (np.float32(1) + e)  # each step in float32, as the runtime does


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(v: np.ndarray, approximate: bool) -> np.ndarray:
    if approximate:
        return 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    return 0.5 * v * (1 + _erf(v * math.sqrt(0.5)))


def logistic(x: np.ndarray, params: TableParams) -> np.ndarray:
    """LOGISTIC; the output is 1/256 with the lowest code as zero point in TFLite and NNAPI."""
    return lookup(x, float_table(_sigmoid, params.x, params.out), params.x)


def tanh(x: np.ndarray, params: TableParams) -> np.ndarray:
    """TANH; the output is 1/128 around the middle code in TFLite and NNAPI."""
    return lookup(x, float_table(np.tanh, params.x, params.out), params.x)


def gelu(x: np.ndarray, params: TableParams) -> np.ndarray:
    """GELU by erf, or by tanh if `approximate`."""
    return lookup(x, float_table(partial(_gelu, approximate=params.approximate), params.x, params.out), params.x)


def relu_table(params: TableParams, activation: Activation) -> np.ndarray:
    ratio = np.float32(params.x.scale) / np.float32(params.out.scale)
    lo, hi = activation_range(activation, params.out)
    y = multiply(_codes(params.x), *multiplier(float(ratio)), params.rounding) + params.out.zero_point
    return np.clip(y, lo, hi).astype(params.out.dtype)


def relu(x: np.ndarray, params: TableParams, activation: Activation = "RELU") -> np.ndarray:
    """RELU, RELU6 or RELU_N1_TO_1 as an operator of its own, with its own output quantization."""
    return lookup(x, relu_table(params, activation), params.x)


def leaky_relu(x: np.ndarray, params: TableParams) -> np.ndarray:
    """LEAKY_RELU: x below zero times float32(s_x * alpha / s_y), above times float32(s_x / s_y)."""
    codes, out = _codes(params.x), params.out
    s_x, s_y = np.float32(params.x.scale), np.float32(out.scale)
    below = multiply(codes, *multiplier(float(s_x * np.float32(params.alpha) / s_y)), params.rounding)
    above = multiply(codes, *multiplier(float(s_x / s_y)), params.rounding)
    table = np.clip(np.where(codes >= 0, above, below) + out.zero_point, out.lo, out.hi)
    return lookup(x, table.astype(out.dtype), params.x)


def _int16(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -(2**15), 2**15 - 1)


def _multiplier_int16(m: np.float32) -> tuple[int, int]:
    q, shift = (int(v) for v in multiplier(float(m)))
    return (2**15 - 1 if q >= INT32_MAX - 2**15 else (q + 2**15) >> 16), shift


def hard_swish_table(x: Quant, out: Quant) -> np.ndarray:
    """256 codes of x * clip(x + 3, 0, 6) / 6.

    Raises ModelError where s_x / 128 >= s_y, which the 16-bit multiplier can't express.
    """
    fine = np.float32(1 / 128) * np.float32(x.scale)
    out_q, out_shift = _multiplier_int16(fine / np.float32(out.scale))
    gate_q, gate_shift = _multiplier_int16(fine / np.float32(3 / 32768))
    if out_shift > 0:
        raise ModelError(f"HARD_SWISH from scale {x.scale:g} to {out.scale:g}: the output scale is too small")
    value = _codes(x) << 7
    preshift = np.minimum((value * out_q + (1 << 14)) >> 15, 2**15 - 1)
    gate = value
    if gate_shift > 0:
        gate = _int16(gate << (gate_shift - 1))
    gate = np.minimum((gate * gate_q + (1 << 14)) >> 15, 2**15 - 1)
    gate = _int16(gate << 1) if gate_shift > 0 else rounding_divide_by_pot(gate, -gate_shift)
    product = ((gate + (1 << 15)) >> 1) * preshift
    truncated = np.where(product < 0, -(-product >> 15), product >> 15)
    y = rounding_divide_by_pot(truncated, -out_shift) + out.zero_point
    return np.clip(y, out.lo, out.hi).astype(out.dtype)


def hard_swish(x: np.ndarray, params: TableParams) -> np.ndarray:
    """HARD_SWISH of int8 or uint8."""
    return lookup(x, hard_swish_table(params.x, params.out), params.x)


OPS: dict[str, Callable[..., np.ndarray]] = {
    "LOGISTIC": logistic,
    "TANH": tanh,
    "GELU": gelu,
    "RELU": relu,
    "RELU6": partial(relu, activation="RELU6"),
    "RELU_N1_TO_1": partial(relu, activation="RELU_N1_TO_1"),
    "LEAKY_RELU": leaky_relu,
    "HARD_SWISH": hard_swish,
}
