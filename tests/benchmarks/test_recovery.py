"""The recovery benchmark: channels that are pulled apart leave the function, and take one scale a weight its codes."""

import numpy as np
import onnxruntime as ort

from benchmarks import models, recovery
from edgeq.numerics.metrics import sqnr_db


def test_pulled_apart_it_is_the_same_function(tmp_path):
    small = models.Net(np.random.default_rng(0))
    low, high = small.const(0.0), small.const(6.0)
    x = small.op("Clip", small.conv("input", 3, 8, 3), low, high)
    x = small.op("Clip", small.conv(x, 8, 8, 3, group=8), low, high)
    x = small.op("Clip", small.conv(x, 8, 12), low, high)
    model = small.model("small", small.classifier(x, 12, 5), ["N", 3, 16, 16], ["N", 5])
    relus = type(model).FromString(model.SerializeToString())
    even = recovery.pull_apart(relus, Even())
    apart = recovery.pull_apart(model, np.random.default_rng(1))
    feed = {"input": np.random.default_rng(2).normal(size=(2, 3, 16, 16)).astype(np.float32)}
    want, got = (ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (even, apart))
    assert sqnr_db(want, got) > 90
    ranges = np.abs(np.frombuffer(apart.graph.initializer[2].raw_data, np.float32)).reshape(8, -1).max(1)
    assert ranges.max() / ranges.min() > 30


class Even:
    """Draws factors of 1."""

    def uniform(self, low, high, shape):
        return np.zeros(shape)
