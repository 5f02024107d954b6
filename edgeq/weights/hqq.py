"""Half-quadratic quantization: no data, and errors that may be few and large rather than many and small.

    argmin over s and z of ‖(W - s (q - z)) / s‖_p^p with p < 1, split by a second variable e for the error:
        e ← shrink((W - W') / s),  shrink(t) = sign(t) max(|t| - |t|^(p-1) / β, 0)
        z ← round(mean over the group of q - W / s + e)         where the spec leaves it free
        s ← Σ (W - s e) c / Σ c²,  c = q - z

(Badri and Shaji, "Half-Quadratic Quantization", 2023, with a real zero point and no fit of the scale.) β grows by κ
each round, and each group keeps its best round.
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics import affine
from edgeq.types import PerTensor, QParams, QSpec, QTensor, Stats
from edgeq.weights import rtn
from edgeq.weights.mse import to_groups


def quantize(
    w: np.ndarray, spec: QSpec, stats: Stats | None = None, p: float = 0.7, beta: float = 10.0, kappa: float = 1.01,
    rounds: int = 20,
) -> QTensor:  # fmt: skip
    """Codes of `w`. `stats` is not used. Raises ModelError for an empty or non-finite weight."""
    affine.weight_ranges(w, PerTensor())  # refuses NaN, infinity and emptiness
    x, shape = to_groups(np.asarray(w, np.float32), spec)
    start = rtn.quantize(w, spec, full_range=spec.symmetric and not spec.narrow).params
    scale = start.scale.reshape(-1, 1).astype(np.float32).copy()
    zero = start.zero_point.reshape(-1, 1).astype(np.float32)
    best, least = (scale, zero), np.full((len(x), 1), np.inf)
    for _ in range(rounds):
        real = x / scale
        q = np.clip(np.rint(real + zero), spec.qmin, spec.qmax)
        off = real - (q - zero)
        size = np.abs(off)
        loss = (np.abs(off * scale) ** p).mean(1, keepdims=True)
        better = loss < least
        least = np.where(better, loss, least)
        best = np.where(better, scale, best[0]), np.where(better, zero, best[1])
        with np.errstate(divide="ignore"):
            e = np.sign(off) * np.maximum(size - size ** (p - 1) / beta, 0)
        if not spec.symmetric:
            mean = (q - real + e).mean(1, keepdims=True)
            zero = np.clip(np.rint(mean), spec.qmin, spec.qmax).astype(np.float32)
        c = q - zero
        below = (c * c).sum(1, keepdims=True)
        fitted = ((x - scale * e) * c).sum(1, keepdims=True) / np.where(below > 0, below, 1)
        scale = np.where((below > 0) & (np.abs(fitted) >= affine.MIN_SCALE), fitted, scale).astype(np.float32)
        beta *= kappa
    params = QParams(best[0].reshape(shape), best[1].reshape(shape).astype(np.int32), spec)
    return QTensor(affine.quantize(w, params), params)
