"""Graphs that break quantizers, each through the whole pipeline and held against onnxruntime on the float model."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper as h
from onnx import numpy_helper

import edgeq
from edgeq.numerics.metrics import sqnr_db

FLOAT, HALF, INT64, BOOL = 1, 10, 7, 9
rng = np.random.default_rng(0)


def f32(*shape):
    return rng.normal(size=shape).astype(np.float32)


def conv(source, out, w="w", b="b", **attributes):
    return h.make_node("Conv", [source, w, b], [out], f"{out}_conv", pads=[1, 1, 1, 1], **attributes)


def quantize(folder, nodes, inits, inputs, outputs, feeds, *, opset=17, ir=10, method="static", least=25.0):
    """Quantize, check interface and closeness, and give the result."""
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(a, k) for k, a in inits.items()],
    )
    path = folder / "m.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=ir), path)
    result = edgeq.quantize(path, "x86_64", feeds, folder / "out", method=method)
    left, right = ort.InferenceSession(str(path)), ort.InferenceSession(str(result.artifact))
    for ends in ("get_inputs", "get_outputs"):
        assert [(v.name, v.type) for v in getattr(left, ends)()] == [(v.name, v.type) for v in getattr(right, ends)()]
    for feed in feeds[:3]:
        for want, got in zip(left.run(None, feed), right.run(None, feed), strict=True):
            assert sqnr_db(want, got) > least
    return result


IMAGES = [{"x": f32(1, 4, 8, 8)} for _ in range(8)]
IMAGE_IO = ([("x", FLOAT, ["N", 4, 8, 8])], [("y", FLOAT, None)])
TOKENS = [{"x": f32(2, 5, 16)} for _ in range(8)]
TOKEN_IO = ([("x", FLOAT, ["N", 5, 16])], [("y", FLOAT, None)])
ROWS = [{"x": f32(3, 16)} for _ in range(8)]
W, B = f32(4, 4, 3, 3), f32(4)
TWICE = [conv("x", "a"), h.make_node("Relu", ["a"], ["r"]), conv("r", "y")]


def decisions(result):
    return {n.name: n.decision for n in result.plan.nodes}


def reasons(result):
    return {n.name: n.reason for n in result.report.nodes.float}


def test_tied_weights_and_biases(tmp_path):
    result = quantize(tmp_path, TWICE, {"w": W, "b": B}, *IMAGE_IO, IMAGES)
    assert result.plan.counts() == {"integer": 2, "folded": 1}
    stored = onnx.load(result.artifact).graph.initializer
    assert [list(t.dims) for t in stored].count([4, 4, 3, 3]) == 1


def test_names_that_collide_with_ours(tmp_path):
    nodes = [conv("x", "x_q"), h.make_node("Relu", ["x_q"], ["x_scale"]), conv("x_scale", "y", "w_q")]
    quantize(tmp_path, nodes, {"w": W, "b": B, "w_q": W + 1}, *IMAGE_IO, IMAGES)


def test_an_output_that_is_also_an_intermediate(tmp_path):
    outputs = [("a", FLOAT, None), ("y", FLOAT, None)]
    result = quantize(tmp_path, [conv("x", "a"), conv("a", "y")], {"w": W, "b": B}, IMAGE_IO[0], outputs, IMAGES)
    assert result.plan.counts() == {"integer": 2}


@pytest.mark.parametrize(("weight", "bias"), [(W * np.float32(1e-9), B * 1e4), (W * np.float32([[[[0]]]]), B)])
def test_bias_beyond_int32_and_dead_weights(tmp_path, weight, bias):
    result = quantize(tmp_path, [conv("x", "y")], {"w": weight, "b": bias}, *IMAGE_IO, IMAGES)
    assert result.plan.counts() == {"integer": 1}


def test_dead_channel(tmp_path):
    weight = W.copy()
    weight[1] = 0
    quantize(tmp_path, TWICE, {"w": weight, "b": B * 0}, *IMAGE_IO, IMAGES)


def test_inputs_that_are_all_zero(tmp_path):
    zeros = [{"x": np.zeros((1, 4, 8, 8), np.float32)}] * 8
    quantize(tmp_path, [conv("x", "y")], {"w": W, "b": B}, *IMAGE_IO, zeros)


def test_empty_tensors(tmp_path):
    nodes = [conv("x", "a"), h.make_node("Concat", ["a", "e"], ["y"], "join", axis=1)]
    quantize(tmp_path, nodes, {"w": W, "b": B, "e": np.zeros((1, 0, 8, 8), np.float32)}, *IMAGE_IO, IMAGES)


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_matmul_with_a_weight_of_three_dimensions(tmp_path, method):
    nodes = [h.make_node("MatMul", ["x", "w"], ["y"], "m")]
    quantize(tmp_path, nodes, {"w": f32(2, 16, 8)}, *TOKEN_IO, TOKENS, method=method)


@pytest.mark.parametrize("masked", [-1e4, -np.inf])
def test_an_attention_mask_stretches_no_scale(tmp_path, masked):
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], "scores"),
        h.make_node("Add", ["a", "m"], ["b"], "masking"),
        h.make_node("Softmax", ["b"], ["s"], "softmax"),
        h.make_node("MatMul", ["s", "v"], ["y"], "values"),
    ]
    mask = np.where(rng.random((5, 16)) < 0.3, masked, 0).astype(np.float32)
    quantize(tmp_path, nodes, {"w": f32(16, 16), "m": mask, "v": f32(16, 16)}, *TOKEN_IO, TOKENS, least=30)


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_whichever_way_its_weight_lies(tmp_path, method, transposed):
    nodes = [h.make_node("Gemm", ["x", "w", "b"], ["y"], "g", transB=transposed, alpha=2.0, beta=0.5)]
    weight = f32(8, 16) if transposed else f32(16, 8)
    io = ([("x", FLOAT, ["N", 16])], [("y", FLOAT, None)])
    assert quantize(tmp_path, nodes, {"w": weight, "b": f32(8)}, *io, ROWS, method=method).report.nodes.integer == 1


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_old_opsets_get_per_channel_weights(tmp_path, opset):
    nodes = [
        conv("x", "a"),
        h.make_node("BatchNormalization", ["a", *"gbmv"], ["n"], "bn"),
        h.make_node("Relu", ["n"], ["y"]),
    ]
    inits = {"w": W, "b": B, "g": f32(4), "m": f32(4), "v": np.abs(f32(4)) + 0.5}
    result = quantize(tmp_path, nodes, inits, *IMAGE_IO, IMAGES, opset=opset, ir=4)
    scales = [t for t in onnx.load(result.artifact).graph.initializer if "w" in t.name and t.name.endswith("_scale")]
    assert [list(t.dims) for t in scales] == [[4]]


@pytest.mark.parametrize("version", [3, 8])
def test_weights_listed_among_the_inputs(tmp_path, version):
    inputs = [*IMAGE_IO[0], ("w", FLOAT, [4, 4, 3, 3]), ("b", FLOAT, [4])]
    graph = h.make_graph(
        [conv("x", "y")],
        "g",
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(W, "w"), numpy_helper.from_array(B, "b")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 9)], ir_version=version), path)
    result = edgeq.quantize(path, "x86_64", IMAGES, tmp_path / "out")
    assert result.report.nodes.integer == 1


def test_half_precision_keeps_its_interface(tmp_path):
    feeds = [{"x": f["x"].astype(np.float16)} for f in IMAGES]
    io = ([("x", HALF, ["N", 4, 8, 8])], [("y", HALF, None)])
    result = quantize(tmp_path, [conv("x", "y")], {"w": W.astype(np.float16), "b": B.astype(np.float16)}, *io, feeds)
    assert result.report.nodes.integer == 1


def branches(threshold):
    def body(w):
        nodes = [conv("x", f"{w}o", w), h.make_node("Relu", [f"{w}o"], [f"{w}r"], f"{w}_relu")]
        return h.make_graph(nodes, w, [], [h.make_tensor_value_info(f"{w}r", FLOAT, None)])

    nodes = [
        h.make_node("ReduceMean", ["x"], ["mean"], "mean", keepdims=0),
        h.make_node("Greater", ["mean", "z"], ["c"], "choose"),
        h.make_node("If", ["c"], ["y"], "branch", then_branch=body("w"), else_branch=body("v")),
    ]
    return nodes, {"w": W, "v": f32(4, 4, 3, 3), "b": B, "z": np.array(threshold, np.float32)}


def test_both_branches_of_an_if_become_integer(tmp_path):
    result = quantize(tmp_path, *branches(0.0), *IMAGE_IO, IMAGES)
    assert (decisions(result)["wo_conv"], decisions(result)["vo_conv"]) == ("integer", "integer")


def test_a_branch_that_no_sample_took_stays_float_and_says_so(tmp_path):
    result = quantize(tmp_path, *branches(99.0), *IMAGE_IO, IMAGES)
    assert decisions(result)["vo_conv"] == "integer"
    assert "no calibration sample reached it" in reasons(result)["wo_conv"]


@pytest.mark.parametrize(("method", "inside"), [("static", "float"), ("dynamic", "dynamic")])
def test_loop_bodies(tmp_path, method, inside):
    body = h.make_graph(
        [h.make_node("MatMul", ["s", "w"], ["so"], "inside"), h.make_node("Identity", ["ci"], ["co"], "go")],
        "body",
        [
            h.make_tensor_value_info("it", INT64, []),
            h.make_tensor_value_info("ci", BOOL, []),
            h.make_tensor_value_info("s", FLOAT, [3, 16]),
        ],
        [h.make_tensor_value_info("co", BOOL, []), h.make_tensor_value_info("so", FLOAT, [3, 16])],
    )
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], "outside"),
        h.make_node("Loop", ["n", "", "a"], ["y"], "loop", body=body),
    ]
    io = ([("x", FLOAT, [3, 16])], [("y", FLOAT, [3, 16])])
    result = quantize(tmp_path, nodes, {"w": f32(16, 16) * 0.2, "n": np.array(3)}, *io, ROWS, method=method)
    assert decisions(result)["inside"] == inside
    if inside == "float":
        assert "body of a Loop" in reasons(result)["inside"]


def test_dynamic_lstm(tmp_path):
    nodes = [h.make_node("LSTM", ["x", "W", "R", "B"], ["y"], "lstm", hidden_size=8)]
    inits = {"W": f32(1, 32, 16) * 0.3, "R": f32(1, 32, 8) * 0.3, "B": f32(1, 64) * 0.1}
    feeds = [{"x": f32(6, 2, 16)} for _ in range(4)]
    result = quantize(tmp_path, nodes, inits, [("x", FLOAT, [6, 2, 16])], [("y", FLOAT, None)], feeds, method="dynamic")
    assert [n.op_type for n in onnx.load(result.artifact).graph.node] == ["DynamicQuantizeLSTM"]


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "gates", "method"),
    [("GRU", 3, "static"), ("GRU", 3, "dynamic"), ("RNN", 1, "dynamic"), ("LSTM", 4, "static")],
)
def test_recurrent_layers_without_an_integer_kernel_are_stored_small(tmp_path, op, gates, method, direction):
    ways, size = (2, 64) if direction == "bidirectional" else (1, 64)
    nodes = [h.make_node(op, ["x", "W", "R", "B"], ["y"], "layer", hidden_size=size, direction=direction)]
    inits = {"W": f32(ways, gates * size, 80) * 0.1, "R": f32(ways, gates * size, size) * 0.1}
    inits |= {"B": f32(ways, 2 * gates * size) * 0.1}
    feeds = [{"x": f32(6, 2, 80)} for _ in range(4)]
    ends = ([("x", FLOAT, [6, 2, 80])], [("y", FLOAT, None)])
    result = quantize(tmp_path, nodes, inits, *ends, feeds, method=method, least=30)
    assert decisions(result) == {"layer": "stored"}
    assert "session.disable_quant_qdq" in reasons(result)["layer"]
    assert result.report.artifact.bytes < 0.32 * result.report.model.bytes
    stored = {t.name: t.data_type for t in onnx.load(result.artifact).graph.initializer}
    assert (stored["W_q"], stored["R_q"]) == (onnx.TensorProto.INT8,) * 2
    options = ort.SessionOptions()  # as the reason says: with it, nothing is left to dequantize at run time
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    folded = ort.InferenceSession(result.artifact, options)
    assert [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node] == [op]
    plain = ort.InferenceSession(result.artifact).run(None, feeds[0])[0]
    np.testing.assert_allclose(folded.run(None, feeds[0])[0], plain, atol=1e-5)


def test_depthwise_convolutions_are_never_dynamic(tmp_path):
    nodes = [conv("x", "y", group=4)]
    result = quantize(tmp_path, nodes, {"w": f32(4, 1, 3, 3), "b": B}, *IMAGE_IO, IMAGES, method="dynamic")
    assert "never made dynamic" in reasons(result)["y_conv"]


def test_boxes_and_scores_in_one_output_keep_the_scores(tmp_path):
    nodes = [
        h.make_node("MatMul", ["x", "boxes"], ["p"], "p"),
        h.make_node("MatMul", ["x", "scores"], ["q"], "q"),
        h.make_node("Sigmoid", ["q"], ["s"], "s"),
        h.make_node("Concat", ["p", "s"], ["y"], "cat", axis=1),
    ]
    io = ([("x", FLOAT, ["N", 16])], [("y", FLOAT, None)])
    result = quantize(tmp_path, nodes, {"boxes": f32(16, 4) * 100, "scores": f32(16, 4)}, *io, ROWS)
    assert result.report.outputs[0].lost_slices == ()
    assert decisions(result)["cat"] == "float"
