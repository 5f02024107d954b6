"""Layers solved one after another: what each one is shown, and what becomes of the whole."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import edgeq
from edgeq import pipeline
from edgeq.collecting import layerwise
from edgeq.data import Dataset
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph.prepare import prepare
from edgeq.numerics.metrics import sqnr_db
from edgeq.planning.plan import Plan, WeightPlan
from edgeq.runners import cpu
from edgeq.types import PerBlock, QSpec
from tests.graph.written import draw, save, text

SPEC = QSpec("int2", granularity=PerBlock(0, 16))
BODY = """a = MatMul (x, w1)  r = Relu (a)  b = MatMul (r, w2)  s = Add (b, x)
          c = MatMul (s, w3)  d = MatMul (s, w4)  p = Mul (c, d)  y = MatMul (p, w5)"""
INITS = {"w1": (32, 48), "w2": (48, 32), "w3": (32, 32), "w4": (32, 32), "w5": (32, 16)}


def weights():
    return {k: draw(*shape, seed=i) / 5 for i, (k, shape) in enumerate(INITS.items())}


def model():
    proto = parser.parse_model(text(BODY, "float[N,32] x"))
    proto.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in weights().items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    return prepare(ir.from_proto(proto), 21)


def plan():
    nodes = {"w1": "a_node", "w2": "b_node", "w3": "c_node", "w4": "d_node", "w5": "y_node"}
    return Plan("t", "weight_only", (), weights=tuple(WeightPlan(n, 1, w, SPEC, "gptq") for w, n in nodes.items()))


def samples(count=20):
    return Dataset("s", lambda: ({"x": draw(8, 32, seed=100 + i)} for i in range(count)), count)


def forward(w, x):
    values = {"x": x, "r": np.maximum(x @ w["w1"], 0)}
    values["s"] = values["r"] @ w["w2"] + x
    values["p"] = (values["s"] @ w["w3"]) * (values["s"] @ w["w4"])
    return values


INPUT = {"w1": "x", "w2": "r", "w3": "s", "w4": "s", "w5": "p"}


@pytest.mark.parametrize("sequential", [False, True])
def test_each_layer_sees_what_numpy_computes(tmp_path, sequential):
    """Every weight is changed in a known way; statistics and aims are those of the model written out in numpy."""
    real, changed = weights(), weights()
    xs = np.concatenate([f["x"] for f in samples()])
    walk = layerwise.walk_layers(plan(), model(), samples(), tmp_path, sequential)
    layer, seen = next(walk), []
    while layer is not None:
        name = layer.plan.value
        before = forward(real, xs)
        now = forward(changed if sequential else real, xs)
        x = now[INPUT[name]].astype(np.float64)
        np.testing.assert_allclose(layer.stats.gram, x.T @ x, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(layer.stats.mean_abs, np.abs(x).mean(0), rtol=1e-3, atol=1e-4)
        target = before[INPUT[name]].astype(np.float64) @ real[name]
        if name == "w2":  # its output is added to x, which nothing has changed
            target += before["x"] - now["x"]
        damping = np.sqrt(0.01 * np.diagonal(x.T @ x).mean())
        fitted = np.linalg.lstsq(
            np.concatenate([x, damping * np.eye(x.shape[1])]),
            np.concatenate([target, damping * real[name]]),
            rcond=None,
        )[0]
        np.testing.assert_allclose(layer.weight, fitted if sequential else real[name], rtol=2e-2, atol=2e-3)
        changed[name] = np.round(real[name] * 4) / 4
        seen.append(name)
        layer = layerwise._send(walk, changed[name])
    assert seen == ["w1", "w2", "w3", "w4", "w5"]


def outputs(path, feeds):
    session = cpu.open_session(path)
    return np.concatenate([session.run(f)["y"] for f in feeds])


def test_sequential_gptq_beats_at_once_beats_rounding(tmp_path):
    path = save(tmp_path, text(BODY, "float[N,32] x"), weights())
    held_out = [{"x": draw(8, 32, seed=i)} for i in range(10)]
    wanted = outputs(path, held_out)
    found = []
    for weight, sequential in (("mse", False), ("gptq", False), ("gptq", True)):
        made = edgeq.quantize(
            path, "generic", samples(200), tmp_path / "out", method="weight_only", weight=weight, bits=2, block=16,
            sequential=sequential, samples=0, check=False,
        )  # fmt: skip
        found.append(sqnr_db(wanted, outputs(made.artifact, held_out)))
    assert found[0] + 0.5 < found[1] < found[2] - 0.3


GPTQ = {"method": "weight_only", "weight": "gptq", "bits": 4, "block": 16, "check": False}


def test_finished_layers_are_kept(tmp_path, monkeypatch):
    path = save(tmp_path, text(BODY, "float[N,32] x"), weights())
    options = {**GPTQ, "keep": tmp_path / "k"}
    first = edgeq.quantize(path, "generic", samples(), tmp_path / "a", **options).artifact.read_bytes()
    assert len(list((tmp_path / "k").glob("*.npz"))) == 5
    plain = pipeline.quantize(path, "generic", samples(), tmp_path / "b", **{**options, "keep": None}).artifact
    assert plain.read_bytes() == first

    def fail(*_):
        raise AssertionError("solved again")

    monkeypatch.setattr("edgeq.weights.gptq.quantize", fail)
    assert edgeq.quantize(path, "generic", samples(), tmp_path / "c", **options).artifact.read_bytes() == first
    with pytest.raises(AssertionError, match="solved again"):  # other data, other statistics
        edgeq.quantize(path, "generic", samples(10), tmp_path / "d", **options)


def test_settings_of_the_algorithm(tmp_path):
    """They reach it and the artifact's recipe, keep its finished layers apart, and are checked."""
    path = save(tmp_path, text(BODY, "float[N,32] x"), weights())
    options, files = {**GPTQ, "bits": 2, "keep": tmp_path / "k"}, []
    for settings in ({}, {"act_order": True}, {"sweeps": 0, "damping": 0.05}):
        made = edgeq.quantize(path, "generic", samples(), tmp_path / "a", weight_settings=settings, **options)
        files.append(made.artifact.read_bytes())
    assert len(set(files)) == 3
    again = edgeq.quantize(path, None, samples(), tmp_path / "b", recipe=tmp_path / "a" / "recipe.toml", check=False)
    assert again.artifact.read_bytes() == files[2]
    for settings, why in (
        ({"order": 1}, "gptq has no 'order'; it has damping, act_order"),
        ({"act_order": 1}, "act_order of gptq is 1, and has to be a bool"),
        ({"sweeps": 0.5}, "has to be a int"),
        ({"damping": True}, "has to be a float"),
    ):
        with pytest.raises(RecipeError, match=why):
            edgeq.quantize(path, "generic", samples(), tmp_path / "c", weight_settings=settings, **options)


