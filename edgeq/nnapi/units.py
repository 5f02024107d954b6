"""A QDQ graph as onnxruntime's providers see it: nodes, joined with the DequantizeLinear and QuantizeLinear around.

Source: onnxruntime, core/providers/shared/node_unit and core/optimizer/qdq_transformer/selectors_actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import constant, is_constant, sole_consumer, static_shape
from edgeq.planning.plan import walk
from edgeq.types import INT_RANGES

Q, DQ = "QuantizeLinear", "DequantizeLinear"
EPSILON = float(np.finfo(np.float32).eps)  # what onnxruntime allows when it takes a Clip out
# Operators that are joined with the Q and DQ around them, and how many leading inputs must be dequantized; 0 for all.
JOINED = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "Max", "Min"), 0),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "PRelu"), 2),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool", "Reshape", "Flatten", "Transpose", "Resize"), 1),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Split", "Slice", "Gather", "Pad", "DepthToSpace", "SpaceToDepth"), 1),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Sigmoid", "Tanh", "LeakyRelu", "Relu", "Elu", "Gelu"), 1),
    **dict.fromkeys(("HardSwish", "HardSigmoid", "Clip", "Sqrt", "Exp", "Log", "Abs", "Neg", "Floor", "ReduceMean"), 1),
}


@dataclass(frozen=True, eq=False)
class Operand:
    """value: codes, or floats where no Q or DQ is around it."""

    value: ir.Value
    around: ir.Node | None = None

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def scale(self) -> np.ndarray | None:
        """float32, () or (channels,); None when it isn't quantized, or not by a constant."""
        found = constant(self.around.inputs[1]) if self.around is not None else None
        return None if found is None else found.astype(np.float32)

    @property
    def zero_point(self) -> np.ndarray | None:
        """Zeros where the model has none; None when it isn't quantized, or not by a constant."""
        if self.around is None:
            return None
        given = self.around.inputs[2] if len(self.around.inputs) > 2 else None
        return constant(given) if given is not None else np.zeros((), np.int64)

    @property
    def dtype(self) -> str:
        return self.value.dtype.name.lower() if self.value.dtype else "unknown"

    @property
    def nbytes(self) -> int:
        """0 where the shape isn't known."""
        shape = static_shape(self.value)
        return prod(shape) * -(-self.value.dtype.bitwidth // 8) if shape is not None and self.value.dtype else 0


@dataclass(frozen=True, eq=False)
class Unit:
    """node, with `around`: the Q and DQ that were joined to it, those of constants and shared ones included, and a Relu
    or Clip that changes no code.

    inputs: None for an input left out; beside the node's own also what its subgraphs read.
    """

    node: ir.Node
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]
    around: tuple[ir.Node, ...] = ()

    @property
    def name(self) -> str:
        return self.node.name or self.outputs[0].name

    @property
    def op(self) -> str:
        return self.node.op_type

    @property
    def joined(self) -> bool:
        return bool(self.around)

    @property
    def quantized(self) -> bool:
        """Does it take or give codes of its own account: joined with Q and DQ, or one of these itself?"""
        return self.joined or self.op in (Q, DQ)

    def reads(self) -> Iterator[Operand]:
        """What is computed before it."""
        for operand in self.inputs:
            if operand is not None and not is_constant(operand.value):
                yield operand


def units(graph: ir.Graph) -> list[Unit]:
    """All of the main graph, in its order. A DequantizeLinear with readers outside of units is one too."""
    joined = {node: unit for node in graph if (unit := _join(node)) is not None}
    written = {node for unit in joined.values() for node in unit.around if node.op_type != DQ}
    read = {node for unit in joined.values() for node in unit.around if node.op_type == DQ}
    absorbed = {
        node
        for node in read
        if not node.outputs[0].is_graph_output() and all(use.node in joined for use in node.outputs[0].uses())
    }
    found = []
    for node in graph:
        if node in joined:
            found.append(joined[node])
        elif node not in written and node not in absorbed:
            found.append(_single(node))
    return found


def _join(node: ir.Node) -> Unit | None:
    """The unit of a node whose inputs are dequantized and whose only output is quantized, once."""
    if node.op_type not in JOINED or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return None
    inputs: list[Operand | None] = []
    around: list[ir.Node] = []
    for index, value in enumerate(node.inputs):
        source = value.producer() if value is not None else None
        if source is not None and source.op_type == DQ:
            inputs.append(Operand(source.inputs[0], source) if source.inputs[0] is not None else None)
            around.append(source)
        elif value is not None and (JOINED[node.op_type] == 0 or index < JOINED[node.op_type]):
            return None
        else:
            inputs.append(None if value is None else Operand(value))
    after = sole_consumer(node.outputs[0])
    if after is not None and after.op_type in ("Relu", "Clip"):
        behind = sole_consumer(after.outputs[0])
        if behind is not None and behind.op_type == Q and _vanishes(after, Operand(behind.outputs[0], behind)):
            around.append(after)
            after = behind
    if not around or after is None or after.op_type != Q:
        return None
    return Unit(node, tuple(inputs), (Operand(after.outputs[0], after),), (*around, after))


def _vanishes(activation: ir.Node, codes: Operand) -> bool:
    """Does no code mean a number that the Relu or Clip would change? onnxruntime then takes it out at level 1."""
    limits = [0.0, np.inf]
    if activation.op_type == "Clip":
        for i in (1, 2):
            given = activation.inputs[i] if i < len(activation.inputs) else None
            bound = constant(given)
            if given is not None and bound is None:
                return False
            limits[i - 1] = float(bound.reshape(())) if bound is not None else (-np.inf, np.inf)[i - 1]
    scale, zero = codes.scale, codes.zero_point
    if scale is None or zero is None or codes.dtype not in INT_RANGES:
        return False
    low, high = (np.float32(code - zero.astype(np.int64)) * scale for code in INT_RANGES[codes.dtype])
    return bool((low >= limits[0] - EPSILON).all() and (high <= limits[1] + EPSILON).all())


def _single(node: ir.Node) -> Unit:
    if node.op_type == DQ and node.inputs[0] is not None:
        return Unit(node, (Operand(node.inputs[0], node),), (Operand(node.outputs[0]),))
    if node.op_type == Q and node.inputs[0] is not None:
        return Unit(node, (Operand(node.inputs[0]),), (Operand(node.outputs[0], node),))
    inputs = [None if v is None else Operand(v) for v in node.inputs]
    return Unit(node, (*inputs, *_captured(node)), tuple(Operand(v) for v in node.outputs))


def _captured(node: ir.Node) -> Iterator[Operand]:
    """What the node's subgraphs read of the graph that it is in."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner, _ in walk(attribute.as_graph()):
                yield from (Operand(v) for v in inner.inputs if v is not None and v.graph is node.graph)
            yield from (Operand(v) for v in attribute.as_graph().outputs if v.graph is node.graph)
