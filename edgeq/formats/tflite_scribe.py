"""`Scribe`: what the converters from ONNX to TFLite share. It holds every ONNX value as a tensor of the file, knows in
which layout and quantization it is held, and changes either when an operator asks for another.

Layout. A held tensor is the ONNX value with its axes permuted: stored = logical.transpose(perm). Convolutions and pools
ask for NHWC, that is perm (0, 2, 3, 1), and give it; element-wise operators keep what they get; so that a TRANSPOSE is
only written where two demands really meet, and a RESHAPE instead where the order of the axes longer than 1 stays.

Quantization. QuantizeLinear and DequantizeLinear are notes about values, not work: an operator whose operands are
dequantized and whose result is only quantized runs on integers. uint8 codes become int8 ones by subtracting 128, and
uint16 int16 ones by subtracting 32768.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from edgeq.errors import TargetError
from edgeq.formats.tflite_file import TfOp, TfTensor
from edgeq.graph.edit import constant, sole_consumer, static_shape
from edgeq.numerics.affine import dequantize_along

Perm = tuple[int, ...]
NHWC: Perm = (0, 2, 3, 1)
Weights = Literal["float32", "float16", "hybrid"]
# Operators that quantizing commutes with: they move or select values.
TRANSPARENT = (
    "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Identity", "DepthToSpace",
    "SpaceToDepth",
)  # fmt: skip
SIGNED_OFFSET = {"uint8": 128, "uint16": 32768}


@dataclass(frozen=True, eq=False)
class Held:
    """One ONNX value in the file. order: set after flattening NHWC features, stored[:, j] = logical[:, order[j]]."""

    tensor: TfTensor
    perm: Perm
    order: np.ndarray | None = None

    @property
    def quantized(self) -> bool:
        return self.tensor.scale is not None


@dataclass(frozen=True, eq=False)
class Const:
    """A constant of the model, in ONNX's layout; quantized where scale is set (axis: of its channels)."""

    name: str
    array: np.ndarray
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    axis: int = 0

    def real(self) -> np.ndarray:
        """Its float32 values."""
        if self.scale is None or self.zero_point is None:
            return self.array.astype(np.float32) if self.array.dtype == np.float16 else self.array
        return dequantize_along(self.array, self.scale, self.zero_point, self.axis)


def moves_nothing(shape: Sequence[int], perm: Perm) -> bool:
    """Whether transposing a tensor of this logical shape leaves its elements in order."""
    long = [axis for axis in perm if shape[axis] != 1]
    return long == sorted(long)


