"""A weight's groups in tiles that fit a core's cache, several at once: they don't know of each other.

What an algorithm does with a weight of gigabytes stays within a few megabytes a thread, and codes may lie on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np

from edgeq.numerics import affine, pack
from edgeq.types import Packed, PerBlock, PerChannel, QParams, QSpec, QTensor

_TILE = 1 << 17  # weights: half a megabyte, beside which codes and scratch fit a core's second cache
_WIDE = 1 << 9  # columns of a tile of blocks down them, so that what is packed of each makes whole cache lines

Place = tuple[slice, ...]


def steps(shape: tuple[int, ...], spec: QSpec, tile: int = _TILE) -> tuple[int, ...] | None:
    """How long a tile of about so many weights is along each axis, in whole groups. None for one group."""
    rank, most = len(shape), tile
    found = list(shape)
    match spec.granularity:
        case PerBlock(axis, size):
            cut, multiple = 0, size if axis % rank == 0 else 1
            if rank == 2 and multiple > 1:
                found[1] = min(shape[1], _WIDE)
        case PerChannel(axis):
            cut, multiple = axis % rank, 1
        case _:
            return None
    across = int(np.prod(found)) // max(found[cut], 1)
    found[cut] = max(1, most // max(across, 1) // multiple) * multiple
    return tuple(found)


def in_tiles(
    solve: Callable[[np.ndarray], QTensor],
    w: np.ndarray,
    spec: QSpec,
    store: Callable[[Place, np.ndarray], object],
    tile: int = _TILE,
) -> QParams:
    """The parameters of `solve(w)`, tile by tile; `store` gets each tile's place and codes, in no order.

    It may be an array's `__setitem__`. `spec` must have more than one group. Raises what `solve` does.
    """
    lengths = steps(w.shape, spec, tile)
    assert lengths is not None
    np.empty(64 * tile, np.uint8)  # the C library keeps what is freed, tile by tile, once it has seen a larger piece go
    whole = np.asarray(w)  # a view of a mapped array is slow to make
    shape = affine.params_shape(w.shape, spec.granularity)
    scale = np.empty(shape, np.float32, order="F" if _down(spec) else "C")  # a channel's blocks side by side
    middle = np.broadcast_to(np.int32(affine.middle(spec)), shape)  # of a symmetric spec, in no memory
    zero = middle if spec.symmetric else np.empty(shape, np.int32)

    def one(place: Place) -> None:
        q = solve(np.ascontiguousarray(whole[place]))  # rows that lie powers of two apart share few lines of a cache
        store(place, q.data)
        groups = _groups(place, spec)
        scale[groups] = q.params.scale
        if not spec.symmetric:
            zero[groups] = q.params.zero_point

    cuts = [[slice(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip(w.shape, lengths, strict=True)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(one, product(*cuts)):
            pass
    return QParams(scale, zero, spec)


def packed(
    solve: Callable[[np.ndarray], QTensor],
    w: np.ndarray,
    spec: QSpec,
    empty: Callable[[tuple[int, ...], np.dtype], np.ndarray],
    tile: int = _TILE,
) -> Packed:
    """`solve(w)` of a matrix, packed tile by tile: each is read once, and no code is in memory for longer.

    empty: makes the array of rows. `spec` must be one that `pack.packs`, its groups of (parts of) output channels.
    """
    granularity = spec.granularity
    axis = granularity.axis % 2 if isinstance(granularity, PerBlock) else 1 - granularity.axis % 2  # type: ignore[union-attr]
    rows = empty((w.shape[1 - axis], -(-w.shape[axis] * spec.bits // 8)), np.dtype(np.uint8))

    def store(place: Place, codes: np.ndarray) -> None:
        start, stop = (-(-k * spec.bits // 8) for k in (place[axis].start, place[axis].stop))
        pack.packed_rows(codes, spec, axis, rows[place[1 - axis], start:stop])

    return Packed(rows, in_tiles(solve, w, spec, store, tile), w.shape)


def _down(spec: QSpec) -> bool:
    return isinstance(spec.granularity, PerBlock) and spec.granularity.axis % 2 == 0


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
