"""int8 weights as uint8: the same sums by kernels that don't saturate on x86-64 without VNNI.

    (q - z) · s = ((q + 128) - (z + 128)) · s

Products of u8·u8 are added in 32 bits on every processor, those of u8·s8 on some in saturating 16 (see
`edgeq.numerics.saturation`). onnxruntime has the same rewriting as `session.x64quantprecision`; version 1.32 refuses
models in which it meets a zero point twice, and gives int8 activations weights that no kernel takes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import MS_DOMAIN, Names, add_initializer, all_graphs, constant

QDQ = ("Conv", "Gemm", "MatMul")
ON_CODES = {
    ("", "ConvInteger"): ((1, 3),),
    ("", "MatMulInteger"): ((1, 3),),
    ("", "QLinearConv"): ((3, 5),),
    ("", "QLinearMatMul"): ((3, 5),),
    (MS_DOMAIN, "QGemm"): ((3, 5),),
    (MS_DOMAIN, "DynamicQuantizeLSTM"): ((1, 9), (2, 11)),
}
"""Which inputs of an operator on codes are a weight and its zero point.

The activation is the first, and its zero point the third, as DequantizeLinear has them; the LSTM makes its own codes.
"""


def unsigned_weights(model: ir.Model) -> int:
    """Rewrite, in place, the constant int8 weights that meet uint8 activations. Gives how many."""
    count, names = 0, Names(model)
    for graph in all_graphs(model):
        for node in list(graph):
            places = ON_CODES.get((node.domain, node.op_type), ())
            if places and (node.op_type == "DynamicQuantizeLSTM" or _is_unsigned(node)):
                count += sum(_rewrite(node, at, zero_at, graph, names) for at, zero_at in places)
            elif node.op_type in QDQ and node.domain == "":
                read, weight = (None if v is None else v.producer() for v in node.inputs[:2])
                ends = [p is not None and p.op_type == "DequantizeLinear" for p in (read, weight)]
                if all(ends) and read is not None and weight is not None and _is_unsigned(read):
                    home = weight.graph if isinstance(weight.graph, ir.Graph) else graph
                    count += _rewrite(weight, 0, 2, home, names)
    return count


def _rewrite(node: ir.Node, at: int, zero_at: int, graph: ir.Graph, names: Names) -> bool:
    """Whether there was something to do: not for a weight that is uint8, by an earlier reader of the same codes too."""
    codes, given = constant(node.inputs[at]), node.inputs[zero_at] if len(node.inputs) > zero_at else None
    zero = constant(given)
    if codes is None or codes.dtype != np.int8 or (given is not None and zero is None):
        return False
    if zero is None:
        scale = constant(node.inputs[1]) if node.op_type == "DequantizeLinear" else None
        zero = np.zeros(() if scale is None else scale.shape, np.int8)
    if len(node.inputs) <= zero_at:
        node.resize_inputs(zero_at + 1)
    for place, array in ((at, codes), (zero_at, zero)):
        old = node.inputs[place]
        moved = (array.astype(np.int16) + 128).astype(np.uint8)
        name = names.new(f"{old.name if old is not None else node.name}_unsigned")
        node.replace_input_with(place, add_initializer(graph, name, moved))
    return True


def _is_unsigned(node: ir.Node) -> bool:
    """Whether the first input's codes are uint8, as their type or their zero point says."""
    told = [value.dtype for value in node.inputs[:3:2] if value is not None]
    return ir.DataType.UINT8 in told
