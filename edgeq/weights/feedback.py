"""Codes of any levels chosen by what the layer's output gets: GPTQ's recurrence, then descent, as `gptq` for integers.

    H = E x xᵀ + λ I,  H⁻¹ = Uᵀ U          for k = 0 … K-1:   e = (w_k - w'_k) / U_kk,   w_j -= e U_kj  for all j > k

(Frantar et al., "GPTQ", 2023, algorithm 1.) Then, in sweeps over the groups, with G = H (W - W')ᵀ: the best scale is
s + (l·G_group) / (l·H_group l), the best code of one weight the level nearest to w' + G_k / H_kk. Neither can make it
worse. Levels stay what an algorithm has found.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeq.numerics.affine import MIN_SCALE
from edgeq.types import Coded, PerBlock, PerTensor, QSpec, Stats
from edgeq.weights.rows import hessian, rows

_STRIP = 128  # features between two updates of all behind them
_NEAR = 32  # the same, of the descent


def refine(
    w: np.ndarray, spec: QSpec, stats: Stats, found: Coded, scales: bool, damping: float | None = None, sweeps: int = 10
) -> Coded:
    """`found` with codes, and scales where they are free to move, of less error of the layer's output.

    spec: tells the weight's features from its channels. damping: as of `gptq`. sweeps: of the descent.
    Raises RecipeError when the statistics don't fit the weight.
    """
    of = rows(w, spec)
    h = hessian(stats, of.features, len(of.x), damping)
    scale, levels = _by_feature(found, of.axis)
    codes, real = _recurrence(of.x.copy(), h, scale, levels)
    scale = _descend(of.x, h.astype(np.float32), codes, real, np.array(scale), levels, scales, sweeps)
    turned = scale.T if isinstance(found.spec.granularity, PerBlock) and of.axis == 1 else scale
    return replace(found, data=of.layout(codes[: of.features]), scale=turned.reshape(found.scale.shape).copy())


def _recurrence(x: np.ndarray, h: np.ndarray, scale: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and what they stand for, both (K, N)."""
    u = np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)
    codes, real = np.empty(x.shape, np.uint8), np.empty_like(x)
    for start in range(0, len(x), _STRIP):
        stop = min(start + _STRIP, len(x))
        errors = np.empty((stop - start, x.shape[1]), np.float32)
        for k in range(start, stop):
            codes[k], real[k] = _nearest(x[k], *_of(k, len(x), scale, levels))
            errors[k - start] = (x[k] - real[k]) / u[k, k]
            x[k + 1 : stop] -= u[k, k + 1 : stop, None] * errors[k - start]
        x[stop:] -= u[start:stop, stop:].T @ errors
    return codes, real


def _descend(
    x: np.ndarray, h: np.ndarray, codes: np.ndarray, real: np.ndarray, scale: np.ndarray, levels: np.ndarray,
    scales: bool, sweeps: int,
) -> np.ndarray:  # fmt: skip
    """Improve codes and reals in place; gives the scales."""
    g = h @ (x - real)
    group = -(-len(x) // len(scale))
    for _ in range(sweeps):
        changed = 0
        for start in range(0, len(x), group):
            part, b = slice(start, start + group), start // group
            before, now = real[part].copy(), g[part].copy()
            if scales:
                hr = h[part, part] @ real[part]
                below = (real[part] * hr).sum(0)
                factor = 1 + (real[part] * now).sum(0) / np.where(below > 0, below, 1)
                factor = np.where(np.abs(factor * scale[b]) >= MIN_SCALE, factor, 1).astype(np.float32)
                now -= (factor - 1) * hr
                real[part] *= factor
                scale[b] *= factor
            changed += _codes(now, h[part, part], codes[part], real[part], *_of(start, len(x), scale, levels))
            g -= h[:, part] @ (real[part] - before)
        if not changed:
            break
    return scale


def _codes(
    g: np.ndarray, h: np.ndarray, codes: np.ndarray, real: np.ndarray, scale: np.ndarray, levels: np.ndarray
) -> int:
    """One group's codes and reals, in place; how many changed."""
    changed = 0
    for start in range(0, len(codes), _NEAR):
        strip = slice(start, start + _NEAR)
        old, near, inside = real[strip].copy(), g[strip], h[strip, strip]
        for k in range(len(old)):
            best, value = _nearest(old[k] + near[k] / inside[k, k], scale, levels)
            near[k:] -= inside[k:, k, None] * (value - old[k])
            changed += int(np.count_nonzero(best != codes[start + k]))
            codes[start + k], real[start + k] = best, value
        g[start + _NEAR :] -= h[start + _NEAR :, strip] @ (real[strip] - old)
    return changed


def _of(k: int, features: int, scale: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales (N or 1,) and levels (L,) or (N, L) of a feature."""
    return scale[k // -(-features // len(scale))], levels[k // -(-features // len(levels))]


def _by_feature(found: Coded, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Scales (groups, N or 1), and levels (groups, N, L), or (1, L) where all share them."""
    scale, levels = found.scale, found.levels[None]
    if isinstance(found.spec.granularity, PerTensor):
        return scale.reshape(1, 1), levels
    own = found.levels.ndim > 1
    if isinstance(found.spec.granularity, PerBlock) and axis == 1:
        return scale.T, found.levels.swapaxes(0, 1) if own else levels
    return (scale, found.levels if own else levels) if scale.ndim > 1 else (scale[None], levels)


def _nearest(x: np.ndarray, scale: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of x (N,), and what they stand for, of levels (L,) or (N, L)."""
    over = x / np.where(scale == 0, 1, scale)
    if levels.ndim > 1:  # ascending
        codes = (over[:, None] > (levels[:, 1:] + levels[:, :-1]) / 2).sum(1)
        return codes, levels[np.arange(len(x)), codes] * scale
    order = np.argsort(levels, kind="stable")
    order = order[np.isfinite(levels[order])]
    ascending = levels[order]
    codes = order[np.searchsorted((ascending[1:] + ascending[:-1]) / 2, over)]
    return codes, levels[codes] * scale
