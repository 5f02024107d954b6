"""A weight's groups in tiles that fit a core's cache, several at once: they don't know of each other.

What an algorithm does with a weight of gigabytes stays within a few megabytes a thread, and codes may lie on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np

from edgeq.numerics import affine, pack
from edgeq.processors import processors
from edgeq.types import Granularity, Packed, PerBlock, PerChannel, QParams, QSpec, QTensor

_TILE = 1 << 18  # weights
# Half a megabyte, so that scratch fits a core's cache too, and of each column so much that its bytes fill cache lines.
_NARROW, _COLUMNS = 1 << 17, 1 << 8

Place = tuple[slice, ...]
Solve = Callable[[np.ndarray, QSpec], QTensor]


def steps(shape: tuple[int, ...], spec: QSpec, tile: int = _TILE, columns: int | None = None) -> tuple[int, ...] | None:
    """How long a tile of about so many weights is along each axis, in whole groups. None for one group.

    columns: how many of a matrix a tile with blocks down them has at most.
    """
    found = list(shape)
    match spec.granularity:
        case PerBlock(axis, size):
            cut, multiple = 0, size if axis % len(shape) == 0 else 1
            if columns is not None and len(shape) == 2 and _down(spec):
                found[1] = min(found[1], columns)
        case PerChannel(axis):
            cut, multiple = axis % len(shape), 1
        case _:
            return None
    across = int(np.prod(found)) // max(found[cut], 1)
    found[cut] = max(1, tile // max(across, 1) // multiple) * multiple
    return tuple(found)


def in_tiles(
    solve: Solve,
    w: np.ndarray,
    spec: QSpec,
    store: Callable[[Place, np.ndarray], object],
    tile: int | None = None,
    any_shape: bool = False,
) -> QParams:
    """The parameters of `solve(w, spec)`, tile by tile; `store` gets each tile's place and codes, in no order.

    It may be an array's `__setitem__`. `spec` must have more than one group. any_shape: a group gets the same numbers
    in tiles of any shape, where sums in floating point would depend on it. Raises what `solve` does.
    """
    lengths = steps(w.shape, spec, tile or _NARROW, _COLUMNS) if any_shape else steps(w.shape, spec, tile or _TILE)
    assert lengths is not None
    # The C library keeps what is freed, tile by tile, once it has seen a larger piece go.
    np.empty(64 * _TILE, np.uint8)
    whole = np.asarray(w)  # a view of a mapped array is slow to make
    shape = affine.params_shape(w.shape, spec.granularity)
    scale = np.empty(shape, np.float32, order="F" if _down(spec) else "C")  # a channel's blocks side by side
    middle = np.broadcast_to(np.int32(affine.middle(spec)), shape)  # of a symmetric spec, in no memory
    zero = middle if spec.symmetric else np.empty(shape, np.int32)

    def one(place: Place) -> None:
        part = whole[place]  # its rows lie powers of two apart, and share few lines of a cache
        q = solve(np.ascontiguousarray(part) if any_shape else part, spec)
        store(place, q.data)
        groups = _groups(place, spec)
        scale[groups] = q.params.scale
        if not spec.symmetric:
            zero[groups] = q.params.zero_point

    cuts = [[slice(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip(w.shape, lengths, strict=True)]
    with ThreadPoolExecutor(processors()) as pool:
        for _ in pool.map(one, product(*cuts)):
            pass
    return QParams(scale, zero, spec)


def packed(
    solve: Solve,
    w: np.ndarray,
    spec: QSpec,
    empty: Callable[[tuple[int, ...], np.dtype], np.ndarray],
    tile: int | None = None,
    any_shape: bool = False,
) -> Packed:
    """`solve(w, spec)` of a matrix, packed tile by tile: each is read once, and no code is in memory for longer.

    empty: makes the array of rows. `spec` must be one that `pack.packs`, its groups of (parts of) output channels.
    """
    axis = _features(spec)
    if any_shape and axis == 1:  # numpy is fast along rows, slow along the few elements of a block
        made = packed(solve, w.T, replace(spec, granularity=_turned(spec.granularity)), empty, tile, any_shape)
        params = QParams(made.params.scale.T, made.params.zero_point.T, spec)
        return Packed(made.rows, params, w.shape)
    rows = empty((w.shape[1 - axis], -(-w.shape[axis] * spec.bits // 8)), np.dtype(np.uint8))

    def store(place: Place, codes: np.ndarray) -> None:
        start, stop = (-(-k * spec.bits // 8) for k in (place[axis].start, place[axis].stop))
        pack.packed_rows(codes, spec, axis, rows[place[1 - axis], start:stop])

    return Packed(rows, in_tiles(solve, w, spec, store, tile, any_shape), w.shape)


def _down(spec: QSpec) -> bool:
    return isinstance(spec.granularity, PerBlock) and spec.granularity.axis % 2 == 0


def _features(spec: QSpec) -> int:
    """The axis of a matrix's features."""
    match spec.granularity:
        case PerBlock(axis, _):
            return axis % 2
        case PerChannel(axis):
            return 1 - axis % 2
    raise ValueError(f"{spec.granularity} does not say where features lie")


def _turned(granularity: Granularity) -> Granularity:
    """Of the transpose of a matrix."""
    assert isinstance(granularity, PerBlock | PerChannel)
    return replace(granularity, axis=1 - granularity.axis % 2)


def _groups(place: Place, spec: QSpec) -> Place:
    """Where the parameters of a tile lie among those of all."""
    match spec.granularity:
        case PerChannel(axis):
            return (place[axis],)
        case PerBlock(axis, size):
            axis %= len(place)
            blocks = slice(place[axis].start // size, -(-place[axis].stop // size))
            return (*place[:axis], blocks, *place[axis + 1 :])
    return ()
