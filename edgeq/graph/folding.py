"""Factors of a value's channels taken in by what computes the value, exactly:  x / s  in the place of  x.

Normalizations take them into scale and bias, linear layers into their columns, constants of Mul and Add into
themselves. On the way there they go through Relu, Reshape, Transpose, one side of a product, and what attention weighs:
P V has the factors of V. A value that anything else reads keeps its size (a residual), and so does a graph's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from edgeq.graph import io
from edgeq.graph.edit import Names, add_initializer, constant

NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
MANY = 1 << 22
"""Elements of a constant that is scaled anew whenever it is read, and not held."""


def linear(node: ir.Node) -> bool:
    """Does the node multiply a value by a constant matrix?"""
    if node.op_type not in ("MatMul", "Gemm") or node.domain != "" or node.attributes.get_int("transA", 0) != 0:
        return False
    value, data = node.inputs[1], node.inputs[0]
    flat = value is not None and value.const_value is not None and len(value.const_value.shape) == 2
    return flat and not value.is_graph_input() and data is not None and data.const_value is None  # type: ignore[union-attr]


def transposed(node: ir.Node) -> bool:
    """Is a linear node's weight stored as (outputs N, inputs K), not (K, N)?"""
    return node.attributes.get_int("transB", 0) == 1


def matrix(node: ir.Node) -> np.ndarray:
    """The weight, (inputs K, outputs N)."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight.T if transposed(node) else weight


def scale_inputs(node: ir.Node, scale: np.ndarray, names: Names) -> None:
    """Multiply a linear node's weight by the factors (K,) that its input was divided by."""
    _scale(node, 1, scale if transposed(node) else scale[:, None], names)


def divide(value: ir.Value, scale: np.ndarray, readers: Iterable[ir.Node], names: Names | None) -> str:
    """Have the value's producers give value / scale, which `readers` alone may see. Gives why they can't, or nothing.

    scale: positive, of a shape that broadcasts to the value's. names: of the model; None to change nothing.
    """
    why = _divide(value, np.asarray(scale), set(readers), None)
    return why or (_divide(value, np.asarray(scale), set(readers), names) if names is not None else "")


def unfolded(node: ir.Node, model: ir.Model) -> str:
    """Why nothing can take in factors of a linear node's input, or nothing."""
    value = node.inputs[0]
    assert value is not None
    if node.graph is not model.graph:
        return "it is in the body of a branch or loop"
    other = next((use.node for use in value.uses() if not linear(use.node) or use.idx != 0), None)
    if other is not None:
        return f"{other.op_type} {other.name!r} reads its input too"
    return divide(value, np.ones(matrix(node).shape[0]), (use.node for use in value.uses()), None)


def put(node: ir.Node, index: int, array: np.ndarray | ir.TensorProtocol, names: Names) -> None:
    """Give the node a constant, float32, under the old one's name where nobody else reads that."""
    old = node.inputs[index] if index < len(node.inputs) else None
    tensor = array if isinstance(array, ir.TensorProtocol) else ir.tensor(np.ascontiguousarray(array, np.float32))
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        tensor.name = old.name
        old.const_value = tensor
        return
    assert isinstance(node.graph, ir.Graph)
    base = old.name if old is not None else f"{node.name}_bias"
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    name = names.new(f"{base}_own")
    tensor.name = name
    node.replace_input_with(index, add_initializer(node.graph, name, tensor))


def _scale(node: ir.Node, index: int, factor: np.ndarray, names: Names) -> None:
    """Multiply a constant; a large one when it is read."""
    old = node.inputs[index].const_value  # type: ignore[union-attr]
    assert old is not None

    def make() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(io.mapped(old) * factor, np.float32))

    lazy = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=old.shape) if old.size >= MANY else make()  # type: ignore[arg-type]
    put(node, index, lazy, names)


