"""Verification against measures taken here by hand, and against artifacts that were spoiled on purpose."""

import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgeq import target as targets
from edgeq.data import open_data
from edgeq.errors import CalibrationError, RecipeError, VerifyError
from edgeq.verifying.verify import Budget, verify
from tests.graph.written import save, text
from tests.runners import tiny

SHAPES = {"x": (1, 3, 12, 12)}
TARGET = targets.load("x86_64")


@pytest.fixture
def artifact(tmp_path):
    return tiny.qdq_conv(tmp_path / "q.onnx")


def leaking(path, keep_types):
    """The quantized Conv, whose output also goes to a float reader: no integer kernel can give both."""
    model = onnx.load(path)
    nodes = [n for n in model.graph.node if n.op_type != "Relu"]
    for node in nodes:
        node.input[:] = ["c" if name == "r" else name for name in node.input]
    nodes.append(helper.make_node("Sigmoid", ["c"], ["leak"], name="reader"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("leak", TensorProto.FLOAT, [1, 16, 12, 12]))
    if keep_types:
        model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)


def float_of(path, to, noise=0.0):
    """The same model without Q and DQ of the activations, its bias moved by `noise`."""
    model = onnx.load(path)
    kept = [n for n in model.graph.node if not {"x", "xq", "r", "yq"} & set(n.input)]
    for node in kept:
        node.input[:] = ["x" if name == "xd" else name for name in node.input]
        node.output[:] = ["y" if name == "r" else name for name in node.output]
    kept = [n for n in kept if n.op_type != "Relu"] + [helper.make_node("Relu", ["c"], ["y"], name="relu")]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, to)
    return to


@pytest.mark.parametrize("keep_types", [False, True])
def test_a_conv_that_fell_to_float_is_named(artifact, keep_types):
    data = open_data(tiny.samples(3), SHAPES)
    whole = verify(artifact, artifact, TARGET, data)
    assert whole.warnings == ()
    assert [o.sqnr_db for o in whole.outputs] == [None]  # the same model: nothing differs
    leaking(artifact, keep_types)
    spoiled = verify(artifact, artifact, TARGET, data)
    assert spoiled.warnings == ("node conv is quantized but onnxruntime runs it in float",)


def test_measures_are_those_of_numpy(artifact, tmp_path):
    reference = float_of(artifact, tmp_path / "f.onnx")
    feeds = tiny.samples(6)
    found = verify(reference, artifact, TARGET, open_data(feeds, SHAPES), layers=[("conv", "Conv", "c")])
    a, b = ([tiny.here(p, f).astype(np.float64) for f in feeds] for p in (reference, artifact))
    a, b = np.stack(a), np.stack(b)
    (drift,) = found.outputs
    assert drift.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-4)
    assert drift.cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), abs=1e-9)
    assert drift.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.samples == 6
    assert found.runtime.version == ort.__version__
    levels = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
    assert set(found.levels) == set(levels)
    for level, name in levels.items():
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, name)
        session = ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        c = np.stack([session.run(None, f)[0].astype(np.float64) for f in feeds])
        assert found.levels[level] == pytest.approx(10 * np.log10((a**2).sum() / ((a - c) ** 2).sum()), abs=1e-4)
    (layer,) = found.layers
    assert (layer.name, layer.op) == ("conv", "Conv")
    assert 10 < layer.sqnr_db < 60


