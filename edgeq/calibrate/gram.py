"""The Gram matrix X Xᵀ and mean |x| of a weight's input: what GPTQ, AWQ and weighted rounding ask of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import CalibrationError
from edgeq.types import Stats

_ROWS = 1024  # float32 sums of so many products are off by about 1e-6; blocks are added in float64


@dataclass
class Gram:
    """Accumulator for K features in 8 K² bytes. `merge` is associative up to float64 rounding."""

    gram: np.ndarray
    sum_abs: np.ndarray
    count: int = 0

    @staticmethod
    def of(features: int) -> Gram:
        return Gram(np.zeros((features, features)), np.zeros(features))

    def update(self, x: np.ndarray) -> None:
        """Take rows: any shape (..., K). Raises CalibrationError for another K, or for NaN or infinity."""
        if x.shape[-1] != len(self.sum_abs):
            raise CalibrationError(f"rows of {x.shape[-1]} features where {len(self.sum_abs)} were expected")
        rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
        for start in range(0, len(rows), _ROWS):
            block = rows[start : start + _ROWS]
            sums = np.abs(block).sum(0, dtype=np.float64)
            if not np.isfinite(sums).all():
                raise CalibrationError("the input of a weight holds NaN or infinity: look for overflow in the model")
            self.sum_abs += sums
            self.gram += block.T @ block
        self.count += len(rows)

    def merge(self, other: Gram) -> None:
        """Add what `other` saw."""
        self.gram += other.gram
        self.sum_abs += other.sum_abs
        self.count += other.count

    def result(self) -> Stats:
        """Raises CalibrationError when nothing was seen."""
        if not self.count:
            raise CalibrationError("no rows were seen for a weight: check that the data reaches its node")
        return Stats(self.gram, self.sum_abs / self.count, self.count)

    def state(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, for npz; `from_state` is the inverse."""
        return {"gram": self.gram, "sum_abs": self.sum_abs, "count": np.array(self.count, np.int64)}

    @staticmethod
    def from_state(state: dict[str, np.ndarray]) -> Gram:
        return Gram(state["gram"], state["sum_abs"], int(state["count"]))
