"""Preparing changes the form of a model, never what it computes: held against onnxruntime on the model as it came."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as h
from onnx import numpy_helper

from edgeq.errors import ModelError
from edgeq.graph import io
from edgeq.graph.prepare import prepare

FLOAT = 1
CHANNELS = 4


def build(nodes, inits, shape, opset=17, outputs=("y",), ir_version=8, **more):
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", FLOAT, shape)],
        [h.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), k) for k, a in inits.items()],
    )
    more.setdefault("opset_imports", [h.make_opsetid("", opset)])
    return h.make_model(graph, ir_version=ir_version, **more)


def run(data, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(data, options).run(None, feeds)


def prepared(proto):
    return prepare(ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString())))


def ops(model):
    return [node.op_type for node in model.graph]


def same(proto, feeds):
    """Prepare; the outputs agree within 1e-5 of their size and a second run changes no byte. Gives the model."""
    model = prepared(proto)
    io.check(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    for want, got in zip(run(proto.SerializeToString(), feeds), run(once, feeds), strict=True):
        assert want.dtype == got.dtype
        assert np.abs(got - want).max() <= 1e-5 * max(np.abs(want).max(), 1e-30)
    assert ir.to_proto(prepare(model)).SerializeToString(deterministic=True) == once
    return model


def linear(kind, rng, groups):
    """(node, initializers, input shape, channel axis) of one linear layer with 4 output channels."""
    f32 = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    if kind == "Conv":
        node = h.make_node("Conv", ["x", "w", "b"], ["a"], "layer", pads=[1, 1, 1, 1], group=groups)
        return node, {"w": f32(CHANNELS, 4 // groups, 3, 3), "b": f32(CHANNELS)}, (2, 4, 5, 5), 1
    if kind == "ConvTranspose":
        node = h.make_node("ConvTranspose", ["x", "w", "b"], ["a"], "layer", strides=[2, 2], group=groups)
        return node, {"w": f32(4, CHANNELS // groups, 3, 3), "b": f32(CHANNELS)}, (2, 4, 5, 5), 1
    if kind == "MatMul":
        return h.make_node("MatMul", ["x", "w"], ["a"], "layer"), {"w": f32(6, CHANNELS)}, (3, 6), -1
    transposed = groups > 1
    node = h.make_node("Gemm", ["x", "w", "b"], ["a"], "layer", transB=int(transposed), alpha=0.5, beta=1.5)
    return node, {"w": f32(CHANNELS, 6) if transposed else f32(6, CHANNELS), "b": f32(CHANNELS)}, (3, 6), -1


def step(op, source, out, rng, rank, axis):
    """One affine node after the layer, with a constant per channel, or a scalar, on either side."""
    if op == "BatchNormalization":
        names = [f"{out}_{p}" for p in "gbmv"]
        values = [rng.normal(size=CHANNELS).astype(np.float32) for _ in names]
        values[3] = np.abs(values[3]) + np.float32(0.5)
        return h.make_node(op, [source, *names], [out], out, epsilon=1e-3), dict(zip(names, values, strict=True))
    shape = [1] * rank
    shape[axis] = CHANNELS
    drawn = [shape, shape[-rank + 1 :] if axis == 1 else shape[-1:], [], [1]][rng.integers(4)]
    operand = (rng.choice([-1, 1], size=drawn) * rng.uniform(0.3, 2, size=drawn)).astype(np.float32)
    swap = op != "Div" and rng.random() < 0.5
    return h.make_node(op, [f"{out}_c", source] if swap else [source, f"{out}_c"], [out], out), {f"{out}_c": operand}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]),
    groups=st.sampled_from([1, 2, 4]),
    chain=st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div", "BatchNormalization"]), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_affine_steps_after_a_linear_layer(kind, groups, chain, seed):
    rng = np.random.default_rng(seed)
    node, inits, shape, axis = linear(kind, rng, groups)
    nodes, source = [node], "a"
    for index, op in enumerate(chain):
        if op == "BatchNormalization" and axis != 1:
            op = "Mul"
        out = "y" if index == len(chain) - 1 else f"s{index}"
        made, constants = step(op, source, out, rng, len(shape), axis)
        nodes.append(made)
        inits |= constants
        source = out
    model = same(build(nodes, inits, shape), {"x": rng.normal(size=shape).astype(np.float32)})
    if kind != "MatMul":  # a MatMul has no bias that could take an Add
        assert ops(model) == [kind]


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_a_scalar_before_a_linear_layer(kind, op):
    rng = np.random.default_rng(1)
    node, inits, shape, _ = linear(kind, rng, 1)
    node.input[0], node.output[0] = "s", "y"
    nodes = [h.make_node(op, ["x", "c"], ["s"], "scaling"), node]
    model = same(build(nodes, inits | {"c": np.float32(3.7)}, shape), {"x": rng.normal(size=shape).astype(np.float32)})
    assert ops(model) == [kind]


def test_an_affine_step_that_others_read_too_stays():
    rng = np.random.default_rng(2)
    node, inits, shape, _ = linear("Conv", rng, 1)
    nodes = [node, h.make_node("Mul", ["a", "c"], ["y"], "mul"), h.make_node("Neg", ["a"], ["z"], "neg")]
    model = same(build(nodes, inits | {"c": np.float32(2)}, shape, outputs=("y", "z")), {"x": np.ones(shape, "f")})
    assert sorted(ops(model)) == ["Conv", "Mul", "Neg"]


@pytest.mark.parametrize("tied", ["w", "b"])
def test_a_tied_constant_changes_for_the_layer_that_is_fused_alone(tied):
    rng = np.random.default_rng(3)
    inits = {k: rng.normal(size=s).astype(np.float32) for k, s in {"w": (4, 4, 1, 1), "b": (4,)}.items()}
    inits |= {"v": inits["w"] * 2, "d": inits["b"] * 2, "c": np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)}
    second = ["w", "d"] if tied == "w" else ["v", "b"]
    nodes = [
        h.make_node("Conv", ["x", "w", "b"], ["a"], "one"),
        h.make_node("Mul", ["a", "c"], ["m"], "mul"),
        h.make_node("Add", ["m", "c"], ["p"], "add"),
        h.make_node("Conv", ["p", *second], ["y"], "two"),
    ]
    feeds = {"x": rng.normal(size=(1, 4, 3, 3)).astype(np.float32)}
    assert ops(same(build(nodes, inits, (1, 4, 3, 3)), feeds)) == ["Conv", "Conv"]


def test_constants_in_nodes_are_folded_like_initializers():
    rng = np.random.default_rng(4)
    arrays = {
        "w": rng.normal(size=(4, 4, 3, 3)),
        "g": np.ones(4) * 2,
        "b": np.ones(4),
        "m": np.zeros(4),
        "v": np.ones(4),
    }
    nodes = [
        h.make_node("Constant", [], [k], f"{k}_const", value=numpy_helper.from_array(a.astype(np.float32)))
        for k, a in arrays.items()
    ]
    nodes += [h.make_node("Conv", ["x", "w"], ["a"], "conv"), h.make_node("BatchNormalization", ["a", *"gbmv"], ["y"])]
    model = same(build(nodes, {}, (1, 4, 5, 5)), {"x": rng.normal(size=(1, 4, 5, 5)).astype(np.float32)})
    assert ops(model) == ["Conv"]


def test_local_functions_are_inlined():
    rng = np.random.default_rng(5)
    scaled = h.make_function(
        "local",
        "Scaled",
        ["v", "w", "c"],
        ["r"],
        [h.make_node("MatMul", ["v", "w"], ["t"]), h.make_node("Mul", ["t", "c"], ["r"])],
        [h.make_opsetid("", 17)],
    )
    nodes = [
        h.make_node("Scaled", ["x", "w", "c"], ["p"], "first", domain="local"),
        h.make_node("Scaled", ["p", "w", "c"], ["y"], "second", domain="local"),
    ]
    imports = [h.make_opsetid("", 17), h.make_opsetid("local", 1)]
    inits = {"w": rng.normal(size=(6, 6)).astype(np.float32), "c": np.float32(0.5)}
    proto = build(nodes, inits, (3, 6), opset_imports=imports, functions=[scaled])
    model = same(proto, {"x": rng.normal(size=(3, 6)).astype(np.float32)})
    assert ops(model) == ["MatMul", "MatMul"]
    assert not model.functions


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_old_opsets_keep_their_meaning(opset):
    """Softmax before opset 13 flattens from its axis on, the case that a mere version stamp changes silently."""
    rng = np.random.default_rng(opset)
    nodes = [
        h.make_node("Conv", ["x", "w", "b"], ["a"], "conv", pads=[1, 1, 1, 1]),
        h.make_node("BatchNormalization", ["a", *"gcmv"], ["n"], "bn"),
        h.make_node("Softmax", ["n"], ["s"], "softmax", axis=1),
        h.make_node("ReduceSum", ["s"], ["r"], "sum", axes=[2], keepdims=1),
        h.make_node("Unsqueeze", ["r"], ["y"], "unsqueeze", axes=[0]),
    ]
    inits = {"w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32)}
    inits |= {k: (np.abs(rng.normal(size=4)) + 0.5).astype(np.float32) for k in "gcmv"}
    feeds = {"x": rng.normal(size=(1, 4, 5, 5)).astype(np.float32)}
    proto = build(nodes, inits, (1, 4, 5, 5), opset=opset, ir_version=4)
    assert "BatchNormalization" not in ops(same(proto, feeds))


def test_a_name_in_two_branches_is_one_name_each_afterwards():
    def body(factor):
        nodes = [h.make_node("Mul", ["x", f"k{factor}"], ["inner"], "mul"), h.make_node("Neg", ["inner"], ["o"], "neg")]
        return h.make_graph(nodes, "b", [], [h.make_tensor_value_info("o", FLOAT, None)])

    nodes = [
        h.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        h.make_node("Cast", ["top"], ["c"], "cast", to=9),
        h.make_node("If", ["c"], ["y"], "if", then_branch=body(2), else_branch=body(3)),
    ]
    inits = {"k2": np.float32(2), "k3": np.float32(3)}
    model = same(build(nodes, inits, (2, 3)), {"x": np.ones((2, 3), np.float32)})
    graphs = [model.graph, *model.graph.subgraphs()]
    for names in ([n.name for g in graphs for n in g], [v.name for g in graphs for n in g for v in n.outputs]):
        assert len(set(names)) == len(names)


def test_a_graph_output_that_is_also_an_intermediate_keeps_its_name():
    rng = np.random.default_rng(6)
    node, inits, shape, _ = linear("Conv", rng, 1)
    nodes = [node, h.make_node("Identity", ["a"], ["also"], "id"), h.make_node("Relu", ["a"], ["y"], "relu")]
    model = same(build(nodes, inits, shape, outputs=("a", "also", "y")), {"x": np.ones(shape, np.float32)})
    assert [v.name for v in model.graph.outputs] == ["a", "also", "y"]


def test_models_of_other_domains_alone_need_no_upgrade():
    node = h.make_node("Binarizer", ["x"], ["y"], "b", domain="ai.onnx.ml", threshold=0.5)
    proto = build([node], {}, (3,), opset_imports=[h.make_opsetid("ai.onnx.ml", 1)])
    same(proto, {"x": np.array([0.2, 0.5, 0.7], np.float32)})


def test_a_split_of_unknown_size_stops_no_folding():
    nodes = [h.make_node("SplitToSequence", ["x", "n"], ["s"]), h.make_node("SequenceAt", ["s", "i"], ["y"])]
    proto = build(nodes, {"i": np.array(1)}, (4, 2))
    proto.graph.input.append(h.make_tensor_value_info("n", onnx.TensorProto.INT64, []))
    same(proto, {"x": np.arange(8, dtype=np.float32).reshape(4, 2), "n": np.array(2)})


def test_a_scan_over_batches_is_declined():
    body = h.make_graph(
        [h.make_node("Add", ["s", "e"], ["t"]), h.make_node("Identity", ["t"], ["u"])],
        "body",
        [h.make_tensor_value_info(k, FLOAT, [2]) for k in "se"],
        [h.make_tensor_value_info(k, FLOAT, [2]) for k in "tu"],
    )
    node = h.make_node("Scan", ["", "k", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    proto = build([node], {"k": np.zeros((1, 2), np.float32)}, (1, 3, 2), opset=8, ir_version=3)
    with pytest.raises(ModelError, match="batch axis"):
        prepared(proto)
