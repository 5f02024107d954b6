"""Powers of two: each weight is 0 or ±2**k, with the exponents of a group in one window; a product is a shift.

    w' = ±s / 2**i, or 0,   i = 0 … 2**(bits-1) - 2,   s a power of two

(Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation", 2016.) The code in the middle
of the 2**bits is 0, the last one is not used.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgeq.numerics.codebook import nearest, powers_of_two
from edgeq.types import Coded, QSpec, Stats
from edgeq.weights.levels import fit

BITS, BLOCK, SCALED = (2, 3, 4, 5), 0, False


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None, candidates: int = 8) -> Coded:
    """See `levels.fit`: the window with the least squared error."""
    levels = powers_of_two(spec.bits)
    return fit(w, spec, stats, levels, partial(nearest, levels=levels), "log2", candidates, 0.35, power_of_two=True)
