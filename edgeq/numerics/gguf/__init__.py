"""The block formats of GGUF files: `quantize(w, "Q4_K")` and `dequantize(data, "Q4_K")`, numpy only.

`KINDS` is the table: the type number of the file format, weights to a block, bytes to a block, and the two functions.
Without an importance matrix the codes are those of llama.cpp's `quantize_row_*_ref`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from edgeq.errors import ModelError, RecipeError
from edgeq.numerics.gguf import iquants, kquants, legacy
from edgeq.types import Stats

CHUNK = 1 << 16
"""Weights quantized at a time: a dozen float32 arrays of this many elements stay in the cache."""


@dataclass(frozen=True)
class Kind:
    """number: GGML's type number. size: weights a block. layout: one block as a numpy record."""

    number: int
    size: int
    layout: np.dtype
    quantize: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    dequantize: Callable[[np.ndarray], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes a block."""
        return self.layout.itemsize

    @property
    def halves(self) -> list[str]:
        """The float16 fields of a block, where large weights may overflow."""
        return [name for name in self.layout.names or () if self.layout[name] == np.float16]

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.nbytes / self.size


def _float(number: int, dtype: type) -> Kind:
    def encode(x: np.ndarray, imatrix: np.ndarray | None) -> np.ndarray:
        return np.ascontiguousarray(x.astype(dtype)).view(np.uint8).reshape(len(x), -1)

    layout = np.dtype([("v", "<f2" if dtype is np.float16 else f"V{np.dtype(dtype).itemsize}")])
    return Kind(number, 1, layout, encode, lambda b: b.view(dtype).astype(np.float32).reshape(-1, 1))


KINDS: dict[str, Kind] = {
    "F32": _float(0, np.float32),
    "F16": _float(1, np.float16),
    "BF16": _float(30, ml_dtypes.bfloat16),
    "Q4_0": Kind(2, 32, legacy.Q4_0, legacy.quantize_q4_0, legacy.dequantize_q4_0),
    "Q4_1": Kind(3, 32, legacy.Q4_1, legacy.quantize_q4_1, legacy.dequantize_min),
    "Q5_0": Kind(6, 32, legacy.Q5_0, legacy.quantize_q5_0, legacy.dequantize_q5_0),
    "Q5_1": Kind(7, 32, legacy.Q5_1, legacy.quantize_q5_1, legacy.dequantize_min),
    "Q8_0": Kind(8, 32, legacy.Q8_0, legacy.quantize_q8_0, legacy.dequantize_q8_0),
    "Q2_K": Kind(10, 256, kquants.Q2_K, kquants.quantize_q2_k, kquants.dequantize_q2_k),
    "Q3_K": Kind(11, 256, kquants.Q3_K, kquants.quantize_q3_k, kquants.dequantize_q3_k),
    "Q4_K": Kind(12, 256, kquants.Q4_K, kquants.quantize_q4_k, kquants.dequantize_q4_k),
    "Q5_K": Kind(13, 256, kquants.Q5_K, kquants.quantize_q5_k, kquants.dequantize_q5_k),
    "Q6_K": Kind(14, 256, kquants.Q6_K, kquants.quantize_q6_k, kquants.dequantize_q6_k),
    "IQ4_NL": Kind(20, 32, iquants.IQ4_NL, iquants.quantize_iq4_nl, iquants.dequantize_iq4_nl),
    "IQ4_XS": Kind(23, 256, iquants.IQ4_XS, iquants.quantize_iq4_xs, iquants.dequantize_iq4_xs),
    "TQ1_0": Kind(34, 256, iquants.TQ1_0, iquants.quantize_tq1_0, iquants.dequantize_tq1_0),
    "TQ2_0": Kind(35, 256, iquants.TQ2_0, iquants.quantize_tq2_0, iquants.dequantize_tq2_0),
}


MOST = 65504.0 * 128 * 33
"""Beyond the greatest float16 times the greatest scale and level of any kind."""


def kind_of(name: str) -> Kind:
    """The kind of that name. Raises RecipeError that lists the valid ones."""
    if name not in KINDS:
        raise RecipeError(f"no GGUF type {name!r}: choose one of {', '.join(KINDS)}")
    return KINDS[name]


def quantize(w: np.ndarray, kind: str, imatrix: np.ndarray | None = None, search: bool = False) -> np.ndarray:
    """Weights float [rows, K] -> uint8 [rows, K / block size * block bytes].

    imatrix: float32 [K], the mean square of the inputs that meet each column, for the kinds that can use it.
    search: IQ4_NL alone has a reference that tries one scale (`quantize_row_iq4_nl_ref`) beside the search with which
    llama.cpp writes files; True, or an imatrix, takes the search.
    Raises ModelError for a shape that does not fit, values that are not finite, or beyond the float16 scales;
    RecipeError for an unknown kind.
    """
    k = kind_of(kind)
    if w.ndim != 2 or w.shape[1] % k.size:
        raise ModelError(f"{kind} stores rows in blocks of {k.size} weights, and shape {w.shape} does not divide so")
    if imatrix is not None:
        imatrix = np.asarray(imatrix, np.float32)
        if imatrix.shape != w.shape[1:] or not np.isfinite(imatrix).all() or (imatrix < 0).any():
            raise ModelError(
                f"the importance matrix of {kind} weights {w.shape} must hold {w.shape[1]} finite values >= 0, "
                f"and has shape {imatrix.shape}"
            )
    encode = k.quantize
    if kind == "IQ4_NL" and (search or imatrix is not None):
        encode = partial(iquants.quantize_iq4_nl, tries=7)
    out = np.empty((len(w), w.shape[1] // k.size * k.nbytes), np.uint8)
    step = max(1, CHUNK // max(1, w.shape[1]))
    for i in range(0, len(w), step):
        part = np.ascontiguousarray(w[i : i + step], np.float32)
        if not np.isfinite(part).all():
            raise ModelError(f"weights {w.shape} hold NaN or infinity near row {i}, which {kind} can't store")
        if not part.size:
            continue
        with np.errstate(all="ignore"):  # what overflows is found below
            out[i : i + step] = encode(part, imatrix)
        stored = out[i : i + step].reshape(-1).view(k.layout)
        fits = not k.halves or max(part.max(), -part.min()) < MOST  # a search's squares may overflow to a scale of 0
        if not fits or not all(np.isfinite(stored[name]).all() for name in k.halves):
            raise ModelError(
                f"weights {w.shape} reach {np.abs(part).max():.3g}, beyond {kind}'s float16; use BF16 or F32"
            )
    return out


def importance(stats: Stats) -> np.ndarray:
    """The importance matrix of the weights that meet this input: its mean square, float32 [K], the Gram's diagonal."""
    return np.asarray(np.diagonal(stats.gram) / max(1, stats.count), np.float32)


def dequantize(data: np.ndarray, kind: str) -> np.ndarray:
    """uint8 [rows, bytes] -> float32 [rows, K]. Raises ModelError when the bytes are not whole blocks."""
    k = kind_of(kind)
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] % k.nbytes:
        raise ModelError(f"{kind} has blocks of {k.nbytes} bytes, and {data.dtype} of shape {data.shape} is not that")
    width = data.shape[1] // k.nbytes * k.size
    out = np.empty((len(data), width), np.float32)
    step = max(1, CHUNK // max(1, width))
    for i in range(0, len(data), step):
        part = np.ascontiguousarray(data[i : i + step])
        if part.size:
            out[i : i + step] = k.dequantize(part.reshape(-1).view(k.layout)).reshape(len(part), width)
    return out
