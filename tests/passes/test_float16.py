"""Method float16: what is half and what stays float32, against onnxruntime's own answers and numpy's float16."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

import edgeq
from edgeq.errors import TargetError
from edgeq.numerics.metrics import sqnr_db
from tests.graph.written import CONV, draw, interface, samples, save, text

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def narrowed(folder, body, inits, inputs="float[N,4,8,8] x", outputs="float[] y"):
    path = save(folder, text(body, inputs, outputs), inits)
    result = edgeq.quantize(path, "cuda", None, folder / "out", method="float16")
    model = onnx.shape_inference.infer_shapes(onnx.load(result.artifact), strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    left, right = ort.InferenceSession(path), ort.InferenceSession(result.artifact)
    assert interface(left) == interface(right)
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output]}
    return result, left, right, model, kinds


def test_a_small_network(tmp_path):
    body = "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Softmax(p)"
    result, left, right, model, kinds = narrowed(tmp_path, body, CONV)
    assert {row.name: row.decision for row in result.plan.nodes} == dict.fromkeys(
        ("Conv_0", "Relu_1", "MaxPool_2", "Softmax_3"), "half"
    )
    assert {kinds[name] for name in ("a", "r", "p")} == {HALF}
    assert [n.op_type for n in model.graph.node].count("Cast") == 2  # once in, once out
    assert {i.data_type for i in model.graph.initializer} == {HALF}
    for feed in samples(2, 4, 8, 8):
        want, got = left.run(None, feed)[0], right.run(None, feed)[0]
        assert sqnr_db(want, got) > 50
    stored = {i.name.removesuffix("_half"): onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert np.array_equal(stored["w"], CONV["w"].astype(np.float16))


def test_values_that_several_want_are_cast_once(tmp_path):
    body = "a = Conv(x, w) r = Relu(a) f = Erf(a) k = Shape(r) c = Cast<to=1>(k) s = ReduceSum(c) y = Add(f, s)"
    _, left, right, model, _ = narrowed(tmp_path, body, {"w": CONV["w"]}, outputs="float[] y, float[] r")
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    assert len({(n.input[0], n.attribute[0].i) for n in casts}) == len(casts)
    feed = samples(1, 4, 8, 8, count=1)[0]
    for want, got in zip(left.run(None, feed), right.run(None, feed), strict=True):
        assert sqnr_db(want, got) > 50


@pytest.mark.parametrize(
    ("body", "inits", "node", "why"),
    [
        ("a = Mul(x, big) y = Relu(a)", {"big": np.float32(1e6)}, "Mul_0", "reaches 1e+06"),
        ("a = Max(x, tiny) y = Sqrt(a)", {"tiny": np.float32(1e-9)}, "Max_0", "vanishes"),
        ("a = Cast<to=11>(x) b = Neg(a) y = Cast<to=1>(b)", {}, "Cast_2", "no float16 form"),
        ("y = Resize<mode=\"nearest\">(x, , s)", {"s": np.array([1, 1, 2, 2], np.float32)}, None, ""),
    ],
)  # fmt: skip
def test_what_float16_can_not_hold_stays_float32(tmp_path, body, inits, node, why):
    result, left, right, _, _ = narrowed(tmp_path, body, inits)
    reasons = {row.name: row.reason for row in result.plan.nodes if row.decision == "float"}
    assert node is None or why in reasons[node]
    assert node is not None or not reasons  # `scales` of a Resize has no other type: it alone stays float32
    feed = samples(1, 4, 8, 8, count=1)[0]
    assert sqnr_db(left.run(None, feed)[0], right.run(None, feed)[0]) > 50


def test_branches_read_half_values_from_around_them(tmp_path):
    body = """
    a = Conv(x, w) m = ReduceMax<keepdims=0>(a) q = Greater(m, zero)
    y = If (q) <then_branch = g () => (float[] t) { t = Mul(a, two) }, else_branch = h () => (float[] e) { e = Neg(a) }>
    """
    inits = {"w": CONV["w"], "zero": np.float32(0), "two": np.float32(2)}
    result, left, right, _, kinds = narrowed(tmp_path, body, inits)
    assert {row.name: row.decision for row in result.plan.nodes}["Conv_0"] == "half"
    assert kinds["a"] == HALF
    feed = samples(1, 4, 8, 8, count=1)[0]
    assert sqnr_db(left.run(None, feed)[0], right.run(None, feed)[0]) > 50


def test_integers_are_refused_on_cuda(tmp_path):
    path = save(tmp_path, text("y = Conv(x, w)"), {"w": CONV["w"]})
    with pytest.raises(TargetError, match=r"^cuda: int8 QDQ .* 1\.7 times slower .*; choose .*float16"):
        edgeq.quantize(path, "cuda", samples(1, 4, 8, 8), tmp_path / "out")


def test_a_transformer_block(tmp_path):
    body = """
    q = MatMul(x, wq) k = MatMul(x, wk) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax(s)
    v = MatMul(p, x) r = Add(v, x) y = LayerNormalization(r, g, b)
    """
    inits = {"wq": draw(16, 16), "wk": draw(16, 16, seed=1), "g": np.ones(16, "f"), "b": np.zeros(16, "f")}
    result, left, right, _, _ = narrowed(tmp_path, body, inits, "float[1,T,16] x")
    assert {row.decision for row in result.plan.nodes} == {"half"}
    assert result.report.nodes.half == len(result.plan.nodes)
    feed = {"x": draw(1, 7, 16) / 8}
    assert sqnr_db(left.run(None, feed)[0], right.run(None, feed)[0]) > 40


def test_angles_and_what_makes_them_stay_float32(tmp_path):
    body = "k = Neg(x) p = Mul(k, far) s = Sin(p) a = Conv(s, w) y = Relu(a)"
    result, left, right, _, kinds = narrowed(tmp_path, body, {"w": CONV["w"], "far": np.float32(1000)})
    rows = {row.name: (row.decision, row.reason) for row in result.plan.nodes}
    assert rows["Sin_2"] == ("float", "half precision is too coarse for its angles")
    assert rows["Mul_1"] == rows["Neg_0"] == ("float", "float32 operators alone read it")
    assert [rows[name][0] for name in ("Conv_3", "Relu_4")] == ["half", "half"]
    assert {kinds[name] for name in ("k", "p", "s")} == {FLOAT}
    feed = samples(1, 4, 8, 8, count=1)[0]
    assert sqnr_db(left.run(None, feed)[0], right.run(None, feed)[0]) > 50


def test_a_norm_of_large_values_is_summed_in_float32(tmp_path):
    body = "q = Mul(x, x) m = ReduceMean<axes=[-1]>(q) e = Add(m, eps) r = Sqrt(e) n = Div(x, r) y = MatMul(n, w)"
    inits = {"eps": np.float32(1e-5), "w": draw(16, 8)}
    result, left, _, _, kinds = narrowed(tmp_path, body, inits, "float[1,4,16] x")
    assert kinds["q"] == FLOAT  # 300 squared is beyond float16
    assert {row.name: row.decision for row in result.plan.nodes}["MatMul_5"] == "half"
    feed = {"x": 300 * draw(1, 4, 16)}
    got = ReferenceEvaluator(onnx.load(result.artifact)).run(None, feed)[0]  # which rounds every half value
    assert sqnr_db(left.run(None, feed)[0], got) > 50
