"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR of NHWC codes; input and output share scale and zero point.

Bilinear works in Q10 on int8: positions and weights are multiples of 1/1024, the result is rounded half away from
zero. On uint8 it is computed in float32, 0.5 is added, and it is truncated. Nearest computes positions in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.intops.windows import Pair


@dataclass(frozen=True)
class ResizeParams:
    """size: (OH, OW). At most one of the two flags."""

    size: Pair
    align_corners: bool = False
    half_pixel_centers: bool = False


def axis_bilinear(n: int, out: int, params: ResizeParams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower, upper, weight of the upper) for each output position, the weight in 1/1024."""
    aligned = params.align_corners and out > 1
    scale = (1024 * (n - 1) + (out - 1) // 2) // (out - 1) if aligned else (1024 * n + out // 2) // out
    position = np.arange(out, dtype=np.int64) * scale
    if params.half_pixel_centers:
        position += scale // 2 - 512
    truncated = np.sign(position) * (np.abs(position) // 1024)
    lower = np.maximum(truncated, 0)
    above = position + 1023
    upper = np.minimum(np.sign(above) * (np.abs(above) // 1024), n - 1)
    return lower, upper, position - 1024 * lower


def _axis_float(n: int, out: int, params: ResizeParams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`axis_bilinear` in float32."""
    ratio = (n - 1, out - 1) if params.align_corners and out > 1 else (n, out)
    scale, position = np.float32(ratio[0]) / np.float32(ratio[1]), np.arange(out, dtype=np.float32)
    half = np.float32(0.5)
    position = (position + half) * scale - half if params.half_pixel_centers else position * scale
    lower = np.maximum(np.floor(position), 0).astype(np.int64)
    upper = np.minimum(np.ceil(position), n - 1).astype(np.int64)
    return lower, upper, position - lower.astype(np.float32)


def _bilinear_float(x: np.ndarray, params: ResizeParams) -> np.ndarray:
    y0, y1, wy = _axis_float(x.shape[1], params.size[0], params)
    x0, x1, wx = _axis_float(x.shape[2], params.size[1], params)
    one, real = np.float32(1), x.astype(np.float32)
    wy, wx = wy[:, None, None], wx[:, None]
    total = real[:, y0][:, :, x0] * (one - wy) * (one - wx)
    total += real[:, y1][:, :, x0] * wy * (one - wx)
    total += real[:, y0][:, :, x1] * (one - wy) * wx
    total += real[:, y1][:, :, x1] * wy * wx
    return (total + np.float32(0.5)).astype(np.int32).astype(x.dtype)


def resize_bilinear(x: np.ndarray, params: ResizeParams) -> np.ndarray:
    """x (N, H, W, C) int8, int16 or uint8 -> (N, OH, OW, C)."""
    return _bilinear_float(x, params) if x.dtype == np.uint8 else bilinear_q10(x, params)


def bilinear_q10(x: np.ndarray, params: ResizeParams) -> np.ndarray:
    """RESIZE_BILINEAR in integers, for codes of any type: what graphs of integers alone compute on uint8 too."""
    y0, y1, wy = axis_bilinear(x.shape[1], params.size[0], params)
    x0, x1, wx = axis_bilinear(x.shape[2], params.size[1], params)
    wide = x.astype(np.int64)
    wy, wx = wy[:, None, None], wx[:, None]
    rows = wide[:, y0] * (1024 - wy) + wide[:, y1] * wy
    total = rows[:, :, x0] * (1024 - wx) + rows[:, :, x1] * wx
    magnitude = (np.abs(total) + (1 << 19)) >> 20
    return np.where(total > 0, magnitude, -magnitude).astype(x.dtype)


def onnx_nearest(position: np.ndarray, mode: str, size: int) -> np.ndarray:
    """The sources of real positions along an axis of `size`, by a `nearest_mode` of ONNX's Resize; float64."""
    turned = {
        "floor": np.floor(position),
        "ceil": np.ceil(position),
        "round_prefer_floor": np.ceil(position - 0.5),
        "round_prefer_ceil": np.floor(position + 0.5),
    }[mode]
    return np.clip(turned, 0, size - 1)


def _axis_nearest(n: int, out: int, params: ResizeParams) -> np.ndarray:
    ratio = (n - 1, out - 1) if params.align_corners and out > 1 else (n, out)
    scale = np.float32(ratio[0]) / np.float32(ratio[1])
    offset = np.float32(0.5 if params.half_pixel_centers else 0.0)
    position = ((np.arange(out, dtype=np.float32) + offset) * scale).astype(np.float64)
    index = np.trunc(position + 0.5) if params.align_corners else np.floor(position)
    return np.clip(index.astype(np.int64), 0, n - 1)


def resize_nearest_neighbor(x: np.ndarray, params: ResizeParams) -> np.ndarray:
    """x (N, H, W, C) of any type -> (N, OH, OW, C)."""
    rows = _axis_nearest(x.shape[1], params.size[0], params)
    columns = _axis_nearest(x.shape[2], params.size[1], params)
    return x[:, rows][:, :, columns]


OPS = {"RESIZE_BILINEAR": resize_bilinear, "RESIZE_NEAREST_NEIGHBOR": resize_nearest_neighbor}