def _divide(value: ir.Value | None, scale: np.ndarray, readers: set[ir.Node], names: Names | None) -> str:
    """`divide`, of a value on the way."""
    node = value.producer() if value is not None else None
    if value is None or node is None:
        return f"{value.name if value is not None else 'nothing'!r} is an input of the graph"
    here = f"{node.op_type} {node.name!r}"
    other = next((use.node for use in value.uses() if use.node not in readers), None)
    if other is not None or value.is_graph_output():
        return f"what {here} gives " + (f"also goes to {other.op_type} {other.name!r}" if other else "is an output")
    shape = list(value.shape) if value.shape is not None else []
    scale = scale.reshape((1,) * (len(shape) - scale.ndim) + scale.shape)
    if scale.ndim > len(shape) or any(n not in (1, dim) for n, dim in zip(scale.shape, shape, strict=True)):
        return f"the channels of what {here} gives are others"
    match node.op_type if node.domain == "" or node.op_type in NORMALIZATIONS else "":
        case op if op in NORMALIZATIONS:
            return _constants(node, range(1, len(node.inputs)), scale, names)
        case "MatMul" | "Gemm" if linear(node):
            if scale.size != shape[-1]:
                return f"{here} has the same columns for several factors"
            why = _constants(node, range(2, len(node.inputs)), scale, names)
            if not why and names is not None:
                columns = scale.reshape(-1)
                _scale(node, 1, 1 / (columns[:, None] if transposed(node) else columns), names)
            return why
        case "MatMul" | "Mul" if node.inputs[0] is node.inputs[1]:
            return f"{here} squares it"
        case "MatMul" if scale.shape[-2:-1] == (1,):
            return _divide(node.inputs[1], scale, {node}, names)
        case "Relu":
            return _divide(node.inputs[0], scale, {node}, names)
        case "Reshape" | "Transpose":
            source = node.inputs[0]
            before = _transposed(node, scale) if node.op_type == "Transpose" else _reshaped(source, shape, scale)
            return _divide(source, before, {node}, names) if before is not None else f"{here} mixes channels"
        case "Mul" | "Add" if any(constant(v) is not None for v in node.inputs):
            fixed = [i for i in (0, 1) if constant(node.inputs[i]) is not None]
            why = _constants(node, fixed, scale, names)
            if why or node.op_type == "Mul" or len(fixed) == 2:
                return why
            return _divide(node.inputs[1 - fixed[0]], scale, {node}, names)
        case "Mul":
            able = [v for v in node.inputs if not _divide(v, scale, {node}, None)]
            return _divide(able[0] if able else node.inputs[0], scale, {node}, names)
    return f"{here} takes no factors in"


def _constants(node: ir.Node, indices: Iterable[int], scale: np.ndarray, names: Names | None) -> str:
    """Divide constants that hold a number for each channel, all or none."""
    arrays = {i: constant(node.inputs[i]) for i in indices if node.inputs[i] is not None}
    factors = scale.reshape(scale.shape[next((i for i, n in enumerate(scale.shape) if n > 1), scale.ndim - 1) :])
    for array in arrays.values():
        if array is None or array.ndim < factors.ndim or np.broadcast_shapes(array.shape, factors.shape) != array.shape:
            return f"{node.op_type} {node.name!r} has no constant with a number for each channel"
    if names is not None:
        for index, array in arrays.items():
            put(node, index, array / factors, names)
    return ""


def _transposed(node: ir.Node, scale: np.ndarray) -> np.ndarray:
    turned = node.attributes.get_ints("perm", list(range(scale.ndim))[::-1])
    return scale.transpose(np.argsort(turned))


def _reshaped(source: ir.Value | None, shape: Sequence[object], scale: np.ndarray) -> np.ndarray | None:
    """Factors before a Reshape to `shape`: those of last axes that it splits or joins, None where it does more."""
    before = list(source.shape) if source is not None and source.shape is not None else []
    first = next((i for i, n in enumerate(scale.shape) if n > 1), scale.ndim - 1)
    tail = shape[first:]
    for cut in range(len(before) - 1, -1, -1):
        kept = before[cut:]
        if all(isinstance(n, int) for n in (*tail, *kept)) and np.prod(kept) == np.prod(tail):  # type: ignore[arg-type]
            return np.broadcast_to(scale.reshape(scale.shape[first:]), tail).reshape(kept)  # type: ignore[arg-type]
    return None