def test_the_users_own_metric(artifact, tmp_path, monkeypatch):
    reference = float_of(artifact, tmp_path / "f.onnx")
    (tmp_path / "scoring.py").write_text(
        "def mean(outputs, extras): return sum(o['y'].mean() for o in outputs) / len(outputs) + extras['shift'][0]\n"
        "def broken(outputs, extras): return outputs[0]['z']\n"
        "def lost(outputs, extras): return float('nan')\n"
        "number = 3\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    feeds = tiny.samples(4)
    data = open_data({"x": np.concatenate([f["x"] for f in feeds]), "shift": np.full(4, 10.0)}, SHAPES)
    found = verify(reference, artifact, TARGET, data, metric="scoring:mean", budget=Budget(max_drop=1e-9)).metric
    wanted = [np.mean([tiny.here(p, f).mean() for f in feeds]) + 10 for p in (reference, artifact)]
    assert found.name == "scoring:mean"
    assert [found.reference, found.quantized] == pytest.approx(wanted, rel=1e-6)
    assert found.drop == pytest.approx(wanted[0] - wanted[1], abs=1e-5)
    lost = verify(reference, artifact, TARGET, data, metric="scoring:lost", budget=Budget(max_drop=0.5))
    assert len(lost.failures) == 1  # a metric that is not a number meets no budget
    for metric, message in (("scoring:broken", "KeyError"), ("scoring:number", "is a int"), ("scoring:no", "scoring")):
        with pytest.raises(CalibrationError, match=message):
            verify(reference, artifact, TARGET, data, metric=metric)


def test_budgets(artifact, tmp_path):
    reference = float_of(artifact, tmp_path / "f.onnx")
    data = open_data(tiny.samples(4), SHAPES)
    reached = verify(reference, artifact, TARGET, data).outputs[0].sqnr_db
    assert verify(reference, artifact, TARGET, data, budget=Budget(None, reached - 0.1)).failures == ()
    (failure,) = verify(reference, artifact, TARGET, data, budget=Budget(None, reached + 0.1)).failures
    assert failure.startswith(f"output y has {reached:.1f} dB")
    with pytest.raises(RecipeError, match="--max-drop"):
        verify(reference, artifact, TARGET, data, budget=Budget(max_drop=0.1))


def test_labels_must_fit_the_predictions(artifact):
    arrays = {"x": np.concatenate([f["x"] for f in tiny.samples(4)]), "label": np.zeros(4, np.int64)}
    with pytest.raises(CalibrationError, match="4 labels for 768 predictions"):
        verify(artifact, artifact, TARGET, open_data(arrays, SHAPES), labels="label")
    with pytest.raises(CalibrationError, match="no array 'truth' for labels: it has label"):
        verify(artifact, artifact, TARGET, open_data(arrays, SHAPES), labels="truth")


def test_outputs_that_are_not_the_references(artifact, tmp_path):
    other = onnx.load(artifact)
    other.graph.output[0].name = "other"
    other.graph.node[-1].output[0] = "other"
    onnx.save(other, tmp_path / "o.onnx")
    with pytest.raises(VerifyError, match=r"output 'y'.*missing"):
        verify(artifact, tmp_path / "o.onnx", TARGET, open_data(tiny.samples(1), SHAPES))


def test_optimization_levels_that_disagree_are_reported(tmp_path):
    """Summed over 131072 products of 255·127, an integer kernel's 32 bits overflow; unfused, the sum is of floats."""
    length = 1 << 17
    inits = {"w": np.full((length, 1), 127, np.int8), "step": np.float32(1), "u": np.uint8(0), "s": np.int8(0)}
    body = """
        q = QuantizeLinear (x, step, u)
        d = DequantizeLinear (q, step, u)
        v = DequantizeLinear (w, step, s)
        y = MatMul (d, v)
    """
    artifact = save(tmp_path, text(body, f"float[1,{length}] x"), inits)
    (tmp_path / "f").mkdir()
    reference = save(tmp_path / "f", text("y = MatMul (x, v)", f"float[1,{length}] x"), {"v": inits["w"].astype("f")})
    loud = open_data([{"x": np.full((1, length), 255, np.float32)}], {"x": (1, length)})
    found = verify(reference, artifact, TARGET, loud)
    assert found.levels["disabled"] > 60  # as far as the order of a float32 sum matters
    assert found.levels["all"] < 10
    (warning,) = found.warnings
    assert warning.startswith("onnxruntime's optimization levels disagree: ")
    quiet = open_data([{"x": np.full((1, length), 100, np.float32)}], {"x": (1, length)})
    assert verify(reference, artifact, TARGET, quiet).warnings == ()
