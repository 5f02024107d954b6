"""Dynamic artifacts: what onnxruntime makes of them, and that they compute what the formula says."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from edgeq import target as targets
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.numerics.metrics import sqnr_db
from edgeq.passes.dynamic import make_dynamic
from edgeq.passes.tables import store_tables
from edgeq.planning.planner import plan
from edgeq.planning.solve import solve
from edgeq.recipe import Recipe

TARGET = targets.load("x86_64")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def dynamic(body, inits, inputs="float[N,16] x", outputs="float[] y"):
    """(float model, dynamic model, decision by node, reason by node)."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in inits.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    model = prepare(ir.from_proto(proto), TARGET.opset)
    made = plan(model, TARGET, Recipe(method="dynamic"))
    solution, failed = solve(made, model, {})
    assert not failed
    store_tables(model, made, solution)
    make_dynamic(model, made, solution)
    io.check(model)
    return proto, ir.to_proto(model), {n.name: n.decision for n in made.nodes}, {n.name: n.reason for n in made.nodes}


def close(proto, made, feeds, least=30.0):
    left, right = (ort.InferenceSession(m.SerializeToString()) for m in (proto, made))
    for want, got in zip(left.run(None, feeds), right.run(None, feeds), strict=True):
        assert sqnr_db(want, got) > least


def optimized(made, folder):
    """The operators of the graph that onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(made.SerializeToString(), options)
    return [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]


def test_a_single_matmul_becomes_one_fused_kernel(tmp_path):
    proto, made, decisions, _ = dynamic("y = MatMul (x, w)", {"w": draw(16, 8)})
    assert decisions == {"y_node": "dynamic"}
    assert optimized(made, tmp_path) == ["DynamicQuantizeMatMul"]
    close(proto, made, {"x": draw(5, 16)})


def test_readers_of_one_value_quantize_it_once_and_fuse_still(tmp_path):
    body = "a = MatMul (x, w) b = MatMul (x, v) y = Add (a, b)"
    proto, made, _, _ = dynamic(body, {"w": draw(16, 8), "v": draw(16, 8, seed=1)})
    assert sorted(optimized(made, tmp_path)) == [
        "Add",
        "DynamicQuantizeLinear",
        "MatMulIntegerToFloat",
        "MatMulIntegerToFloat",
    ]
    close(proto, made, {"x": draw(5, 16)})


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_gemm(tmp_path, transposed, bias):
    weight = draw(8, 16) if transposed else draw(16, 8)
    body = f"y = Gemm <transB = {transposed}, alpha = 2.0, beta = 0.5> (x, w{bias})"
    proto, made, _, _ = dynamic(body, {"w": weight} | ({"b": draw(8)} if bias else {}))
    assert "DynamicQuantizeMatMul" in optimized(made, tmp_path)
    close(proto, made, {"x": draw(5, 16)})


def test_a_matmul_is_what_the_formula_says():
    """y = (q - z)(w_q - 0) · s_x · s_w, with q, s_x and z by DynamicQuantizeLinear-11, re-derived here."""
    w, x = draw(16, 8), draw(5, 16)
    _, made, _, _ = dynamic("y = MatMul (x, w)", {"w": w})
    constants = {i.name: numpy_helper.to_array(i) for i in made.graph.initializer}
    (codes,) = [a for a in constants.values() if a.shape == (16, 8)]
    (scale,) = [a for n, a in constants.items() if n.endswith("scale")]
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    q = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    want = (q @ codes.astype(np.float64)) * step * scale
    got = ReferenceEvaluator(made).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert codes.dtype == np.int8
    assert sqnr_db(w, codes * scale) > 35


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_in_every_direction_with_states_and_tied_weights(direction):
    ways = 2 if direction == "bidirectional" else 1
    body = f'''
        y, h, c = LSTM <hidden_size = 8, direction = "{direction}"> (x, w, r, b, , h0, c0)
    '''
    inits = {"w": draw(ways, 32, 16) * 0.3, "r": draw(ways, 32, 8) * 0.3, "b": draw(ways, 64) * 0.1}
    inits |= {"h0": draw(ways, 2, 8) * 0.1, "c0": draw(ways, 2, 8, seed=1) * 0.1}
    inits = {k: np.asarray(a, np.float32) for k, a in inits.items()}
    outputs = "float[] y, float[] h, float[] c"
    proto, made, decisions, _ = dynamic(body, inits, "float[6,2,16] x", outputs)
    assert decisions == {"y_node": "dynamic"}
    assert [n.op_type for n in made.graph.node] == ["DynamicQuantizeLSTM"]
    close(proto, made, {"x": draw(6, 2, 16)}, least=25)


def test_depthwise_and_grouped_convolutions_stay_float_and_plain_ones_do_not():
    body = """
        d = Conv <pads = [1, 1, 1, 1], group = 4> (x, depthwise)
        g = Conv <pads = [1, 1, 1, 1], group = 2> (d, grouped)
        y = Conv <pads = [1, 1, 1, 1]> (g, plain, b)
    """
    inits = {"depthwise": draw(4, 1, 3, 3), "grouped": draw(4, 2, 3, 3), "plain": draw(6, 4, 3, 3), "b": draw(6)}
    proto, made, decisions, reasons = dynamic(body, inits, "float[1,4,6,6] x")
    assert decisions == {"d_node": "float", "g_node": "float", "y_node": "dynamic"}
    assert "never made dynamic" in reasons["d_node"]
    close(proto, made, {"x": draw(1, 4, 6, 6)}, least=28)


def test_a_tied_weight_is_stored_once():
    body = "a = MatMul (x, w) r = Relu (a) y = MatMul (r, w)"
    proto, made, _, _ = dynamic(body, {"w": draw(16, 16)})
    assert [list(i.dims) for i in made.graph.initializer].count([16, 16]) == 1
    close(proto, made, {"x": draw(5, 16)}, least=28)


def test_a_weight_tied_over_both_orientations_keeps_both():
    body = "a = Gemm <transB = 1> (x, w) y = Gemm (a, w)"
    proto, made, decisions, _ = dynamic(body, {"w": draw(16, 16)})
    assert set(decisions.values()) == {"dynamic"}
    close(proto, made, {"x": draw(5, 16)}, least=28)


def test_an_input_of_all_zeros_gives_the_bias():
    _, made, _, _ = dynamic("y = Gemm (x, w, b)", {"w": draw(16, 8), "b": draw(8)})
    got = ort.InferenceSession(made.SerializeToString()).run(None, {"x": np.zeros((3, 16), np.float32)})[0]
    np.testing.assert_array_equal(got, np.broadcast_to(draw(8), (3, 8)))
