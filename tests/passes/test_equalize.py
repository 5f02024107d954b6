"""Cross-layer equalization: the same function, with ranges that are equal where the formula says so."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from edgeq.passes.equalize import absorb, equalize, pairs
from tests.graph.written import draw

ZERO_SIX = {"low": np.float32(0), "six": np.float32(6)}
CHAIN = """a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = {act} d = Conv<group=6, pads=[1,1,1,1]>(r, w2, b2) q = {act2}
y = Conv(q, w3)"""
ACTS = {
    "relu": ("Relu(a)", "Relu(d)"),
    "leaky": ("LeakyRelu<alpha=0.2>(a)", "LeakyRelu<alpha=0.3>(d)"),
    "none": ("Relu(a)", "MaxPool<kernel_shape=[2,2]>(d)"),
    "relu6": ("Clip(a, low, six)", "Clip(d, low, six)"),
}


def unequal(count, seed):
    return 10.0 ** np.random.default_rng(seed).uniform(-1.5, 1.5, count).astype(np.float32)


def weights():
    return {
        "w1": draw(6, 4, 3, 3) * unequal(6, 1).reshape(-1, 1, 1, 1), "b1": draw(6) * unequal(6, 1),
        "w2": draw(6, 1, 3, 3, seed=1) * unequal(6, 2).reshape(-1, 1, 1, 1), "b2": draw(6, seed=1),
        "w3": draw(5, 6, 1, 1, seed=2) * unequal(6, 3).reshape(1, -1, 1, 1),
    }  # fmt: skip


def written(body, inits, shape="N,4,8,8"):
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[{shape}] x) => (float[] y) {{ {body} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in inits.items() if k in body)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return model


def loaded(proto):
    from onnx import shape_inference

    return ir.serde.deserialize_model(shape_inference.infer_shapes(proto))


def run(proto, x, name=None):
    proto = type(proto).FromString(proto.SerializeToString())
    if name is not None:
        proto.graph.output.add().name = name
    return ort.InferenceSession(proto.SerializeToString()).run([name or "y"], {"x": x})[0]


def extrema(proto, x):
    found = {}
    for pair in pairs(loaded(proto)):
        out = run(proto, x, pair.value)
        axes = tuple(i for i in range(out.ndim) if i != 1)
        found[pair.value] = (out.min(axes), out.max(axes))
    return found


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("by_reach", [False, True])
def test_the_function_stays(act, by_reach):
    proto = written(CHAIN.format(act=ACTS[act][0], act2=ACTS[act][1]), weights() | ZERO_SIX)
    x = draw(3, 4, 8, 8, seed=9) / 20
    model = loaded(proto)
    assert len(pairs(model)) == 2
    made = ir.serde.serialize_model(equalize(model, extrema(proto, x), by_reach))
    want, got = run(proto, x), run(made, x)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (proto, made))
    assert not np.array_equal(before["w1"], after["w1"])


def test_ranges_become_the_geometric_mean():
    """Without limits a triple ends where all three ranges of a channel are the cube root of their product."""
    proto = written(CHAIN.format(act="Relu(a)", act2="Relu(d)"), weights())
    ranges = [np.abs(weights()[w]).max(axes) for w, axes in (("w1", (1, 2, 3)), ("w2", (1, 2, 3)), ("w3", (0, 2, 3)))]
    made = ir.serde.serialize_model(equalize(loaded(proto)))
    after = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for name, axes in (("w1", (1, 2, 3)), ("w2", (1, 2, 3)), ("w3", (0, 2, 3))):
        np.testing.assert_allclose(np.abs(after[name]).max(axes), np.cbrt(np.prod(ranges, axis=0)), rtol=5e-3)


def test_a_second_time_changes_nothing():
    proto = written(CHAIN.format(act="Relu(a)", act2="Relu(d)"), weights())
    once = ir.serde.serialize_model(equalize(loaded(proto)))
    twice = ir.serde.serialize_model(equalize(loaded(once)))
    for a, b in zip(once.graph.initializer, twice.graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(b), numpy_helper.to_array(a), rtol=5e-3)


def test_channels_that_reach_the_clip_keep_their_scale():
    proto = written(CHAIN.format(act="Clip(a, low, six)", act2="Relu(d)"), weights() | ZERO_SIX)
    x = draw(3, 4, 8, 8, seed=9) / 4
    seen = extrema(proto, x)
    clipped = seen["a"][1] >= 6
    assert 0 < clipped.sum() < 6
    made = ir.serde.serialize_model(equalize(loaded(proto), seen))
    want, got = run(proto, x), run(made, x)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    after = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    np.testing.assert_array_equal(after["b1"][clipped], weights()["b1"][clipped])
    assert (after["b1"] != weights()["b1"])[~clipped].any()
    untouched = ir.serde.serialize_model(equalize(loaded(proto)))
    assert [pair.value for pair in pairs(loaded(proto))] == ["a", "d"]
    kept = {t.name: numpy_helper.to_array(t) for t in untouched.graph.initializer}
    np.testing.assert_array_equal(kept["w1"], weights()["w1"])  # without extrema nothing is known of the Clip


def test_pooling_and_a_classifier():
    body = "a = Conv(x, w1, b1) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, w4, b4)"
    inits = weights() | {"w4": draw(3, 6, seed=5) * unequal(6, 8), "b4": draw(3)}
    proto = written(body, inits)
    model = loaded(proto)
    assert len(pairs(model)) == 1
    x = draw(2, 4, 8, 8)
    made = ir.serde.serialize_model(equalize(model))
    want = run(proto, x)
    np.testing.assert_allclose(run(made, x), want, atol=1e-5 * np.abs(want).max())
    after = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    np.testing.assert_allclose(np.abs(after["w1"]).max((1, 2, 3)), np.abs(after["w4"]).max(0), rtol=5e-3)


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w1, b1) r = HardSwish(a) y = Conv(r, w5)",
        "a = Conv(x, w1, b1) r = Relu(a) s = Conv(r, w5) y = Add(s, r)",
    ],
)
def test_what_is_no_pair_stays(body):
    inits = weights() | {"w5": draw(6, 6, 1, 1)}
    assert pairs(loaded(written(body, inits))) == []


def test_high_biases_are_absorbed():
    body = "a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w5, b5)"
    inits = weights() | {"w5": draw(5, 6, 1, 1), "b5": draw(5), "w1": draw(6, 4, 3, 3) / 9, "b1": draw(6) + 4}
    proto = written(body, inits)
    x = draw(3, 4, 8, 8)
    seen = extrema(proto, x)
    assert (seen["a"][0] > 0).any()
    made = ir.serde.serialize_model(absorb(loaded(proto), seen))
    want = run(proto, x)
    np.testing.assert_allclose(run(made, x), want, atol=1e-5 * np.abs(want).max())
    after = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    np.testing.assert_allclose(after["b1"], inits["b1"] - np.maximum(seen["a"][0], 0), atol=1e-5)
