"""GGML's blocks of 32 with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

    _0:  x' = d * (q - 2**(b-1)),  d = peak / -2**(b-1)          (signed absmax: the peak maps to the lowest code)
    _1:  x' = d * q + m,           d = (max - min) / (2**b - 1)
    Q8_0: x' = d * q,              d = max|x| / 127, halves away from zero

d and m are stored as float16, the codes are computed with the float32 d. With an importance matrix the _0 and _1
kinds search scale (and minimum) with weights imatrix * sqrt(mean(row**2) + x**2). Source: ggml-quants.c of llama.cpp.
Functions take x float32 [rows, K] and return uint8 [rows, K/32 * block bytes], or the reverse.
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics.gguf import search

SIZE = 32
Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
Q5_0 = np.dtype([("d", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)])
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])


def row_weights(x: np.ndarray, imatrix: np.ndarray) -> np.ndarray:
    """imatrix * sqrt(mean(row**2) + x**2), shape of x; the mean is summed in order, as the reference does."""
    square = x * x
    sigma2 = np.add.accumulate(square, axis=1)[:, -1:] / np.float32(x.shape[1])
    return np.asarray(imatrix * np.sqrt(sigma2 + square), np.float32)


def _store(layout: np.dtype, rows: int, codes: np.ndarray, d: np.ndarray, m: np.ndarray | None = None) -> np.ndarray:
    """Pack codes [32, blocks]: element j and j + 16 share byte j, and fifth bits go to bit j of `qh`."""
    q = codes.astype(np.uint8)
    out = np.zeros(codes.shape[1], layout)
    out["d"] = d
    if m is not None:
        out["m"] = m
    out["qs"] = (q[:16] & 15 | q[16:] << 4).T
    if "qh" in (layout.names or ()):
        out["qh"] = np.packbits(q >> 4, axis=0, bitorder="little").T.copy().view("<u4")[:, 0]
    return out.view(np.uint8).reshape(rows, -1)


def _codes(block: np.ndarray) -> np.ndarray:
    """The unsigned codes of packed blocks: [blocks] -> float32 [blocks, 32]."""
    q = np.concatenate([block["qs"] & 15, block["qs"] >> 4], 1)
    if "qh" in (block.dtype.names or ()):
        q |= (block["qh"][:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(np.uint8) << 4
    return q.astype(np.float32)


def _quantize_zero(x: np.ndarray, imatrix: np.ndarray | None, bits: int, layout: np.dtype) -> np.ndarray:
    half = np.float32(2 ** (bits - 1))
    b = search.blocks(x, SIZE)
    if imatrix is not None:
        d, codes = search.symmetric(b, int(half), search.blocks(row_weights(x, imatrix), SIZE))
    else:
        d = search.peak(b) / -half
        codes = np.minimum(np.trunc(b * search.ratio(np.float32(1), d) + (half + np.float32(0.5))), 2 * half - 1)
    return _store(layout, len(x), codes, d)


def _quantize_min(x: np.ndarray, imatrix: np.ndarray | None, bits: int, layout: np.dtype) -> np.ndarray:
    top = 2**bits - 1
    b = search.blocks(x, SIZE)
    if imatrix is not None:
        d, shift, codes = search.affine(b, search.blocks(row_weights(x, imatrix), SIZE), top, -0.9, 0.05, 36)
        return _store(layout, len(x), codes, d, -shift)
    low = search.lowest(b)
    d = (b.max(0) - low) / np.float32(top) + np.float32(0)  # never -0
    codes = np.minimum(np.trunc((b - low) * search.ratio(np.float32(1), d) + np.float32(0.5)), top)
    return _store(layout, len(x), codes, d, low)


def quantize_q4_0(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    return _quantize_zero(x, imatrix, 4, Q4_0)


def quantize_q5_0(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    return _quantize_zero(x, imatrix, 5, Q5_0)


def quantize_q4_1(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    return _quantize_min(x, imatrix, 4, Q4_1)


def quantize_q5_1(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    return _quantize_min(x, imatrix, 5, Q5_1)


def quantize_q8_0(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    """The importance matrix is accepted and not used, as in llama.cpp."""
    b = x.reshape(-1, SIZE)
    d = np.abs(b).max(1) / np.float32(127)
    out = np.zeros(len(b), Q8_0)
    out["d"] = d
    out["qs"] = search.half_away(b * search.ratio(np.float32(1), d)[:, None])
    return out.view(np.uint8).reshape(len(x), -1)


def dequantize_q4_0(block: np.ndarray) -> np.ndarray:
    return (_codes(block) - np.float32(8)) * block["d"].astype(np.float32)[:, None]


def dequantize_q5_0(block: np.ndarray) -> np.ndarray:
    return (_codes(block) - np.float32(16)) * block["d"].astype(np.float32)[:, None]


def dequantize_min(block: np.ndarray) -> np.ndarray:
    """Q4_1 and Q5_1."""
    return _codes(block) * block["d"].astype(np.float32)[:, None] + block["m"].astype(np.float32)[:, None]


def dequantize_q8_0(block: np.ndarray) -> np.ndarray:
    return block["qs"].astype(np.float32) * block["d"].astype(np.float32)[:, None]
