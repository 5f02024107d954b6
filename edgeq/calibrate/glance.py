"""What a summary needs of one tensor: its extrema, and a sample of its elements for the histogram.

A runtime can give it without giving the tensor; `glance` makes it from the tensor itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgeq.calibrate.extrema import FAR

SAMPLE = 1 << 11  # elements that feed a histogram, up to twice as many; extrema see all of them
GROUP = 16  # neighbours taken together, a line of the cache
FIRST, EVERY = 128, 4  # see `share`


class Glance(NamedTuple):
    """lo, hi: exact extrema. part: the sample, of any shape. weight: how many elements each of its own stands for.

    values: all of the tensor, which is needed unless it is `near`. There is one for every value and sample: a tuple
    is what Python makes fastest.
    """

    lo: float
    hi: float
    part: np.ndarray
    weight: int = 1
    values: np.ndarray | None = None

    @property
    def near(self) -> bool:
        """Whether all of the tensor lies within ±`FAR`, and no NaN was met."""
        return -FAR < self.lo <= self.hi < FAR


def glance(x: np.ndarray, group: int = 0, step: int = 0) -> Glance:
    """All of `x` is looked at, and every `step`-th run of `group` elements is the sample; 0: as the size has it."""
    x = np.asarray(x, np.float32)
    flat = x.reshape(-1)
    group = group or (1 if flat.size % GROUP else GROUP)
    step = step or stride(flat.size)
    part = flat.reshape(-1, group)[::step].copy()  # a view would keep all of it alive
    return Glance(float(flat.min()), float(flat.max()), part, step, x)


def share(index: int) -> int:
    """How many of the data's samples the part of the sample at `index` stands for; 0: its extrema alone are wanted.

    The first `FIRST` are all looked at, and of those behind them every `EVERY`-th, in place of its neighbours too.
    """
    if index < FIRST:
        return 1
    return 0 if index % EVERY else EVERY


def stride(size: int) -> int:
    """Every how many runs the sample has one: odd, so that it doesn't fall in step with rows of even length."""
    return size // (2 * SAMPLE) * 2 + 1
