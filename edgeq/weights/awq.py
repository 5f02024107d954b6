"""Activation-aware weights: features that carry much are rounded finely, and what they need decides every range's cut.

    Q(W S) S⁻¹ x,   s_k = (mean |x_k|)^α,   argmin over α of tr E H Eᵀ,   E = W - Q(W S) S⁻¹,   H = E x xᵀ
    argmin over ρ ≤ 1 of tr (W_g - W'_g(ρ)) H_g (W_g - W'_g(ρ))ᵀ,   W'_g(ρ): the range of group g shrunk to ρ

(Lin et al., "AWQ", 2023: the scale search of section 3.2 and the clip search of its code, here on the Gram matrix in
place of samples.) S⁻¹ goes into what computes x before layers are solved (`edgeq/search/scaling.py`); without one that
can take it, only ranges are cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.numerics import affine
from edgeq.types import QSpec, QTensor, Stats
from edgeq.weights import mse, rtn
from edgeq.weights.rows import hessian, output_error, rows

NEEDS_DATA = True
ALPHAS = tuple(np.linspace(0, 1, 11)[1:])


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


def input_scale(layers: Sequence[tuple[np.ndarray, QSpec]], stats: Stats) -> np.ndarray | None:
    """s, float32 (K,), by which the one input of some layers is best divided, or None where it had better stay.

    layers: weights, and what they are rounded to. Raises what `rows` does, and RecipeError for other statistics.
    """
    size = np.where(stats.mean_abs > 0, stats.mean_abs, 1)
    tried = [np.asarray(s / np.sqrt(s.max() * s.min()), np.float32) for s in (size**alpha for alpha in ALPHAS)]
    errors = [scaled_error(layers, stats, s) for s in tried]
    best = int(np.argmin(errors))
    return tried[best] if errors[best] < scaled_error(layers, stats, np.ones_like(tried[0])) else None


def scaled_error(layers: Sequence[tuple[np.ndarray, QSpec]], stats: Stats, scale: np.ndarray) -> float:
    """tr E H Eᵀ, summed over layers, of weights rounded to nearest after multiplication by `scale` (K,)."""
    total = 0.0
    for w, spec in layers:
        found = rows(w, spec)
        factor = found.layout(np.broadcast_to(scale[:, None], (len(scale), found.x.shape[1])))
        q = rtn.quantize(np.asarray(w * factor, np.float32), spec)
        total += output_error(w, affine.dequantize(q.data, q.params) / factor, spec, stats)
    return total
