"""Laws that every weight algorithm obeys."""

import inspect

import numpy as np
import pytest

from edgeq import registry
from edgeq.errors import ModelError, RecipeError
from edgeq.numerics import affine, metrics
from edgeq.types import INT_RANGES, PerBlock, PerChannel, PerTensor, QSpec, Stats

NAMES = registry.names("edgeq.weights", "quantize")
CASES = [
    ((24, 64), QSpec("int8", granularity=PerChannel(0))),
    ((24, 64), QSpec("int4", granularity=PerBlock(1, 32))),
    ((64, 24), QSpec("uint4", symmetric=False, granularity=PerBlock(0, 16))),
    ((24, 50), QSpec("int4", granularity=PerBlock(-1, 32))),
    ((24, 64), QSpec("int2", granularity=PerBlock(1, 16))),
    ((24, 64), QSpec("int8", narrow=True, granularity=PerTensor())),
    ((8, 4, 3, 3), QSpec("int8", narrow=True, granularity=PerChannel(0))),
    ((8, 4, 3, 3), QSpec("uint8", symmetric=False, granularity=PerChannel(1))),
]


def weight(shape, seed=0):
    w = np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32)
    w[0] = 0.0
    return w


def run(name, w, spec, **options):
    return registry.load("edgeq.weights", name).quantize(w, spec, **options)


@pytest.mark.parametrize(("shape", "spec"), CASES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_laws(name, shape, spec):
    if not spec.signed and hasattr(registry.load("edgeq.weights", name), "BITS"):
        with pytest.raises(RecipeError, match="signed"):
            run(name, weight(shape), spec)
        return
    w = weight(shape)
    kept = w.copy()
    q = run(name, w, spec)
    np.testing.assert_array_equal(w, kept)
    assert q.data.shape == w.shape
    assert q.data.dtype == affine.storage_dtype(q.params.spec.dtype)
    assert q.params.spec.dtype in INT_RANGES
    assert (q.data.astype(int) >= q.params.spec.qmin).all()
    assert (q.data.astype(int) <= q.params.spec.qmax).all()
    assert q.params.scale.shape == affine.params_shape(shape, spec.granularity)
    assert q.params.scale.dtype == np.float32
    assert q.params.zero_point.dtype == np.int32
    assert np.isfinite(q.params.scale).all()
    assert (q.params.scale != 0).all()
    real = affine.dequantize(q.data, q.params)
    assert not real[0].any()  # zeros are exact
    bits = getattr(registry.load("edgeq.weights", name), "BITS", spec.bits)  # fewer than the type has
    bits_left = {1.0: 0.5, 1.58: 2.0, 2: 2.0, 4: 13.0, 8: 30.0}[bits]
    assert metrics.sqnr_db(w, real) > bits_left
    again = run(name, w, spec)
    assert again.data.tobytes() == q.data.tobytes()
    assert again.params.scale.tobytes() == q.params.scale.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_bad_weights_are_refused(name):
    spec = QSpec("int8", granularity=PerChannel(0))
    for w in (np.array([[1.0, np.nan]], np.float32), np.array([[np.inf, 1.0]], np.float32), np.zeros((2, 0), "f4")):
        with pytest.raises(ModelError, match="weight"):
            run(name, w, spec)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_accepted(name):
    spec = QSpec("int4", granularity=PerBlock(1, 16))
    x = np.random.default_rng(1).normal(size=(200, 64))
    stats = Stats(x.T @ x, np.abs(x).mean(0), 200)
    assert "stats" in inspect.signature(registry.load("edgeq.weights", name).quantize).parameters
    q = run(name, weight((24, 64)), spec, stats=stats)
    least = 0.5 if hasattr(registry.load("edgeq.weights", name), "BITS") else 10
    assert metrics.sqnr_db(weight((24, 64)), affine.dequantize(q.data, q.params)) > least
