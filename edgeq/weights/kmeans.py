"""K-means: one codebook of real numbers for the whole weight, without scales (weight sharing).

    argmin over levels l and codes c of Σ h (w - l[c])²

(Han et al., "Deep Compression", 2016, section 3, here with the best levels rather than with evenly spaced first ones.)
h is 1, or the mean square of each weight's input. A weight that holds zeros (a pruned one) keeps them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from edgeq.numerics import codebook
from edgeq.types import Coded, PerTensor, QSpec, Stats
from edgeq.weights import levels

BITS, BLOCK, SCALED = (2, 3, 4, 5, 6, 7, 8), 0, False


def encode(w: np.ndarray, spec: QSpec, stats: Stats | None = None) -> Coded:
    """Codes of `w`, and at most 2**bits levels; of the spec only the bits count.

    Raises ModelError for an empty or non-finite weight, RecipeError when statistics do not fit the weight.
    """
    x, h, _ = levels.groups(w, spec, stats)
    book = codebook.kmeans(x, 2**spec.bits, None if stats is None else h, keep_zero=not np.all(w))
    whole = replace(spec, granularity=PerTensor())
    return levels.coded(w, book, np.ones((), np.float32), whole, partial(codebook.nearest, levels=book), "kmeans")
