"""Weight-only quantization: codes of 2 to 8 bits in the file, real numbers in and out of every node.

    MatMul, Gemm     com.microsoft MatMulNBits: 2, 3 (`graph/three_bits.py`), 4 or 8 bits, multiplied as packed
    Gather           com.microsoft GatherBlockQuantized: only the rows looked up are ever real numbers
    other layouts    DequantizeLinear → MatMul, which onnxruntime makes real in each run

One scale a channel is that of all its blocks, stored once. Scales are stored in half precision where all of them are
normal numbers in it, behind a Cast that runtimes fold.
"""

from __future__ import annotations

from dataclasses import replace as replace_fields
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from edgeq.files import let_go
from edgeq.graph import three_bits
from edgeq.graph.edit import MS_DOMAIN, add_initializer, drop_unused_initializers, nodes_named, replace
from edgeq.numerics import pack
from edgeq.passes import coded, corrected
from edgeq.passes.builder import FLOAT, Builder
from edgeq.planning.plan import PACKED, Plan, weight_axis
from edgeq.target import Target
from edgeq.types import Packed, PerBlock, QParams, QTensor, Solution

_FIRST = 64  # rows by which most columns of scales are told apart
WIDEST = 256  # block of MatMulNBits and GatherBlockQuantized
INPUT_BLOCK = 32
"""Of MatMulNBits at level 4, which rounds its input to int8 block by block, however many of them share a scale."""
Codes = TypeVar("Codes", QTensor, Packed)
OPSET = {2: 25, 4: 21, 8: 21}
"""The first opset whose DequantizeLinear takes codes of so many bits."""
TYPES = {
    "int2": ir.DataType.INT2, "uint2": ir.DataType.UINT2, "int4": ir.DataType.INT4, "uint4": ir.DataType.UINT4,
    "int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8,
}  # fmt: skip


def apply(model: ir.Model, plan: Plan, solution: Solution, target: Target) -> ir.Model:
    """Rewrite in place every node whose weight the plan stores, and return the model."""
    corrected.add(model, solution)
    coded.write(model, solution, target)
    writer = _Writer(model, solution, target)
    packed = plan.decided(PACKED)
    for node in nodes_named(model, {name for name, _ in (*solution.weights, *solution.packed) if name in packed}):
        writer.rewrite(node)
    for function in model.functions.values():
        function.opset_imports[""] = model.opset_imports[""]
    drop_unused_initializers(model)
    return model


