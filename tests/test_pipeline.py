"""The whole way: what is written, that it is written the same twice, and that the recipe repeats it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeq import pipeline
from edgeq.data import open_data
from edgeq.errors import EdgeqError
from edgeq.recipe import Recipe
from edgeq.verifying import golden
from edgeq.verifying.verification import verify_files

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
DIGITS, CALIB, EVAL = SAMPLES / "digits.onnx", str(SAMPLES / "digits_calib.npz"), str(SAMPLES / "digits.npz")


def without_latency(report):
    for runtime in (report["runtime"], report["verification"]["runtime"]):
        assert runtime.pop("latency_ms") > 0
        assert runtime.pop("float_latency_ms") > 0
    return report


def test_the_same_twice_and_again_from_the_recipe(tmp_path):
    runs = [
        {"target": "generic", "calibrator": "percentile"},
        {"target": "generic", "calibrator": "percentile"},
        {"recipe": tmp_path / "0" / "recipe.toml"},
    ]
    for index, asked in enumerate(runs):
        pipeline.quantize(DIGITS, calib=CALIB, output=tmp_path / str(index), eval_data=EVAL, labels="label", **asked)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]
    for other in ("1", "2"):
        for name in ("model.onnx", "recipe.toml"):
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "0" / name).read_bytes()
    reports = [without_latency(json.loads((tmp_path / str(i) / "report.json").read_text())) for i in range(3)]
    assert reports[0] == reports[1] == reports[2]


def test_the_report_says_what_is_so(tmp_path):
    result = pipeline.quantize(DIGITS, "x86_64", CALIB, tmp_path / "out", eval_data=EVAL, labels="label")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert result.ok
    assert report["schema_version"] == 1
    for key, file in (("model", DIGITS), ("artifact", tmp_path / "out" / "model.onnx")):
        content = file.read_bytes()
        assert report[key] == {
            "file": file.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
    assert report["artifact"]["bytes"] < 0.5 * report["model"]["bytes"]
    assert report["target"] == report["recipe"]["target"] == "x86_64"
    assert report["versions"]["onnxruntime"] == report["runtime"]["version"] == ort.__version__
    assert report["calibration"]["samples"] == 128
    nodes = report["nodes"]
    assert 0 < nodes["integer"] <= nodes["total"]
    assert all(set(n) == {"name", "op", "reason"} and n["reason"] for n in nodes["float"])
    assert report["warnings"] == []

    held_out = np.load(EVAL)
    scores = []
    for file in (DIGITS, tmp_path / "out" / "model.onnx"):
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        scores.append(np.concatenate([session.run(None, {"input": x[None]})[0] for x in held_out["input"]]))
    error = scores[0].astype(np.float64) - scores[1]
    (drift,) = report["outputs"]
    assert drift["name"] == "logits"
    assert drift["sqnr_db"] == pytest.approx(10 * np.log10((scores[0] ** 2.0).sum() / (error**2).sum()), abs=1e-3)
    assert drift["max_abs"] == pytest.approx(np.abs(error).max(), rel=1e-5)
    accuracy = [(s.argmax(1) == held_out["label"]).mean() for s in scores]
    metric = report["metric"]
    assert [metric["float"], metric["quantized"]] == pytest.approx(accuracy)
    assert metric["drop"] == pytest.approx(accuracy[0] - accuracy[1])
    assert metric["drop"] <= 0.003


@pytest.mark.parametrize("integer_io", [False, True])
def test_integers_only_cost_little_and_their_golden_answers_are_the_artifacts(tmp_path, integer_io):
    made = pipeline.quantize(
        DIGITS, "x86_64", CALIB, tmp_path / "out", eval_data=EVAL, labels="label", integer_only=True,
        integer_io=integer_io, rounding="single",
    )  # fmt: skip
    metric = made.report.metric
    assert metric is not None
    assert metric.drop <= 0.005
    assert made.report.nodes.float == ()
    session = ort.InferenceSession(made.artifact)
    assert session.get_inputs()[0].type == ("tensor(uint8)" if integer_io else "tensor(float)")
    kept = golden.load(tmp_path / "out" / golden.NAME)
    assert len(kept.samples) == 4
    for fed, answer in kept.samples:
        np.testing.assert_array_equal(session.run(["logits"], fed)[0], answer["logits"])


def test_dynamic_needs_no_data(tmp_path):
    result = pipeline.quantize(DIGITS, "x86_64", None, tmp_path / "out", method="dynamic")
    assert result.report.verification is None
    assert result.ok
    assert any(n.op_type == "DynamicQuantizeLinear" for n in onnx.load(result.artifact).graph.node)
    session = ort.InferenceSession(result.artifact, providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)


def test_fewer_samples_are_drawn_by_the_seed(tmp_path):
    drawn = sorted(np.random.default_rng(3).choice(len(np.load(CALIB)["input"]), 5, replace=False))
    few = {k: v[drawn] for k, v in np.load(CALIB).items()}
    one = pipeline.quantize(DIGITS, "x86_64", CALIB, tmp_path / "a", recipe=Recipe(samples=5, seed=3))
    two = pipeline.quantize(DIGITS, "x86_64", few, tmp_path / "b", recipe=Recipe(samples=5))
    assert one.report.calibration["samples"] == two.report.calibration["samples"] == 5
    assert one.artifact.read_bytes() == two.artifact.read_bytes()


def test_an_error_leaves_the_old_results(tmp_path):
    out = tmp_path / "deep" / "out"
    pipeline.quantize(DIGITS, "x86_64", CALIB, out, check=False)
    (out / "notes.txt").write_text("the user's own")
    before = {p: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(EdgeqError, match="no array 'truth'"):
        pipeline.quantize(DIGITS, "x86_64", CALIB, out, calibrator="minmax", labels="truth")
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    pipeline.quantize(DIGITS, "x86_64", CALIB, out, calibrator="minmax", check=False)
    assert {p.name for p in out.iterdir()} == {"model.onnx", "recipe.toml", "report.json", "notes.txt"}
    assert (out / "model.onnx").read_bytes() != before[out / "model.onnx"]


def test_two_different_models_are_not_compared(tmp_path):
    other = onnx.load(DIGITS)
    other.graph.input[0].name = "picture"
    for node in other.graph.node:
        node.input[:] = ["picture" if name == "input" else name for name in node.input]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(EdgeqError, match="has input 'picture'"):
        verify_files(DIGITS, tmp_path / "other.onnx", "x86_64", open_data(CALIB, {"input": None}))
