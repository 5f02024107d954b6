"""Make intermediate values readable as graph outputs, those in the bodies of `If` included.

A value of an If body leaves through a new output of the If node; the other branch gives an empty tensor in its place,
so an output of no elements means that the branch was not taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import io
from edgeq.graph.edit import Names, all_graphs, make_node, values_of


def observable(model: Path, names: Iterable[str], folder: Path) -> tuple[Path, dict[str, str]]:
    """Write a copy of the model that outputs the named values; gives its path and {value: output name}.

    Raises ModelError for a name that the model doesn't have, or that is in the body of a Loop or Scan.
    """
    graph_model = io.load(model)
    values = {v.name: v for g in all_graphs(graph_model) for v in values_of(g)}
    owners = {
        id(body): node
        for graph in all_graphs(graph_model)
        for node in graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for body in [attribute.as_graph()]
    }
    names_used = Names(graph_model)
    main, found = graph_model.graph, {}
    for name in dict.fromkeys(names):
        if name not in values:
            raise ModelError(f"{model}: no value {name!r} in the graph; take names from its nodes' outputs")
        value = values[name]
        while value.graph is not main:
            owner = owners.get(id(value.graph))
            if owner is None or owner.op_type != "If":
                raise ModelError(f"{model}: value {name!r} is inside a loop body and can't be observed")
            value = _hoist(value, owner, names_used)
        found[name] = value.name or ""
        if not value.is_graph_output():
            main.outputs.append(value)
    target = folder / "observed.onnx"
    io.save(graph_model, target, beside=True)
    return target, found


def _hoist(value: ir.Value, owner: ir.Node, names: Names) -> ir.Value:
    """Give `owner` (an If) one more output that is `value` of one of its bodies."""
    for attribute in owner.attributes.values():
        body = attribute.as_graph()
        if body is value.graph:  # by way of Identity, since a body may not name one output twice
            name = names.new(f"{value.name}_inside")
            copy = make_node("Identity", [value], name, value.dtype, value.shape)
            body.append(copy)
            body.outputs.append(copy.outputs[0])
            continue
        name = names.new(f"{value.name}_absent")
        empty = ir.node("Constant", inputs=[], attributes={"value": ir.tensor(np.zeros(0, np.float32))}, name=name)
        empty.outputs[0].name = name
        empty.outputs[0].type, empty.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([0])
        body.append(empty)
        body.outputs.append(empty.outputs[0])
    owner.resize_outputs(len(owner.outputs) + 1)
    out = owner.outputs[-1]
    out.name, out.type = names.new(f"{value.name}_seen"), value.type
    return out
