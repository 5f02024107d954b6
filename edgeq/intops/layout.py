"""Operators that only move codes: scale and zero point pass through unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.intops.quant import Quant
from edgeq.intops.windows import Pair


def pad(x: np.ndarray, pads: Sequence[Pair], params: Quant) -> np.ndarray:
    """PAD: the border holds real zero, that is the zero point. pads: (before, after) of each axis."""
    return np.pad(x, pads, constant_values=params.zero_point)


def transpose(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """TRANSPOSE."""
    return x.transpose(tuple(axes))


def reshape(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """RESHAPE, SQUEEZE and EXPAND_DIMS: one -1 at most."""
    return x.reshape(tuple(shape))


def slice_(x: np.ndarray, begin: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """SLICE; a size of -1 reaches to the end."""
    return x[tuple(slice(b, None if s == -1 else b + s) for b, s in zip(begin, size, strict=True))]


def strided_slice(x: np.ndarray, begin: Sequence[int], end: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """STRIDED_SLICE without masks; positive or negative strides, with Python's meaning of begin and end."""
    return x[tuple(slice(*bounds) for bounds in zip(begin, end, strides, strict=True))]


def split(x: np.ndarray, axis: int, parts: int) -> list[np.ndarray]:
    """SPLIT into equal parts."""
    return np.split(x, parts, axis)


def gather(x: np.ndarray, indices: np.ndarray, axis: int = 0) -> np.ndarray:
    """GATHER."""
    return np.take(x, indices, axis)


def depth_to_space(x: np.ndarray, block: int) -> np.ndarray:
    """DEPTH_TO_SPACE: x (N, H, W, C * block²) -> (N, H * block, W * block, C), depth-column-row order."""
    n, h, w, c = x.shape
    cells = x.reshape(n, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(n, h * block, w * block, c // block**2)


def space_to_depth(x: np.ndarray, block: int) -> np.ndarray:
    """SPACE_TO_DEPTH: the inverse of `depth_to_space`."""
    n, h, w, c = x.shape
    cells = x.reshape(n, h // block, block, w // block, block, c).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(n, h // block, w // block, c * block**2)


OPS = {
    "PAD": pad,
    "TRANSPOSE": transpose,
    "RESHAPE": reshape,
    "SLICE": slice_,
    "STRIDED_SLICE": strided_slice,
    "SPLIT": split,
    "GATHER": gather,
    "DEPTH_TO_SPACE": depth_to_space,
    "SPACE_TO_DEPTH": space_to_depth,
}
