"""Write the same computation in the one form that integer kernels exist for.

* ReduceMean over all spatial axes of an image or volume becomes GlobalAveragePool (and a Flatten without keepdims).
* MatMul of matrices and a constant bias behind it become Gemm (onnxruntime makes that of it too, but then in float).
* Gemm's constant alpha and beta go into its weight and bias, and a bias that is no constant vector becomes an Add.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import (
    Names,
    add_initializer,
    all_graphs,
    constant,
    make_node,
    rank,
    replace,
    sole_consumer,
)


def canonicalize(model: ir.Model) -> bool:
    """Rewrite in place; returns whether anything changed."""
    names, changed = Names(model), False
    for graph in all_graphs(model):
        for node in list(graph):
            if node.domain == "" and node.op_type == "ReduceMean":
                changed |= _mean(node, graph, names)
            elif node.domain == "" and node.op_type == "Gemm":
                changed |= _gemm(node, graph, names)
            elif node.domain == "" and node.op_type == "MatMul":
                changed |= _matmul(node, graph)
    return changed


def _mean(node: ir.Node, graph: ir.Graph, names: Names) -> bool:
    source, dims = node.inputs[0], rank(node.inputs[0])
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("axes", None)
    if source is None or dims is None or dims < 4 or axes is None or source.dtype != ir.DataType.FLOAT:
        return False
    if sorted(int(a) % dims for a in np.asarray(axes).reshape(-1)) != list(range(2, dims)):
        return False
    keep = bool(node.attributes.get_int("keepdims", 1))
    shape = ir.Shape([*list(source.shape or [])[:2], *([1] * (dims - 2))])
    out = node.outputs[0]
    pool = make_node(
        "GlobalAveragePool",
        [source],
        names.new(f"{out.name}_pool"),
        source.dtype,
        shape,
        name=names.new(f"{node.name}_pool"),
    )
    graph.insert_before(node, pool)
    last = pool
    if not keep:
        last = make_node(
            "Flatten",
            [pool.outputs[0]],
            names.new(f"{out.name}_flat"),
            source.dtype,
            out.shape,
            {"axis": 1},
            name=names.new(f"{node.name}_flat"),
        )
        graph.insert_before(node, last)
    replace(node, last.outputs[0])
    return True


def _matmul(node: ir.Node, graph: ir.Graph) -> bool:
    weight, add = constant(node.inputs[1]), sole_consumer(node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain != "" or add.graph is not graph:
        return False
    source = node.inputs[0]
    bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    array = constant(bias)
    if weight is None or weight.ndim != 2 or rank(source) != 2 or source is None or source.dtype != ir.DataType.FLOAT:
        return False
    if bias is None or array is None or array.shape != (weight.shape[1],):
        return False
    out = add.outputs[0]
    gemm = make_node("Gemm", [source, node.inputs[1], bias], out.name or "", out.dtype, out.shape, name=node.name or "")
    graph.insert_before(add, gemm)
    replace(add, gemm.outputs[0])
    graph.remove(node, safe=True)
    return True


def _gemm(node: ir.Node, graph: ir.Graph, names: Names) -> bool:
    changed = False
    for attribute, index in (("alpha", 1), ("beta", 2)):
        factor = node.attributes.get_float(attribute, 1.0)
        array = constant(node.inputs[index]) if index < len(node.inputs) else None
        if factor == 1.0 or array is None:
            continue
        old = node.inputs[index]
        scaled = (array * np.float32(factor)).astype(array.dtype)
        assert old is not None
        node.replace_input_with(index, add_initializer(graph, names.new(f"{old.name}_{attribute}"), scaled))
        del node.attributes[attribute]
        changed = True
    return _gemm_bias(node, graph, names) or changed


def _gemm_bias(node: ir.Node, graph: ir.Graph, names: Names) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.dtype != ir.DataType.FLOAT or node.attributes.get_float("beta", 1.0) != 1.0:
        return False
    array, out = constant(bias), node.outputs[0]
    if array is not None and array.ndim == 1:
        return False
    if array is not None and array.ndim == 2 and array.shape[0] == 1:
        row = add_initializer(graph, names.new(f"{bias.name}_row"), array.reshape(-1))
        node.replace_input_with(2, row)
        return True
    if constant(node.inputs[1]) is None:
        return False
    node.resize_inputs(2)
    name = out.name or ""
    add = make_node("Add", [], name, out.dtype, out.shape, name=names.new(f"{node.name}_add"))
    out.replace_all_uses_with(add.outputs[0], replace_graph_outputs=True)
    out.name = names.new(f"{name}_product")
    add.resize_inputs(2)
    add.replace_input_with(0, out)
    add.replace_input_with(1, bias)
    graph.insert_after(node, add)
    return True
