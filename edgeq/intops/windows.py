"""Sliding windows over NHWC images: padding and the view that convolutions and pools share."""

from __future__ import annotations

import numpy as np

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # ((top, bottom), (left, right))


def same_pads(size: Pair, kernel: Pair, strides: Pair, dilations: Pair = (1, 1)) -> Pads:
    """TFLite's SAME padding: ceil(size / stride) outputs, the odd row or column at the end."""

    def along(n: int, k: int, stride: int, dilation: int) -> Pair:
        total = max((-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0)
        return total // 2, total - total // 2

    rows, columns = (along(*axis) for axis in zip(size, kernel, strides, dilations, strict=True))
    return rows, columns


def padded(x: np.ndarray, pads: Pads, fill: int) -> np.ndarray:
    """x (N, H, W, C) with its borders filled; x itself where there is nothing to add."""
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill) if np.any(pads) else x


def taps(x: np.ndarray, kernel: Pair, strides: Pair, dilations: Pair = (1, 1)) -> np.ndarray:
    """A view of padded x (N, H, W, C) as (N, OH, OW, KH, KW, C): what each output sees through each tap."""
    n, h, w, c = x.shape
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    oh, ow = (max((size - span) // s + 1, 0) for size, span, s in zip((h, w), spans, strides, strict=True))
    sn, sh, sw, sc = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (n, oh, ow, *kernel, c),
        (sn, sh * strides[0], sw * strides[1], sh * dilations[0], sw * dilations[1], sc),
        writeable=False,
    )
