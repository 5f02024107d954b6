"""FP4 as bitsandbytes has it: a sign and 8 magnitudes from 0 to 1, times a scale a block."""

from __future__ import annotations

import numpy as np

from edgeq.numerics.codebook import FP4_BY_CODE, fp4_codes
from edgeq.types import Coded, QSpec, Stats
from edgeq.weights.levels import fit

BITS, BLOCK, SCALED = (4,), 64, True


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None, candidates: int = 16) -> Coded:
    """See `levels.fit`; candidates=0 is bitsandbytes' definition: the scale is max |w|."""
    return fit(w, spec, stats, FP4_BY_CODE, fp4_codes, "fp4", candidates)
