"""Non-uniform codes: each weight is the index of the nearest of a few levels, times a scale.

Tables of fixed levels, and levels fitted to the data (k-means). Levels are float32 and, but for those of fp4 and fp8,
ascending; codes are uint8.
"""

from __future__ import annotations

import numpy as np

from edgeq.errors import ModelError, RecipeError
from edgeq.numerics import affine
from edgeq.types import Coded, QTensor

# Dettmers et al., "QLoRA" (2023), appendix E: quantiles of the normal distribution, with an exact 0.
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
# bitsandbytes' and MatMulBnb4's FP4 by its 4-bit code: sign, then an index in no order of size.
FP4_BY_CODE = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)
FP4_BY_CODE = np.concatenate([FP4_BY_CODE, -FP4_BY_CODE])
# GGUF's IQ4_NL, in units of the block's scale.
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


_CELLS = 512


def real(tensor: QTensor | Coded) -> np.ndarray:
    """float32 reals that a weight's codes stand for."""
    if isinstance(tensor, QTensor):
        return affine.dequantize(tensor.data, tensor.params)
    granularity, shape = tensor.spec.granularity, tensor.data.shape
    if tensor.levels.ndim == 1:
        found = tensor.levels[tensor.data]
    else:
        groups = np.arange(tensor.scale.size).reshape(tensor.scale.shape)
        found = tensor.levels.reshape(tensor.scale.size, -1)[affine.expand(groups, shape, granularity), tensor.data]
    return np.asarray(found * affine.expand(tensor.scale, shape, granularity), np.float32)


def powers_of_two(bits: int, greatest: float = 1.0) -> np.ndarray:
    """Levels 0 and ±greatest / 2**i, ascending: 2**bits - 1 of them (log2 quantization; Miyashita et al., 2016)."""
    if not 2 <= bits <= 8:
        raise RecipeError(f"power-of-two levels of {bits} bits: choose 2 to 8")
    magnitudes = np.float32(greatest) * np.float32(0.5) ** np.arange(2 ** (bits - 1) - 1, dtype=np.float32)
    return np.concatenate([-magnitudes, [np.float32(0)], magnitudes[::-1]]).astype(np.float32)


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """uint8 index of the nearest of the ascending `levels` (at most 256); the lower one on a tie. Shape of x."""
    if not 1 <= len(levels) <= 256:
        raise RecipeError(f"a codebook of {len(levels)} levels: choose 1 to 256")
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return np.searchsorted(middles, np.asarray(x, np.float64), side="left").astype(np.uint8)


def fp4_codes(x: np.ndarray) -> np.ndarray:
    """bitsandbytes' FP4 codes (indices of `FP4_BY_CODE`) of x within [-1, 1]."""
    order = np.argsort(FP4_BY_CODE, kind="stable")
    distinct, first = np.unique(FP4_BY_CODE[order], return_index=True)
    return order[first].astype(np.uint8)[nearest(x, distinct)]


def kmeans(
    x: np.ndarray, k: int, importance: np.ndarray | None = None, iterations: int = 300, keep_zero: bool = False
) -> np.ndarray:
    """At most `k` ascending levels, float32, that minimise Σ h (x - nearest level)². No randomness.

    The samples are sorted, cut in at most 512 cells (finer where they are dense), and the best k runs of whole cells
    are found exactly, by dynamic programming; Lloyd's iteration then moves the boundaries between single samples.
    Prefix sums of h, h x and h x² give a run's mean and loss from its ends, so an iteration is O(k log n).
    keep_zero: one level is exactly 0 (pruned weights stay pruned).
    Raises ModelError for empty or non-finite x.
    """
    if not 1 <= k <= 256:
        raise RecipeError(f"a codebook of {k} levels: choose 1 to 256")
    flat = np.asarray(x, np.float64).reshape(-1)
    if flat.size == 0 or not np.isfinite(flat).all():
        raise ModelError("k-means needs weights that are finite and at least one: repair the model or leave it float")
    h = np.ones(flat.size) if importance is None else np.asarray(importance, np.float64).reshape(-1)
    order = np.argsort(flat, kind="stable")
    flat, h = flat[order], h[order]
    sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in (h, h * flat, h * flat * flat)]
    levels = _best_runs(sums, _cells(flat, h), k)
    return np.unique(_lloyd(flat, sums, levels, iterations, keep_zero).astype(np.float32))


def _cells(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Ascending places, from 0 to len(x), that cut the sorted samples in cells: a cell each, if there are few.

    Else the cells' density goes with p(x)**(1/3), as that of the best levels does (Panter and Dite, 1951).
    """
    if len(x) <= _CELLS:
        return np.arange(len(x) + 1)
    density, edges = np.histogram(x, 4 * _CELLS, weights=h)
    cube_root = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    cuts = np.interp(np.arange(1, _CELLS) / _CELLS * cube_root[-1], cube_root, edges)
    return np.unique(np.concatenate([[0], np.searchsorted(x, cuts), [len(x)]]))


def _best_runs(sums: list[np.ndarray], cuts: np.ndarray, k: int) -> np.ndarray:
    """Means of the k runs of cells whose total loss is least. loss[a, b] is that of cells a to b, less than b."""
    n, s, ss = (total[cuts][None, :] - total[cuts][:, None] for total in sums)
    loss = np.where(np.tri(len(cuts), dtype=bool), np.inf, ss - s * s / np.where(n > 0, n, 1.0))
    total, back = loss[0], []
    for _ in range(1, min(k, len(cuts) - 1)):
        joined = total[:, None] + loss
        back.append(joined.argmin(axis=0))
        total = joined.min(axis=0)
    ends = [len(cuts) - 1]
    for previous in reversed(back):
        ends.append(int(previous[ends[-1]]))
    runs = np.array([0, *reversed(ends)])
    weight, first = (total[cuts[runs]] for total in sums[:2])
    held = np.diff(weight)
    return np.diff(first)[held > 0] / held[held > 0]


def _lloyd(x: np.ndarray, sums: list[np.ndarray], levels: np.ndarray, iterations: int, keep_zero: bool) -> np.ndarray:
    """Levels after iterating to a standstill; those without samples are left out, but a kept 0 is not."""
    best, least = levels, np.inf
    for _ in range(iterations):
        if keep_zero:
            levels = levels.copy()
            levels[np.argmin(np.abs(levels))] = 0.0
        edges = np.concatenate([[0], np.searchsorted(x, (levels[1:] + levels[:-1]) / 2), [len(x)]])
        n, s, ss = (np.diff(total[edges]) for total in sums)
        now = float(np.sum(ss - 2 * levels * s + levels * levels * n))
        if now >= least * (1 - 1e-9):
            break
        best, least = levels[(n > 0) | (keep_zero & (levels == 0))], now
        levels = np.where(n > 0, s / np.where(n > 0, n, 1.0), levels)
    return best
