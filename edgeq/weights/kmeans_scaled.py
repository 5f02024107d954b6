"""K-means with scales: one codebook for the whole weight, fitted to it, times a scale a block or channel.

    argmin over levels l, scales s and codes c of Σ h (w - s_g · l[c])²

by turns: with scales held the levels are k-means of w / s, weighted by h s²; with levels held the scales are those of
`levels.fit`. h is 1, or the mean square of each weight's input.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgeq.numerics import codebook
from edgeq.types import Coded, QSpec, Stats
from edgeq.weights import levels

BITS, BLOCK, SCALED = (2, 3, 4, 5, 6, 7, 8), 32, True


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None, rounds: int = 3) -> Coded:
    """Codes of `w`. Raises ModelError for an empty or non-finite weight, RecipeError for statistics that don't fit."""
    x, h, _ = levels.groups(w, spec, stats)
    scale = np.abs(x).max(1)
    for _ in range(rounds):
        used = np.where(scale == 0, 1, scale)[:, None]
        book = codebook.kmeans(x / used, 2**spec.bits, h * used * used, keep_zero=True)
        book /= np.abs(book).max() or np.float32(1)
        found = levels.fit(w, spec, stats, book, partial(codebook.nearest, levels=book), "kmeans_scaled", 8)
        scale = found.scale.reshape(-1)
    return found
