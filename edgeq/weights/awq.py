"""Activation-aware weights: what the loud features need decides where a group's range is cut.

    argmin over ρ ≤ 1 of tr (W_g - W'_g(ρ)) H_g (W_g - W'_g(ρ))ᵀ,   W'_g(ρ): the range of group g shrunk to ρ

(the clip search of Lin et al., "AWQ", 2023, on the Gram matrix in place of samples; without its scales of the input).
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics import affine
from edgeq.types import QSpec, QTensor, Stats
from edgeq.weights import mse, rtn
from edgeq.weights.rows import hessian, rows

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
