"""Method bfloat16: what is written, and what it gives, against ONNX's reference evaluator and the float model."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

import edgeq
from edgeq.errors import ModelError
from edgeq.graph import io
from edgeq.graph.rounded import rounded
from edgeq.numerics.metrics import sqnr_db
from edgeq.runners import cpu, halves
from edgeq.runners.recorded import Recorded
from tests.graph.written import CONV, draw, samples, save, text

BFLOAT16 = onnx.TensorProto.BFLOAT16
BLOCK = """
q = MatMul(x, wq) k = MatMul(x, wk) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax(s)
v = MatMul(p, x) r = Add(v, x) y = LayerNormalization(r, g, b)
"""
INITS = {"wq": draw(16, 16), "wk": draw(16, 16, seed=1), "g": np.ones(16, "f"), "b": np.zeros(16, "f")}


def made(folder, body=BLOCK, inits=INITS, inputs="float[1,T,16] x", data=None):
    path = save(folder, text(body, inputs), inits)
    return path, edgeq.quantize(path, "cuda", None, folder / "out", method="bfloat16", eval_data=data)


def test_a_transformer_block(tmp_path):
    feed = {"x": draw(1, 7, 16) / 8}
    path, result = made(tmp_path, data=[feed])
    assert {row.decision for row in result.plan.nodes} == {"bfloat16"}
    assert result.report.nodes.half == len(result.plan.nodes)
    model = onnx.load(result.artifact)
    assert {i.name: i.data_type for i in model.graph.initializer} == {f"{n}_half": BFLOAT16 for n in INITS}
    assert [n.op_type for n in model.graph.node].count("Cast") == 2  # once in, once out
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    np.testing.assert_array_equal(stored["wq_half"].astype("f"), INITS["wq"].astype(ml_dtypes.bfloat16).astype("f"))
    want = ort.InferenceSession(path).run(None, feed)[0]
    got = halves.open_session(result.artifact).run(feed)["y"]
    assert 25 < sqnr_db(want, got) < 60
    assert result.report.outputs[0].sqnr_db == pytest.approx(sqnr_db(want, got), abs=0.5)


def test_each_operator_is_rounded_once(tmp_path):
    """By ONNX's own evaluator, which computes these in bfloat16 itself."""
    body = "a = Mul(x, c) m = Add(a, x) n = Neg(m) y = Relu(n)"
    _, result = made(tmp_path, body, {"c": np.float32(1.2345)}, "float[4,50] x")
    feed = {"x": draw(4, 50)}
    (wanted,) = ReferenceEvaluator(str(result.artifact)).run(None, feed)
    found = halves.open_session(result.artifact).run(feed)["y"]
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found, found.astype(ml_dtypes.bfloat16).astype("f"))
    c = np.float32(1.2345).astype(ml_dtypes.bfloat16)
    x = feed["x"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found, np.maximum(-((x * c) + x), 0).astype("f"))
    assert (found != np.maximum(-(feed["x"] * np.float32(2.2345)), 0)).any()


def test_the_cpu_has_no_kernels_and_says_so(tmp_path):
    _, result = made(tmp_path)
    with pytest.raises(ModelError, match="onnxruntime can't load it"):
        cpu.open_session(result.artifact)
    assert rounded(io.load(result.artifact))


def test_a_model_that_came_in_bfloat16_is_a_reference_too(tmp_path):
    """As torch exports one: its own answer is of rounded values, that of integers is held against it."""
    body = "b = Cast<to=16>(x) m = MatMul(b, w) r = Relu(m) y = Cast<to=1>(r)"
    weight = draw(64, 32)
    path = save(tmp_path, text(body, "float[N,64] x", "float[N,32] y"), {"w": weight.astype(ml_dtypes.bfloat16)})
    feeds = [{"x": draw(4, 64, seed=seed)} for seed in range(8)]
    found = halves.open_session(path).run(feeds[0])["y"]
    x, w = (a.astype(ml_dtypes.bfloat16).astype("f") for a in (feeds[0]["x"], weight))
    np.testing.assert_allclose(found, np.maximum(x @ w, 0), rtol=2**-8)
    np.testing.assert_array_equal(found, found.astype(ml_dtypes.bfloat16).astype("f"))
    result = edgeq.quantize(path, "x86_64", feeds, tmp_path / "out")
    assert result.report.nodes.integer == 2
    assert 30 < result.report.outputs[0].sqnr_db < 60
    np.testing.assert_array_equal(Recorded(path, tmp_path / "answers", 1).run(feeds[0])["y"], found)  # as tune asks it


def test_float_models_run_as_they_are(tmp_path):
    path = save(tmp_path, text("y = Conv(x, w)"), {"w": CONV["w"]})
    feed = samples(1, 4, 8, 8, count=1)[0]
    np.testing.assert_array_equal(
        halves.open_session(path).run(feed)["y"], ort.InferenceSession(path).run(None, feed)[0]
    )
    assert not rounded(io.load(path))


def test_what_has_no_bfloat16_kernel_stays_float32(tmp_path):
    """A range that float16 lacks; a Clip, a sum, and a Conv that ONNX defines for it later."""
    body = """
    a = Conv(x, w) f = Flatten(a) m = MatMul(f, big) c = Clip(m, lo, hi) s = ReduceSum(m) p = Add(c, s) y = MatMul(p, v)
    """
    inits = {
        "w": CONV["w"],
        "big": draw(144, 5) * np.float32(1e6),
        "lo": np.float32(-1),
        "hi": np.float32(1),
        "v": draw(5, 3),
    }
    _, result = made(tmp_path, body, inits, "float[1,4,8,8] x")
    rows = {row.name: (row.decision, row.reason) for row in result.plan.nodes}
    assert rows["MatMul_2"][0] == "bfloat16"
    assert [rows[name][0] for name in ("Conv_0", "Clip_3", "ReduceSum_4")] == ["float"] * 3
    assert "half precision" in rows["ReduceSum_4"][1]
    assert all(rows[name][1] for name in ("Conv_0", "Clip_3"))
