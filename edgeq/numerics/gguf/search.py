"""The scale searches of GGML's block formats, vectorised over blocks.

Every array is float32 of shape [n, blocks]: one column is one block of n weights. The reference accumulates its
sums one element after another in float32, so `ordered_sum` does the same: results agree bit for bit with
`ggml-quants.c` compiled without fused multiply-add. Integers are carried as float32, in which they are exact.
Source: ggml-quants.c of llama.cpp (`make_qx_quants`, `make_qkx2_quants`, `make_qkx3_quants`, `make_q3_quants`,
`make_qp_quants`).
"""

from __future__ import annotations

import numpy as np

TINY = np.float32(1e-15)
"""A block whose largest magnitude is below this is stored as zeros."""


def ordered_sum(a: np.ndarray) -> np.ndarray:
    """Sum over axis 0, strictly in order and in float32: numpy's own sum adds pairwise, which rounds differently."""
    total = a[0].copy()
    for row in a[1:]:
        total += row
    return total


def blocks(x: np.ndarray, size: int) -> np.ndarray:
    """[..., K] -> [size, blocks], contiguous: the layout of this module."""
    return np.ascontiguousarray(x.reshape(-1, size).T)


def peak(x: np.ndarray) -> np.ndarray:
    """[n, blocks] -> [blocks]: the signed value of largest magnitude, the first one of equals; never -0."""
    return np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0] + np.float32(0)


def lowest(x: np.ndarray) -> np.ndarray:
    """[n, blocks] -> [blocks]: the minimum, with the sign of the first zero where that is the minimum."""
    first = (x == x.min(0)).argmax(0)  # argmin does not promise the first among 0 and -0
    return np.take_along_axis(x, first[None], 0)[0]


def ratio(a: np.ndarray | np.floating, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is 0 or the quotient is not finite."""
    with np.errstate(all="ignore"):
        q = np.asarray(a / b, np.float32)
    return np.where(np.isfinite(q), q, np.float32(0))


def half_away(x: np.ndarray) -> np.ndarray:
    """C's roundf: to nearest, halves away from zero. (np.rint sends halves to even.)"""
    whole = np.trunc(x)
    return whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), np.float32(0))


def nearest_int(x: np.ndarray) -> np.ndarray:
    """GGML's rounding by adding 1.5 * 2**23, halves to even; wraps beyond ±2**22 as the reference does."""
    bits = (x + np.float32(12582912)).view(np.int32)
    return ((bits & 0x7FFFFF) - 0x400000).astype(np.float32)


