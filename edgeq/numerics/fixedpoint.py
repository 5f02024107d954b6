"""Requantization in integers: a real multiplier as an int32 mantissa and a shift, and every way of rounding with it.

A real multiplier m = s_in * s_weight / s_out is stored as m = q * 2**(shift - 31) with 2**30 <= q < 2**31
(`multiplier`), and an int32 accumulator x becomes round(x * m) + zero_point, clamped (`requantize`). The runtimes
agree on q and shift and differ in `rounding`:

    "double"     gemmlowp, two roundings: t = srdhm(x * 2**max(shift, 0), q), then rounding_divide_by_pot(t, -shift)
    "single"     one rounding, half up: (x * q + 2**(30 - shift)) >> (31 - shift)
    "half_even"  float32(x) * float32(m), rounded half to even: no integers, but one IEEE multiplication
    "int16x8"    16-bit multiplier, 64-bit accumulator: `multiply_int64`
    (`requantize_real`: float64(x) * float64(m), rounded half away from zero; no mantissa and shift at all)

What ai-edge-litert 2.3 computes on x86-64, for int8 and, where they have it, uint8. The reference kernels
(BUILTIN_REF) are held bit for bit by this project's tests; the other columns are what 0 of 40,000 to 900,000
outputs contradicted (4,000 for MEAN), and "±1" means that no rounding reproduces them all.

                                                    reference    optimized    XNNPACK (the default)
    CONV_2D, TRANSPOSE_CONV, DEPTHWISE_CONV_2D      double       ±1           single or half_even
    FULLY_CONNECTED int8, int16 and uint8           real         ±1           single or half_even
    BATCH_MATMUL, RELU, RELU6                       double       double       double
    ADD, SUB                                        double       double       ±1, 1 in 50,000
    MUL                                             double       double (*)   single or half_even
    MEAN                                            double       ±1           single or half_even
    LEAKY_RELU                                      double       double       ±1
    QUANTIZE from 8 bits to 8 bits                  double       ±1           ±1
    LOGISTIC, TANH, GELU: float32, half away        yes          yes          LOGISTIC ±1, 1 in 150,000
    HARD_SWISH: 16-bit fixed point                  yes          yes          yes
    SOFTMAX                                         fixed point  table        table
    AVERAGE_POOL_2D: integer division, half away    yes          yes          yes
    RESIZE_BILINEAR: Q10, half away                 yes          yes          up to 2 steps apart
    CONV_2D and the like, int16 with int64 bias     int16x8

(*) for multipliers below 1/2; above, the optimized MUL can be as much as 255 steps off where results saturate.

Elsewhere: TensorFlow Lite built with TFLITE_SINGLE_ROUNDING and XNNPACK's "rndnu" (Arm; m rounded to float32
first) are "single"; XNNPACK's "fp32" and magic-bias forms (x86, wasm) and onnxruntime's QLinearConv "half_even".

Sources: quantization_util.cc and kernels/internal/common.cc of TensorFlow Lite, fixedpoint.h of gemmlowp,
XNNPACK src/qs8-requantization.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rounding = Literal["double", "single", "half_even", "int16x8"]
ROUNDINGS: tuple[Rounding, ...] = ("double", "single", "half_even", "int16x8")

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
_CHUNK = 1 << 15  # elements: eight bytes each, so that the passes over one chunk stay in the second-level cache


def multiplier(m: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(q, shift), int32 of m's shape, with m ~ q * 2**(shift - 31); |q| in [2**30, 2**31), or 0.

    m: finite float64. q is rounded half away from zero; a mantissa that rounds up to 2**31 is halved. Below
    2**-32 (shift < -31) the product with any int32 rounds to zero, and q and shift are 0. Above 2**30 the
    result saturates at shift 30, q 2**31 - 1. Raises ValueError for an m that is not finite.
    """
    real = np.asarray(m, np.float64)
    if not np.isfinite(real).all():
        raise ValueError(f"a requantization multiplier must be finite, not {real}")
    mantissa, exponent = np.frexp(real)
    scaled = mantissa * 2.0**31
    q = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)
    shift = exponent.astype(np.int64)
    carried = np.abs(q) == 2**31
    q, shift = np.where(carried, q // 2, q), np.where(carried, shift + 1, shift)
    tiny, huge = shift < -31, shift > 30
    q = np.where(tiny, 0, np.where(huge, np.sign(q) * INT32_MAX, q))
    shift = np.where(tiny | (q == 0), 0, np.where(huge, 30, shift))
    return q.astype(np.int32), shift.astype(np.int32)


def real_multiplier(q: ArrayLike, shift: ArrayLike) -> NDArray[np.float64]:
    """The float64 number that (q, shift) stand for: q * 2**(shift - 31), exactly."""
    return np.ldexp(np.asarray(q, np.float64), np.asarray(shift, np.int64) - 31)


def srdhm(a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Saturating rounding doubling high multiply of int32 values: round(a * b / 2**31), ties upward.

    gemmlowp adds 2**30 or 1 - 2**30 by the sign of a*b and truncates; that equals floor((a*b + 2**30) / 2**31),
    computed here. Only (-2**31)**2 saturates, to 2**31 - 1.
    """
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.minimum((product + (1 << 30)) >> 31, INT32_MAX)


def rounding_divide_by_pot(x: ArrayLike, exponent: ArrayLike) -> NDArray[np.int64]:
    """round(x / 2**exponent), ties away from zero; x within int32, 0 <= exponent <= 31."""
    x64, e = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    half = np.where(e > 0, np.left_shift(1, np.maximum(e - 1, 0)), 0)
    return (x64 + half + np.where(e > 0, x64 >> 63, 0)) >> e


def wrap_int32(x: ArrayLike) -> NDArray[np.int64]:
    """x modulo 2**32, in the range of int32: what a 32-bit register holds."""
    return ((np.asarray(x, np.int64) + 2**31) & 0xFFFFFFFF) - 2**31


def multiply(x: ArrayLike, q: ArrayLike, shift: ArrayLike, rounding: Rounding = "double") -> NDArray[np.int64]:
    """round(x * q * 2**(shift - 31)) as int64; x holds int32 values and q, shift broadcast against it.

    "double" shifts x left first in 32 bits, and wraps there as the C code does. "single" does not wrap.
    """
    x64, q64, s = np.asarray(x, np.int64), np.asarray(q, np.int64), np.asarray(shift, np.int64)
    if rounding == "single":
        total = 31 - s
        return (x64 * q64 + np.left_shift(1, total - 1)) >> total
    if rounding == "half_even":
        scale = real_multiplier(q64, s).astype(np.float32)
        return np.rint(x64.astype(np.float32) * scale).astype(np.int64)
    if rounding == "int16x8":
        return multiply_int64(x64, q64, s)
    if (s > 0).any():
        x64 = wrap_int32(x64 << np.maximum(s, 0))
    return rounding_divide_by_pot(srdhm(x64, q64), np.maximum(-s, 0))


def multiply_int64(x: ArrayLike, q: ArrayLike, shift: ArrayLike) -> NDArray[np.int64]:
    """The int16 x int8 product: q is rounded to 16 bits, x is an int64 accumulator, |x| < 2**47.

    (x * q16 + 2**(14 - shift)) >> (15 - shift), with q16 = min((q + 2**15) >> 16, 2**15 - 1) and shift < 8.
    """
    x64, q64, s = np.asarray(x, np.int64), np.asarray(q, np.int64), np.asarray(shift, np.int64)
    q16 = np.minimum((q64 + (1 << 15)) >> 16, 0x7FFF)
    total = 15 - s
    return (x64 * q16 + np.left_shift(1, total - 1)) >> total


def requantize(
    acc: np.ndarray,
    q: ArrayLike,
    shift: ArrayLike,
    zero_point: int,
    lo: int,
    hi: int,
    rounding: Rounding = "double",
    axis: int = -1,
    dtype: np.typing.DTypeLike = np.int8,
) -> np.ndarray:
    """clamp(multiply(acc, q, shift) + zero_point, lo, hi) as `dtype`, in acc's shape.

    acc: integers within int32, or floats that hold such integers. q, shift: scalars, or one per index of
    `axis` (an NHWC caller leaves axis at -1; an NCHW caller says 1). Raises ValueError for an unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}; one of {', '.join(ROUNDINGS)}")
    q64, s64 = np.asarray(q, np.int64), np.asarray(shift, np.int64)
    if q64.ndim == 0 and s64.ndim == 0:
        rows = acc.reshape(1, -1) if acc.ndim == 0 else acc.reshape(-1, acc.shape[-1])
        return _requantize_rows(rows, q64, s64, zero_point, lo, hi, rounding, dtype).reshape(acc.shape)
    moved = np.moveaxis(acc, axis, -1)
    out = _requantize_rows(
        moved.reshape(-1, moved.shape[-1]), q64, s64, zero_point, lo, hi, rounding, dtype
    )  # one row holds every channel once
    return np.moveaxis(out.reshape(moved.shape), -1, axis)


def _requantize_rows(
    rows: np.ndarray,
    q: NDArray[np.int64],
    shift: NDArray[np.int64],
    zero_point: int,
    lo: int,
    hi: int,
    rounding: Rounding,
    dtype: np.typing.DTypeLike,
) -> np.ndarray:
    """`requantize` of a (rows, channels) array, a cacheful of rows at a time."""
    out = np.empty(rows.shape, dtype)
    fast = rounding == "double" and bool((shift <= 0).all()) and bool((q >= 0).all())
    right = np.broadcast_to(-shift, q.shape if q.ndim else shift.shape)
    half = np.where(right > 0, np.left_shift(1, np.maximum(right - 1, 0)), 0)
    # Without a left shift nothing wraps or saturates, and srdhm is (x * q + 2**30) >> 31. Where nothing is
    # shifted right either, the tie correction must vanish: the sign is masked out.
    sign_mask = np.where(right > 0, -1, 0)
    step = max(1, _CHUNK // max(1, rows.shape[-1]))
    for start in range(0, len(rows), step):
        x = rows[start : start + step].astype(np.int64)
        if fast:
            x *= q
            x += 1 << 30
            x >>= 31
            sign = x >> 63
            sign &= sign_mask
            x += sign
            x += half
            x >>= right
        else:
            x = multiply(x, q, shift, rounding)
        x += zero_point
        out[start : start + step] = np.clip(x, lo, hi, out=x)
    return out


def requantize_real(
    acc: np.ndarray, m: ArrayLike, zero_point: int, lo: int, hi: int, dtype: np.typing.DTypeLike = np.int8
) -> np.ndarray:
    """clamp(round(acc * m) + zero_point, lo, hi), the product in float64 and rounded half away from zero.

    m broadcasts against acc: no mantissa and shift, but the real multiplier itself.
    """
    x = acc.astype(np.float64) * np.asarray(m, np.float64)
    x = np.trunc(x + np.copysign(0.5, x)) + zero_point
    return np.clip(x, lo, hi).astype(dtype)
