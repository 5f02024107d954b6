"""An observer graph: an artifact that also tells, at each run, how far the values went that it has scales for.

    low[i] = min x_i,   high[i] = max x_i        two further outputs, float32 (n,), whatever the model is

x_i is what the i-th scale's quantizer reads, so that a range which has become too narrow shows. Nothing of the data
itself leaves the device, and the observer is as large as the artifact and some kilobytes. What feeds a reduction too
runs in float, so it is for a share of the requests, not for all.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.errors import CalibrationError
from edgeq.graph.edit import Names, add_initializer, make_node
from edgeq.passes.rescale import groups

LOW, HIGH = "edgeq_low", "edgeq_high"


def observed(model: ir.Model) -> dict[str, ir.Value]:
    """Name of a scale → the value of the main graph that it is for, in the order of the observer's outputs."""
    sources = {name: group.quantizers[0].inputs[0] for name, group in groups(model).items()}
    inside = {v for node in model.graph for v in node.outputs} | set(model.graph.inputs)
    return {name: value for name, value in sources.items() if value in inside and value is not None}


def observer(model: ir.Model) -> ir.Model:
    """Add the two outputs, in place. Raises CalibrationError for a model without Q-DQ pairs of edgeq's."""
    values, names = observed(model), Names(model)
    if not values:
        raise CalibrationError("the model has no Q-DQ pairs of edgeq's; give a static artifact")
    shape = add_initializer(model.graph, names.new("edgeq_one"), np.array([1], np.int64))
    for output, reduction in ((LOW, "ReduceMin"), (HIGH, "ReduceMax")):
        parts = []
        for name, value in values.items():
            reduced = names.new(f"{name}_{output}")
            node = make_node(reduction, [value], reduced, ir.DataType.FLOAT, ir.Shape([]), {"keepdims": 0})
            flat = make_node("Reshape", [node.outputs[0], shape], f"{reduced}_1", ir.DataType.FLOAT, ir.Shape([1]))
            model.graph.extend([node, flat])
            parts.append(flat.outputs[0])
        joined = make_node("Concat", parts, output, ir.DataType.FLOAT, ir.Shape([len(parts)]), {"axis": 0})
        model.graph.append(joined)
        model.graph.outputs.append(joined.outputs[0])
    return model
