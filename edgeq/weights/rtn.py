"""Round to nearest: the scale from each group's extrema, every weight to the nearest code."""

from __future__ import annotations

import numpy as np

from edgeq.errors import RecipeError
from edgeq.numerics import affine
from edgeq.types import QParams, QSpec, QTensor, Stats

ANY_SHAPE = True


def quantize(w: np.ndarray, spec: QSpec, stats: Stats | None = None, full_range: bool = False) -> QTensor:
    """Codes of `w` (any rank, groups as spec.granularity says), dequantized as (q - z) * scale.

    symmetric: scale = max |w| / qmax. asymmetric: scale and zero point span [min, max] and 0.
    full_range (symmetric): scale = v / (qmin - z) for the v of greatest magnitude, so that it takes the lowest code,
    and no code is unused (as GGUF's Q4_0 has it). The scale of a group is negative where v is positive.

    `stats` is not used. Raises ModelError for an empty or non-finite weight, RecipeError for full_range when
    the spec is asymmetric or narrow.
    """
    lo, hi = affine.weight_ranges(w, spec.granularity)
    params = full_range_params(lo, hi, spec) if full_range else affine.qparams(lo, hi, spec)
    return QTensor(affine.quantize(w, params), params)


def full_range_params(lo: np.ndarray, hi: np.ndarray, spec: QSpec) -> QParams:
    """Symmetric parameters whose lowest code stands for the value of greatest magnitude; on a tie the negative one."""
    if not spec.symmetric or spec.narrow:
        raise RecipeError("full_range needs a symmetric spec that is not narrow")
    zero = affine.middle(spec)
    low, high = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    extreme = np.where(-low >= high, low, high)
    scale = extreme / (spec.qmin - zero)
    scale = np.where(np.abs(scale) < affine.MIN_SCALE, np.copysign(affine.MIN_SCALE, scale), scale)
    # A group of zeros is exact at any scale: take the one that qparams gives it.
    plain = affine.qparams(low, high, spec).scale
    scale = np.where(extreme == 0, plain, scale).astype(np.float32)
    return QParams(scale, np.full(scale.shape, zero, np.int32), spec)
