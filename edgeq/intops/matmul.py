"""Exact integer matrix products at BLAS speed, and BATCH_MATMUL.

A floating-point product of integers is exact, in any order of summation and with or without fused
multiply-adds, as long as no partial sum can exceed the integers the type represents: 2**24 in float32, 2**53 in
float64. Every partial sum of column n of x @ w is at most max|x| * sum_k |w[k, n]|, so that

    max|x| * max_n sum_k |w[k, n]| < 2**24   float32
                                   < 2**53   float64, always true of int8 and int16 below 2**22 features

decides which BLAS is used. With weights of 8 bits and uniform codes float32 reaches about 2000 features, with
the usual bell-shaped ones 4000; the plain bound K * 255 * 127 < 2**24 would stop at 518.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.intops.quant import Quant, check_int32
from edgeq.numerics.fixedpoint import Rounding, multiplier, requantize

FLOAT32_EXACT, FLOAT64_EXACT = float(2**24), float(2**53)


def largest(x: np.ndarray) -> float:
    """max|x|, 0 of an empty array."""
    return float(max(-int(x.min()), int(x.max()), 0)) if x.size else 0.0


def exact_type(bound: float) -> type[np.float32] | type[np.float64]:
    """The floating-point type in which sums bounded by `bound` are exact. Raises ValueError beyond 2**53."""
    if bound < FLOAT32_EXACT:
        return np.float32
    if bound < FLOAT64_EXACT:
        return np.float64
    raise ValueError(f"integer sums of up to {bound:.3g} are not exact in float64")


def product_bound(x: np.ndarray, w: np.ndarray) -> float:
    """An upper bound of every partial sum of x (..., M, K) @ w (..., K, N)."""
    if w.size == 0:
        return 0.0
    return largest(x) * float(np.abs(w.astype(np.float64)).sum(axis=-2).max())


def exact_matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x (..., M, K) @ w (..., K, N) of integers (any type that holds them), exactly, as float32 or float64.

    The result holds integers; `.astype(np.int64)` is lossless. Raises ValueError where float64 could not.
    """
    dtype = exact_type(product_bound(x, w))
    return np.asarray(np.matmul(x.astype(dtype, copy=False), w.astype(dtype, copy=False)))


@dataclass(frozen=True)
class MatMulParams:
    """adj_x, adj_y: the operand is stored with its last two dimensions exchanged."""

    x: Quant
    y: Quant
    out: Quant
    adj_x: bool = False
    adj_y: bool = False
    rounding: Rounding = "double"


def batch_matmul(x: np.ndarray, y: np.ndarray, params: MatMulParams) -> np.ndarray:
    """BATCH_MATMUL: x (..., M, K) by y (..., K, N), both quantized per tensor with any zero point; leading
    dimensions broadcast. int8 (or uint8) in and out. Raises ModelError on an int32 overflow."""
    a, b = params.x.shifted(x), params.y.shifted(y)
    a = np.swapaxes(a, -1, -2) if params.adj_x else a
    b = np.swapaxes(b, -1, -2) if params.adj_y else b
    acc = exact_matmul(a, b)
    check_int32(acc, "BATCH_MATMUL", product_bound(a, b))
    q, shift = multiplier(params.x.scale * params.y.scale / params.out.scale)
    out = params.out
    return requantize(acc, q, shift, out.zero_point, out.lo, out.hi, params.rounding, dtype=out.dtype)


OPS = {"BATCH_MATMUL": batch_matmul}
