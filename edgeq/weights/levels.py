"""Codes of fixed levels: the scale of each group searched for the least squared error, as `mse` does for integers.

    argmin over s of Σ h (w - s · level(w / s))²

Candidates shrink the group's reach step by step, on either side where the levels are not symmetric, and are then
refined: with the codes held, the best scale is Σ h w l / Σ h l². h is 1, or the mean square of each weight's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgeq.numerics import affine
from edgeq.types import Coded, PerTensor, QSpec, Stats
from edgeq.weights import mse

Codes = Callable[[np.ndarray], np.ndarray]
"""From real numbers to the uint8 codes of the nearest levels."""

_CHUNK = 1 << 20  # weights searched at once


def fit(
    w: np.ndarray, spec: QSpec, stats: Stats | None, levels: np.ndarray, codes: Codes, code: str,
    candidates: int = 16, least: float = 0.6, power_of_two: bool = False,
) -> Coded:  # fmt: skip
    """`w` in the levels, each group's scale the best of its candidates; `candidates=0`: it is max |w| / max |level|.

    levels: float32 by code, finite for every code that `codes` gives. power_of_two: so are the scales.
    Raises ModelError for an empty or non-finite weight, RecipeError when statistics do not fit the weight.
    """
    x, h, shape = groups(w, spec, stats)
    scale = np.empty(len(x), np.float32)
    step = max(1, _CHUNK // x.shape[1])
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        scale[part] = _search(x[part], h[part], levels, codes, candidates, least, power_of_two)
    return coded(w, levels, scale.reshape(shape), spec, codes, code)


def groups(w: np.ndarray, spec: QSpec, stats: Stats | None) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The weight's groups and the weights of their errors, both (groups, elements), and the shape of scales."""
    affine.weight_ranges(w, PerTensor())  # refuses NaN, infinity and emptiness
    x, shape = mse.to_groups(np.asarray(w, np.float32), spec)
    h = None if stats is None else mse.to_groups(mse.importance(w, spec, stats), spec)[0]
    return x, np.broadcast_to(np.float32(1), x.shape) if h is None else h, shape


def coded(w: np.ndarray, levels: np.ndarray, scale: np.ndarray, spec: QSpec, codes: Codes, code: str) -> Coded:
    """The nearest codes of `w` for given levels and scales. A scale of 0 is that of a group of zeros."""
    spread = affine.expand(scale, w.shape, spec.granularity)
    data = codes(np.asarray(w, np.float32) / np.where(spread == 0, 1, spread))
    return Coded(data, levels, scale, unsigned(spec), code)


def unsigned(spec: QSpec) -> QSpec:
    """The spec of codes that index levels."""
    return replace(spec, dtype=f"uint{spec.bits}", symmetric=False, narrow=False)


def _search(
    x: np.ndarray, h: np.ndarray, levels: np.ndarray, codes: Codes, candidates: int, least: float, power_of_two: bool
) -> np.ndarray:
    finite = levels[np.isfinite(levels)]
    reach = np.abs(x).max(1) / np.abs(finite).max()
    best = _power_of_two(reach) if power_of_two else reach.astype(np.float32)
    lowest = np.full(len(x), np.inf)
    sides = (1,) if np.array_equal(np.sort(finite), np.sort(-finite)) else (1, -1)
    for factor in np.linspace(1.0, least, candidates):
        for side in sides:
            scale = (reach * factor * side).astype(np.float32)
            for _ in range(2):
                scale = _power_of_two(scale) if power_of_two else scale
                level = levels[codes(x / np.where(scale == 0, 1, scale)[:, None])]
                loss = (h * (x - level * scale[:, None]) ** 2).sum(1)
                best, lowest = np.where(loss < lowest, scale, best), np.minimum(loss, lowest)
                weighted = h * level
                below = (weighted * level).sum(1)
                fitted = (weighted * x).sum(1) / np.where(below > 0, below, 1)
                scale = np.where((below > 0) & (np.abs(fitted) >= affine.MIN_SCALE), fitted, scale).astype(np.float32)
    return np.where(reach == 0, 0, best).astype(np.float32)


def _power_of_two(scale: np.ndarray) -> np.ndarray:
    """The nearest powers of two, of the exponents; 0 stays."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.sign(scale) * np.exp2(np.rint(np.log2(np.abs(scale)))), np.float32)
