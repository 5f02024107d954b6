"""IQ4_NL: GGUF's 16 levels, dense around 0, times a scale for each 32 weights."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgeq.numerics.codebook import IQ4_NL, nearest
from edgeq.types import Coded, QSpec, Stats
from edgeq.weights.levels import fit

BITS, BLOCK, SCALED = (4,), 32, True


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None, candidates: int = 16) -> Coded:
    """See `levels.fit`. The levels are integers, from -127 to 113 (llama.cpp, ggml-common.h, kvalues_iq4nl)."""
    return fit(w, spec, stats, IQ4_NL, partial(nearest, levels=IQ4_NL), "iq4_nl", candidates)
