"""GGML's 4-bit non-linear blocks, IQ4_NL (32 weights) and IQ4_XS (256), and its ternary ones, TQ1_0 and TQ2_0 (256).

    IQ4_NL  x' = d * T[q]                 T: 16 fixed levels, finer near zero                4.5 bits a weight
    IQ4_XS  x' = (d * s) * T[q]           s: one 6-bit scale for each 32                      4.25
    TQ1_0   x' = d * (t - 1)              five trits t to a byte, in base 3 scaled to 256     1.6875
    TQ2_0   x' = d * (t - 1)              t in 2 bits                                         2.0625

For the ternary kinds d = max|x|: they are meant for weights that are ternary already.
Source: ggml-quants.c and ggml-common.h of llama.cpp (`quantize_row_iq4_nl_impl`, `quantize_row_tq*_0_ref`).
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics.gguf import search
from edgeq.numerics.gguf.kquants import block_weights

IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_MIDDLES = (IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / 2  # halves of whole numbers: exact

IQ4_NL = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])
TQ1_0 = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])
TQ2_0 = np.dtype([("qs", "u1", 64), ("d", "<f2")])

_f = np.float32
_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)


def _nearest(x: np.ndarray) -> np.ndarray:
    """The index of the nearest level; the upper one on a tie."""
    return np.searchsorted(_MIDDLES, x, side="right")


def _fit(b: np.ndarray, weights: np.ndarray, tries: int) -> np.ndarray:
    """The scale of each block [32, blocks]: 2 tries + 1 trials, each with its least squares; tries < 0 takes the first.

    With tries < 0 the peak maps to the lowest level, else first to its mirror image, then to every level around it.
    """
    top = search.peak(b)
    empty = np.abs(top) < search.TINY
    top = np.where(empty, _f(1), top)

    def solve(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = IQ4_LEVELS[_nearest(inverse * b)]
        return search.ordered_sum(weights * level * b), search.ordered_sum(weights * level * level)

    first = top / IQ4_LEVELS[0]
    sumqx, sumq2 = solve(_f(1) / (-first if tries > 0 else first))
    scale = search.ratio(sumqx, sumq2)
    best = scale * sumqx
    for i in range(-tries, tries + 1):
        sumqx, sumq2 = solve((_f(i) + IQ4_LEVELS[0]) / top)
        better = (sumq2 > 0) & (sumqx * sumqx > best * sumq2)
        fitted = search.ratio(sumqx, sumq2)
        scale, best = np.where(better, fitted, scale), np.where(better, fitted * sumqx, best)
    return np.where(empty, _f(0), scale)


def _pairs(q: np.ndarray) -> np.ndarray:
    """Codes uint8 [32, blocks] -> bytes [blocks, 16]: code j and j + 16 share byte j."""
    return (q[:16] | q[16:] << 4).T


def _unpairs(qs: np.ndarray) -> np.ndarray:
    return IQ4_LEVELS[np.concatenate([qs & 15, qs >> 4], 1)]


def quantize_iq4_nl(x: np.ndarray, imatrix: np.ndarray | None, tries: int = -1) -> np.ndarray:
    """tries = 7 is llama.cpp's quantizer of files; tries = -1 is `quantize_row_iq4_nl_ref`, which does not search."""
    b = search.blocks(x, 32)
    square = b * b
    if imatrix is None:
        weights = square
    else:
        sigma2 = search.ordered_sum(square) * (_f(2) / _f(32))
        weights = search.blocks(np.broadcast_to(imatrix, x.shape), 32) * np.sqrt(sigma2 + square)
    scale = _fit(b, weights, tries)
    inverse = search.ratio(np.ones_like(scale), scale)
    if tries < 0:  # the reference keeps the codes of its only trial
        inverse = search.ratio(np.full_like(scale, IQ4_LEVELS[0]), search.peak(b))
    q = _nearest(inverse * b).astype(np.uint8)
    out = np.zeros(b.shape[1], IQ4_NL)
    out["d"], out["qs"] = scale, _pairs(q)
    return out.view(np.uint8).reshape(len(x), -1)


