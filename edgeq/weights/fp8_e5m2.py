"""fp8 E5M2: floating-point codes of 8 bits, times a scale."""

from __future__ import annotations

import numpy as np

from edgeq.numerics.floats import by_code, codes
from edgeq.types import Coded, QSpec, Stats
from edgeq.weights.levels import fit

BITS, BLOCK, SCALED = (8,), 0, True
TYPE = "float8e5m2"


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None, candidates: int = 8) -> Coded:
    """See `levels.fit`; a code is the type's bits (Micikevicius et al., "FP8 Formats for Deep Learning", 2022)."""
    return fit(w, spec, stats, by_code(TYPE), lambda x: codes(x, TYPE), "fp8_e5m2", candidates, 0.8)
