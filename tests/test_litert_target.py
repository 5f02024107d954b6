"""`-t litert`, `litert-int16` and `ethos-u`: files that LiteRT runs, in the model's own names, and that lose little."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from benchmarks import models
from edgeq.errors import TargetError
from edgeq.formats import vela
from edgeq.formats.tflite_emulate import run as emulate
from edgeq.formats.tflite_read import read
from edgeq.recipe import Recipe
from edgeq.runners import litert
from tests.graph.written import draw, samples, save, text
from tests.require import require

require("litert", "pip install edgeq[litert]", lambda: litert.missing() is None)

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODEL = SAMPLES / "digits.onnx"
DATA = {
    "calib": str(SAMPLES / "digits_calib.npz"),
    "eval_data": str(SAMPLES / "digits.npz"),
    "labels": "label",
    "shapes": (("input", (1, 1, 8, 8)),),
}
LEAST = {  # (target, method): dB of the logits, bytes over the float model's
    ("litert", "static"): (28, 0.45),
    ("litert", "dynamic"): (40, 0.65),
    ("litert", "float16"): (60, 0.52),
    ("litert", "float32"): (110, 0.95),
    ("litert-int16", "static"): (36, 0.48),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("litert")
    return {
        (target, method): edgeq.quantize(MODEL, target, output=base / f"{target}-{method}", method=method, **DATA)
        for target, method in LEAST
    }


def codes(result):
    return Counter(op.code for op in read(result.artifact.read_bytes()).ops)


@pytest.mark.parametrize("kind", LEAST)
def test_every_form_of_file_is_as_good_as_its_types(made, kind):
    result, (decibels, share) = made[kind], LEAST[kind]
    report = result.report
    assert result.artifact.name == "model.tflite"
    assert report.runtime.name == litert.TITLE
    assert report.outputs[0].sqnr_db > decibels
    assert report.metric.drop <= 0.003
    assert report.artifact.bytes < share * report.model.bytes
    assert codes(result)["TRANSPOSE"] == 0


def test_the_types_are_what_was_asked_for(made):
    def types(kind):
        tensors = read(made[kind].artifact.read_bytes()).tensors
        return Counter((t.dtype, t.data is not None) for t in tensors)

    assert types(("litert", "static"))["float32", False] == 2  # the input and the output
    assert types(("litert-int16", "static"))["int16", False] > 40
    assert types(("litert-int16", "static"))["int64", True] > 20  # biases
    assert types(("litert", "dynamic"))["int8", True] >= 5  # small weights are not worth it
    assert types(("litert", "dynamic"))["int8", False] == 0
    assert types(("litert", "float16"))["float16", True] > 10
    assert not {dtype for dtype, _ in types(("litert", "float32"))} & {"int8", "int16", "float16"}


def test_the_float_file_answers_as_onnxruntime(made):
    session = ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    opened = litert.open_session(made["litert", "float32"].artifact)
    with np.load(SAMPLES / "digits.npz") as data:
        feeds = [{"input": row[None]} for row in data["input"][:20]]
    for given, found in zip(feeds, opened.run_many(feeds), strict=True):
        np.testing.assert_allclose(found["logits"], session.run(None, given)[0], rtol=1e-4, atol=1e-4)
    opened.close()


def test_the_emulator_gives_the_bits_of_the_reference_kernels(made):
    artifact = made["litert", "static"].artifact
    model = read(artifact.read_bytes())
    opened = litert.open_session(artifact, kernels="reference")
    tapped = model.ops[-1].inputs[0]  # the codes before the last DEQUANTIZE
    with np.load(SAMPLES / "digits.npz") as data:
        feeds = [{"input": row[None]} for row in data["input"][:20]]
    for given, found in zip(feeds, opened.run_many(feeds, [tapped]), strict=True):
        turned = {model.inputs[0]: given["input"].transpose(0, 2, 3, 1)}
        mine = emulate(model, turned, taps=[tapped])
        np.testing.assert_array_equal(mine[tapped], found[tapped])
    opened.close()


def test_the_default_kernels_are_a_step_off_on_average(made):
    """Each kernel is within a step of its reference form; over 60 of them some outputs drift further."""
    artifact = made["litert", "static"].artifact
    with np.load(SAMPLES / "digits.npz") as data:
        feeds = [{"input": row[None]} for row in data["input"][:50]]
    answers = []
    for kernels in ("reference", "default"):
        opened = litert.open_session(artifact, kernels=kernels)
        answers.append(np.concatenate([found["logits"] for found in opened.run_many(feeds)]))
        opened.close()
    (scale,) = next(t.scale for t in read(artifact.read_bytes()).tensors if t.dtype == "int8" and t.shape == (1, 10))
    assert np.abs(answers[0] - answers[1]).mean() <= scale
    assert (answers[0].argmax(1) == answers[1].argmax(1)).all()


def test_free_shapes_are_those_of_the_first_sample(made, tmp_path):
    """What `make quantize TARGET=litert` needs; the recipe says so, and repeats the artifact."""
    result = edgeq.quantize(MODEL, "litert", output=tmp_path / "out", **{**DATA, "shapes": ()})
    assert Recipe(**result.report.recipe).shapes == DATA["shapes"]
    assert result.artifact.read_bytes() == made["litert", "static"].artifact.read_bytes()


def test_without_data_a_free_shape_is_declined_in_one_line(tmp_path):
    with pytest.raises(TargetError, match=r"fixed shapes only.*--shape input=1,1,8,8"):
        edgeq.quantize(MODEL, "litert", output=tmp_path / "out", method="float32")
    assert list(tmp_path.iterdir()) == []


def test_golden_vectors_are_in_the_models_own_layout(made):
    folder = made["litert", "static"].folder
    with np.load(folder / "golden.npz") as held:
        assert held["0/in/input"].shape == (1, 1, 8, 8)
        assert held["0/out/logits"].shape == (1, 10)


def test_vela_runs_all_but_the_ends_on_the_npu(tmp_path):
    require(
        "vela", "pip install ethos-u-vela", lambda: shutil.which("vela", path=str(Path(vela.sys.executable).parent))
    )
    result = edgeq.quantize(MODEL, "ethos-u", output=tmp_path / "out", **DATA)
    compiled = result.report.compiled
    assert compiled["cpu_operators"] == 2  # QUANTIZE and DEQUANTIZE
    assert compiled["npu_operators"] > 50
    assert 0 < compiled["sram_kib"] < 64
    assert compiled["cycles"] > compiled["macs"] / 256
    assert (tmp_path / "out" / "model_vela.tflite").read_bytes()[4:8] == b"TFL3"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["compiled"] == compiled


def test_without_vela_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(vela.shutil, "which", lambda *_, **__: None)
    result = edgeq.quantize(MODEL, "ethos-u", output=tmp_path / "out", **DATA)
    assert any("Vela is not installed" in line for line in result.report.warnings)
    assert result.report.compiled == {}


def test_a_layer_that_feeds_floats_gives_floats(tmp_path):
    """An embedding, and a residual stream with an outlier: int8 rows and weights, and no int8 scale over the sum."""
    rng = np.random.default_rng(0)
    inits = {"table": draw(500, 64), "w": draw(64, 64) / 8, "far": np.eye(1, 64, 5, dtype=np.float32) * 300}
    body = "e = Gather (table, x) m = MatMul (e, w) n = Sin (m) y = Add (n, far)"
    path = save(tmp_path, text(body, "int64[1,8] x", "float[1,8,64] y"), inits)
    feeds = [{"x": rng.integers(0, 500, (1, 8))} for _ in range(4)]
    result = edgeq.quantize(path, "litert", feeds, tmp_path / "out")
    tensors = {t.name: t for t in read(result.artifact.read_bytes()).tensors}
    (layer,) = (op for op in read(result.artifact.read_bytes()).ops if op.code == "FULLY_CONNECTED")
    assert [tensors[n].dtype for n in (layer.inputs[1], layer.outputs[0])] == ["int8", "float32"]
    assert any(t.dtype == "int8" and t.shape == (500, 64) for t in tensors.values())
    assert result.report.artifact.bytes < 0.4 * result.report.model.bytes
    assert result.report.outputs[0].sqnr_db > 45


def test_what_is_concatenated_keeps_its_own_scale(tmp_path):
    """One part is a thousand times the other: in one scale it would be nothing."""
    inits = {"v": draw(4, 4, 1, 1) / 500, "w": draw(4, 4, 1, 1), "u": draw(4, 8, 1, 1, seed=2)}
    inits["u"][:, :4] *= 500
    body = "a = Conv (x, v) b = Conv (x, w) c = Concat <axis = 1> (a, b) y = Conv (a, w)  z = Conv (c, u)"
    path = save(tmp_path, text(body, "float[1,4,8,8] x", "float[1,4,8,8] y, float[1,4,8,8] z"), inits)
    result = edgeq.quantize(path, "litert", samples(1, 4, 8, 8), tmp_path / "out")
    assert result.report.outputs[0].sqnr_db > 30
    assert codes(result)["QUANTIZE"] >= 2  # of the input, and of the small part


def test_a_mobilenet_has_no_transpose(tmp_path):
    path = models.build("mobilenetv2", tmp_path)
    shapes = (("input", (1, 3, 224, 224)),)
    result = edgeq.quantize(path, "litert", output=tmp_path / "out", method="float32", shapes=shapes, check=False)
    found = codes(result)
    assert found["CONV_2D"] + found["DEPTHWISE_CONV_2D"] == 52
    assert found["TRANSPOSE"] == 0