def test_data_is_asked_for(tmp_path):
    path = save(tmp_path, text(BODY, "float[N,32] x"), weights())
    with pytest.raises(CalibrationError, match="gptq weights need data"):
        edgeq.quantize(path, "generic", None, tmp_path / "out", method="weight_only", weight="gptq")
    assert edgeq.quantize(path, "generic", None, tmp_path / "out", method="weight_only", weight="mse").artifact.exists()


def test_a_damaged_layer_is_solved_again(tmp_path):
    path = save(tmp_path, text(BODY, "float[N,32] x"), weights())
    options = {**GPTQ, "keep": tmp_path / "k"}
    first = edgeq.quantize(path, "generic", samples(), tmp_path / "a", **options).artifact.read_bytes()
    for file in (tmp_path / "k").glob("*.npz"):
        file.write_bytes(file.read_bytes()[:-40])
    assert edgeq.quantize(path, "generic", samples(), tmp_path / "b", **options).artifact.read_bytes() == first


def test_branches_and_weights_of_three_axes(tmp_path):
    """The branch reads a value of the main graph that a cut lies between; one weight is a stack of matrices."""
    body = """a = MatMul (x, w1)  r = Relu (a)  c = ReduceSum <keepdims=0> (x)  z = Constant <value = float {0.0}> ()
              t = Greater (c, z)
              b = If (t) <then_branch = g1 () => (float[N,48] p) { p = Neg (r) },
                          else_branch = g2 () => (float[N,48] q) { q = Identity (r) }>
              d = MatMul (b, w2)  u = Unsqueeze (d, n)  y = MatMul (u, w3)"""
    inits = {
        "w1": draw(32, 48, seed=1) / 5, "w2": draw(48, 32, seed=2) / 5, "w3": draw(2, 32, 16, seed=3),
        "n": np.array([0]),
    }  # fmt: skip
    path = save(tmp_path, text(body, "float[N,32] x"), inits)
    made = edgeq.quantize(
        path, "generic", samples(), tmp_path / "out", method="weight_only", weight="gptq", bits=8, block=16, check=False
    )
    held_out = [{"x": draw(8, 32, seed=i)} for i in range(6)]
    assert sqnr_db(outputs(path, held_out), outputs(made.artifact, held_out)) > 35
    assert {n.name: n.decision for n in made.plan.nodes if n.op == "MatMul"} == dict.fromkeys(
        ("MatMul_0", "MatMul_6", "MatMul_8"), "packed"
    )
