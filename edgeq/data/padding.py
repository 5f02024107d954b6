"""Padding is left out of samples: no real position reads one that the mask hides, yet it would count in the ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np

from edgeq.errors import RecipeError

MASK, POSITIONS = "attention_mask", "position_ids"
Dims = tuple[int | str | None, ...] | None
"""An input's dimensions: a number, a name, or None for what is free without one; None for all of them unknown."""
Axes = tuple[tuple[str, int], ...]
"""Pairs (input, axis)."""


class Padding(msgspec.Struct, frozen=True):
    """What is trimmed, as plain data. mask: an input [batch, length] that is 0 at padding.

    length: what has the mask's length, itself included. rows: what has its batch; () where a batch must stay whole.
    anywhere: positions are an input, so that columns may go from the front as well as from the end.
    """

    mask: str
    length: Axes
    rows: Axes = ()
    anywhere: bool = False


def paddings(dims: Mapping[str, Dims], integers: Collection[str], masks: Sequence[str] | None) -> tuple[Padding, ...]:
    """One for each mask whose length is free. masks: their names; None for `attention_mask` if that is one.

    dims: of all inputs. integers: those inputs that hold integers or booleans. An axis has a mask's length when it has
    the same name; where no other input has that, when it is axis 1, free, and as long in the sample. Raises RecipeError
    for a name that is no input, not an integer one of rank 2, or the only input of its length.
    """
    found = []
    for mask in (MASK,) if masks is None else masks:
        shape = dims.get(mask)
        if shape is None or len(shape) != 2 or mask not in integers:
            problem = f"no integer input {mask!r} of rank 2: the model has {', '.join(dims)}"
        elif isinstance(shape[1], int):
            continue
        else:
            length, rows = _sharing(dims, mask, 1), _sharing(dims, mask, 0)
            if len(dict(length)) > 1:
                free = {name for name, own in dims.items() if own and not isinstance(own[0], int)}
                whole = not free <= set(dict(rows))  # some have rows of another count, and whose those are, nobody says
                found.append(Padding(mask, length, () if whole else rows, POSITIONS in dict(length)))
                continue
            problem = f"no other input has the length of {mask!r}"
        if masks is not None:
            raise RecipeError(f"padding: {problem}")
    return tuple(found)


def _sharing(dims: Mapping[str, Dims], mask: str, axis: int) -> Axes:
    """The axes that may have the length of the mask's; none where that is a number."""
    wanted = (dims[mask] or ())[axis]
    if isinstance(wanted, int):
        return ()
    named = [(k, i) for k, shape in dims.items() for i, d in enumerate(shape or ()) if d is not None and d == wanted]
    if len(dict(named)) > 1:
        return tuple(named)
    return tuple((k, axis) for k, s in dims.items() if s and len(s) > axis and not isinstance(s[axis], int))


def unpadded(feeds: dict[str, np.ndarray], found: Sequence[Padding]) -> list[dict[str, np.ndarray]]:
    """The sample without padding: with the columns that a row needs, row by row where rows need different ones.

    A row needs the columns where its mask is not 0, and without positions as an input also those before, because a
    model counts from the first. Rows of nothing but padding go with the batch's parting; a sample of nothing else,
    or whose inputs differ in length from the mask, stays as it is.
    """
    samples = [feeds]
    for padding in found:
        samples = [part for sample in samples for part in _unpadded(sample, padding)]
    return samples


def _unpadded(feeds: dict[str, np.ndarray], padding: Padding) -> list[dict[str, np.ndarray]]:
    mask = feeds.get(padding.mask)
    if mask is None or mask.ndim != 2 or not mask.any():
        return [feeds]
    length = _long(feeds, padding.length, mask.shape[1])
    if len(dict(length)) < 2:
        return [feeds]
    real = mask != 0
    needed = real if padding.anywhere else np.logical_or.accumulate(real[:, ::-1], 1)[:, ::-1]
    together = np.logical_or.reduce(needed)
    given = [(name, axis) for name, axis in padding.rows if name in feeds]
    if needed[:, together].all() or not given or len(_long(feeds, given, len(mask))) < len(given):
        return [_taken(feeds, length, together)]
    parted = []
    for row in np.flatnonzero(real.any(1)):
        alone = _taken(feeds, given, np.arange(len(mask)) == row)
        parted.append(_taken(alone, length, needed[row]))
    return parted


def _long(feeds: Mapping[str, np.ndarray], axes: Sequence[tuple[str, int]], size: int) -> Axes:
    """Those of the axes that the sample has with this length."""
    return tuple((k, i) for k, i in axes if k in feeds and feeds[k].ndim > i and feeds[k].shape[i] == size)


def _taken(feeds: dict[str, np.ndarray], axes: Sequence[tuple[str, int]], keep: np.ndarray) -> dict[str, np.ndarray]:
    """With the indices of these axes where `keep` is true."""
    if keep.all():
        return feeds
    taken = dict(feeds)
    for name, axis in axes:
        taken[name] = np.compress(keep, taken[name], axis)
    return taken
