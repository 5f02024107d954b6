"""AWQ's scales go into what computes a layer's input; SmoothQuant's come before any weight algorithm."""

import numpy as np
import onnx
import pytest

import edgeq
from edgeq import pipeline, recipe
from edgeq.errors import RecipeError
from edgeq.numerics.metrics import sqnr_db
from edgeq.runners import cpu
from edgeq.types import PerBlock, QSpec
from edgeq.weights import awq
from tests.graph.written import draw, save, text
from tests.weights.test_gptq import stats_of

BODY = """n = LayerNormalization (x, g, be) a = MatMul (n, w1) b = MatMul (n, w2) s = Sigmoid (a) m = Mul (s, b)
          d = MatMul (m, w3) r = Add (d, x) y = MatMul (r, w4)"""
INITS = {
    "g": np.float32(1) + 0.1 * draw(64), "be": draw(64, seed=1) / 9, "w1": draw(64, 96, seed=2) / 8,
    "w2": draw(64, 96, seed=3) / 8, "w3": draw(96, 64, seed=4) / 10, "w4": draw(64, 48, seed=5) / 8,
}  # fmt: skip
LOUD = (3, 17, 40)


def model(folder):
    """Three features of the norm reach far, and half of the gate's do little."""
    inits = {k: v.copy() for k, v in INITS.items()}
    inits["g"][list(LOUD)] *= 30
    inits["w1"][list(LOUD)] /= 10
    inits["w2"][list(LOUD)] /= 10
    return save(folder, text(BODY, "float[N,64] x"), inits)


def samples(count, first=0):
    return [{"x": draw(16, 64, seed=first + i)} for i in range(count)]


def outputs(path):
    session = cpu.open_session(path)
    return np.concatenate([session.run(f)["y"] for f in samples(20, 100)])


def quantize(path, folder, **options):
    options = {"method": "weight_only", "bits": 4, "block": 32, "check": False} | options
    return edgeq.quantize(path, "generic", samples(24), folder, **options)


def test_awq_scales_what_it_can_and_gains(tmp_path, monkeypatch):
    path = model(tmp_path)
    scaled = quantize(path, tmp_path / "a", weight="awq")
    monkeypatch.delattr(awq, "input_scale")
    cut = quantize(path, tmp_path / "b", weight="awq")
    wanted = outputs(path)
    assert sqnr_db(wanted, outputs(scaled.artifact)) > sqnr_db(wanted, outputs(cut.artifact)) + 1
    nodes = [[n.op_type for n in onnx.load(r.artifact).graph.node] for r in (scaled, cut)]
    assert nodes[0] == nodes[1]
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(scaled.artifact).graph.initializer}
    scale = INITS["g"].copy()
    scale[list(LOUD)] *= 30
    factors = scale / held["g"]
    np.testing.assert_allclose(held["be"], INITS["be"] / factors, rtol=1e-4)
    assert factors[list(LOUD)].min() > 3 * np.delete(factors, LOUD).max()  # what is loud is rounded finely


def test_a_scale_for_a_whole_weight_leaves_inputs_alone(tmp_path):
    """Such layers are solved without data; another reader of the same value still gets its scales, and is exact."""
    path = model(tmp_path)
    rule = (recipe.Override(nodes=("MatMul_1",), weight_type="s8t"),)
    options = {"bits": 8, "block": None, "weight": "awq"}
    mixed = quantize(path, tmp_path / "a", rule=rule, **options)
    assert sqnr_db(outputs(path), outputs(mixed.artifact)) > 25
    whole = quantize(path, tmp_path / "b", rule=(recipe.Override(weight_type="s8t"),), **options)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(whole.artifact).graph.initializer}
    assert held["g"].max() > 25  # as it was


def test_the_plan_says_where_scales_stay_out(tmp_path):
    made = pipeline.plan_file(model(tmp_path), "generic", recipe.Recipe(method="weight_only", weight="awq"))
    reasons = {n.name: n.reason for n in made.nodes if n.decision == "packed"}
    last = [name for name, why in reasons.items() if why]
    assert last == ["MatMul_7"]
    assert reasons["MatMul_7"] == "awq leaves its input as it is: Add 'Add_6' takes no factors in"
    plain = pipeline.plan_file(model(tmp_path), "generic", recipe.Recipe(method="weight_only", weight="gptq"))
    assert not any(n.reason for n in plain.nodes if n.decision == "packed")


@pytest.mark.parametrize("weight", ["rtn", "gptq"])
def test_smoothquant_then_weight_by_a_recipe(tmp_path, weight):
    path = model(tmp_path)
    file = tmp_path / "smooth.toml"
    file.write_text(
        f'target = "generic"\nmethod = "weight_only"\nweight = "{weight}"\nblock = 32\npasses = ["smooth"]\n'
    )
    smoothed = quantize(path, tmp_path / "a", recipe=file)
    plain = quantize(path, tmp_path / "b", weight=weight)
    wanted = outputs(path)
    assert sqnr_db(wanted, outputs(smoothed.artifact)) > sqnr_db(wanted, outputs(plain.artifact)) + (
        0.3 if weight == "rtn" else -0.5
    )
    again = edgeq.quantize(path, None, samples(24), tmp_path / "c", recipe=tmp_path / "a" / "recipe.toml", check=False)
    assert again.artifact.read_bytes() == smoothed.artifact.read_bytes()
    with pytest.raises(RecipeError, match="smooth weight_only's too"):
        quantize(path, tmp_path / "d", weight=weight, passes=("equalize",))


def test_the_scale_is_the_best_of_a_sweep_over_outputs():
    x = draw(500, 48) * np.exp(draw(48, seed=1))
    layers = [draw(48, 16, seed=2), draw(48, 8, seed=3)]
    spec = QSpec("int4", granularity=PerBlock(0, 16))
    errors = {}
    for alpha in np.linspace(0, 1, 11):
        s = np.abs(x).mean(0, keepdims=True).T ** alpha
        s = (s / np.sqrt(s.max() * s.min())).astype(np.float32)
        total = 0.0
        for w in layers:
            groups = (w * s).reshape(3, 16, -1)
            step = np.abs(groups).max(1, keepdims=True) / 7
            rounded = (np.clip(np.rint(groups / step), -8, 7) * step).reshape(w.shape) / s
            total += ((x @ (w - rounded)) ** 2).sum(1).mean()
        errors[alpha] = total
    alpha = min(errors, key=errors.get)
    assert 0 < alpha < 1
    s = np.abs(x).mean(0) ** alpha
    found = awq.input_scale([(w, spec) for w in layers], stats_of(x))
    np.testing.assert_allclose(found, s / np.sqrt(s.max() * s.min()), rtol=1e-4)
    even = np.where(draw(500, 48, seed=4) > 0, 1, -1).astype(np.float32)
    assert awq.input_scale([(w, spec) for w in layers], stats_of(even)) is None
