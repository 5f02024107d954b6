"""Codes of 2, 3, 4 and 8 bits in bytes, as ONNX tensors and onnxruntime's MatMulNBits store them.

ONNX packs the flattened tensor, the first element in the lowest bits of a byte; a last partial byte is padded with
zeros (onnx.proto, TensorProto.DataType INT4 and INT2). MatMulNBits takes a weight (K, N) as unsigned codes (N, K) in
blocks along K, each block in whole bytes (onnxruntime, docs/ContribOperators.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import RecipeError
from edgeq.numerics.affine import middle, params_shape, storage_dtype
from edgeq.types import Packed, PerBlock, PerChannel, QParams, QSpec, QTensor

MATMUL_BITS = (2, 4, 8)
LEAST_BLOCK = 16  # of MatMulNBits, whose blocks are powers of two
_TILE = 1 << 19  # codes


def _pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack the last axis, padded with zeros to whole bytes."""
    per = 8 // bits
    if codes.shape[-1] % per:
        pad = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per)]
        codes = np.pad(codes, pad)
    unsigned = codes.astype(np.uint8) & np.uint8(2**bits - 1)
    out = unsigned[..., ::per].copy()
    for i in range(1, per):
        out |= unsigned[..., i::per] << np.uint8(i * bits)
    return out


