"""Activation-aware weights: what the loud features need decides where a group's range is cut.

    argmin over ρ ≤ 1 of tr (W_g - W'_g(ρ)) H_g (W_g - W'_g(ρ))ᵀ,   W'_g(ρ): the range of group g shrunk to ρ

(the clip search of Lin et al., "AWQ", 2023, section 3.2, on the Gram matrix in place of samples), and, by
`input_scales`, factors that make the loud features' weights larger before rounding:

    y = (x / f) (W f)ᵀ,   f_k = mean|x_k|^α, divided by √(max f · min f),   α ∈ [0, 1] the best of a grid
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics import affine
from edgeq.types import QSpec, QTensor, Stats
from edgeq.weights import mse, rtn
from edgeq.weights.rows import hessian, output_error, rows

NEEDS_DATA = True


def quantize(
    w: np.ndarray, spec: QSpec, stats: Stats | None = None, candidates: int = 20, least: float = 0.5
) -> QTensor:
    """Codes of `w`, rounded to nearest, with each group's range cut for the least error of its output.

    Raises ModelError for an empty or non-finite weight, RecipeError when statistics do not fit the weight.
    """
    if stats is None:
        return mse.quantize(w, spec)
    found = rows(w, spec)
    h = hessian(stats, found.features, len(found.x), 0.0).astype(np.float32)
    lo, hi = affine.weight_ranges(w, spec.granularity)
    best: tuple[np.ndarray, ...] | None = None
    for ratio in np.linspace(1.0, least, candidates):
        tried = [affine.qparams(lo * ratio, hi * ratio, spec)]
        if spec.symmetric and not spec.narrow:
            tried.append(rtn.full_range_params(lo * ratio, hi * ratio, spec))
        for params in tried:
            scale, zero = found.grids(params)
            x = found.x.reshape(len(scale), found.group, -1)
            codes = np.clip(np.rint(x / scale[:, None]) + zero[:, None], spec.qmin, spec.qmax) - zero[:, None]
            loss = np.empty_like(scale)
            for b, off in enumerate(x - codes * scale[:, None]):
                part = slice(b * found.group, (b + 1) * found.group)
                loss[b] = (off * (h[part, part] @ off)).sum(0)
            if scale.shape != params.scale.shape and params.scale.ndim == 0:
                loss[:] = loss.sum()
            now = (loss, codes.reshape(found.x.shape), scale, zero)
            best = now if best is None else _better(best, now, found.group)
    assert best is not None
    return found.pack(*best[1:])


def _better(best: tuple[np.ndarray, ...], now: tuple[np.ndarray, ...], group: int) -> tuple[np.ndarray, ...]:
    """Group by group, whichever has the lesser loss."""
    wins = now[0] < best[0]
    masks = (wins, np.repeat(wins, group, 0), wins, wins)
    return tuple(np.where(mask, new, old) for mask, new, old in zip(masks, now, best, strict=True))


def input_scales(w: np.ndarray, spec: QSpec, stats: Stats, grid: int = 20) -> np.ndarray:
    """The factors f, float32 (K,), all positive, by which features of `w` are multiplied and those of x divided.

    Chosen by the error of the whole layer's output with plain rounding; all 1 when nothing is better than that.
    """
    found = rows(w, spec)
    mean = np.maximum(stats.mean_abs, 1e-4 * max(float(stats.mean_abs.mean()), 1e-30))
    best, least = np.ones(found.features, np.float32), np.inf
    for alpha in np.linspace(0.0, 1.0, grid + 1)[:-1]:
        f = mean**alpha
        f = (f / np.sqrt(f.max() * f.min())).astype(np.float32)
        spread = found.spread(f)
        q = rtn.quantize(w * spread, spec)
        error = output_error(w, affine.dequantize(q.data, q.params) / spread, spec, stats)
        if error < least:
            best, least = f, error
    return best
