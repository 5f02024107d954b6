"""How far the float model can be from an artifact, by the artifact's own scales: intervals carried along its graph.

Every value is what the artifact computes (ONNX's reference evaluator) and a radius around it that holds what the float
model computes. A rounding to codes adds half a step, an operator what it can make of its inputs' radii. Clipping to
the range adds nothing where that range holds the float values: it takes both to the nearest point of it.
"""

import numpy as np
import onnx
from onnx import helper as h
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

SLOPES = {"Sigmoid": 0.25, "Tanh": 1.0, "HardSwish": 1.5, "LeakyRelu": 1.0, "Neg": 1.0, "Abs": 1.0, "Relu": 1.0,
          "Clip": 1.0, "HardSigmoid": 0.2, "Cast": 1.0}  # fmt: skip


class Undecided(Exception):
    """A condition that the radius leaves open."""


def evaluate(node, arrays, opsets):
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(f"i{k}" if name else "" for k, name in enumerate(node.input))
    feeds = {f"i{k}": np.asarray(a) for k, a in enumerate(arrays) if a is not None}
    ends = [h.make_tensor_value_info(k, h.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in feeds.items()]
    outs = [h.make_value_info(name, onnx.TypeProto()) for name in node.output]
    return ReferenceEvaluator(h.make_model(h.make_graph([copy], "g", ends, outs), opset_imports=opsets)).run(
        None, feeds
    )


def step(node, scale, shape):
    """The scales of a DequantizeLinear, spread over its output."""
    if scale.ndim == 0 or scale.size == 1:
        return np.broadcast_to(scale.reshape(()), shape)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    return np.broadcast_to(scale.reshape([-1 if d == axis % len(shape) else 1 for d in range(len(shape))]), shape)


def radius(node, values, radii, out, opsets, constants):
    """The radius of the node's first output."""
    a, *rest = values
    ra, *others = radii

    def same(*arrays):
        return evaluate(node, [None if x is None else np.asarray(x, np.float32) for x in arrays], opsets)[0]

    match node.op_type:
        case "QuantizeLinear":
            return ra + rest[0] / 2
        case "DequantizeLinear":
            return ra + step(node, rest[0], out.shape) / 2 if node.input[0] in constants else ra
        case "Conv" | "Gemm" | "MatMul":
            b, rb = rest[0], others[0]
            bias = others[1:] if len(rest) > 1 else []
            none = [np.zeros_like(r) for r in bias]
            return same(np.abs(a), rb, *none) + same(ra, np.abs(b) + rb, *bias)
        case "BatchNormalization":
            return same(ra, np.abs(rest[0]), *[np.zeros_like(x) for x in rest[1:3]], rest[3])
        case "Add" | "Sub" | "Sum":
            return sum(np.broadcast_to(r, out.shape) for r in radii)
        case "Mul":
            return np.abs(a) * others[0] + np.abs(rest[0]) * ra + ra * others[0]
        case "Max":
            return np.maximum(ra, others[0])
        case "Shape" | "ConstantOfShape":
            return np.zeros(out.shape)
        case op if op in SLOPES:
            return SLOPES[op] * ra
        case "Concat":
            return same(*radii)
        case _:  # moves, maxima and means: of the radii what they are of the values
            return evaluate(node, [np.asarray(ra, np.float32), *rest], opsets)[0]


def walk(graph, found, opsets, outer=frozenset()):
    """{name: (value, radius)} of all that the graph computes. outer: constants around it. Raises Undecided."""
    constants = outer | {t.name for t in graph.initializer}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        found[tensor.name] = array, np.zeros(array.shape)
    for node in graph.node:
        ins = [found[name] if name else (None, None) for name in node.input]
        if node.op_type == "If":
            body = h.get_node_attr_value(node, "then_branch" if ins[0][0] else "else_branch")
            inner = walk(body, dict(found), opsets, constants)
            results = [inner[v.name] for v in body.output]
        else:
            values = [a for a, _ in ins]
            outs = evaluate(node, values, opsets)
            if node.op_type == "Greater":
                if np.any(np.abs(values[0] - values[1]) <= ins[0][1] + 1e-6):
                    raise Undecided
                results = [(outs[0], np.zeros(outs[0].shape))]
            else:
                r = radius(node, values, [r for _, r in ins], outs[0], opsets, constants)
                results = [(out, np.broadcast_to(r, out.shape)) for out in outs]
        found.update(zip(node.output, results, strict=False))
    return found


def implied(model, feeds):
    """[(value, radius)] of the model's outputs. Raises Undecided."""
    found = walk(model.graph, {k: (v, np.zeros(v.shape)) for k, v in feeds.items()}, model.opset_import)
    return [found[v.name] for v in model.graph.output]