def _pack_columns(codes: np.ndarray, bits: int, shift: int) -> np.ndarray:
    """Pack axis 0 of codes, seen as uint8, that `shift` makes unsigned; padded with zeros to whole bytes.

    byte = Σ (code_i + shift) 2^(bits i) = Σ code_i 2^(bits i) + shift Σ 2^(bits i)  mod 256
    """
    per, up = 8 // bits, np.uint8(2**bits % 256)
    if len(codes) % per:
        codes = np.pad(codes, ((0, -len(codes) % per), (0, 0)), constant_values=-shift % 256)
    out = codes[per - 1 :: per].copy() if per > 1 else codes
    for i in range(per - 2, -1, -1):
        out *= up  # numpy multiplies bytes many at once, and shifts them one by one
        out += codes[i::per]
    return out + np.uint8(shift * (255 // (2**bits - 1)) % 256)


def _unpack_rows(packed: np.ndarray, bits: int, length: int) -> np.ndarray:
    """The first `length` unsigned codes of the last axis."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :length]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of any shape, signed (two's complement) or not, to uint8 (ceil(size * bits / 8),), lowest bits first."""
    return _pack_rows(codes.reshape(-1), bits)


def unpack(packed: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`: codes of `shape` in `storage_dtype(dtype)`.

    Raises ValueError when there are too few bytes.
    """
    spec = QSpec(dtype)
    size = int(np.prod(shape, dtype=np.int64))
    if packed.size * 8 < size * spec.bits:
        raise ValueError(f"{packed.size} bytes are too few for {shape} of {dtype}")
    codes = _unpack_rows(packed.reshape(-1), spec.bits, size)
    if spec.signed and spec.bits < 8:
        up = np.uint8(8 - spec.bits)  # the sign bit goes to the top, and comes down arithmetically
        codes = (codes << up).view(np.int8) >> np.int8(up)
    return codes.view(storage_dtype(dtype)).reshape(shape)


@dataclass(frozen=True, eq=False)
class MatMulNBits:
    """Inputs and attributes of com.microsoft MatMulNBits for a weight (K, N), with blocks = ceil(K / block_size).

    b: uint8 (N, blocks, block_size * bits / 8). scales: float32 (N, blocks).
    zero_points: uint8 (N, ceil(blocks * bits / 8)), or None when all are 2**(bits - 1).
    """

    b: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    bits: int
    block_size: int
    k: int
    n: int


def to_matmul_nbits(q: QTensor | Packed) -> MatMulNBits:
    """The layout of MatMulNBits of a rank-2 weight, quantized per block; the blocked axis is K, the other N.

    Codes are shifted so that a symmetric spec's zero point is 2**(bits - 1). Raises RecipeError for what the kernel has
    no form for.
    """
    axis, size = _block_of(q.params.spec)
    scales, zeros = matmul_scales(q)
    return MatMulNBits(matmul_codes(q), scales, zeros, q.params.spec.bits, size, q.shape[axis], len(scales))


def matmul_scales(q: QTensor | Packed) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points of `to_matmul_nbits` alone. Raises what it does."""
    spec, axis, size = q.params.spec, *_block_of(q.params.spec)
    if len(q.shape) != 2 or spec.bits not in MATMUL_BITS or not takes_block(size):
        raise RecipeError(
            f"MatMulNBits takes rank 2, {MATMUL_BITS} bits and a block of a power of two from 16 on, "
            f"not {q.shape} of {spec.dtype} in blocks of {size}"
        )
    scales, zeros = (p if axis % 2 else p.T for p in (q.params.scale, q.params.zero_point))
    none = (zeros == 2 ** (spec.bits - 1) - _shift(spec)).all()
    return np.ascontiguousarray(scales), None if none else _pack_rows(zeros + _shift(spec), spec.bits)


def matmul_codes(q: QTensor | Packed) -> np.ndarray:
    """The codes of `to_matmul_nbits` alone."""
    spec, axis, size = q.params.spec, *_block_of(q.params.spec)
    rows = q.rows if isinstance(q, Packed) else packed_rows(q.data, spec, axis)
    blocks, block = -(-q.shape[axis] // size), size * spec.bits // 8
    if rows.shape[1] != blocks * block:
        rows = np.pad(rows, ((0, 0), (0, blocks * block - rows.shape[1])))
    return rows.reshape(-1, blocks, block)


def packed_rows(codes: np.ndarray, spec: QSpec, axis: int, out: np.ndarray | None = None) -> np.ndarray:
    """Codes of a matrix, features along `axis`, to unsigned ones in bytes: uint8 (N, ceil(K · bits / 8)).

    They are shifted as `to_matmul_nbits` says; the first feature is in a byte's lowest bits. out: where to write them.
    """
    columns = codes.T if axis % 2 else codes  # (K, N)
    k, n = columns.shape
    rows = np.empty((n, -(-k * spec.bits // 8)), np.uint8) if out is None else out
    step = max(1, _TILE // max(k, 1))
    for start in range(0, n, step):  # a tile of codes stays in the cache, and bytes are turned round, not codes
        tile = columns[:, start : start + step].view(np.uint8)
        rows[start : start + step] = _pack_columns(tile, spec.bits, _shift(spec)).T
    return rows


def packs(spec: QSpec) -> bool:
    """Has MatMulNBits a form for any matrix of such codes? One scale a channel is that of its blocks."""
    match spec.granularity:
        case PerBlock(_, size):
            return spec.bits in MATMUL_BITS and takes_block(size)
        case PerChannel():
            return spec.bits in MATMUL_BITS
    return False


def holds_three_bits(spec: QSpec) -> bool:
    """Are its codes eight of the sixteen that 4 bits have?"""
    return spec.bits == 4 and spec.reduce_range


def three_bits(b: np.ndarray) -> np.ndarray:
    """MatMulNBits' codes of such a spec, uint8 (..., 4 q), in 3 bits each: uint8 (..., 3 q).

    They are 4 to 11: the second bit of each is the opposite of its first, and tells nothing. In the first three
    quarters of the bytes it gives way to the first, third and fourth bit of the last quarter.
    """
    q = b.shape[-1] // 4
    out, last = b[..., : 3 * q] & np.uint8(0xBB), b[..., 3 * q :]
    out[..., :q] |= (last & np.uint8(0x88)) >> np.uint8(1)
    out[..., q : 2 * q] |= (last & np.uint8(0x22)) << np.uint8(1)
    out[..., 2 * q :] |= (last & np.uint8(0x11)) << np.uint8(2)
    return out


def from_matmul_nbits(m: MatMulNBits) -> QTensor:
    """The weight (N, K) of a MatMulNBits node, unsigned, per block along axis 1."""
    spec = QSpec(f"uint{m.bits}", symmetric=m.zero_points is None, granularity=PerBlock(1, m.block_size))
    blocks = params_shape((m.n, m.k), spec.granularity)[1]
    codes = _unpack_rows(m.b, m.bits, m.block_size).reshape(m.n, -1)[:, : m.k]
    if m.zero_points is None:
        zeros = np.full((m.n, blocks), 2 ** (m.bits - 1), np.int32)
    else:
        zeros = _unpack_rows(m.zero_points.reshape(m.n, -1), m.bits, blocks).astype(np.int32)
    return QTensor(np.ascontiguousarray(codes), QParams(m.scales.reshape(m.n, blocks), zeros, spec))


def _shift(spec: QSpec) -> int:
    """What makes codes unsigned, with those of a symmetric spec around the middle of the type."""
    return 2 ** (spec.bits - 1) - middle(spec)


def takes_block(size: int) -> bool:
    """Has MatMulNBits blocks of that size?"""
    return size >= LEAST_BLOCK and not size & (size - 1)


def _block_of(spec: QSpec) -> tuple[int, int]:
    if not isinstance(spec.granularity, PerBlock):
        raise RecipeError(f"MatMulNBits needs a weight quantized per block, not {spec.granularity}")
    return spec.granularity.axis, spec.granularity.size
