"""Made-up data: BatchNormalization's statistics come back out, inputs are of the right kind, and the result says so."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

import edgeq
from edgeq.collecting.datafree import batch_moments, renormalized, synthetic
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.recipe import Preprocess, Recipe
from tests.graph.written import draw, save, text

ROOT = Path(__file__).resolve().parents[2]
BODY = """
c = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(c, g, b, m, v) r = Relu(n)
d = Conv<pads=[1,1,1,1]>(r, w2) o = BatchNormalization(d, g2, b2, m2, v2) s = Relu(o) y = Conv(s, w3)
"""
RNG = np.random.default_rng(0)


def real(count, seed=1):
    """The data that the model was made for: brighter than noise around 0."""
    return draw(count, 3, 16, 16, seed=seed) + np.float32(1.5)


@pytest.fixture
def trained(tmp_path):
    """Two normalized layers whose running statistics are those of the real data."""
    inits = {"w": np.abs(draw(8, 3, 3, 3)), "w2": draw(8, 8, 3, 3), "w3": draw(4, 8, 1, 1)}
    for layer in ("", "2"):
        inits |= {f"g{layer}": RNG.uniform(0.5, 2, 8).astype(np.float32), f"b{layer}": draw(8, seed=9)}
        inits |= {f"m{layer}": np.zeros(8, np.float32), f"v{layer}": np.ones(8, np.float32)}
    for value, layer in (("c", ""), ("d", "2")):
        path = save(tmp_path, text(BODY, "float[N,3,16,16] x"), inits)
        model = onnx.load(path)
        model.graph.output.append(onnx.helper.make_tensor_value_info(value, 1, None))
        found = ort.InferenceSession(model.SerializeToString()).run([value], {"x": real(64)})[0]
        inits |= {f"m{layer}": found.mean((0, 2, 3)), f"v{layer}": found.var((0, 2, 3))}
    return save(tmp_path, text(BODY, "float[N,3,16,16] x"), inits), inits


def test_values_follow_the_norms(trained, tmp_path):
    path, inits = trained
    source = io.load(path)
    moments = batch_moments(source)
    assert sorted(moments) == ["n", "o"]
    prepared = prepare(source)
    io.save(prepared, tmp_path / "p.onnx")
    drawn = renormalized(tmp_path / "p.onnx", moments, tmp_path / "r.onnx")
    assert sorted(drawn.values()) == [(1, 8, 1, 1)] * 2
    model = onnx.load(tmp_path / "r.onnx")
    for name in ("n", "o"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = ort.InferenceSession(model.SerializeToString())
    found = [
        session.run(["n", "o"], feeds) for seed in range(12) for feeds in synthetic(prepared, drawn, Recipe(seed=seed))
    ]
    for values, layer in zip(zip(*found, strict=True), ("", "2"), strict=True):
        stacked = np.concatenate(values)
        gamma = np.abs(inits[f"g{layer}"])
        np.testing.assert_allclose(stacked.mean((0, 2, 3)), inits[f"b{layer}"], atol=0.15 * gamma.max())
        np.testing.assert_allclose(stacked.std((0, 2, 3)), gamma, rtol=0.1)


def sqnr(path, artifact):
    a, b = (ort.InferenceSession(p).run(None, {"x": real(64, seed=2)})[0].astype(np.float64) for p in (path, artifact))
    return 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())


def test_norms_are_worth_more_than_noise(trained, tmp_path):
    path, _ = trained
    fused = prepare(io.load(path))
    io.save(fused, tmp_path / "fused.onnx")  # the same function, whose norms nobody can read any more
    made = edgeq.quantize(path, "x86_64", None, tmp_path / "a", data_free=True)
    plain = edgeq.quantize(tmp_path / "fused.onnx", "x86_64", None, tmp_path / "b", data_free=True)
    told = edgeq.quantize(path, "x86_64", {"x": real(64)}, tmp_path / "c", check=False)
    assert sqnr(path, made.artifact) > sqnr(path, plain.artifact) + 3
    assert sqnr(path, told.artifact) > sqnr(path, made.artifact)
    start = "data-free: BatchNormalization statistics of 2 values, "
    assert made.report.calibration == {"samples": 32, "data": start + "32 synthetic inputs"}
    assert plain.report.calibration["data"] == "data-free: 32 synthetic inputs"
    assert any("made-up data" in line for line in made.report.warnings)
    assert made.report.verification is None
    again = edgeq.quantize(path, "x86_64", None, tmp_path / "d", data_free=True, workers=2, save_stats=tmp_path / "s")
    assert again.artifact.read_bytes() == made.artifact.read_bytes()
    saved = edgeq.quantize(path, "x86_64", None, tmp_path / "e", stats=tmp_path / "s")
    assert saved.artifact.read_bytes() == made.artifact.read_bytes()
    with pytest.raises(RecipeError, match="leave out --calib"):
        edgeq.quantize(path, "x86_64", {"x": real(4)}, tmp_path / "f", data_free=True)


def prepared_of(body, inputs, outputs="float[] y", **inits):
    model = parser.parse_model(text(body, inputs, outputs))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), k) for k, a in inits.items())
    return prepare(ir.from_proto(model))


def test_inputs_are_of_their_kind():
    body = "i = Cast<to=7>(ids) u = Unsqueeze(i, one) e = Gather(table, u) k = Cast<to=1>(mask) f = Cast<to=1>(on)"
    body += " p = Gather<axis=1>(wide, kind) y = Relu(z) q = Add(e, k) w = Add(f, p)"
    given = "int32[N,L] ids, int64[N,L] mask, bool[N] on, int64[L] kind, float[N,L,7] z"
    inits = {"one": np.array([1]), "table": draw(11, 4), "wide": draw(3, 5)}
    model = prepared_of(body, given, "float[] y, float[] q, float[] w", **inits)
    inputs = {v.name: v for v in model.graph.inputs}
    assert set(inputs) == {"ids", "mask", "on", "kind", "z"}
    samples = list(synthetic(model, {}, Recipe()))
    assert len(samples) == 32
    for feeds in samples:
        assert {k: v.shape for k, v in feeds.items()} == {
            "ids": (1, 32), "mask": (1, 32), "on": (1,), "kind": (1,), "z": (1, 32, 7)
        }  # fmt: skip
        assert feeds["ids"].dtype == np.int32
        assert feeds["on"].dtype == bool
        assert (feeds["mask"] == 1).all()
    ids = np.stack([f["ids"] for f in samples])
    assert (ids.min(), ids.max()) == (0, 10)
    kinds = np.stack([f["kind"] for f in samples])
    assert (kinds.min(), kinds.max()) == (0, 4)
    again = list(synthetic(model, {}, Recipe()))
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(samples, again, strict=True) for k in a)
    assert not np.array_equal(next(iter(synthetic(model, {}, Recipe(seed=1))))["z"], samples[0]["z"])


def test_pictures_are_made_ready_as_the_recipe_says():
    model = prepared_of("y = Relu(x)", "float[N,24,32,3] x")
    how = Preprocess(layout="NHWC", scale=1.0, mean=(100.0,), std=(2.0,))
    values = np.concatenate([f["x"] for f in synthetic(model, {}, Recipe(preprocess=how))])
    pixels = values * 2 + 100
    assert values.shape == (32, 24, 32, 3)
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
    assert (pixels.min(), pixels.max()) == (0, 255)
    plain = np.concatenate([f["x"] for f in synthetic(prepared_of("y = Relu(x)", "float[N,3,H,W] x"), {}, Recipe())])
    assert plain.shape == (32, 3, 224, 224)
    assert plain.std() == pytest.approx(1, abs=0.05)
    assert np.corrcoef(plain[..., :-1].ravel(), plain[..., 1:].ravel())[0, 1] > 0.5


def test_no_shape_no_data():
    model = prepared_of("y = Relu(x)", "float[N] x")
    model.graph.inputs[0].shape = None
    with pytest.raises(CalibrationError, match="'x' has no known shape"):
        list(synthetic(model, {}, Recipe()))


def test_on_the_command_line(trained, tmp_path):
    command = [sys.executable, "-m", "edgeq", "quantize", str(trained[0]), "--data-free", "-o", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "made-up data" in ran.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["calibration"]["data"].startswith("data-free: ")
