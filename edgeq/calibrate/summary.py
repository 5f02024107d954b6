"""What the calibrators choose from: the extrema of a tensor and, where one needs it, its histogram."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgeq.calibrate.extrema import Extrema, trim_masks
from edgeq.calibrate.glance import Glance, glance
from edgeq.calibrate.histogram import LIMIT, Histogram
from edgeq.types import Range

_PARTS, _ENDS = 8, 128  # how many parts and extrema wait until they are counted


@dataclass(frozen=True)
class Mass:
    """A histogram as masses. counts: float64 (n,), bin i over edges[i] to edges[i + 1]; centers: where the mass lies.

    Bins are `width` wide, but the one around 0 twice as wide, and its center is 0; the outer ones end at the extrema.
    """

    counts: np.ndarray
    edges: np.ndarray
    centers: np.ndarray
    width: float

    def outside(self, low: float, high: float, slack: float) -> float:
        """The share of the mass that lies further than `slack` from low..high."""
        beyond = (self.centers < low - slack) | (self.centers > high + slack)
        return float(self.counts[beyond].sum() / self.counts.sum())

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Masses by magnitude, (2048,) each: of the negative bins, and of bin 0 with the positive ones."""
        magnitude = (np.abs(self.centers) / self.width).astype(np.intp)
        negative = (self.centers < 0) & (magnitude > 0)
        split = (np.bincount(magnitude, np.where(m, self.counts, 0.0), LIMIT) for m in (negative, ~negative))
        low, high = split
        return low, high


@dataclass
class Summary:
    """Accumulator of one tensor. histogram: None when no calibrator asked for it.

    limit: what the range need not reach beyond, whatever was seen, for what lies there is taken care of. flat: what it
    need not reach beyond since values there are all the same to what reads them: they count as the nearest end.
    parts (with weights), ends: samples and extrema that the histogram is still to count, several at a time, because it
    leaves the cache in between.
    """

    extrema: Extrema = field(default_factory=Extrema)
    histogram: Histogram | None = None
    limit: Range | None = None
    flat: Range | None = None
    parts: list[tuple[int, np.ndarray]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def update(self, x: np.ndarray, stride: int = 1) -> None:
        """Take one sample or batch: all of it for the extrema, every `stride`-th element for the histogram."""
        if x.size:
            self.add(glance(x, 1, stride))

    def add(self, seen: Glance, times: int = 1) -> None:
        """Take what is left of one sample or batch. times: how many such ones its part stands for, see `share`."""
        lo, hi, part, weight, values = seen
        near = seen.near
        if values is not None and not (near and self.extrema.axis is None):
            self.extrema.update(values)
        else:
            self.extrema.update_range(lo, hi, max((part if values is None else values).size, 1))
        if self.histogram is None:
            return
        weight *= times
        if not near:
            self.histogram.update(part if times else part[:0], lo, hi, weight)
            return
        if times and part.size:
            self.parts.append((weight, part))
        if weight != 1:
            self.ends += (lo, hi)
        if len(self.parts) >= _PARTS or len(self.ends) >= _ENDS:
            self.settle()

    def settle(self) -> None:
        """Let the histogram count what is waiting."""
        if self.histogram is None:
            return
        for weight in {weight for weight, _ in self.parts}:
            x = np.concatenate([part.reshape(-1) for held, part in self.parts if held == weight])
            self.histogram.near.add(x, float(max(-x.min(), x.max())), weight)
        if self.ends:
            self.histogram.update_ends(self.ends)
        self.parts, self.ends = [], []

    def merge(self, other: Summary) -> None:
        """Add what `other` saw. Raises ValueError when only one of the two has a histogram."""
        if (self.histogram is None) != (other.histogram is None):
            raise ValueError("a summary with a histogram can't merge with one without")
        self.settle()
        other.settle()
        self.extrema.merge(other.extrema)
        if self.histogram is not None and other.histogram is not None:
            self.histogram.merge(other.histogram)

    def bounds(self) -> Range:
        """The range of all finite values within `limit` and `flat`, attention masks left out (`trim_masks`)."""
        found = trim_masks(self.extrema)[0]
        if self.limit is not None:
            found = Range(max(found.lo, self.limit.lo), min(found.hi, self.limit.hi))
        if self.flat is not None:
            lo, hi = np.clip((found.lo, found.hi), self.flat.lo, self.flat.hi)
            found = Range(float(lo), float(hi))
        return found

    def mass(self) -> Mass | None:
        """The histogram within `bounds`, or None when there is nothing to choose from.

        That is: no histogram, a single value, or values and masks in the same bins.
        """
        self.settle()
        bounds = self.bounds()
        reach = max(-bounds.lo, bounds.hi)
        if self.histogram is None or bounds.lo == bounds.hi:
            return None
        bins = self.histogram.bins(reach)
        low, high = (int(end / bins.width) + LIMIT - 1 for end in (bounds.lo, bounds.hi))
        counts = bins.counts[low : high + 1].astype(np.float64)
        if self.flat is not None and counts.size:
            counts[0] += bins.counts[:low].sum() if bounds.lo == self.flat.lo else 0
            counts[-1] += bins.counts[high + 1 :].sum() if bounds.hi == self.flat.hi else 0
        if high - low < 1 or reach < LIMIT / 16 * bins.width or not counts.any():
            return None
        index = np.arange(low, high + 2, dtype=np.float64) - (LIMIT - 1)
        edges = np.where(index > 0, index, index - 1) * bins.width  # bin i < 0 begins at i - 1, bin 0 at -1
        edges[0], edges[-1] = max(edges[0], bounds.lo), min(edges[-1], bounds.hi)
        centers = (edges[:-1] + edges[1:]) / 2
        if low <= LIMIT - 1 <= high:
            centers[LIMIT - 1 - low] = min(max(0.0, bounds.lo), bounds.hi)
        return Mass(counts, edges, centers, bins.width)

    def state(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, for npz; `from_state` is the inverse."""
        self.settle()
        out = {f"extrema.{k}": v for k, v in self.extrema.state().items()}
        if self.histogram is not None:
            out |= {f"histogram.{k}": v for k, v in self.histogram.state().items()}
        return out

    @staticmethod
    def from_state(state: dict[str, np.ndarray]) -> Summary:
        parts: dict[str, dict[str, np.ndarray]] = {"extrema": {}, "histogram": {}}
        for key, value in state.items():
            part, name = key.split(".", 1)
            parts[part][name] = value
        histogram = Histogram.from_state(parts["histogram"]) if parts["histogram"] else None
        return Summary(Extrema.from_state(parts["extrema"]), histogram)
