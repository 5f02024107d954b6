"""Small floating-point types: rounding to fp16, bf16, fp8, fp6 and fp4, half to even, saturating.

    q = saturate(round(x / scale))        x' = q * scale

The types are those of ONNX (float8: Micikevicius et al., "FP8 Formats for Deep Learning", 2022; float4 and float6:
OCP Microscaling Formats v1.0), rounded by ml_dtypes. As with saturate=1 in ONNX Cast and QuantizeLinear, finite
values and infinities beyond the greatest finite one become that one; NaN stays NaN, or 0 where a type has none.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from edgeq.errors import CalibrationError
from edgeq.numerics.affine import MIN_SCALE

FORMATS: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float6e2m3": np.dtype(ml_dtypes.float6_e2m3fn),
    "float6e3m2": np.dtype(ml_dtypes.float6_e3m2fn),
    "float4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
}
_WITHOUT_NAN = {"float6e2m3", "float6e3m2", "float4e2m1"}


def greatest(fmt: str) -> float:
    """The greatest finite value of a format of `FORMATS`."""
    return float(ml_dtypes.finfo(FORMATS[fmt]).max)


def cast(x: np.ndarray, fmt: str) -> np.ndarray:
    """`x` in the format's own dtype, saturated."""
    limit = greatest(fmt)
    finite = np.clip(np.asarray(x, np.float32), -limit, limit)
    if fmt in _WITHOUT_NAN:
        finite = np.nan_to_num(finite, nan=0.0)
    return finite.astype(FORMATS[fmt])


def round_to(x: np.ndarray, fmt: str) -> np.ndarray:
    """float32 values of `x` rounded to the format, saturated."""
    return cast(x, fmt).astype(np.float32)


def scale_for(absmax: np.ndarray | float, fmt: str, power_of_two: bool = False) -> np.ndarray:
    """float32 scales that map `absmax` to the format's greatest value; `power_of_two` rounds them up, as MX blocks.

    Zero gets scale 1. Raises CalibrationError for a NaN, infinite or negative absmax.
    """
    reach = np.asarray(absmax, np.float64)
    if not (np.isfinite(reach).all() and (reach >= 0).all()):
        raise CalibrationError("an absolute maximum is NaN, infinite or negative: look for overflow in the model")
    scale = np.where(reach > 0, np.maximum(reach / greatest(fmt), MIN_SCALE), 1.0)
    if power_of_two:
        mantissa, exponent = np.frexp(scale)
        scale = np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))
    return scale.astype(np.float32)


def fake_quantize(x: np.ndarray, scale: np.ndarray | float, fmt: str) -> np.ndarray:
    """float32 round_to(x / scale) * scale; `scale` broadcasts against x."""
    s = np.asarray(scale, np.float32)
    return np.asarray(round_to(np.asarray(x, np.float32) / s, fmt) * s, np.float32)


def codes(x: np.ndarray, fmt: str) -> np.ndarray:
    """uint8 bits of `x` in a format of 8 bits, saturated."""
    return cast(x, fmt).view(np.uint8)


def by_code(fmt: str) -> np.ndarray:
    """float32 (256,): what each code of a format of 8 bits stands for, NaN and infinities included."""
    return np.arange(256, dtype=np.uint8).view(FORMATS[fmt]).astype(np.float32)
