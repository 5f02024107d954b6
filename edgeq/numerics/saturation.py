"""Where u8·s8 dot products can saturate on x86-64 without VNNI.

VPMADDUBSW multiplies unsigned bytes a by signed bytes w and adds neighbouring products in saturating 16 bits:

    p_i = sat16(a_2i · w_2i + a_2i+1 · w_2i+1)        a in [0, 255]

(Intel 64 and IA-32 Architectures Software Developer's Manual, PMADDUBSW). Over all a, the greatest value of the sum is
255 · (max(w_2i, 0) + max(w_2i+1, 0)), the least one 255 · (min(w_2i, 0) + min(w_2i+1, 0)), so a pair can saturate
exactly if one of them is outside [-32768, 32767].
"""

from __future__ import annotations

import numpy as np


def saturating_pairs(codes: np.ndarray) -> np.ndarray:
    """How many pairs of each column can saturate: (K, N) signed codes → (N,) counts. An odd K is padded with 0."""
    rows = codes.astype(np.int32)
    rows = np.concatenate([rows, np.zeros((rows.shape[0] % 2, rows.shape[1]), np.int32)])
    first, second = rows[0::2], rows[1::2]
    greatest = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
    least = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    return ((greatest > 32767) | (least < -32768)).sum(axis=0)
