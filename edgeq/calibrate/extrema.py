"""Exact minimum and maximum of a tensor over all samples, with what must not stretch a scale counted apart.

NaN and infinities are counted and otherwise ignored. Finite values of magnitude 2**13 and more ("far") are kept by
sign and binary exponent (count, least and greatest magnitude), which is enough for `trim_masks` to tell an attention
mask of -1e4, -65504 or -3.4e38 from a tensor that really is that wide. `merge` is exactly associative and
commutative, averages included: sums of float32 are kept as whole numbers of 2**-149, the least float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgeq.errors import CalibrationError
from edgeq.types import Range

FAR_EXPONENT = 13
FAR = 2.0**FAR_EXPONENT  # -1e4 plus a score, and -1e4 as bfloat16 (-9984), are beyond it; masks are never smaller
ISOLATED = 16.0  # a mask is at least so many times as far out as everything else
POSITIVE_MASK = 65000.0  # masks are negative, but for the greatest finite value of float16 and wider types
_OCTAVES = 128 - FAR_EXPONENT
_UNIT = 2**149
_NO_AXIS = -(2**31)


def _units(x: float) -> int:
    """A float32 as a whole number of 2**-149, which float64 holds exactly."""
    return int(x * 2.0**149)


def _grid(fill: float, dtype: type) -> np.ndarray:
    return np.full((2, _OCTAVES), fill, dtype)


@dataclass
class Extrema:
    """Accumulator. `near_*` are over |x| < 2**13, `far_*` (2, octaves) over the rest, row 0 negative, row 1 positive.

    axis: also keep the minimum and maximum of finite values for each index along it, in channel_lo and channel_hi.
    sums: Σ over updates of the minimum, maximum, and near minimum and maximum, in units of 2**-149.
    """

    axis: int | None = None
    count: int = 0
    nan: int = 0
    neg_inf: int = 0
    pos_inf: int = 0
    near_lo: float = np.inf
    near_hi: float = -np.inf
    updates: int = 0
    near_updates: int = 0
    sums: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    far_count: np.ndarray = field(default_factory=lambda: _grid(0, np.int64))
    far_least: np.ndarray = field(default_factory=lambda: _grid(np.inf, np.float32))
    far_greatest: np.ndarray = field(default_factory=lambda: _grid(0, np.float32))
    channel_lo: np.ndarray | None = None
    channel_hi: np.ndarray | None = None

    @property
    def lo(self) -> float:
        """The least finite value, inf when there is none."""
        far = float(self.far_greatest[0].max())
        return -far if far else min(self.near_lo, self._innermost(1))

    @property
    def hi(self) -> float:
        """The greatest finite value, -inf when there is none."""
        far = float(self.far_greatest[1].max())
        return far if far else max(self.near_hi, -self._innermost(0))

    @property
    def finite(self) -> int:
        """How many finite values were seen."""
        return self.count - self.nan - self.neg_inf - self.pos_inf

    def _innermost(self, side: int) -> float:
        return float(self.far_least[side].min())

    def update(self, x: np.ndarray) -> tuple[float, float]:
        """Take one sample or batch of any shape; returns its plain minimum and maximum (NaN if it holds NaN)."""
        if x.size == 0:
            return np.inf, -np.inf
        x = np.asarray(x, np.float32)
        lo, hi = float(x.min()), float(x.max())
        if lo > -FAR and hi < FAR:
            self.update_range(lo, hi, x.size)
        else:
            self._update_far(x)
        if self.axis is not None:
            self._update_channels(x)
        return lo, hi

    def update_range(self, lo: float, hi: float, count: int) -> None:
        """Take a batch of which a runtime has already found the extrema, both within ±2**13, and `count` elements.

        Where they are not (or are NaN), the values themselves are needed: use `update`. Raises ValueError then.
        """
        if not (-FAR < lo <= hi < FAR):
            raise ValueError(f"extrema {lo}, {hi} do not lie within ±{FAR:g}: give `update` the values")
        self.count += count
        self.near_lo, self.near_hi = min(self.near_lo, lo), max(self.near_hi, hi)
        self.updates += 1
        self.near_updates += 1
        sums, lo_units, hi_units = self.sums, _units(lo), _units(hi)
        sums[0] += lo_units
        sums[1] += hi_units
        sums[2] += lo_units
        sums[3] += hi_units

    def _update_far(self, x: np.ndarray) -> None:
        size = np.abs(x).reshape(-1)
        flat = x.reshape(-1)
        near, far = size < FAR, (size >= FAR) & (size < np.inf)
        one = Extrema(count=x.size, nan=int(np.isnan(flat).sum()))
        one.neg_inf, one.pos_inf = int((flat == -np.inf).sum()), int((flat == np.inf).sum())
        inner = flat[near]
        if inner.size:
            one.near_lo, one.near_hi = float(inner.min()), float(inner.max())
        for side, mask in enumerate((far & (flat < 0), far & (flat > 0))):
            magnitude = size[mask]
            octave = np.frexp(magnitude)[1] - 1 - FAR_EXPONENT
            for o in np.unique(octave):
                members = magnitude[octave == o]
                one.far_count[side, o] = members.size
                one.far_least[side, o], one.far_greatest[side, o] = members.min(), members.max()
        if one.finite:
            one.updates, one.near_updates = 1, int(inner.size > 0)
            near_units = [_units(one.near_lo), _units(one.near_hi)] if inner.size else [0, 0]
            one.sums = [_units(one.lo), _units(one.hi), *near_units]
        self.merge(one)

    def _update_channels(self, x: np.ndarray) -> None:
        assert self.axis is not None
        others = tuple(i for i in range(x.ndim) if i != self.axis % x.ndim)
        lo, hi = np.min(x, axis=others), np.max(x, axis=others)
        if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
            real = np.isfinite(x)
            lo = np.min(x, axis=others, initial=np.inf, where=real)
            hi = np.max(x, axis=others, initial=-np.inf, where=real)
        self._merge_channels(lo, hi)

    def _merge_channels(self, lo: np.ndarray, hi: np.ndarray) -> None:
        if self.channel_lo is None or self.channel_hi is None:
            self.channel_lo, self.channel_hi = lo, hi
        elif self.channel_lo.shape != lo.shape:
            raise CalibrationError(f"axis {self.axis} has {len(lo)} channels, and had {len(self.channel_lo)} before")
        else:
            self.channel_lo, self.channel_hi = np.minimum(self.channel_lo, lo), np.maximum(self.channel_hi, hi)

    def merge(self, other: Extrema) -> None:
        """Add what `other` saw."""
        self.count += other.count
        self.nan += other.nan
        self.neg_inf += other.neg_inf
        self.pos_inf += other.pos_inf
        self.near_lo, self.near_hi = min(self.near_lo, other.near_lo), max(self.near_hi, other.near_hi)
        self.updates += other.updates
        self.near_updates += other.near_updates
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.far_count = self.far_count + other.far_count
        self.far_least = np.minimum(self.far_least, other.far_least)
        self.far_greatest = np.maximum(self.far_greatest, other.far_greatest)
        if other.channel_lo is not None and other.channel_hi is not None:
            self._merge_channels(other.channel_lo, other.channel_hi)

    def mean(self, near: bool = False) -> Range:
        """Means over the updates of their minimum and maximum; with `near`, of values below 2**13 only."""
        pair, n = (self.sums[2:], self.near_updates) if near else (self.sums[:2], self.updates)
        return Range(pair[0] / (n * _UNIT), pair[1] / (n * _UNIT))

    def state(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, for npz; `from_state` is the inverse."""
        whole = [self.count, self.nan, self.neg_inf, self.pos_inf, self.updates, self.near_updates]
        out = {
            "counts": np.array([_NO_AXIS if self.axis is None else self.axis, *whole], np.int64),
            "near": np.array([self.near_lo, self.near_hi], np.float64),
            "sums": np.array([hex(s) for s in self.sums]),
            "far_count": self.far_count,
            "far_least": self.far_least,
            "far_greatest": self.far_greatest,
        }
        if self.channel_lo is not None and self.channel_hi is not None:
            out |= {"channel_lo": self.channel_lo, "channel_hi": self.channel_hi}
        return out

    @staticmethod
    def from_state(state: dict[str, np.ndarray]) -> Extrema:
        axis, count, nan, neg_inf, pos_inf, updates, near_updates = (int(v) for v in state["counts"])
        out = Extrema(None if axis == _NO_AXIS else axis, count, nan, neg_inf, pos_inf)
        out.updates, out.near_updates = updates, near_updates
        out.near_lo, out.near_hi = (float(v) for v in state["near"])
        out.sums = [int(str(s), 16) for s in state["sums"]]
        out.far_count, out.far_least, out.far_greatest = (state[f"far_{k}"] for k in ("count", "least", "greatest"))
        out.channel_lo, out.channel_hi = state.get("channel_lo"), state.get("channel_hi")
        return out


