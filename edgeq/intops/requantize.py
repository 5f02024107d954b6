"""QUANTIZE (from float, or from one quantization to another) and DEQUANTIZE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.intops.quant import Quant
from edgeq.numerics import fixedpoint
from edgeq.numerics.fixedpoint import Rounding, multiplier


@dataclass(frozen=True)
class QuantizeParams:
    """x: None where the input is float32."""

    x: Quant | None
    out: Quant
    rounding: Rounding = "double"


def quantize(x: np.ndarray, params: QuantizeParams) -> np.ndarray:
    """float32 -> clamp(round(x / scale) + zero_point), the quotient in float32 and rounded half away from zero
    (ONNX rounds half to even); or codes of params.x -> codes of params.out by one requantization."""
    out = params.out
    if params.x is None:
        steps = (x.astype(np.float32) / np.float32(out.scale)).astype(np.float64)
        steps = np.trunc(steps + np.copysign(0.5, steps)) + out.zero_point
        return np.clip(steps, out.lo, out.hi).astype(out.dtype)
    q, shift = multiplier(params.x.scale / out.scale)
    acc = params.x.shifted(x)
    return fixedpoint.requantize(acc, q, shift, out.zero_point, out.lo, out.hi, params.rounding, dtype=out.dtype)


def dequantize(x: np.ndarray, params: Quant) -> np.ndarray:
    """scale * (x - zero_point), float32, rounded once."""
    return np.float32(params.scale) * params.shifted(x).astype(np.float32)


OPS = {"QUANTIZE": quantize, "DEQUANTIZE": dequantize}
