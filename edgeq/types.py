"""The vocabulary of edgeq: frozen dataclasses, no behaviour beyond what they mean.

A `QSpec` says how a tensor is to be quantized, `QParams` holds the numbers found for it, and a `QTensor` is
integers together with those numbers. The affine mapping is that of ONNX QuantizeLinear / DequantizeLinear:

    q = saturate(round_half_even(x / scale) + zero_point)        x' = (q - zero_point) * scale
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

INT_RANGES: dict[str, tuple[int, int]] = {
    "int2": (-2, 1),
    "uint2": (0, 3),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
    # Of codebooks alone: no runtime has such integers.
    "uint3": (0, 7),
    "uint5": (0, 31),
    "uint6": (0, 63),
    "uint7": (0, 127),
}


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis`."""

    axis: int


@dataclass(frozen=True)
class PerBlock:
    """One scale for each run of `size` consecutive elements along `axis`."""

    axis: int
    size: int


Granularity = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True)
class QSpec:
    """How to quantize one tensor.

    dtype: an integer type of `INT_RANGES`. symmetric: the zero point is the middle of the type (0 for signed
    types, 2**(bits-1) for unsigned ones). narrow: signed types lose their lowest code, so that the range is
    ±(2**(bits-1) - 1). reduce_range: one bit fewer than the type has, for kernels that saturate.
    """

    dtype: str
    symmetric: bool = True
    granularity: Granularity = PerTensor()
    narrow: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in INT_RANGES:
            raise ValueError(f"unknown integer dtype {self.dtype!r}; one of {', '.join(INT_RANGES)}")

    @property
    def signed(self) -> bool:
        return not self.dtype.startswith("u")

    @property
    def bits(self) -> int:
        return int(self.dtype.lstrip("uint"))

    @property
    def qmin(self) -> int:
        low = INT_RANGES[self.dtype][0]
        if self.reduce_range and self.signed:
            low //= 2
        return low + 1 if self.narrow and self.signed else low

    @property
    def qmax(self) -> int:
        high = INT_RANGES[self.dtype][1]
        return high // 2 if self.reduce_range else high


@dataclass(frozen=True)
class Range:
    """A closed interval of real values, `lo <= hi`, both finite."""

    lo: float
    hi: float


@dataclass(frozen=True, eq=False)
class QParams:
    """scale: float32, zero_point: int32, of equal shape.

    Shape () per tensor, (C,) per channel; per block the tensor's own shape with the blocked axis divided by
    the block size (rounded up).
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: QSpec


@dataclass(frozen=True, eq=False)
class QTensor:
    """Codes and their parameters. data: the smallest numpy integer type that holds `params.spec.dtype`."""

    data: np.ndarray
    params: QParams

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix whose codes were packed as they were found: what is written of them, in an eighth of the weight's bytes.

    rows: uint8 (N, ceil(K · bits / 8)), the K codes of each output channel as `pack.packed_rows` has them. params: of
    the weight as it lies, (K, N) or (N, K), which `shape` says.
    """

    rows: np.ndarray
    params: QParams
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Coded:
    """Codes that stand for levels of any spacing:  w' = levels[code] · scale

    data: uint8, of the weight's shape. levels: float32 (L,), or one such row for each group, (*params_shape, L).
    scale: float32, as in QParams. spec: unsigned; its bits and its groups. code: the name of what fixes the levels, by
    which a target says that it has a kernel.
    """

    data: np.ndarray
    levels: np.ndarray
    scale: np.ndarray
    spec: QSpec
    code: str


@dataclass(frozen=True, eq=False)
class Correction:
    """What a layer's output lacks:  y += (x left) right,  or  y += x[…, features] right

    left: float32 (K, r), or the features, int64 (r,). right: float32 (r, N).
    """

    left: np.ndarray
    right: np.ndarray


@dataclass(frozen=True, eq=False)
class Stats:
    """What a weight algorithm may know of the input x (rows of K features) of the weight that it quantizes.

    gram: (K, K) float64, the sum of x xᵀ over `count` rows. mean_abs: (K,) float64, the mean of |x|.
    """

    gram: np.ndarray
    mean_abs: np.ndarray
    count: int


@dataclass(frozen=True, eq=False)
class Solution:
    """The numbers found for a plan: activation groups by name, weights by (node, input index), biases by node.

    A weight is in `weights`, `packed` or `codes`; what is added to a layer's output on top of it, in `corrections` by
    node.
    """

    groups: dict[str, QParams]
    weights: dict[tuple[str, int], QTensor]
    biases: dict[str, QTensor]
    codes: dict[tuple[str, int], Coded] = field(default_factory=dict)
    corrections: dict[str, tuple[Correction, ...]] = field(default_factory=dict)
    packed: dict[tuple[str, int], Packed] = field(default_factory=dict)


Progress = Callable[[str, int, int | None], None]
"""Called with a step's name, how far it is, and of how many (None where that is not known)."""


def silent(step: str, done: int, total: int | None) -> None:
    """The Progress that shows nothing."""
