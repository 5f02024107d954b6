"""GGML's k-quants: super-blocks of 256 weights whose sub-blocks carry quantized scales (and minimums).

    Q2_K  16 x 16   x' = (d * s) * q - (dmin * m)     q 2 bits, s and m 4 bits     2.625 bits a weight
    Q3_K  16 x 16   x' = (d * s) * q                  q 3 bits, s 6 bits           3.4375
    Q4_K   8 x 32   x' = (d * s) * q - (dmin * m)     q 4 bits, s and m 6 bits     4.5
    Q5_K   8 x 32   the same with q 5 bits                                         5.5
    Q6_K  16 x 16   x' = (d * s) * q                  q 6 bits, s 8 bits           6.5625

The sub-block scales are searched in float32 (`search`), quantized against the super-block's float16 d and dmin, and
the codes are then recomputed with the scales as stored. An importance matrix changes the weights of the search.
Source: ggml-quants.c of llama.cpp (`quantize_row_q*_K_ref`, `quantize_row_q*_K_impl`).
Functions take x float32 [rows, K] and return uint8 [rows, K/256 * block bytes]; the reverse takes [blocks].
"""

from __future__ import annotations

import numpy as np

from edgeq.numerics.gguf import search

SIZE = 256
Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

_f = np.float32


def block_weights(x: np.ndarray, imatrix: np.ndarray, factor: float, sub: int) -> np.ndarray:
    """imatrix * sqrt(factor * mean(x**2 of the super-block) + x**2) as [sub, sub-blocks]."""
    b = search.blocks(x, SIZE)
    square = b * b
    sigma2 = _f(factor) * search.ordered_sum(square) / _f(SIZE)
    importance = search.blocks(np.broadcast_to(imatrix, x.shape), SIZE)
    return search.blocks((importance * np.sqrt(sigma2 + square)).T, sub)


def _by_block(v: np.ndarray, count: int) -> np.ndarray:
    """[sub-blocks] -> [count, super-blocks]."""
    return search.blocks(v, count)


def _requantize(b: np.ndarray, codes: np.ndarray, d: np.ndarray, shift: np.ndarray | None, lo: int, hi: int) -> None:
    """The codes again, with scales as stored, in place; a sub-block whose scale became 0 keeps its codes."""
    with np.errstate(all="ignore"):
        level = search.nearest_int((b if shift is None else b + shift) / d)
    np.copyto(codes, np.clip(level, lo, hi) - _f(lo), where=d != 0)


def _planes(q: np.ndarray) -> np.ndarray:
    """Two low bits of codes [blocks, 256]: each run of 128 goes to 32 bytes, 32 codes to each pair of bits."""
    q = (q & 3).reshape(-1, 2, 4, 32)
    return (q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6).reshape(-1, 64)


def _unplanes(qs: np.ndarray) -> np.ndarray:
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (qs.reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, SIZE)


def _high_bits(q: np.ndarray, bit: int) -> np.ndarray:
    """Bit `bit` of codes [blocks, 256] -> [blocks, 32]: bit k of byte j belongs to code 32 k + j."""
    return np.packbits(q.reshape(-1, 8, 32) >> bit & 1, axis=1, bitorder="little").reshape(-1, 32)


def _unhigh(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits.reshape(-1, 1, 32), axis=1, bitorder="little").reshape(-1, SIZE)


def _nibbles(q: np.ndarray) -> np.ndarray:
    q = (q & 15).reshape(-1, 4, 2, 32)
    return (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)


def _unnibbles(qs: np.ndarray) -> np.ndarray:
    shifts = np.array([0, 4], np.uint8)[:, None]
    return (qs.reshape(-1, 4, 1, 32) >> shifts & 15).reshape(-1, SIZE)


def _flat(codes: np.ndarray) -> np.ndarray:
    """[sub, sub-blocks] -> uint8 [super-blocks, 256]."""
    return np.ascontiguousarray(codes.T).astype(np.uint8).reshape(-1, SIZE)


