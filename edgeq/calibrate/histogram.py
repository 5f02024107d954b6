"""A histogram of a stream in constant memory whose bins are exact whatever the order the data comes in.

The bin of x is trunc(x / 2**k): bin 0 is (-w, w) and bin ±i is ±[iw, (i+1)w), w = 2**k. The width is the least power
of two with which all of |x| falls below bin 2048, a pure function of the greatest |x|. When that grows, bins are
paired, bin i to bin trunc(i / 2), which is what trunc(x / 2w) would have given: re-binning loses nothing, and `merge`
is exactly associative and commutative. x / w is exact in float32 because w is a power of two.

Values of 2**13 and more in magnitude go to bins of their own, so that an attention mask doesn't flatten the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeq.calibrate.extrema import FAR

LIMIT = 2048  # bins on each side of 0, bin 0 counted on both
SIZE = 2 * LIMIT - 1
_LEAST_EXPONENT = -115  # keeps 1 / w within float32
_CHUNK = 1 << 15  # elements; scratch of this size stays in the cache
_EMPTY = np.zeros(SIZE, np.int64)  # of all bins that have counted nothing, most of the far ones
_EMPTY.flags.writeable = False


@dataclass
class Bins:
    """counts: int64 (4095,), bin i at index i + 2047. exponent: k + 11, so that all |x| < 2**exponent."""

    counts: np.ndarray = field(default_factory=lambda: _EMPTY)
    exponent: int = _LEAST_EXPONENT

    @property
    def width(self) -> float:
        return 2.0**self.exponent / LIMIT

    def widen(self, exponent: int) -> None:
        """Pair bins until all |x| < 2**exponent has a bin."""
        by = min(exponent - self.exponent, 11)
        if by <= 0:
            return
        self.exponent = exponent
        if self.counts.any():
            pairs = 1 << by
            out = np.zeros(SIZE, np.int64)
            n = LIMIT // pairs
            out[LIMIT - 1 : LIMIT - 1 + n] += self.counts[LIMIT - 1 :].reshape(n, pairs).sum(1)
            out[LIMIT - n : LIMIT] += self.counts[:LIMIT].reshape(n, pairs).sum(1)
            out[LIMIT - 1] -= self.counts[LIMIT - 1]  # bin 0 was in both halves
            self.counts = out

    def add(self, x: np.ndarray, reach: float, weight: int = 1) -> None:
        """Count each of the finite float32 values of the 1-D `x`, all |x| <= reach, `weight` times."""
        self.widen(math.frexp(reach)[1] if reach else _LEAST_EXPONENT)
        if self.counts is _EMPTY:
            self.counts = _EMPTY.copy()
        inverse = np.float32(1.0 / self.width)
        for start in range(0, x.size, _CHUNK):
            index = (x[start : start + _CHUNK] * inverse).astype(np.int32)  # truncates toward 0
            index += LIMIT - 1
            np.add.at(self.counts, index, weight)

    def merge(self, other: Bins) -> None:
        self.widen(other.exponent)
        theirs = Bins(other.counts, other.exponent)
        theirs.widen(self.exponent)
        if theirs.counts.any():
            self.counts = self.counts + theirs.counts


@dataclass
class Histogram:
    """near: of |x| < 2**13. far: of the finite rest."""

    near: Bins = field(default_factory=Bins)
    far: Bins = field(default_factory=Bins)

    def update(self, x: np.ndarray, lo: float | None = None, hi: float | None = None, weight: int = 1) -> None:
        """Take one array of any shape; NaN and infinities are left out.

        lo, hi: exact extrema of the tensor that x is, or is a subsample of, where they are known: saves a pass.
        weight: how many elements each of a subsample stands for. Unless it is 1, the extrema are counted once each,
        for they are known to be there: a tail that the subsample has missed would otherwise look free to clip.
        """
        flat = np.asarray(x, np.float32).reshape(-1)
        if lo is None or hi is None:
            if flat.size == 0:
                return
            lo, hi = float(flat.min()), float(flat.max())
        if lo > -FAR and hi < FAR:
            self.near.add(flat, max(-lo, hi), weight)
            if weight != 1:
                self.update_ends([lo, hi])
            return
        size = np.abs(flat)
        near, far = flat[size < FAR], flat[(size >= FAR) & (size < np.inf)]
        for bins, part in ((self.near, near), (self.far, far)):
            if part.size:
                bins.add(part, float(np.abs(part).max()), weight)
        if weight != 1:
            self.update(np.array([lo, hi], np.float32))

    def update_ends(self, ends: Sequence[float]) -> None:
        """Count the extrema of tensors that are not looked at in full, all of them near, once each."""
        flat = np.array(ends, np.float32)
        self.near.add(flat, float(np.abs(flat).max()))

    def merge(self, other: Histogram) -> None:
        """Add what `other` saw."""
        self.near.merge(other.near)
        self.far.merge(other.far)

    def bins(self, reach: float) -> Bins:
        """One histogram of all values below or near `reach` in magnitude: the near bins, and the far ones if it asks.

        Far values beyond `reach` come along; the caller clips. There are bins up to `reach`, whether a value of it was
        in the sample or not.
        """
        out = Bins(self.near.counts, self.near.exponent)
        if reach >= FAR:
            out.merge(self.far)
            out.widen(math.frexp(reach)[1])
        return out

    def state(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, for npz; `from_state` is the inverse."""
        exponents = np.array([self.near.exponent, self.far.exponent], np.int64)
        return {"near": self.near.counts, "far": self.far.counts, "exponents": exponents}

    @staticmethod
    def from_state(state: dict[str, np.ndarray]) -> Histogram:
        near, far = (int(e) for e in state["exponents"])
        return Histogram(Bins(state["near"], near), Bins(state["far"], far))
