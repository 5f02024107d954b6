"""Requantization in standard ONNX operators on 64-bit integers, exactly as `numerics.fixedpoint.requantize`.

With z = acc · q and t = 31 - shift, q and shift of `fixedpoint.multiplier`,

    single   r = floor((z + 2^(t-1)) / 2^t)
    double   r = floor((z + k + n·[z + k >= 0]) / 2^t),  n = 2^31, k = 2^30 + 2^(t-1) - 2^31, where t > 31; else single

The second line is gemmlowp's two roundings in one shift: with h = floor((z + 2^30) / 2^31) they give
floor((h + 2^(e-1) - [h < 0]) / 2^e), e = t - 31, and floors of floors are one floor. Moving the threshold of the tie
from h = 0 to h = 1 - 2^(e-1) changes nothing, since all h between round to zero.

ONNX has a right shift of unsigned numbers only, so that the sum gets an offset which keeps it from being negative and
is a multiple of 2^t. All arithmetic is modulo 2^64. Channels share one t where that fits (q is scaled by 2^(T - t),
which is exact); `uniform` is False where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.numerics.fixedpoint import INT32_MAX

_U64 = 1 << 64


@dataclass(frozen=True, eq=False)
class Requantize:
    """u = ((acc·q + add) + tie·((acc·q + add) >> sign)) >> shift, then + offset where that is not zero.

    q, add, tie, offset: uint64 (offset int64), one for each channel or one for all; shift likewise, a scalar where
    `uniform`. tie is None without a tie correction. lo, hi: between which u is clamped; the low byte of what is left,
    plus zero, is the stored code.
    """

    q: NDArray[np.uint64]
    add: NDArray[np.uint64]
    shift: NDArray[np.uint64]
    lo: int
    hi: int
    zero: int
    tie: NDArray[np.uint64] | None = None
    sign: int = 63
    offset: NDArray[np.int64] | None = None

    @property
    def uniform(self) -> bool:
        return self.offset is None


def constants(
    q: Sequence[int], shift: Sequence[int], bias: Sequence[int], bound: Sequence[int],
    zero: int, lo: int, hi: int, rounding: str, what: str,
) -> Requantize:  # fmt: skip
    """The constants for clamp(multiply(acc + bias, q, shift) + zero, lo, hi), all codes counted from the lowest.

    q, shift, bias, bound: one entry a channel; bound is the largest |acc + bias| there can be. Raises ModelError,
    naming `what`, where an accumulator can leave the range that all runtimes agree on.
    """
    if max(bound) > INT32_MAX:
        raise ModelError(
            f"{what}: an accumulator may reach {max(bound)}, beyond int32; use fewer weight bits, or split the layer"
        )
    wraps = [b << s for b, s in zip(bound, shift, strict=True) if s > 0]
    if rounding == "double" and max(wraps, default=0) > INT32_MAX:
        raise ModelError(f"{what}: its output scale is so small that accumulators wrap in 32 bits; recalibrate it")
    alive = [b * m >= (1 << (30 - s)) - (1 << 31) and m > 0 for m, s, b in zip(q, shift, bound, strict=True)]
    q = [m if a else 0 for m, a in zip(q, alive, strict=True)]  # others round to zero whatever is accumulated
    t = [31 - s if a else 31 for s, a in zip(shift, alive, strict=True)]
    two = [rounding == "double" and a and s < 0 for s, a in zip(shift, alive, strict=True)]

    def sums(shifts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """(q, k, n) of each channel for a common, or its own, shift."""
        up = [s - own for s, own in zip(shifts, t, strict=True)]
        n = [1 << (31 + u) if d else 0 for u, d in zip(up, two, strict=True)]
        k = [(1 << (s - 1)) + (v >> 1) - v for s, v in zip(shifts, n, strict=True)]
        return [m << u for m, u in zip(q, up, strict=True)], k, n

    common = max(t)
    scaled, k, n = sums([common] * len(q))
    largest = max(b * m + abs(v) for b, m, v in zip(bound, scaled, k, strict=True))
    tie = _array(n) if any(n) else None
    power = max(largest.bit_length(), common + 9)
    if power <= 62:
        # In codes, a multiple of 256, which the low byte forgets; one bit where it must show the sign, which leaves no
        # room for the zero point beside it.
        blocks = 1 << (power - common) if tie is not None else -(-largest >> (common + 8)) << 8
        inside, after = (0, zero) if tie is not None else (zero, 0)
        add = [b * m + v + ((blocks + inside) << common) for b, m, v in zip(bias, scaled, k, strict=True)]
        low = blocks - after
        return Requantize(
            _array(scaled), _array(add), np.array(common, np.uint64), low + lo, low + hi, after, tie, power
        )
    scaled, k, n = sums(t)
    add = [b * m + v + (1 << 63) for b, m, v in zip(bias, scaled, k, strict=True)]
    offset = np.array([zero - (1 << (63 - s)) for s in t], np.int64)
    tie = _array(n) if any(n) else None
    return Requantize(_array(scaled), _array(add), np.array(t, np.uint64), lo, hi, 0, tie, 63, offset)


def _array(values: Sequence[int]) -> NDArray[np.uint64]:
    """Modulo 2^64; a scalar where all are equal."""
    array = np.array([v % _U64 for v in values], np.uint64)
    return array[0].reshape(()) if (array == array[0]).all() else array


def evaluate(acc: np.ndarray, r: Requantize) -> np.ndarray:
    """What the operators compute of int32 accumulators with the channels last, in numpy: the stored codes, uint8."""
    w = acc.astype(np.int64).astype(np.uint64) * r.q + r.add
    if r.tie is not None:
        w = w + (w >> np.uint64(r.sign)) * r.tie
    u = w >> r.shift
    if r.offset is not None:
        return np.clip(u.astype(np.int64) + r.offset, r.lo, r.hi).astype(np.uint8)
    return np.clip(u, np.uint64(r.lo), np.uint64(r.hi)).astype(np.uint8) + np.uint8(r.zero)
