"""A weight's groups in tiles that fit a core's cache, several at once: they don't know of each other.

What an algorithm does with a weight of gigabytes stays within a few megabytes a thread, and codes may lie on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgeq.numerics import affine
from edgeq.types import PerBlock, PerChannel, QParams, QSpec, QTensor

_TILE = 1 << 18  # weights


def axis_and_step(spec: QSpec, rank: int) -> tuple[int, int] | None:
    """The axis to cut, and what pieces must be a multiple of; axis 0 where it may be cut. None for one group."""
    match spec.granularity:
        case PerBlock(axis, size):
            return 0, size if axis % rank == 0 else 1
        case PerChannel(axis):
            return axis % rank, 1
    return None


def in_tiles(
    solve: Callable[[np.ndarray], QTensor], w: np.ndarray, spec: QSpec, data: np.ndarray, tile: int = _TILE
) -> QTensor:
    """`solve(w)`, tile by tile, with codes written to `data`, of w's shape. Raises what `solve` does.

    `spec` must have more than one group.
    """
    cut = axis_and_step(spec, w.ndim)
    assert cut is not None
    axis, multiple = cut
    length = w.shape[axis]
    step = max(1, tile * length // max(w.size, 1) // multiple) * multiple
    shape = affine.params_shape(w.shape, spec.granularity)
    scale, zero = np.empty(shape, np.float32), np.empty(shape, np.int32)

    def one(start: int) -> None:
        here = (slice(None),) * axis + (slice(start, start + step),)
        q = solve(w[here])
        data[here] = q.data
        groups = slice(start // multiple, -(-min(start + step, length) // multiple))
        there = (slice(None),) * (axis if len(shape) == w.ndim else 0) + (groups,)
        scale[there], zero[there] = q.params.scale, q.params.zero_point

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(one, range(0, length, step)))
    return QTensor(data, QParams(scale, zero, spec))
