"""The recovery benchmark: channels that are pulled apart leave the function, and take one scale a weight its codes."""

import numpy as np
import onnxruntime as ort
from onnx import helper

from benchmarks import models, recovery
from edgeq.numerics.metrics import sqnr_db


def test_pulled_apart_it_is_the_same_function(tmp_path):
    small = models.Net(np.random.default_rng(0))
    low, high = small.const(0.0), small.const(6.0)
    x = small.op("Clip", small.conv("input", 3, 8, 3), low, high)
    x = small.op("Clip", small.conv(x, 8, 8, 3, group=8), low, high)
    x = small.op("Clip", small.conv(x, 8, 12), low, high)
    model = small.model("small", small.classifier(x, 12, 5), ["N", 3, 16, 16], ["N", 5])
    feed = {"input": np.random.default_rng(2).normal(0, 0.1, (2, 3, 16, 16)).astype(np.float32)}
    whole = model.SerializeToString()
    values = [n.input[0] for n in model.graph.node if n.op_type == "Clip"]
    tapped = type(model).FromString(whole)
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in values)
    seen = ort.InferenceSession(tapped.SerializeToString()).run(values, feed)
    greatest = {name: x.max((0, 2, 3)) for name, x in zip(values, seen, strict=True)}
    apart = recovery.pull_apart(model, greatest, np.random.default_rng(1))
    want, got = (ort.InferenceSession(m).run(None, feed)[0] for m in (whole, apart.SerializeToString()))
    assert sqnr_db(want, got) > 90
    ranges = np.abs(np.frombuffer(apart.graph.initializer[2].raw_data, np.float32)).reshape(8, -1).max(1)
    assert ranges.max() / ranges.min() > 30