@dataclass(eq=False)
class Scribe:
    """The file as it grows. weights: how float constants of linear layers are stored."""

    weights: Weights = "float32"
    tensors: dict[str, TfTensor] = field(default_factory=dict)
    ops: list[TfOp] = field(default_factory=list)
    held: dict[ir.Value, Held] = field(default_factory=dict)
    consts: dict[ir.Value, Const] = field(default_factory=dict)
    fused: set[ir.Node] = field(default_factory=set)
    _moved: dict[tuple[str, str], TfTensor] = field(default_factory=dict)

    # Tensors and operators

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", like: TfTensor | None = None) -> TfTensor:
        """A new activation; `like` gives it another's type and quantization."""
        new = TfTensor(self._free(name), tuple(shape), dtype)
        if like is not None:
            new = replace(new, dtype=like.dtype, scale=like.scale, zero_point=like.zero_point, axis=like.axis)
        self.tensors[new.name] = new
        return new

    def store(self, name: str, data: np.ndarray, **quantization: Any) -> TfTensor:
        """A new constant."""
        data = np.ascontiguousarray(data).reshape(data.shape)
        new = TfTensor(self._free(name), data.shape, data.dtype.name, data, **quantization)
        self.tensors[new.name] = new
        return new

    def indices(self, name: str, values: Sequence[int]) -> TfTensor:
        return self.store(name, np.array(values, np.int32))

    def emit(self, code: str, inputs: Sequence[TfTensor | None], out: TfTensor, **options: Any) -> TfTensor:
        self.ops.append(TfOp(code, tuple(t.name if t else "" for t in inputs), (out.name,), options))
        return out

    def _free(self, name: str) -> str:
        free, number = name, 0
        while free in self.tensors:
            number += 1
            free = f"{name};{number}"
        return free

    # Values

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        shape = static_shape(value)
        if shape is None:
            raise TargetError(
                str(value.name), f"its shape {value.shape} is not fixed, and TFLite files need fixed shapes",
                "fix the model's input dimensions first",
            )  # fmt: skip
        return shape

    def const(self, value: ir.Value | None) -> Const | None:
        """The constant behind a value: an initializer, or the DequantizeLinear of one."""
        if value is None:
            return None
        if value in self.consts:
            return self.consts[value]
        array = constant(value)
        if array is None:
            return None
        self.consts[value] = Const(str(value.name), np.asarray(array))
        return self.consts[value]

    def number(self, value: ir.Value | None) -> float | None:
        """The one number that a constant value is, else None."""
        found = self.const(value)
        return float(found.real().item()) if found is not None and found.array.size == 1 else None

    def ints(self, node: ir.Node, index: int) -> list[int] | None:
        """A constant integer operand such as axes or pads, None where it is absent."""
        if index >= len(node.inputs) or node.inputs[index] is None:
            return None
        found = self.const(node.inputs[index])
        if found is None:
            raise refused(node, f"its operand {index} is computed at run time", "export with constant parameters")
        return [int(v) for v in found.array.ravel()]

    def get(self, value: ir.Value | None, perm: Perm | None = None) -> Held:
        """The value, in the given layout or whichever it has. A flattened value is never reordered: see `order`."""
        assert value is not None
        if value not in self.held:
            found = self.const(value)
            if found is None:
                raise TargetError(str(value.name), "the value has no tensor in the TFLite file; is the graph sorted?")
            array = found.array.astype(np.int32) if found.array.dtype == np.int64 else found.array
            array = found.real() if array.dtype == np.float16 else array
            quantization = {}
            if found.scale is not None:
                quantization = {"scale": found.scale, "zero_point": found.zero_point, "axis": found.axis}
            self.held[value] = Held(self.store(found.name, array, **quantization), tuple(range(array.ndim)))
        found_held = self.held[value]
        return found_held if perm is None else self.relayout(found_held, perm)

    def relayout(self, held: Held, perm: Perm) -> Held:
        """The same value in another layout; a shorter one is extended with leading axes of 1 first."""
        source, rank = held.tensor, len(held.perm)
        if held.perm == perm:
            return held
        logical = [0] * rank
        for stored, axis in enumerate(held.perm):
            logical[axis] = source.shape[stored]
        if rank < len(perm):
            plain = self.relayout(held, tuple(range(rank))).tensor
            logical = [1] * (len(perm) - rank) + logical
            return self.relayout(Held(self.reshape(plain, logical), tuple(range(len(perm)))), perm)
        shape = [logical[axis] for axis in perm]
        order = tuple(held.perm.index(axis) for axis in perm)
        key = (source.name, str(order))
        if key not in self._moved:
            if source.data is not None:
                axis = order.index(source.axis) if source.scale is not None and source.scale.size > 1 else 0
                self._moved[key] = self.store(
                    source.name, source.data.transpose(order),
                    scale=source.scale, zero_point=source.zero_point, axis=axis,
                )  # fmt: skip
            elif moves_nothing(source.shape, order):
                self._moved[key] = self.reshape(source, shape)
            else:
                out = self.tensor(source.name, shape, like=source)
                self._moved[key] = self.emit("TRANSPOSE", [source, self.indices("perm", order)], out)
        return Held(self._moved[key], perm)

    def reshape(self, source: TfTensor, shape: Sequence[int]) -> TfTensor:
        if source.data is not None and (source.scale is None or source.scale.size == 1):
            data = source.data.reshape(tuple(shape))
            return self.store(source.name, data, scale=source.scale, zero_point=source.zero_point)
        out = self.tensor(source.name, shape, like=source)
        return self.emit("RESHAPE", [source, self.indices("shape", shape)], out, newShape=list(shape))

    # Quantization

    def real(self, held: Held) -> Held:
        """The value as float32."""
        source = held.tensor
        if not held.quantized or source.dtype == "int32":
            return held
        key = (source.name, "float")
        if key not in self._moved:
            if source.data is not None and source.scale is not None and source.zero_point is not None:
                values = Const("", source.data, source.scale, np.asarray(source.zero_point), source.axis).real()
                self._moved[key] = self.store(source.name, values)
            else:
                self._moved[key] = self.emit("DEQUANTIZE", [source], self.tensor(source.name, source.shape))
        return replace(held, tensor=self._moved[key])

    def requantize(self, held: Held, like: TfTensor) -> Held:
        """The value in the type, scale and zero point of `like`, by a QUANTIZE where they differ."""
        if same_quantization(held.tensor, like):
            return held
        out = self.tensor(held.tensor.name, held.tensor.shape, like=like)
        return replace(held, tensor=self.emit("QUANTIZE", [held.tensor], out))

    def target(self, value: ir.Value) -> TfTensor | None:
        """The quantization in which a value is wanted: that of the QuantizeLinear nodes that alone read it, directly
        or behind operators that only move or select codes, if they agree."""
        wanted = self._wanted(value)
        if not wanted or any(w is None or not same_quantization(w, wanted[0]) for w in wanted):  # type: ignore[arg-type]
            return None
        return wanted[0]

    def _wanted(self, value: ir.Value) -> list[TfTensor | None]:
        readers = list(value.consumers())
        if value.is_graph_output() or not readers:
            return [None]
        found: list[TfTensor | None] = []
        for node in readers:
            if node.op_type == "QuantizeLinear":
                found.append(self.quantization(node))
            else:
                behind = (self._wanted(v) for v in node.outputs) if node.op_type in TRANSPARENT else [[None]]
                found.extend(w for each in behind for w in each)
        return found

    def quantization(self, node: ir.Node) -> TfTensor:
        """Type, scale and zero point of a QuantizeLinear or DequantizeLinear, as a tensor without shape."""
        scale, zero = self.const(node.inputs[1]), self.const(node.inputs[2]) if len(node.inputs) > 2 else None
        if scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
            raise refused(node, "its scale or zero point is computed at run time", "quantize with constant parameters")
        codes = self.const(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        plain = np.uint8 if codes is None else codes.array.dtype  # without a zero point: 0, of the codes' own type
        points = np.zeros(scale.array.shape, plain) if zero is None else zero.array
        kind = points.dtype.name
        if kind not in ("int8", "uint8", "int16", "uint16", "int32"):
            raise refused(node, f"TFLite has no quantized {kind}", "quantize to 8 or 16 bits")
        signed = points.astype(np.int64).ravel() - SIGNED_OFFSET.get(kind, 0)
        return TfTensor("", (), kind.lstrip("u"), None, scale.array.astype(np.float32).ravel(), signed)

    def fuse_activation(self, value: ir.Value) -> tuple[str, ir.Value]:
        """(fused activation, the value after it): a Relu or Clip that alone reads `value` joins its producer."""
        follower = sole_consumer(value)
        name = activation(self, follower) if follower is not None else None
        if follower is None or name is None:
            return "NONE", value
        self.fused.add(follower)
        return name, follower.outputs[0]


def activation(scribe: Scribe, node: ir.Node) -> str | None:
    """The name of TFLite's fused activation that a node is, if any."""
    if node.op_type == "Relu":
        return "RELU"
    if node.op_type != "Clip":
        return None
    bounds = [scribe.const(v) if v is not None else None for v in (*node.inputs[1:], None, None)[:2]]
    values = tuple(None if b is None else float(b.real().ravel()[0]) for b in bounds)
    return {(0.0, None): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get(values)  # type: ignore[arg-type]


def same_quantization(a: TfTensor, b: TfTensor) -> bool:
    return (
        a.dtype == b.dtype
        and np.array_equal(a.scale if a.scale is not None else [], b.scale if b.scale is not None else [])
        and np.array_equal(
            a.zero_point if a.zero_point is not None else [], b.zero_point if b.zero_point is not None else []
        )
    )


def refused(node: ir.Node, reason: str, alternatives: str = "") -> TargetError:
    """The error for a node that TFLite can't express."""
    return TargetError(f"{node.op_type} {node.name or node.outputs[0].name!r}", reason, alternatives)
