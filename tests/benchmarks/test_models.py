"""The benchmark models are valid, deterministic, of their published size, and numerically tame at every depth."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from benchmarks import models

BUILT = ["mobilenetv2", "resnet50", "encoder"]
# parameters of the published architectures, BatchNorm folded into a bias per output channel
PARAMETERS = {"mobilenetv2": 3_487_816, "resnet50": 25_530_472, "encoder": 4 * 7_087_872}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def _run_all(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    named = {o.name for o in model.graph.output}
    for node in model.graph.node:
        model.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in node.output if o and o not in named)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("name", BUILT)
def test_size_validity_and_scale(name, cache):
    path = models.build(name, cache)
    onnx.checker.check_model(path)
    model = onnx.load(path)
    floats = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(w.size for w in floats if w.ndim) == PARAMETERS[name]
    values = [v for v in _run_all(model, next(models.feeds(name, 1))) if v.dtype == np.float32 and v.size > 1000]
    assert all(np.isfinite(v).all() for v in values)
    # attention probabilities average 1/tokens; everything else keeps a scale near 1
    assert min(v.std() for v in values) > 1e-3
    assert max(np.abs(v).max() for v in values) < 200


def test_same_seed_same_bytes():
    digests = {hashlib.sha256(models.mobilenetv2(seed).SerializeToString()).hexdigest() for seed in (0, 0, 1)}
    assert len(digests) == 2


def test_batch_is_free(cache):
    session = ort.InferenceSession(str(models.build("mobilenetv2", cache)), providers=["CPUExecutionProvider"])
    one, two = (f["input"] for f in models.feeds("mobilenetv2", 2))
    both = session.run(None, {"input": np.concatenate([one, two])})[0]
    np.testing.assert_allclose(both[0], session.run(None, {"input": one})[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(models.BUILDERS))
def test_feeds_repeat_and_differ(name):
    first, second = models.feeds(name, 2, seed=3)
    again = next(models.feeds(name, 1, seed=3))
    for key, value in first.items():
        assert value.shape == models.FEED_SHAPES[name]
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again[key])
        assert not np.array_equal(value, second[key])