def symmetric(x: np.ndarray, nmax: int, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """x ~ scale * (code - nmax), code in 0 .. 2*nmax-1: 19 trial scales around -nmax / peak(x).

    Each trial rounds, then takes the least-squares scale sum(w x l) / sum(w l l); the one of largest
    sum(w x l)**2 / sum(w l l) wins. `weights` defaults to x**2. Returns (scale [blocks], codes [n, blocks]).
    """
    top = peak(x)
    empty = np.abs(top) < TINY
    top = np.where(empty, np.float32(1), top)
    w = x * x if weights is None else weights
    wx = w * x
    scale = best = codes = np.zeros(0, np.float32)
    for step in (0, *range(-9, 0), *range(1, 10)):
        level = np.clip(np.rint(x * (-(np.float32(nmax) + np.float32(0.1) * np.float32(step)) / top)), -nmax, nmax - 1)
        wl = w * level
        sumlx, suml2 = ordered_sum(wx * level), ordered_sum(wl * level)
        fitted = ratio(sumlx, suml2)
        if step == 0:
            scale, best, codes = fitted, fitted * sumlx, level
            continue
        better = (suml2 > 0) & (sumlx * sumlx > best * suml2)
        scale = np.where(better, fitted, scale)
        best = np.where(better, fitted * sumlx, best)
        np.copyto(codes, level, where=better)
    return np.where(empty, np.float32(0), scale), np.where(empty, np.float32(0), codes + nmax)


def affine(
    x: np.ndarray, weights: np.ndarray, nmax: int, start: float, step: float, tries: int, absolute: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x ~ scale * code - shift, code in 0 .. nmax, shift >= 0: tries + 1 trial scales, each with its least squares.

    Trial i rounds with (nmax + start + step * i) / (max - min), solves the weighted 2x2 normal equations for scale
    and minimum (a positive minimum becomes 0), and is kept when the weighted error, of |d| if `absolute` else of
    d**2, falls. Returns (scale [blocks], shift [blocks], codes [n, blocks]).
    """
    one = np.float32(1)
    low, high = lowest(x), x.max(0)
    low = np.where(low > 0, np.float32(0), low)
    flat = high <= low
    high = np.where(flat, low + one, high)
    sum_w, sum_x = ordered_sum(weights), ordered_sum(weights * x)

    def error(scale: np.ndarray, minimum: np.ndarray, codes: np.ndarray) -> np.ndarray:
        diff = scale * codes + minimum - x
        return ordered_sum(weights * (np.abs(diff) if absolute else diff * diff))

    inverse = np.float32(nmax) / (high - low)
    scale, minimum = one / inverse, low
    codes = np.clip(np.rint(inverse * (x - low)), 0, nmax)
    best = error(scale, minimum, codes)
    with np.errstate(all="ignore"):  # blocks with no solution divide by zero and are masked by `det > 0`
        for i in range(tries + 1):
            inverse = (np.float32(start) + np.float32(step) * np.float32(i) + np.float32(nmax)) / (high - minimum)
            level = np.clip(np.rint(np.nan_to_num(inverse * (x - minimum))), 0, nmax)
            wl = weights * level
            sum_l, sum_l2, sum_xl = ordered_sum(wl), ordered_sum(wl * level), ordered_sum(wl * x)
            det = sum_w * sum_l2 - sum_l * sum_l
            new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
            new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det
            new_scale = np.where(new_min > 0, sum_xl / sum_l2, new_scale)
            new_min = np.where(new_min > 0, np.float32(0), new_min)
            now = error(new_scale, new_min, level)
            better = (det > 0) & (now < best)
            best, scale = np.where(better, now, best), np.where(better, new_scale, scale)
            minimum = np.where(better, new_min, minimum)
            np.copyto(codes, level, where=better)
    zero = np.float32(0)
    return np.where(flat, zero, scale), -minimum, np.where(flat, zero, codes)


def _descend(x: np.ndarray, w: np.ndarray, codes: np.ndarray, lo: int, hi: int, rest_positive: bool) -> np.ndarray:
    """Five rounds of coordinate descent on the codes, in place, to raise sum(w x l)**2 / sum(w l l).

    Returns the least-squares scale. A block without a change in one round has none in the next, so no early exit
    is needed for the same result.
    """
    wx = w * x
    sumlx, suml2 = ordered_sum(wx * codes), ordered_sum(w * codes * codes)
    with np.errstate(all="ignore"):  # lanes that divide by zero are masked
        for _ in range(5):
            for i in range(len(x)):
                rest_lx = sumlx - wx[i] * codes[i]
                rest_l2 = suml2 - w[i] * codes[i] * codes[i]
                level = np.clip(nearest_int(x[i] * rest_l2 / rest_lx), lo, hi)
                new_lx = rest_lx + wx[i] * level
                new_l2 = rest_l2 + w[i] * level * level
                better = (rest_lx > 0) & (level != codes[i]) & (new_l2 > 0)
                if rest_positive:
                    better &= rest_l2 > 0
                better &= new_lx * new_lx * suml2 > sumlx * sumlx * new_l2
                codes[i] = np.where(better, level, codes[i])
                sumlx, suml2 = np.where(better, new_lx, sumlx), np.where(better, new_l2, suml2)
    return np.where(suml2 > 0, ratio(sumlx, suml2), np.float32(0))


def symmetric_descent(x: np.ndarray, nmax: int) -> tuple[np.ndarray, np.ndarray]:
    """x ~ scale * (code - nmax) with weights x**2, by coordinate descent from -nmax / peak(x) (Q3_K)."""
    top = peak(x)
    empty = np.abs(top) < TINY
    top = np.where(empty, np.float32(1), top)
    codes = np.clip(np.rint(x * (np.float32(-nmax) / top)), -nmax, nmax - 1)
    scale = _descend(x, x * x, codes, -nmax, nmax - 1, rest_positive=False)
    return np.where(empty, np.float32(0), scale), np.where(empty, np.float32(0), codes + nmax)


def positive(x: np.ndarray, nmax: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x >= 0 ~ scale * code, code in 0 .. nmax: 9 trial scales by weighted squared error, then coordinate descent.

    It quantizes the scales and minimums of the k-quants' sub-blocks. Returns (scale [blocks], codes [n, blocks]).
    """
    top = np.maximum(x.max(0), np.float32(0))
    empty = top < TINY
    top = np.where(empty, np.float32(1), top)
    chosen: np.ndarray = np.zeros(0, np.float32)
    best = chosen
    for step in (0, *range(-4, 0), *range(1, 5)):
        inverse = (np.float32(0.1) * np.float32(step) + np.float32(nmax)) / top
        diff = x - (np.float32(1) / inverse) * np.minimum(np.rint(inverse * x), nmax)
        mse = ordered_sum(weights * diff * diff)
        if step == 0:
            chosen, best = inverse, mse
            continue
        better = mse < best
        chosen, best = np.where(better, inverse, chosen), np.where(better, mse, best)
    codes = np.clip(np.rint(chosen * x), 0, nmax)
    scale = _descend(x, weights, codes, 0, nmax, rest_positive=True)
    return np.where(empty, np.float32(0), scale), np.where(empty, np.float32(0), codes)
