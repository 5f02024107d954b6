"""CONCATENATION: codes side by side; inputs of another scale or zero point than the output's are requantized first.

TFLite's int8 kernel accepts only one quantization for all, its uint8 kernel several, as NNAPI does from API 29. There
they are requantized in float32: round(code * m - z * m) + z_out, m = s * (1 / s_out), half away from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.intops.quant import Quant
from edgeq.intops.requantize import QuantizeParams, quantize
from edgeq.numerics.fixedpoint import Rounding


@dataclass(frozen=True)
class ConcatParams:
    """x: one Quant for each input, in order."""

    x: tuple[Quant, ...]
    out: Quant
    axis: int = -1
    rounding: Rounding = "double"


def concatenation(arrays: Sequence[np.ndarray], params: ConcatParams) -> np.ndarray:
    """CONCATENATION of arrays, one for each of params.x, along params.axis."""
    same = [a if quant == params.out else _moved(a, quant, params) for a, quant in zip(arrays, params.x, strict=True)]
    return np.concatenate(same, axis=params.axis)


def _moved(x: np.ndarray, given: Quant, params: ConcatParams) -> np.ndarray:
    out = params.out
    if out.dtype != "uint8":
        return quantize(x, QuantizeParams(given, out, params.rounding))
    m = np.float32(given.scale) * (np.float32(1) / np.float32(out.scale))
    table = np.arange(given.lo, given.hi + 1, dtype=np.float32) * m + np.float32(-given.zero_point) * m
    steps = np.trunc(table.astype(np.float64) + np.copysign(0.5, table)) + out.zero_point
    return np.clip(steps, out.lo, out.hi).astype(np.uint8)[x]


OPS = {"CONCATENATION": concatenation}
