"""Two models in one: each layer of the second reads what the first one's layers gave, and all means are of both."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq.graph import io
from edgeq.passes.side_by_side import side_by_side
from tests.graph.written import draw, save, text

BODY = """a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = ConvTranspose(r, w2) s = Sigmoid(c) d = Conv(s, w3)
p = GlobalAveragePool(d) f = Flatten(p) y = Gemm(f, w4, b4)"""
INITS = {
    "w1": draw(8, 4, 3, 3) / 6, "b1": draw(8), "w2": draw(8, 6, 1, 1), "w3": draw(6, 6, 1, 1, seed=1),
    "w4": draw(6, 3), "b4": draw(3),
}  # fmt: skip
LAYERS = {"Conv_0": "a", "ConvTranspose_2": "c", "Conv_4": "d", "Gemm_7": "y"}


def run(path, x, *names):
    session = ort.InferenceSession(str(path))
    return dict(zip(names, session.run(list(names), x if isinstance(x, dict) else {"x": x}), strict=True))


def means(folder, real, other, layers, x):
    both = side_by_side(ir.load(real), ir.load(other), list(layers))
    found = {"x": x}
    for model in filter(None, (both.model, both.later)):
        io.check(model)
        io.save(model, folder / "both.onnx")
        fed = {value.name: found[value.name] for value in model.graph.inputs}
        found |= run(folder / "both.onnx", fed, *(value.name for value in model.graph.outputs))
    return {name: [found[tap].reshape(len(x), -1) for tap in pair] for name, pair in both.means.items()}


@pytest.mark.parametrize("changed", ["w1", "w2", "w3", "w4", "b1"])
def test_a_layer_shows_its_own_error_and_none_of_those_before(tmp_path, changed):
    (tmp_path / "real").mkdir()
    real = save(tmp_path / "real", text(BODY), INITS)
    other = save(tmp_path, text(BODY), INITS | {changed: INITS[changed] + 0.25})
    x = draw(5, 4, 8, 8, seed=9)
    shown = save(tmp_path / "real", text(BODY, outputs="float[] a, float[] c, float[] d, float[] y"), INITS)
    whole = run(shown, x, *LAYERS.values())
    found = means(tmp_path, real, other, LAYERS, x)
    for name, value in LAYERS.items():
        want = whole[value].reshape(*whole[value].shape[:2], -1).mean(2)
        np.testing.assert_allclose(found[name][0], want, rtol=1e-4, atol=1e-5)
    lone = {"w1": "Conv_0", "b1": "Conv_0", "w2": "ConvTranspose_2", "w3": "Conv_4", "w4": "Gemm_7"}[changed]
    off = {name: np.abs(a - b).max() for name, (a, b) in found.items()}
    assert off.pop(lone) > 0.01
    assert max(off.values()) == 0


def test_steps_between_layers_are_those_of_the_second(tmp_path):
    """Rounding between two layers shows in the second of them."""
    (tmp_path / "real").mkdir()
    inits = {"w1": INITS["w1"], "b1": INITS["b1"], "w": draw(3, 8, 1, 1)}
    first, last = "a = Conv(x, w1, b1)", "y = Conv(r, w)"
    real = save(tmp_path / "real", text(f"{first} r = Relu(a) t = Identity(r) y = Conv(t, w)"), inits)
    step = {"s": np.float32(0.5), "z": np.uint8(0)}
    body = f"{first} q = QuantizeLinear(a, s, z) r = DequantizeLinear(q, s, z) {last}"
    other = save(tmp_path, text(body), inits | step)
    x = draw(4, 4, 8, 8)
    found = means(tmp_path, real, other, ["Conv_0", "Conv_3"], x)
    np.testing.assert_array_equal(*found["Conv_0"])
    first = save(tmp_path / "real", text(first, outputs="float[] a"), {k: inits[k] for k in ("w1", "b1")})
    a = run(first, x, "a")["a"]
    rounded = np.clip(np.rint(a / 0.5), 0, 255) * 0.5
    want = np.einsum("oc,nchw->no", inits["w"][:, :, 0, 0], rounded) / rounded[0, 0].size
    np.testing.assert_allclose(found["Conv_3"][1], want, rtol=1e-4, atol=1e-4)


def test_bodies_and_names_of_both_stay_apart(tmp_path):
    """Each has an If that reads around it, and the second has names that the first would be given."""
    (tmp_path / "real").mkdir()
    body = """a = Conv(x, w) y = If(on) <
        then_branch = t () => (u) { k = Constant<value_float = 2.0>() u = Mul(a, k) },
        else_branch = e () => (v) { v = Neg(a) }>"""
    inits = {"w": draw(4, 4, 1, 1), "on": np.array(True)}
    real = save(tmp_path / "real", text(f"{body} z = Conv(y, w)", outputs="float[] z"), inits)
    double = inits | {"w": 2 * inits["w"]}
    other = save(tmp_path, text(f"{body} a_1 = Conv(y, w) z = Identity(a_1)", outputs="float[] z"), double)
    x = draw(3, 4, 8, 8)
    found = means(tmp_path, real, other, ["Conv_0", "Conv_2"], x)
    for want, got in found.values():
        np.testing.assert_allclose(2 * want, got, rtol=1e-4, atol=1e-5)
