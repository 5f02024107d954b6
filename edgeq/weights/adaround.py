"""Learned rounding: each weight goes up or down, not always to the nearest, as the layer's output is best served.

    argmin over c_k ∈ {⌊w_k/s⌋, ⌈w_k/s⌉} of tr (W - s·c) H (W - s·c)ᵀ,   H = E x xᵀ

The objective is that of AdaRound (Nagel et al., 2020, equation 13), whose relaxation by gradients stands for what
coordinate descent does here exactly, one weight at a time. The scales are those of `mse` and stay.
"""

from __future__ import annotations

import numpy as np

from edgeq.types import PerBlock, QSpec, QTensor, Stats
from edgeq.weights import mse
from edgeq.weights.descent import descend
from edgeq.weights.rows import hessian, rows

NEEDS_DATA = True


def quantize(
    w: np.ndarray, spec: QSpec, stats: Stats | None = None, damping: float = 0.01, sweeps: int = 20
) -> QTensor:
    """Codes of `w`, no further than one step from the weight. damping: λ over the mean of diag(H). Else as `gptq`."""
    start = mse.quantize(w, spec, stats if isinstance(spec.granularity, PerBlock) else None)
    if stats is None:
        return start
    found = rows(w, spec)
    scale, zero = found.grids(start.params)
    h = hessian(stats, found.features, len(found.x), damping)
    real = found.x / np.repeat(scale, found.group, 0)
    lows, highs = (spec.qmin - np.repeat(zero, found.group, 0)), (spec.qmax - np.repeat(zero, found.group, 0))
    bounds = np.clip(np.floor(real), lows, highs), np.clip(np.ceil(real), lows, highs)
    codes = np.clip(np.rint(real), *bounds).astype(np.float32)
    descend(found.x, codes, scale, zero, h, spec, sweeps, scales=False, bounds=bounds)
    return found.pack(codes, scale, zero)