class _Writer:
    def __init__(self, model: ir.Model, solution: Solution, target: Target) -> None:
        self.model, self.solution, self.target, self.build = model, solution, target, Builder(model)
        self.stored: dict[tuple[str, bytes], list[ir.Value | None]] = {}
        self.places: dict[bytes, ir.Value] = {}
        self.written: np.ndarray | None = None  # what the weight written last was read from

    def rewrite(self, node: ir.Node) -> None:
        key, channel = (node.name or "", 0 if node.op_type == "Gather" else 1), weight_axis(node, "channel")
        if key in self.solution.packed:
            self._nbits(node, in_blocks(self.solution.packed[key], channel))
            return
        tensor = in_blocks(self.solution.weights[key], channel)
        granularity = tensor.params.spec.granularity
        if node.op_type == "Gather":
            self._table(node, unsigned(tensor))
        elif isinstance(granularity, PerBlock) and pack.takes_block(granularity.size) and tensor.data.ndim == 2:
            self._nbits(node, tensor)
        else:
            self._dequantize(node, tensor)

    def _nbits(self, node: ir.Node, tensor: Codes) -> None:
        if self.target.accuracy_level == 4:
            tensor = finer(tensor, INPUT_BLOCK)
        source, (k, n), granularity = node.inputs[1], tensor.shape, tensor.params.spec.granularity
        assert source is not None
        assert isinstance(granularity, PerBlock)
        key: tuple[str, bytes] = self.build.key(source, _held(tensor), tensor.params.scale)
        if key not in self.stored:
            base = source.name or "weight"
            scales, zeros = pack.matmul_scales(tensor)
            zero = None if zeros is None else self.build.init(f"{base}_zero_point", zeros)
            packed = self._packed(f"{base}_q", tensor, scales.shape)
            self.stored[key] = [packed, self._scales(f"{base}_scale", scales), zero]
        if granularity.axis % 2:
            k, n = n, k
        attributes = {
            "K": k, "N": n, "bits": tensor.params.spec.bits, "block_size": granularity.size,
            "accuracy_level": self.target.accuracy_level,
        }  # fmt: skip
        inputs = [node.inputs[0], *self.stored[key]]
        replace(node, self.build.product(node, "MatMulNBits", inputs, attributes))

    def _scales(self, name: str, scales: np.ndarray) -> ir.Value:
        """Scales (N, blocks). A column like the one before it is not stored again, but looked up once, at loading."""
        fresh = _differs(scales[:_FIRST])
        if not fresh.all():
            fresh = _differs(scales)
        if fresh.all():
            return self.build.reals(name, scales)
        held = self.build.reals(name, scales[:, fresh])
        place = np.cumsum(fresh) - 1
        if place.tobytes() not in self.places:
            self.places[place.tobytes()] = self.build.init("scale_of_block", place)
        inputs: list[ir.Value | None] = [held, self.places[place.tobytes()]]
        return self.build.first("Gather", inputs, f"{name}_spread", FLOAT, ir.Shape(scales.shape), {"axis": 1})

    def _packed(self, name: str, tensor: QTensor | Packed, blocks: tuple[int, ...]) -> ir.Value:
        """MatMulNBits' codes. Those that lie on disk are read and packed when they are written, and not all at once."""
        spec = tensor.params.spec
        three = pack.holds_three_bits(spec)

        def codes() -> np.ndarray:
            whole = pack.matmul_codes(tensor)
            return pack.three_bits(whole) if three else whole

        def make() -> ir.TensorProtocol:
            if self.written is not None:
                let_go(self.written)  # not sooner: rows are written from where they lie
            self.written = _held(tensor)
            return ir.tensor(codes())

        if isinstance(_held(tensor), np.memmap):
            free = self.build.names.new(name)
            size = tensor.params.spec.granularity.size  # type: ignore[union-attr]
            shape = ir.Shape([*blocks, size * (3 if three else spec.bits) // 8])
            lazy = ir.LazyTensor(make, dtype=ir.DataType.UINT8, shape=shape, name=free)
            value = add_initializer(self.model.graph, free, lazy)
        else:
            value = self.build.init(name, codes())
        return three_bits.widened(self.model, value, self.build.names) if three else value

    def _dequantize(self, node: ir.Node, tensor: QTensor) -> None:
        """A weight that DequantizeLinear makes real, laid out as onnxruntime's fusion wants it."""
        source, spec = node.inputs[1], tensor.params.spec
        assert source is not None
        self.model.opset_imports[""] = max(self.model.opset_imports.get("", 0), OPSET[spec.bits])
        granularity = spec.granularity
        attributes: dict[str, Any] = {"axis": getattr(granularity, "axis", 0)}
        if isinstance(granularity, PerBlock):
            attributes["block_size"] = granularity.size
        codes, scale, zero = tensor.data, tensor.params.scale, tensor.params.zero_point
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:  # only an untransposed weight fuses
            codes, scale, zero = codes.T, scale.T, zero.T
            attributes["axis"] = 1 - attributes["axis"] % 2
        base = source.name or "weight"
        inputs: list[ir.Value | None] = [
            self._codes(f"{base}_q", codes, spec.dtype),
            self.build.reals(f"{base}_scale", scale),
        ]
        if zero.any():
            inputs.append(self._codes(f"{base}_zero_point", zero.astype(codes.dtype), spec.dtype))
        real = self.build.before(node, "DequantizeLinear", inputs, "weight", ir.Shape(codes.shape), attributes)
        if node.op_type == "Gemm":
            replace(node, self.build.product(node, "MatMul", [node.inputs[0], real], {}))
        else:
            node.replace_input_with(1, real)

    def _table(self, node: ir.Node, tensor: QTensor) -> None:
        source, spec = node.inputs[0], tensor.params.spec
        assert source is not None
        assert isinstance(spec.granularity, PerBlock)
        base = source.name or "table"
        key = self.build.key(source, tensor.data, tensor.params.scale)
        if key not in self.stored:
            codes, zero = tensor.data, tensor.params.zero_point
            found: list[ir.Value | None] = [
                self._codes(f"{base}_q", codes, spec.dtype),
                self.build.reals(f"{base}_scale", tensor.params.scale),
            ]
            if zero.any():
                found.append(self._codes(f"{base}_zero_point", zero.astype(codes.dtype), spec.dtype))
            self.stored[key] = found
        codes_value, *rest = self.stored[key]
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": spec.granularity.size, "bits": spec.bits}
        inputs = [codes_value, node.inputs[1], *rest]
        shape = node.outputs[0].shape
        replace(node, self.build.before(node, "GatherBlockQuantized", inputs, "rows", shape, attributes, MS_DOMAIN))

    def _codes(self, name: str, codes: np.ndarray, dtype: str) -> ir.Value:
        if dtype.endswith("8"):
            return self.build.init(name, codes)
        free = self.build.names.new(name)
        packed = pack.pack(np.ascontiguousarray(codes), int(dtype.lstrip("uint")))
        tensor = ir.PackedTensor(packed, TYPES[dtype], shape=ir.Shape(codes.shape), name=free)
        return add_initializer(self.model.graph, free, tensor)


def _differs(scales: np.ndarray) -> np.ndarray:
    """Which columns are not like the one before."""
    return np.append(True, (scales[:, 1:] != scales[:, :-1]).any(0))


def _held(tensor: QTensor | Packed) -> np.ndarray:
    return tensor.rows if isinstance(tensor, Packed) else tensor.data


def in_blocks(tensor: Codes, channel: int) -> Codes:
    """A matrix with a scale a channel, or one for all, as one whose blocks have it; anything else as it is."""
    spec = tensor.params.spec
    if isinstance(spec.granularity, PerBlock) or len(tensor.shape) != 2:
        return tensor
    axis = 1 - channel % 2
    length = tensor.shape[axis]
    size = length & -length  # the greatest power of two that divides it
    size = min(size, WIDEST) if size >= 64 else 128
    count = -(-length // size)
    wide = tensor.shape[1 - axis]
    scale, zero = (
        np.repeat(np.expand_dims(np.broadcast_to(p, wide), axis), count, axis)
        for p in (tensor.params.scale, tensor.params.zero_point)
    )
    params = QParams(scale, zero, replace_fields(spec, granularity=PerBlock(axis, size)))
    return replace_fields(tensor, params=params)


def finer(tensor: Codes, size: int) -> Codes:
    """Blocks of at most `size`, each with the scale of the larger one that it is of."""
    spec = tensor.params.spec
    assert isinstance(spec.granularity, PerBlock)
    axis, wide = spec.granularity.axis, spec.granularity.size
    if wide <= size:
        return tensor
    block = np.arange(-(-tensor.shape[axis] // size)) * size // wide
    scale, zero = (p.take(block, axis) for p in (tensor.params.scale, tensor.params.zero_point))
    params = QParams(scale, zero, replace_fields(spec, granularity=PerBlock(axis, size)))
    return replace_fields(tensor, params=params)


def unsigned(tensor: QTensor) -> QTensor:
    """8-bit codes as uint8: GatherBlockQuantized takes no int8."""
    spec = tensor.params.spec
    if spec.dtype != "int8":
        return tensor
    codes = (tensor.data.astype(np.int16) + 128).astype(np.uint8)
    return QTensor(
        codes, QParams(tensor.params.scale, tensor.params.zero_point + 128, replace_fields(spec, dtype="uint8"))
    )
