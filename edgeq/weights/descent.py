"""Coordinate descent on the error of a layer's output, over codes and scales in turn.

    L(c, s) = tr (W - s·c) H (W - s·c)ᵀ

With everything else held, the best value of one weight is w' + (G_k / H_kk), G = H (W - W')ᵀ, and the nearest code to
it is exact; the best scale of one group is s + (c·G_group) / (c·H_group c). Neither step can raise L, and a few sweeps
over all of them find a point that rounding each weight once, as GPTQ does, leaves on the table.
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics import affine
from edgeq.types import QSpec

_STRIP = 32  # features between two updates of G by a matrix product


def descend(
    x: np.ndarray, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, h: np.ndarray, spec: QSpec,
    sweeps: int, scales: bool = True, bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Improve `codes` (K, N), less their zero point, and `scale` (groups, N) in place; x (K, N) float32, h (K, K).

    Stops early when a sweep changes no code. scales: whether the scales may move. bounds: lowest and highest code of
    each weight, less its zero point, (K, N); by default the spec's.
    """
    h = h.astype(np.float32)
    group = len(x) // len(scale)
    lows, highs = bounds or (spec.qmin - np.repeat(zero, group, 0), spec.qmax - np.repeat(zero, group, 0))
    g = h @ (x - np.repeat(scale, group, 0) * codes)
    for _ in range(sweeps):
        changed = 0
        for b in range(len(scale)):
            part = slice(b * group, (b + 1) * group)
            moved, some = _group(g[part].copy(), codes[part], scale[b], h[part, part], lows[part], highs[part], scales)
            changed += some
            g -= h[:, part] @ moved
        if not changed:
            break


def _group(
    g: np.ndarray, c: np.ndarray, s: np.ndarray, h: np.ndarray, low: np.ndarray, high: np.ndarray, scales: bool
) -> tuple[np.ndarray, int]:
    """One group's scale, then its codes, in place. Gives how W' moved (group, N), and how many codes changed."""
    before = s * c
    if scales:
        hc = h @ c
        below = (c * hc).sum(0)
        step = (c * g).sum(0) / np.where(below > 0, below, 1.0)
        fresh = s + step
        keep = (below > 0) & (np.abs(fresh) >= affine.MIN_SCALE)
        step = np.where(keep, step, 0).astype(np.float32)
        s += step
        g -= step * hc
    changed = 0
    for start in range(0, len(c), _STRIP):
        strip = slice(start, start + _STRIP)
        old = c[strip].copy()
        near, inside = g[strip], h[strip, strip]
        for k in range(len(old)):
            best = np.rint(old[k] + near[k] / (inside[k, k] * s))
            np.clip(best, low[start + k], high[start + k], out=best)
            move = (best - old[k]) * s
            c[start + k] = best
            near[k:] -= inside[k:, k, None] * move
        moved = (c[strip] - old) * s
        changed += int(np.count_nonzero(moved))
        g[start + _STRIP :] -= h[start + _STRIP :, strip] @ moved
    return s * c - before, changed
