"""K-means in groups: a codebook of real numbers for each channel or block, without scales.

    argmin over levels l_g and codes c of Σ h (w - l_g[c])²   in each group g

Lloyd's iteration in all groups at once, from the levels that k-means finds for all of them together, each divided by
its root mean square. h is 1, or the mean square of each weight's input.
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics import codebook
from edgeq.types import Coded, QSpec, Stats
from edgeq.weights import levels

BITS, BLOCK, SCALED = (2, 3, 4, 5, 6, 7, 8), 0, False
_CHUNK = 1 << 22  # comparisons of weights and levels at once


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None, iterations: int = 30) -> Coded:
    """Codes of `w` and 2**bits ascending levels a group.

    Raises ModelError for an empty or non-finite weight, RecipeError when statistics do not fit the weight.
    """
    x, h, shape = levels.groups(w, spec, stats)
    size = np.sqrt((x * x).mean(1, keepdims=True))
    size = np.where(size == 0, 1, size)
    first = codebook.kmeans(x / size, 2**spec.bits, h * size * size)
    first = np.pad(first, (0, 2**spec.bits - len(first)), mode="edge")
    book = np.empty((len(x), len(first)), np.float32)
    data = np.empty(x.shape, np.uint8)
    step = max(1, _CHUNK // (x.shape[1] * len(first)))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        data[part], book[part] = _lloyd(x[part], h[part], first * size[part], iterations)
    codes = from_groups(data, w.shape, spec)
    return Coded(codes, book.reshape(*shape, -1), np.ones(shape, np.float32), levels.unsigned(spec), "kmeans_groups")


def _lloyd(x: np.ndarray, h: np.ndarray, book: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (G, n) and levels (G, L) of groups x (G, n); a level without weights stays where it is."""
    offsets = np.arange(len(x))[:, None] * book.shape[1]
    codes = _nearest(x, book)
    for _ in range(iterations):
        flat = (codes + offsets).reshape(-1)
        total = np.bincount(flat, h.reshape(-1), book.size).reshape(book.shape)
        mean = np.bincount(flat, (h * x).reshape(-1), book.size).reshape(book.shape) / np.where(total > 0, total, 1)
        book = np.sort(np.where(total > 0, mean, book), axis=1).astype(np.float32)
        before, codes = codes, _nearest(x, book)
        if np.array_equal(before, codes):
            break
    return codes, book


def _nearest(x: np.ndarray, book: np.ndarray) -> np.ndarray:
    middles = (book[:, 1:] + book[:, :-1]) / 2
    return np.asarray((x[:, :, None] > middles[:, None, :]).sum(2), np.uint8)


def from_groups(x: np.ndarray, shape: tuple[int, ...], spec: QSpec) -> np.ndarray:
    """The inverse of `mse.to_groups`: an array of `shape`, without what filled a partial block."""
    index, _ = levels.mse.to_groups(np.arange(1, 1 + int(np.prod(shape))).reshape(shape), spec)
    out = np.empty(int(np.prod(shape)), x.dtype)
    out[index[index > 0] - 1] = x[index > 0]
    return out.reshape(shape)