def _pack_six(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Eight 6-bit scales and eight 6-bit minimums, uint8 [8, blocks] each -> [blocks, 12]."""
    low = [s[:4] | s[4:] >> 4 << 6, m[:4] | m[4:] >> 4 << 6, s[4:] & 15 | (m[4:] & 15) << 4]
    return np.concatenate(low).T


def _unpack_six(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c = p[:, 0:4], p[:, 4:8], p[:, 8:12]
    return np.concatenate([a & 63, c & 15 | a >> 6 << 4], 1), np.concatenate([b & 63, c >> 4 | b >> 6 << 4], 1)


def _plain_scales(v: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Without an importance matrix: the largest becomes `top`. Returns (float32 step, codes), of [count, blocks]."""
    largest = np.maximum(v.max(0), _f(0))
    inverse = search.ratio(np.full_like(largest, top), largest)
    return largest / _f(top), np.clip(np.rint(inverse * v), 0, top)


def _with_minimum(
    x: np.ndarray, imatrix: np.ndarray | None, sub: int, nmax: int, top: int, trials: tuple[float, float, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The common part of Q2_K, Q4_K and Q5_K: (codes uint8 [blocks, 256], d, dmin, s, m [count, blocks] uint8)."""
    count = SIZE // sub
    b = search.blocks(x, sub)
    if imatrix is None:
        weights = np.abs(b) if sub == 16 else np.sqrt(search.ordered_sum(b * b) / _f(sub)) + np.abs(b)
        scale, shift, codes = search.affine(b, weights, nmax, *trials, absolute=sub == 16)
        d, s = _plain_scales(_by_block(scale, count), top)
        dmin, m = _plain_scales(_by_block(shift, count), top)
    else:
        weights = block_weights(x, imatrix, 1.0 if sub == 16 else 2.0, sub)
        scale, shift, codes = search.affine(b, weights, nmax, -0.9, 0.05, 36)
        importance = _by_block(search.ordered_sum(weights), count)
        d, s = search.positive(_by_block(scale, count), top, importance)
        dmin, m = search.positive(_by_block(shift, count), top, importance)
    d16, dmin16 = d.astype(np.float16), dmin.astype(np.float16)
    stored = (d16.astype(_f) * s).T.reshape(-1), (dmin16.astype(_f) * m).T.reshape(-1)
    _requantize(b, codes, *stored, 0, nmax)
    return _flat(codes), d16, dmin16, s.astype(np.uint8), m.astype(np.uint8)


def quantize_q2_k(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    q, d, dmin, s, m = _with_minimum(x, imatrix, 16, 3, 15, (-0.5, 0.1, 15))
    out = np.zeros(len(q), Q2_K)
    out["d"], out["dmin"], out["scales"], out["qs"] = d, dmin, (s | m << 4).T, _planes(q)
    return out.view(np.uint8).reshape(len(x), -1)


def quantize_q4_k(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    q, d, dmin, s, m = _with_minimum(x, imatrix, 32, 15, 63, (-1.0, 0.1, 20))
    out = np.zeros(len(q), Q4_K)
    out["d"], out["dmin"], out["scales"], out["qs"] = d, dmin, _pack_six(s, m), _nibbles(q)
    return out.view(np.uint8).reshape(len(x), -1)


def quantize_q5_k(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    q, d, dmin, s, m = _with_minimum(x, imatrix, 32, 31, 63, (-0.5, 0.1, 15))
    out = np.zeros(len(q), Q5_K)
    out["d"], out["dmin"], out["scales"], out["qs"] = d, dmin, _pack_six(s, m), _nibbles(q)
    out["qh"] = _high_bits(q, 4)
    return out.view(np.uint8).reshape(len(x), -1)


def quantize_q3_k(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    b = search.blocks(x, 16)
    if imatrix is None:
        scale, codes = search.symmetric_descent(b, 4)
        top = search.peak(_by_block(scale, 16))
        inverse = search.ratio(np.full_like(top, -32), top)
        d = search.ratio(np.ones_like(top), inverse)
        s = np.where(top != 0, np.clip(np.rint(inverse * _by_block(scale, 16)), -32, 31) + _f(32), _f(0))
    else:
        weights = block_weights(x, imatrix, 2.0, 16)
        scale, codes = search.symmetric(b, 4, weights)
        d, s = search.symmetric(_by_block(scale, 16), 32, _by_block(search.ordered_sum(weights), 16))
    d16 = d.astype(np.float16)
    _requantize(b, codes, (d16.astype(_f) * (s - _f(32))).T.reshape(-1), None, -4, 3)
    q, s8 = _flat(codes), s.T.astype(np.uint8)
    out = np.zeros(len(q), Q3_K)
    out["d"], out["qs"], out["hmask"] = d16, _planes(q), _high_bits(q, 2)
    out["scales"][:, :8] = s8[:, :8] & 15 | (s8[:, 8:] & 15) << 4
    high = (s8 >> 4).reshape(-1, 4, 4)
    out["scales"][:, 8:] = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    return out.view(np.uint8).reshape(len(x), -1)


def quantize_q6_k(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
    b = search.blocks(x, 16)
    weights = None if imatrix is None else search.blocks(np.broadcast_to(imatrix, x.shape), 16)
    scale, codes = search.symmetric(b, 32, weights)
    by_block = _by_block(scale, 16)
    top = search.peak(by_block)
    empty = np.abs(top) < search.TINY
    top = np.where(empty, _f(1), top)
    inverse = _f(-128) / top
    d16 = np.where(empty, _f(0), _f(1) / inverse).astype(np.float16)
    s = np.where(empty, _f(0), np.minimum(np.rint(inverse * by_block), 127))
    _requantize(b, codes, (d16.astype(_f) * s).T.reshape(-1), None, -32, 31)
    q = _flat(codes)
    q[empty] = 0
    out = np.zeros(len(q), Q6_K)
    low, high = (q & 15).reshape(-1, 2, 4, 32), q >> 4
    out["ql"] = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2).reshape(-1, 128)
    out["qh"], out["d"], out["scales"] = _planes(high), d16, s.T
    return out.view(np.uint8).reshape(len(x), -1)


def _spread(d: np.ndarray, s: np.ndarray) -> np.ndarray:
    """d [blocks] times s [blocks, count], each repeated over its sub-block: float32 [blocks, 256]."""
    return np.repeat(d.astype(_f)[:, None] * s.astype(_f), SIZE // s.shape[1], axis=1)


def dequantize_q2_k(b: np.ndarray) -> np.ndarray:
    return _spread(b["d"], b["scales"] & 15) * _unplanes(b["qs"]).astype(_f) - _spread(b["dmin"], b["scales"] >> 4)


def dequantize_q3_k(b: np.ndarray) -> np.ndarray:
    packed = b["scales"]
    high = packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    s = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], 1) | high.reshape(-1, 16) << 4
    q = (_unplanes(b["qs"]) | _unhigh(b["hmask"]) << 2).astype(_f) - _f(4)
    return _spread(b["d"], s.astype(np.int8) - np.int8(32)) * q


def dequantize_q4_k(b: np.ndarray) -> np.ndarray:
    s, m = _unpack_six(b["scales"])
    return _spread(b["d"], s) * _unnibbles(b["qs"]).astype(_f) - _spread(b["dmin"], m)


def dequantize_q5_k(b: np.ndarray) -> np.ndarray:
    s, m = _unpack_six(b["scales"])
    q = _unnibbles(b["qs"]) | _unhigh(b["qh"]) << 4
    return _spread(b["d"], s) * q.astype(_f) - _spread(b["dmin"], m)


def dequantize_q6_k(b: np.ndarray) -> np.ndarray:
    low = b["ql"].reshape(-1, 2, 1, 2, 32) >> np.array([0, 4], np.uint8)[:, None, None] & 15
    q = low.reshape(-1, SIZE) | _unplanes(b["qh"]) << 4
    return _spread(b["d"], b["scales"]) * (q.astype(_f) - _f(32))
