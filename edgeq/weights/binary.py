"""Binary weights: each is -s or s, with s the mean of |w| of its group, weighted by the inputs' mean squares if known.

    argmin over c ∈ {-1, 1}, s of Σ h (w - s c)²   (Rastegari et al., "XNOR-Net", 2016, equations 4 to 6)

A weight of exactly 0 stays 0. Codes of any signed type; runtimes have none of one bit, so that they take 2.
"""

from __future__ import annotations

import numpy as np

from edgeq.types import QSpec, QTensor, Stats
from edgeq.weights.ternary import of_signs

BITS = 1.0


def quantize(w: np.ndarray, spec: QSpec, stats: Stats | None = None) -> QTensor:
    """Codes -1 and 1 of `w`. Raises what `ternary.quantize` does."""
    return of_signs(w, spec, stats, 0.0)