def trim_masks(extrema: Extrema) -> tuple[Range, int]:
    """The range of the finite values without attention masks, and how many values were left out as masks.

    Going outwards, values of magnitude 2**13 or more are masks when a gap of at least a factor `ISOLATED` parts them
    from everything nearer to 0, and none of them is positive and below `POSITIVE_MASK`. A tensor of nothing but zeros
    and far values is the mask itself, and keeps its range: cut off, it would mask no more.
    Raises CalibrationError when no finite value was seen.
    """
    if extrema.finite <= 0:
        seen = f"{extrema.nan} NaN and {extrema.neg_inf + extrema.pos_inf} infinite" if extrema.count else "no"
        raise CalibrationError(f"no finite value to choose a range from ({seen} values): check the calibration data")
    whole = Range(extrema.lo, extrema.hi)
    reach = max(-extrema.near_lo, extrema.near_hi, 0.0)  # the greatest magnitude so far
    if reach == 0:
        return whole, 0
    for octave in np.flatnonzero(extrema.far_count.any(axis=0)):
        if extrema.far_least[:, octave].min() >= ISOLATED * reach:
            if extrema.far_least[1, octave:].min() < POSITIVE_MASK:
                return whole, 0
            kept = Extrema(near_lo=extrema.near_lo, near_hi=extrema.near_hi)
            for name in ("far_least", "far_greatest"):
                getattr(kept, name)[:, :octave] = getattr(extrema, name)[:, :octave]
            return Range(kept.lo, kept.hi), int(extrema.far_count[:, octave:].sum())
        reach = max(reach, float(extrema.far_greatest[:, octave].max()))
    return whole, 0
