"""Ternary weights: each is -s, 0 or s.

    Δ = 0.7 · mean |w|,   c = sign(w) where |w| > Δ, else 0,   s = Σ h |w| over those / Σ h over those

of each group (Li and Liu, "Ternary Weight Networks", 2016, equations 5 and 6, with errors weighted by the mean square
h of the inputs where statistics are given). Codes of any signed type; 2 bits hold them.
"""

from __future__ import annotations

import numpy as np

from edgeq.errors import RecipeError
from edgeq.numerics import affine
from edgeq.types import QParams, QSpec, QTensor, Stats
from edgeq.weights import mse

BITS = 1.58  # log2(3)


def quantize(w: np.ndarray, spec: QSpec, stats: Stats | None = None, threshold: float = 0.7) -> QTensor:
    """Codes -1, 0 and 1 of `w`. threshold: Δ over the mean of |w|.

    Raises ModelError for an empty or non-finite weight, RecipeError for a type that lacks such codes, or statistics
    that do not fit the weight.
    """
    return of_signs(w, spec, stats, threshold)


def of_signs(w: np.ndarray, spec: QSpec, stats: Stats | None, threshold: float) -> QTensor:
    """Signs of the weights beyond `threshold` times their group's mean magnitude, times the mean of those."""
    if not spec.signed or not spec.symmetric:
        raise RecipeError(f"signs need a signed symmetric type, not {spec.dtype}: choose int2")
    affine.weight_ranges(w, spec.granularity)  # refuses NaN, infinity and emptiness
    x, shape = mse.to_groups(np.asarray(w, np.float32), spec)
    h = np.ones((1, 1), np.float32) if stats is None else mse.to_groups(mse.importance(w, spec, stats), spec)[0]
    size = np.abs(x)
    taken = size > threshold * size.mean(1, keepdims=True)
    share = taken * h
    scale = (share * size).sum(1) / np.maximum(share.sum(1), np.finfo(np.float32).tiny)
    scale = np.maximum(scale, affine.MIN_SCALE).astype(np.float32).reshape(shape)
    params = QParams(scale, np.zeros(shape, np.int32), spec)
    signs = np.sign(w) * (np.abs(w) > threshold * affine.expand(size.mean(1).reshape(shape), w.shape, spec.granularity))
    return QTensor(signs.astype(affine.storage_dtype(spec.dtype)), params)
