"""NF4: 16 levels at quantiles of the normal distribution, times a scale a block (QLoRA's and bitsandbytes' type)."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgeq.numerics.codebook import NF4, nearest
from edgeq.types import Coded, QSpec, Stats
from edgeq.weights.levels import fit

BITS, BLOCK, SCALED = (4,), 64, True


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None, candidates: int = 16) -> Coded:
    """See `levels.fit`; candidates=0 is what is published (Dettmers et al., "QLoRA", 2023): the scale is max |w|."""
    return fit(w, spec, stats, NF4, partial(nearest, levels=NF4), "nf4", candidates)
