"""Affine (uniform) integer quantization: from ranges to parameters, from reals to codes and back.

    q = saturate(round_half_even(x / scale) + zero_point)        x' = (q - zero_point) * scale

with the division in float32, as ONNX QuantizeLinear and DequantizeLinear of opset 21 have it (operator
specification, https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html). Axes may be negative. The last block
of a blocked axis may be partial.
"""

from __future__ import annotations

import numpy as np

from edgeq.errors import CalibrationError, ModelError, RecipeError
from edgeq.types import INT_RANGES, Granularity, PerBlock, PerChannel, PerTensor, QParams, QSpec

# The product of an activation's and a weight's scale (the bias scale) must still be a normal float32, 2**-126.
MIN_SCALE = 2.0**-63
INT32_MAX = 2**31 - 1
_STORAGE = {1: np.int8, 2: np.int16, 4: np.int32}


def storage_dtype(dtype: str) -> np.dtype:
    """The smallest numpy integer type that holds the codes of `dtype` (2 and 4 bits are kept one a byte)."""
    size = max(QSpec(dtype).bits // 8, 1)
    signed = np.dtype(_STORAGE[size])
    return np.dtype(signed.str.replace("i", "u")) if dtype.startswith("u") else signed


def middle(spec: QSpec) -> int:
    """The zero point of a symmetric spec: 0 for signed types, the middle of the codes for unsigned ones."""
    return 0 if spec.signed else (spec.qmax + 1) // 2


def qparams(lo: np.ndarray | float, hi: np.ndarray | float, spec: QSpec) -> QParams:
    """Scale and zero point that cover the ranges [lo, hi], each stretched to contain 0. lo and hi: equal shapes.

    symmetric:   scale = max(|lo|, |hi|) / (qmax - z), zero point z = `middle(spec)`
    asymmetric:  scale = (hi - lo) / (qmax - qmin), zero point = round_half_even(qmin - lo / scale)

    A range of one value c ≠ 0 gets the scale |c| / 2**k with the largest k whose code exists, so that c is
    exact and the codes reach about twice as far; the range [0, 0] is taken for c = 1. No scale is below
    `MIN_SCALE`. Raises CalibrationError for a range that is not finite or has lo > hi, and RecipeError for a
    2-bit type that reduced range leaves with no code above its zero point.
    """
    low, high = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CalibrationError("a quantization range is NaN or infinite: look for overflow in the model or its data")
    if (low > high).any():
        raise CalibrationError("a quantization range has its minimum above its maximum: no data was seen for it")
    zero = middle(spec)
    steps = spec.qmax - (zero if spec.symmetric else spec.qmin)
    if steps < 1:
        raise RecipeError(f"{spec.dtype} has one code left: drop reduce_range, it is meant for 8 bits")
    is_constant = low == high
    if is_constant.any():
        constant = np.where(low == 0, 1.0, low) * (steps / 2.0 ** (steps.bit_length() - 1))
        low, high = np.where(is_constant, constant, low), np.where(is_constant, constant, high)
    if spec.symmetric:
        span = np.maximum(-low, high)  # low <= high, so that one of them reaches 0
    else:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        span = high - low
    scale = np.maximum(span / steps, MIN_SCALE).astype(np.float32)
    if spec.symmetric:
        return QParams(scale, np.full(scale.shape, zero, np.int32), spec)
    point = np.clip(np.rint(spec.qmin - low / scale.astype(np.float64)), spec.qmin, spec.qmax)
    return QParams(scale, point.astype(np.int32), spec)


def within(params: QParams, lo: float, hi: float) -> QParams:
    """The same zero point, with the scale lowered until no code means a number outside [lo, hi]; lo <= 0 <= hi.

    For one scale. A zero point that leaves codes where a bound of 0 allows none keeps the scale: no scale would do.
    """
    below, above = int(params.zero_point) - params.spec.qmin, params.spec.qmax - int(params.zero_point)
    scale = np.float32(params.scale)
    for steps, bound in ((below, -lo), (above, hi)):
        if steps and 0 < bound < np.float32(steps) * scale:
            scale = np.float32(bound / steps)
            if np.float32(steps) * scale > bound:  # as a runtime compares them, in float32
                scale = np.nextafter(scale, np.float32(0))
    return QParams(np.asarray(scale, np.float32), params.zero_point, params.spec)


def params_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """The shape of scale and zero point for a tensor of `shape`."""
    match granularity:
        case PerTensor():
            return ()
        case PerChannel(axis):
            return (shape[axis],)
        case PerBlock(axis, size):
            out = list(shape)
            out[axis] = -(-shape[axis] // size)
            return tuple(out)


def weight_ranges(w: np.ndarray, granularity: Granularity) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of `w` at the granularity, in the shape of `params_shape`.

    Raises ModelError when `w` is empty or holds NaN or infinity.
    """
    if w.size == 0:
        raise ModelError(f"a weight of shape {w.shape} is empty: leave it float")
    match granularity:
        case PerTensor():
            lo, hi = w.min(), w.max()
        case PerChannel(axis):
            others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
            lo, hi = w.min(axis=others), w.max(axis=others)
        case PerBlock(axis, size):
            axis %= w.ndim
            if w.shape[axis] % size:
                starts = np.arange(0, w.shape[axis], size)
                lo, hi = np.minimum.reduceat(w, starts, axis=axis), np.maximum.reduceat(w, starts, axis=axis)
            else:
                blocks = split_axis(w, axis, size)
                lo, hi = blocks.min(axis=axis + 1), blocks.max(axis=axis + 1)
    lo, hi = np.asarray(lo), np.asarray(hi)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ModelError(f"a weight of shape {w.shape} holds NaN or infinity: repair the model or leave it float")
    return lo, hi


def split_axis(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """`x` with `axis` split in (blocks, size); the axis must be a multiple of `size` long. A view of contiguous x."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def expand(p: np.ndarray, shape: tuple[int, ...], granularity: Granularity) -> np.ndarray:
    """Scales or zero points `p` made to broadcast against a tensor of `shape`."""
    match granularity:
        case PerTensor():
            return p.reshape(())
        case PerChannel(axis):
            dims = [1] * len(shape)
            dims[axis] = shape[axis]
            return p.reshape(dims)
        case PerBlock(axis, size):
            axis %= len(shape)
            whole = np.repeat(p, size, axis=axis)
            return whole[(slice(None),) * axis + (slice(shape[axis]),)]


def _aligned(x: np.ndarray, params: QParams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, scale and zero point that broadcast; whole blocks become an axis of their own instead of repeated scales."""
    granularity = params.spec.granularity
    if isinstance(granularity, PerBlock):
        axis = granularity.axis % x.ndim
        if x.shape[axis] % granularity.size == 0:
            blocks = split_axis(x, axis, granularity.size)
            one = (slice(None),) * (axis + 1) + (None,)
            return blocks, params.scale[one], params.zero_point[one]
    return x, expand(params.scale, x.shape, granularity), expand(params.zero_point, x.shape, granularity)


def quantize(x: np.ndarray, params: QParams) -> np.ndarray:
    """Codes of `x`, of `storage_dtype`. Infinities saturate; NaN becomes the zero point, which means 0.

    The codes saturate at the spec's qmin and qmax: at the type's own limits unless the spec is narrow or reduced.
    """
    spec = params.spec
    # float32 cannot hold the largest int32; no runtime quantizes to int32 on the fly, so there is none to match.
    real = np.float64 if spec.bits > 16 else np.float32
    blocks, scale, zero = _aligned(np.asarray(x, real), params)
    with np.errstate(over="ignore", invalid="ignore"):
        q = np.asarray(blocks / scale.astype(real, copy=False))
    np.rint(q, out=q)
    if zero.any():
        q += zero.astype(real)
    low, high = q.min(initial=spec.qmin), q.max(initial=spec.qmax)
    if np.isnan(low):
        q = np.where(np.isnan(q), zero.astype(real), q)
    if not (low >= spec.qmin and high <= spec.qmax):
        np.clip(q, spec.qmin, spec.qmax, out=q)
    return q.astype(storage_dtype(spec.dtype)).reshape(x.shape)


def dequantize(q: np.ndarray, params: QParams) -> np.ndarray:
    """float32 reals of the codes `q`."""
    blocks, scale, zero = _aligned(q, params)
    whole = blocks.astype(np.int64 if params.spec.bits > 16 else np.int32) - zero
    return np.asarray(whole.astype(np.float32) * scale, np.float32).reshape(q.shape)


def fake_quantize(x: np.ndarray, params: QParams) -> np.ndarray:
    """float32 reals nearest to `x` that the parameters can express: dequantize(quantize(x))."""
    return dequantize(quantize(x, params), params)


def reach(params: QParams) -> tuple[float, float]:
    """The least and greatest number that has a code of the type, for one scale."""
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = INT_RANGES[params.spec.dtype]
    return (low - zero) * scale, (high - zero) * scale


def dequantize_along(q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int) -> np.ndarray:
    """float32 reals, nearest to (q - zero_point) · scale, of integers of any size.

    scale, zero_point: of one element, or of one for each position along `axis`.
    """
    shape = [-1 if scale.size > 1 and i == axis else 1 for i in range(q.ndim)]
    centred = q.astype(np.int64) - zero_point.astype(np.int64).reshape(shape)
    return np.asarray((centred * scale.astype(np.float64).reshape(shape)).astype(np.float32))


def bias_params(act_scale: np.ndarray | float, weight_scale: np.ndarray) -> QParams:
    """int32 parameters of a bias: scale = act_scale * weight_scale in float32, zero point 0.

    weight_scale: shape () or (C,), which the result takes over.
    """
    scale = np.asarray(np.float32(act_scale) * np.asarray(weight_scale, np.float32), np.float32)
    granularity: Granularity = PerChannel(0) if scale.ndim else PerTensor()
    return QParams(scale, np.zeros(scale.shape, np.int32), QSpec("int32", granularity=granularity))


def quantize_bias(bias: np.ndarray, params: QParams) -> tuple[np.ndarray, np.ndarray]:
    """int32 codes of a bias (C,), and where they overflowed: bool (C,), true where |bias / scale| > 2**31 - 1.

    Overflowing codes are saturated; the caller raises those weight scales (`least_weight_scale`) and starts anew.
    """
    exact = np.rint(np.asarray(bias, np.float64) / params.scale.astype(np.float64))
    overflow = ~(np.abs(exact) <= INT32_MAX)
    return np.clip(np.nan_to_num(exact), -INT32_MAX, INT32_MAX).astype(np.int32), overflow


def least_weight_scale(bias: np.ndarray, act_scale: np.ndarray | float) -> np.ndarray:
    """The smallest weight scale, float32 (C,), whose int32 bias code stays within 2**30.

    Half of the int32 range is left to the products that the kernel adds to the bias.
    """
    return (np.abs(np.asarray(bias, np.float64)) / (np.float64(np.float32(act_scale)) * 2.0**30)).astype(np.float32)
