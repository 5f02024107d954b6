"""What the integer kernels share: an activation's `Quant`, the fused activation's clamp, and checked accumulators.

Kernels are functions `f(*arrays, params) -> array`, listed under TFLite's operator names in each module's OPS.
Image tensors are NHWC; a caller with NCHW arrays passes `x.transpose(0, 2, 3, 1)`, a view that costs nothing,
and transposes the result back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgeq.errors import ModelError
from edgeq.numerics.fixedpoint import INT32_MAX, INT32_MIN
from edgeq.types import INT_RANGES

Activation = Literal["NONE", "RELU", "RELU6", "RELU_N1_TO_1"]
_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "NONE": (None, None),
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


@dataclass(frozen=True)
class Quant:
    """One activation tensor: real = scale * (code - zero_point). scale is rounded to float32, as files store it."""

    scale: float
    zero_point: int = 0
    dtype: str = "int8"
    lo: int = field(init=False)
    hi: int = field(init=False)

    def __post_init__(self) -> None:
        lo, hi = INT_RANGES[self.dtype]
        if not (np.isfinite(self.scale) and self.scale > 0 and lo <= self.zero_point <= hi):
            raise ModelError(f"scale {self.scale}, zero point {self.zero_point}: not a quantization of {self.dtype}")
        for name, value in (("scale", float(np.float32(self.scale))), ("lo", lo), ("hi", hi)):
            object.__setattr__(self, name, value)

    def shifted(self, x: np.ndarray, dtype: np.typing.DTypeLike = np.int32) -> np.ndarray:
        """x - zero_point, in a type that holds it exactly."""
        out = x.astype(dtype)
        if self.zero_point:
            out -= self.zero_point
        return out


def activation_range(activation: Activation, out: Quant) -> tuple[int, int]:
    """(lo, hi), the codes between which a fused activation clamps."""
    return clamp_range(*_BOUNDS[activation], out)


def clamp_range(low: float | None, high: float | None, out: Quant) -> tuple[int, int]:
    """(lo, hi), the codes of two real bounds, None for none; they are quantized half away from zero.

    The division is float32's (TFLite, CalculateActivationRangeQuantized).
    """

    def code(bound: float) -> int:
        steps = float(np.float32(bound) / np.float32(out.scale))
        return out.zero_point + int(steps + math.copysign(0.5, steps))

    return (
        out.lo if low is None else max(out.lo, code(low)),
        out.hi if high is None else min(out.hi, code(high)),
    )


def check_int32(acc: np.ndarray, op: str, bound: float) -> None:
    """Raises ModelError where an accumulator left int32, on which runtimes wrap, saturate or trap.

    bound: a cheap upper bound of |acc|; the values are only looked at where it can't rule an overflow out.
    """
    if bound <= INT32_MAX or acc.size == 0:
        return
    low, high = int(acc.min()), int(acc.max())
    if low < INT32_MIN or high > INT32_MAX:
        worst = low if -low > high else high
        raise ModelError(
            f"{op}: an accumulator reaches {worst}, beyond int32; use fewer weight bits, a smaller bias, or split it"
        )
