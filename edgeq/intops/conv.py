"""CONV_2D (with groups), DEPTHWISE_CONV_2D and TRANSPOSE_CONV on NHWC integers.

acc[n, i, j, o] = sum over taps and input channels of (x - zx) * w, plus bias; padding contributes zero, that is
code zx. Then one requantization per output channel, with multiplier s_x * s_w[o] / s_out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import ModelError
from edgeq.intops.fully_connected import add_bias, real_multiplier
from edgeq.intops.matmul import exact_type
from edgeq.intops.quant import Activation, Quant, activation_range
from edgeq.intops.windows import Pads, Pair, padded, taps
from edgeq.numerics.fixedpoint import Rounding, multiplier, requantize


@dataclass(frozen=True, eq=False)
class ConvParams:
    """w_scale: () or (O,) float32; weights are int8 with zero point 0, or uint8 with `w_zero_point`.

    pads: ((top, bottom), (left, right)); `windows.same_pads` computes SAME, zeros are VALID. For int16 activations
    with an int64 bias, rounding is "int16x8".
    """

    x: Quant
    w_scale: np.ndarray
    out: Quant
    strides: Pair = (1, 1)
    pads: Pads = ((0, 0), (0, 0))
    dilations: Pair = (1, 1)
    w_zero_point: int = 0
    activation: Activation = "NONE"
    rounding: Rounding = "double"


def conv_2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, params: ConvParams) -> np.ndarray:
    """x (N, H, W, C), w (O, KH, KW, C / groups), bias (O,) int32 or None -> (N, OH, OW, O) in params.out.dtype.

    The number of groups is C over the weight's last dimension. Raises ModelError where that is not a divisor
    of C and O, or an accumulator overflows int32.
    """
    o, kh, kw, cg = w.shape
    groups = x.shape[3] // max(cg, 1)
    if groups * cg != x.shape[3] or o % groups:
        raise ModelError(f"CONV_2D: {x.shape[3]} input and {o} output channels do not divide into groups of {cg}")
    weights = w.reshape(o, kh * kw * cg).astype(np.int32) - params.w_zero_point
    bound = float(255 if params.x.dtype.endswith("int8") else 65535) * float(np.abs(weights).sum(axis=1).max())
    dtype = exact_type(bound)
    image = padded(params.x.shifted(x, dtype), params.pads, 0)
    if (kh, kw) == (1, 1):  # pointwise: the image is its own matrix
        columns = image[:, :: params.strides[0], :: params.strides[1]][:, :, :, None, None, :]
    else:
        columns = taps(image, (kh, kw), params.strides, params.dilations)
    n, oh, ow = columns.shape[:3]
    acc = np.empty((n, oh, ow, o), dtype)
    step = o // groups
    for g in range(groups):
        part = columns[..., g * cg : (g + 1) * cg].reshape(n * oh * ow, kh * kw * cg)
        kernel = weights[g * step : (g + 1) * step].astype(dtype)
        acc[..., g * step : (g + 1) * step] = (part @ kernel.T).reshape(n, oh, ow, step)
    return _finish(acc, bias, params, "CONV_2D", bound)


def depthwise_conv_2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, params: ConvParams) -> np.ndarray:
    """x (N, H, W, C), w (1, KH, KW, C * M), bias (C * M,) -> (N, OH, OW, C * M); output c * M + m sees input c.

    One multiply and one add of the whole image per tap. Raises ModelError as `conv_2d` does.
    """
    _, kh, kw, o = w.shape
    c = x.shape[3]
    if c == 0 or o % c:
        raise ModelError(f"DEPTHWISE_CONV_2D: {o} output channels are not a multiple of {c} input channels")
    kernel = w.reshape(kh, kw, o).astype(np.int32) - params.w_zero_point
    bound = float(255 if params.x.dtype.endswith("int8") else 65535) * float(np.abs(kernel).sum(axis=(0, 1)).max())
    dtype = exact_type(bound)
    image = padded(params.x.shifted(x, dtype), params.pads, 0)
    if o != c:
        image = np.repeat(image, o // c, axis=3)
    seen = taps(image, (kh, kw), params.strides, params.dilations)
    n, oh, ow = seen.shape[:3]
    acc = np.zeros((n, oh, ow, o), dtype)
    typed = kernel.astype(dtype)
    scratch = np.empty((ow, o), dtype)
    for b in range(n):
        for row in range(oh):  # a row of the output stays in cache over all taps
            for i in range(kh):
                for j in range(kw):
                    np.multiply(seen[b, row, :, i, j], typed[i, j], out=scratch)
                    acc[b, row] += scratch
    return _finish(acc, bias, params, "DEPTHWISE_CONV_2D", bound)


def transpose_conv(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, params: ConvParams, size: Pair) -> np.ndarray:
    """x (N, H, W, C), w (O, KH, KW, C) -> (N, *size, O): each input adds its kernel at (i * stride - pad).

    pads: only (top, left) matter; what falls outside `size` is dropped. Raises ModelError as `conv_2d` does.
    """
    o, kh, kw, c = w.shape
    n, h, width, _ = x.shape
    weights = w.astype(np.int32) - params.w_zero_point
    bound = float(255 if params.x.dtype.endswith("int8") else 65535) * float(np.abs(weights).sum(axis=(1, 2, 3)).max())
    dtype = exact_type(bound)
    image = params.x.shifted(x, dtype).reshape(n * h * width, c)
    (top, _), (left, _) = params.pads
    (sh, sw), (oh, ow) = params.strides, size
    full = np.zeros((n, max((h - 1) * sh + kh, top + oh), max((width - 1) * sw + kw, left + ow), o), dtype)
    for i in range(kh):
        for j in range(kw):
            part = (image @ weights[:, i, j].T.astype(dtype)).reshape(n, h, width, o)
            full[:, i : i + (h - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw] += part
    return _finish(full[:, top : top + oh, left : left + ow], bias, params, "TRANSPOSE_CONV", bound)


def _finish(acc: np.ndarray, bias: np.ndarray | None, params: ConvParams, op: str, bound: float) -> np.ndarray:
    acc = add_bias(acc, bias, op, bound, params.rounding == "int16x8")
    q, shift = multiplier(real_multiplier(params.x, params.w_scale, params.out))
    lo, hi = activation_range(params.activation, params.out)
    return requantize(acc, q, shift, params.out.zero_point, lo, hi, params.rounding, dtype=params.out.dtype)


OPS = {"CONV_2D": conv_2d, "DEPTHWISE_CONV_2D": depthwise_conv_2d, "TRANSPOSE_CONV": transpose_conv}
