"""SmoothQuant: the same function, whatever takes the scales in, and a smaller error where channels lie far out."""

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.numerics.affine import fake_quantize, qparams, weight_ranges
from edgeq.passes.smooth import candidates, expected_error, scales, search, smooth
from edgeq.types import PerChannel, QSpec, Stats
from tests.graph.written import draw
from tests.passes.test_equalize import loaded, run, written

INITS = {
    "g": 1 + draw(8), "be": draw(8, seed=1), "w1": draw(8, 6), "w2": draw(8, 8, seed=2), "w3": draw(6, 8, seed=3),
    "b3": draw(6, seed=4), "c": draw(8, seed=5), "two": np.float32(2),
}  # fmt: skip
FOLDED = {
    "norm": "h = LayerNormalization(x, g, be) y = MatMul(h, w1)",
    "norm, two readers": "h = LayerNormalization(x, g, be) a = MatMul(h, w1) b = MatMul(h, w1) y = Mul(a, b)",
    "spelled-out norm": "n = Tanh(x) m = Mul(n, g) h = Add(m, be) y = MatMul(h, w1)",
    "linear": "h = MatMul(x, w2) y = MatMul(h, w1)",
    "linear, bias and Relu": "m = MatMul(x, w2) s = Add(m, c) h = Relu(s) y = Gemm<transB=1>(h, w3, b3)",
    "gate": "m = MatMul(x, w2) s = Sigmoid(x) h = Mul(s, m) y = MatMul(h, w1)",
}
KEPT = {
    "residual": "h = LayerNormalization(x, g, be) a = MatMul(h, w2) y = Add(a, h)",
    "input": "y = MatMul(x, w1)",
    "tanh": "m = MatMul(x, w2) h = Tanh(m) y = MatMul(h, w1)",
    "a scalar": "t = Tanh(x) h = Mul(t, two) y = MatMul(h, w1)",
    "norm that is an output of a sum": "h = LayerNormalization(x, g, be) s = Add(h, x) a = MatMul(h, w2) y = Mul(s, a)",
}


@pytest.mark.parametrize("body", [*FOLDED.values(), *KEPT.values()], ids=[*FOLDED, *KEPT])
def test_the_function_stays(body):
    proto = written(body, INITS, "5,8")
    model, x = loaded(proto), draw(5, 8, seed=7)
    factors = np.exp(draw(8, seed=8)).astype(np.float32)
    last = [name for name in candidates(model) if name != "x" or body == KEPT["input"]]
    made = ir.serde.serialize_model(smooth(model, dict.fromkeys(last, factors)))
    want = run(proto, x)
    np.testing.assert_allclose(run(made, x), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    added = len(made.graph.node) - len(proto.graph.node)
    assert added == (body in KEPT.values())


def test_the_published_scale():
    peak, weight = np.array([8.0, 2.0, 0.0, 1.0]), np.abs(draw(4, 3)) + 0.1
    found = scales(peak, [weight], 0.6)
    want = peak[[0, 1, 3]] ** 0.6 / weight.max(1)[[0, 1, 3]] ** 0.4
    np.testing.assert_allclose(found[[0, 1, 3]] / found[0], want / want[0], rtol=1e-5)
    assert found[2] == 1


def quantized_error(x, weights, scale):
    """What both roundings really cost, on the samples."""
    left = x / scale
    rounded = fake_quantize(left, qparams(float(left.min()), float(left.max()), QSpec("uint8", symmetric=False)))
    total = 0.0
    for w in weights:
        spec = QSpec("int8", narrow=True, granularity=PerChannel(1))
        scaled = (w * scale[:, None]).astype(np.float32)
        real = fake_quantize(scaled, qparams(*weight_ranges(scaled, PerChannel(1)), spec))
        total += float(((rounded @ real - x @ w) ** 2).sum(1).mean())
    return total


def test_the_search_finds_what_measures_best():
    x = draw(4000, 32)
    x[:, 3] *= 60
    x[:, 9] *= 25
    weights = [draw(32, 16), draw(32, 8, seed=1)]
    stats = Stats(x.astype(np.float64).T @ x, np.abs(x).mean(0), len(x))
    lo, hi = x.min(0), x.max(0)
    found = search(lo, hi, weights, partial(expected_error, lo, hi, weights, stats))
    plain = quantized_error(x, weights, np.ones(32, np.float32))
    assert found is not None
    assert quantized_error(x, weights, found) < plain / 4
    for scale in (found, np.ones(32, np.float32)):
        measured = quantized_error(x, weights, scale)
        assert expected_error(lo, hi, weights, stats, scale) == pytest.approx(measured, rel=0.25)
    even = draw(4000, 32)
    stats = Stats(even.astype(np.float64).T @ even, np.abs(even).mean(0), len(even))
    lo, hi = even.min(0), even.max(0)
    assert search(lo, hi, weights, partial(expected_error, lo, hi, weights, stats)) is None
