"""int8 weights as uint8: the same sums by kernels that don't saturate on x86-64 without VNNI.

    (q - z) · s = ((q + 128) - (z + 128)) · s

Products of u8·u8 are added in 32 bits on every processor, those of u8·s8 on some in saturating 16 (see
`edgeq.numerics.saturation`). onnxruntime has the same rewriting as `session.x64quantprecision`; version 1.32 refuses
models in which it meets a zero point twice, and gives int8 activations weights that no kernel takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import MS_DOMAIN, Names, add_initializer, all_graphs, constant

QDQ = ("Conv", "Gemm", "MatMul")
ON_CODES = {
    ("", "MatMulInteger"): ("MatMul", ((1, 3),)),
    ("", "QLinearConv"): ("Conv", ((3, 5),)),
    ("", "QLinearMatMul"): ("MatMul", ((3, 5),)),
    (MS_DOMAIN, "QGemm"): ("Gemm", ((3, 5),)),
    (MS_DOMAIN, "DynamicQuantizeLSTM"): ("MatMul", ((1, 9), (2, 11))),
}
"""What an operator on codes computes, and which of its inputs are a weight and its zero point.

The activation is the first, and its zero point the third, as DequantizeLinear has them; the LSTM makes its own codes.
ConvInteger multiplies from the left with its weights, and signed codes there get a kernel that adds in 32 bits.
"""


@dataclass(frozen=True)
class Met:
    """Constant int8 weights that meet uint8 activations in `node`, which computes `op`: Conv, Gemm or MatMul.

    holder: the node that has them as input `at`, its DequantizeLinear or itself, and their zero point as `zero_at`.
    """

    node: ir.Node
    op: str
    holder: ir.Node
    at: int
    zero_at: int
    codes: np.ndarray


def met(model: ir.Model) -> Iterator[Met]:
    """All of them, in graph order; a weight that two nodes read comes twice, unless it was changed in between."""
    for graph in all_graphs(model):
        for node in list(graph):
            for op, holder, at, zero_at in _places(node):
                codes = constant(holder.inputs[at])
                if codes is not None and codes.dtype == np.int8:
                    yield Met(node, op, holder, at, zero_at, codes)


def _places(node: ir.Node) -> Iterator[tuple[str, ir.Node, int, int]]:
    op, places = ON_CODES.get((node.domain, node.op_type), ("", ()))
    if places and (node.op_type == "DynamicQuantizeLSTM" or _is_unsigned(node)):
        yield from ((op, node, at, zero_at) for at, zero_at in places)
    elif node.op_type in QDQ and node.domain == "":
        read, weight = (None if v is None else v.producer() for v in node.inputs[:2])
        ends = [p is not None and p.op_type == "DequantizeLinear" for p in (read, weight)]
        if all(ends) and read is not None and weight is not None and _is_unsigned(read):
            yield node.op_type, weight, 0, 2


def unsigned_weights(model: ir.Model) -> int:
    """Rewrite, in place, the constant int8 weights that meet uint8 activations. Gives how many."""
    names = Names(model)
    return sum(_rewrite(weight, names) for weight in met(model))


def _rewrite(weight: Met, names: Names) -> bool:
    """Whether there was something to do: not where the zero point is computed."""
    node, given = weight.holder, weight.holder.inputs[weight.zero_at : weight.zero_at + 1]
    zero = constant(given[0]) if given else None
    if zero is None and any(value is not None for value in given):
        return False
    if zero is None:
        scale = constant(node.inputs[1]) if node.op_type == "DequantizeLinear" else None
        zero = np.zeros(() if scale is None else scale.shape, np.int8)
    if len(node.inputs) <= weight.zero_at:
        node.resize_inputs(weight.zero_at + 1)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for place, array in ((weight.at, weight.codes), (weight.zero_at, zero)):
        old = node.inputs[place]
        moved = (array.astype(np.int16) + 128).astype(np.uint8)
        name = names.new(f"{old.name if old is not None else node.name}_unsigned")
        node.replace_input_with(place, add_initializer(graph, name, moved))
    return True


def _is_unsigned(node: ir.Node) -> bool:
    """Whether the first input's codes are uint8, as their type, their zero point or their maker says."""
    told = {value.dtype for value in node.inputs[:3:2] if value is not None} - {None}
    maker = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if told or maker is None:
        return ir.DataType.UINT8 in told
    if maker.op_type == "QuantizeLinear" and len(maker.inputs) > 2 and maker.inputs[2] is not None:
        return maker.inputs[2].dtype == ir.DataType.UINT8
    kind = maker.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8
    return maker.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and kind == ir.DataType.UINT8
