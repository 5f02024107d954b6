"""Types and shapes of every value, by ONNX's own shape inference, however large the model is.

That inference takes a serialized model, which protobuf limits to 2 GiB. It is given one without its weights: a tensor
over a kilobyte, too large to be a shape itself, is replaced by the claim that its data lies in another file.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgeq.graph.edit import all_graphs, copied, values_of

SMALL = 1024  # bytes
MOST_ELEMENTS = 1 << 16  # of the data that inference itself computes, to know shapes
MOST_RANK = 64


def infer(model: ir.Model) -> None:
    """Set in place what can be inferred of types and shapes; what can't keeps what it has."""
    held = {
        value: tensor
        for graph in all_graphs(model)
        for value in graph.initializers.values()
        if (tensor := value.const_value) is not None and tensor.nbytes > SMALL
    }
    try:
        for value, tensor in held.items():
            shape = copied(tensor.shape)
            value.const_value = ir.ExternalTensor("absent", 0, 0, tensor.dtype, shape=shape, name=value.name or "")
        bare = ir.to_proto(model)
    finally:
        for value, tensor in held.items():
            value.const_value = tensor
    try:
        known = ir.from_proto(onnx.shape_inference.infer_shapes(bare, data_prop=not _grows(model)))
    except Exception:  # the C++ inference raises many types over models that run all the same
        return
    for graph, inferred in zip(all_graphs(model), all_graphs(known), strict=True):
        found = {value.name: value for value in values_of(inferred)}
        for value in values_of(graph):
            other = found.get(value.name)
            if other is not None and other.type is not None:
                value.type = other.type
            if other is not None and other.shape is not None and other.shape != value.shape:
                value.shape = other.shape


def _grows(model: ir.Model) -> bool:
    """Whether a chain of Concat makes more of the constants than any shape has: inference would compute all of it."""
    sizes: dict[ir.Value, int] = {}
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            sizes[value] = value.const_value.size if value.const_value is not None else 0
        for node in graph:
            read = [sizes.get(value, 0) for value in node.inputs if value is not None]
            size = (sum(read) if node.op_type == "Concat" else max(read, default=0)) if 0 not in read else 0
            size = MOST_RANK if node.op_type in ("Shape", "Size") else size
            if node.op_type == "Concat" and size > MOST_ELEMENTS:
                return True
            sizes.update((value, size) for value in node.outputs)
    return False
