"""Round to nearest with the scale (and zero point) of each group searched for the least squared error.

    argmin over r of Σ h_i (w_i - w'_i(r))²

where the candidates r shrink the group's range step by step, keep its whole span, or use the signed-absmax form,
and are then refined: with the codes c_i held, the best scale is Σ h w c / Σ h c² (least squares), after which the
codes are rounded again. h is 1, or the diagonal of the Hessian, the mean square of the input that each w_i meets
(as in GPTQ's and GGUF's importance-weighted searches).
"""

from __future__ import annotations

import numpy as np

from edgeq.errors import RecipeError
from edgeq.numerics import affine
from edgeq.types import PerBlock, PerChannel, PerTensor, QParams, QSpec, QTensor, Stats
from edgeq.weights import rtn

_CHUNK = 1 << 18  # elements searched at once: bounds the scratch to a few MB


def quantize(
    w: np.ndarray, spec: QSpec, stats: Stats | None = None, candidates: int = 40, least: float = 0.35,
    weighted: bool = True, signed_scale: bool = True,
) -> QTensor:  # fmt: skip
    """Codes of `w`; never worse in (weighted) squared error than rtn.

    candidates: how many factors from `least` to 1 shrink the range of a group. weighted: use diag(stats.gram), if
    stats are given, along the axis of K features: the blocked axis, or the one other axis of a rank-2 weight.
    signed_scale: symmetric scales may be negative, so that the lowest code may serve either sign.
    Raises ModelError for an empty or non-finite weight, RecipeError when stats do not fit the weight.
    """
    h = importance(w, spec, stats) if weighted and stats is not None else None
    groups, shape = to_groups(np.asarray(w, np.float32), spec)
    weights = np.ones((1, 1), np.float32) if h is None else to_groups(h, spec)[0]
    affine.weight_ranges(w, PerTensor())  # refuses NaN, infinity and emptiness
    factors = np.linspace(1.0, least, candidates)
    rows = max(1, _CHUNK // groups.shape[1])
    scale = np.empty(len(groups), np.float32)
    zero = np.empty(len(groups), np.int32)
    for start in range(0, len(groups), rows):
        part = slice(start, start + rows)
        weight = weights if weights.size == 1 else np.ascontiguousarray(weights[part])
        x = np.ascontiguousarray(groups[part])  # sums, and so the result, must not hang on the memory layout
        scale[part], zero[part] = search(x, weight, spec, factors, signed_scale)
    params = QParams(scale.reshape(shape), zero.reshape(shape), spec)
    return QTensor(affine.quantize(w, params), params)


def to_groups(w: np.ndarray, spec: QSpec) -> tuple[np.ndarray, tuple[int, ...]]:
    """`w` as rows that share a scale, (groups, elements), and the shape of scales; a partial block is filled with 0."""
    shape = affine.params_shape(w.shape, spec.granularity)
    match spec.granularity:
        case PerTensor():
            return w.reshape(1, -1), shape
        case PerChannel(axis):
            return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1), shape
        case PerBlock(axis, size):
            axis %= w.ndim
            pad = [(0, 0)] * w.ndim
            pad[axis] = (0, -w.shape[axis] % size)
            blocks = affine.split_axis(np.pad(w, pad) if pad[axis][1] else w, axis, size)
            return np.moveaxis(blocks, axis + 1, -1).reshape(-1, size), shape


def importance(w: np.ndarray, spec: QSpec, stats: Stats) -> np.ndarray:
    """diag(gram) / count in the shape of w, along the axis of its K features."""
    granularity = spec.granularity
    if isinstance(granularity, PerBlock):
        axis = granularity.axis % w.ndim
    elif w.ndim == 2 and isinstance(granularity, PerChannel):
        axis = 1 - granularity.axis % 2
    else:
        raise RecipeError("statistics need a weight per block, or of rank 2 and per channel: leave them out")
    h = np.diagonal(stats.gram) / max(stats.count, 1)
    if w.shape[axis] != len(h):
        raise RecipeError(f"statistics of {len(h)} features do not fit a weight {w.shape} along axis {axis}")
    # A feature that is always 0 has no say, but a group of them must still get a scale.
    h = np.maximum(h, 1e-8 * max(float(h.mean()), 1e-30)).astype(np.float32)
    return np.broadcast_to(np.expand_dims(h, tuple(i for i in range(w.ndim) if i != axis)), w.shape)


def search(
    x: np.ndarray, h: np.ndarray, spec: QSpec, factors: np.ndarray, signed_scale: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Best scale and zero point of each row of x (groups, n); h (groups, n) or (1, 1)."""
    lo, hi = x.min(axis=1).astype(np.float64), x.max(axis=1).astype(np.float64)
    start = affine.qparams(lo, hi, spec)
    best = start.scale.copy(), start.zero_point.copy()
    least = _loss(x, h, spec, *best)
    for factor in factors:
        found = [affine.qparams(lo * factor, hi * factor, spec)]
        if spec.symmetric and not spec.narrow and signed_scale:
            found.append(rtn.full_range_params(lo * factor, hi * factor, spec))
        for params in found:
            scale = params.scale
            for _ in range(2):
                _keep(best, least, scale, params.zero_point, _loss(x, h, spec, scale, params.zero_point))
                scale = _refit(x, h, spec, scale, params.zero_point)
    return best


def _keep(
    best: tuple[np.ndarray, np.ndarray], least: np.ndarray, scale: np.ndarray, zero: np.ndarray, loss: np.ndarray
) -> None:
    better = loss < least
    best[0][better], best[1][better], least[better] = scale[better], zero[better], loss[better]


def _codes(x: np.ndarray, spec: QSpec, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Codes less their zero point, float32."""
    z = zero[:, None].astype(np.float32)
    c = x / scale[:, None]
    np.rint(c, out=c)
    return np.clip(c, spec.qmin - z, spec.qmax - z, out=c)


def _loss(x: np.ndarray, h: np.ndarray, spec: QSpec, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    error = _codes(x, spec, scale, zero)
    error *= scale[:, None]
    error -= x
    error *= error
    return (error * h).sum(axis=1) if h.size > 1 else error.sum(axis=1)


def _refit(x: np.ndarray, h: np.ndarray, spec: QSpec, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """The least-squares scale for the codes that `scale` gives; `scale` itself where all codes are 0 or it vanishes."""
    c = _codes(x, spec, scale, zero)
    weighted = c * h
    above, below = (weighted * x).sum(axis=1), (weighted * c).sum(axis=1)
    fitted = above / np.where(below > 0, below, 1.0)
    return np.where((below > 0) & (np.abs(fitted) >= affine.MIN_SCALE), fitted, scale).astype(np.float32)