def quantize_iq4_xs(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    b = search.blocks(x, 32)
    weights = b * b if imatrix is None else block_weights(x, imatrix, 2.0, 32)
    scale = search.blocks(_fit(b, weights, 7), 8)
    d = -search.peak(scale) / _f(32)
    inverse = search.ratio(np.ones_like(d), d)
    s = np.clip(np.rint(inverse * scale), -32, 31)
    step = (d * s).T.reshape(-1)
    q = _nearest(search.ratio(np.ones_like(step), step) * b).astype(np.uint8)
    out = np.zeros(len(d), IQ4_XS)
    out["d"], out["qs"] = d, _pairs(q).reshape(-1, 128)
    s8 = (s + _f(32)).T.astype(np.uint8)
    out["scales_l"] = s8[:, 0::2] & 15 | (s8[:, 1::2] & 15) << 4
    out["scales_h"] = ((s8 >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)).sum(1)
    return out.view(np.uint8).reshape(len(x), -1)


def dequantize_iq4_nl(b: np.ndarray) -> np.ndarray:
    return b["d"].astype(_f)[:, None] * _unpairs(b["qs"])


def dequantize_iq4_xs(b: np.ndarray) -> np.ndarray:
    low = (b["scales_l"][:, :, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    high = b["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    s = (low | high.astype(np.uint8) << 4).astype(_f) - _f(32)
    step = b["d"].astype(_f)[:, None] * s
    return (_unpairs(b["qs"].reshape(-1, 16)) * step.reshape(-1, 1)).reshape(-1, 256)


def _trits(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(d [blocks], t in 0, 1, 2 as uint16 [blocks, 256])."""
    b = x.reshape(-1, 256)
    d = np.abs(b).max(1)
    return d, (search.half_away(b * search.ratio(np.ones_like(d), d)[:, None]) + 1).astype(np.uint16)


def quantize_tq1_0(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    """160 trits to 32 bytes, 80 to 16, 16 to 4; a byte is ceil(256 * base-3 number / 243). The imatrix is not used."""
    d, t = _trits(x)

    def pack(part: np.ndarray) -> np.ndarray:
        number = (part * _POWERS[: part.shape[1], None]).sum(1)
        return ((number.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)

    out = np.zeros(len(d), TQ1_0)
    out["d"] = d
    out["qs"][:, :32] = pack(t[:, :160].reshape(-1, 5, 32))
    out["qs"][:, 32:] = pack(t[:, 160:240].reshape(-1, 5, 16))
    out["qh"] = pack(t[:, 240:].reshape(-1, 4, 4))
    return out.view(np.uint8).reshape(len(x), -1)


def dequantize_tq1_0(b: np.ndarray) -> np.ndarray:
    def unpack(part: np.ndarray, count: int) -> np.ndarray:
        shifted = part[:, None] * np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]  # modulo 256, on purpose
        return (shifted.astype(np.uint16) * 3 >> 8).reshape(len(b), -1)

    t = np.concatenate([unpack(b["qs"][:, :32], 5), unpack(b["qs"][:, 32:], 5), unpack(b["qh"], 4)], 1)
    return (t.astype(_f) - _f(1)) * b["d"].astype(_f)[:, None]


def quantize_tq2_0(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    """The imatrix is not used, as in llama.cpp."""
    d, t = _trits(x)
    q = t.astype(np.uint8).reshape(-1, 2, 4, 32)
    out = np.zeros(len(d), TQ2_0)
    out["d"] = d
    out["qs"] = (q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6).reshape(-1, 64)
    return out.view(np.uint8).reshape(len(x), -1)


def dequantize_tq2_0(b: np.ndarray) -> np.ndarray:
    q = b["qs"].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return (q.reshape(-1, 256).astype(_f) - _f(1)) * b["d"].astype(_f)[:, None]
