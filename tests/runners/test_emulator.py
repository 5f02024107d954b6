"""NNAPI's arithmetic as a runner: a whole model through NumPy and onnxruntime, and what its report says."""

from pathlib import Path

import numpy as np
import pytest

import edgeq
from edgeq.errors import ModelError, RecipeError, ToolError
from edgeq.numerics.metrics import sqnr_db
from edgeq.runners import cpu, emulator
from tests.graph.written import draw, save, text

SAMPLES = Path(__file__).resolve().parent.parent.parent / "sample_models"
BODY = """
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (c)
    h = HardSwish (r)
    d = Conv <group = 4, pads = [1, 1, 1, 1]> (h, v, b)
    s = Add (d, r)
    p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)
    f = Reshape (p, k)
    g = Gemm <transB = 1> (f, u, t)
    y = Softmax <axis = 1> (g)
"""
INITS = {"w": draw(4, 4, 3, 3), "v": draw(4, 1, 3, 3), "b": draw(4), "u": draw(5, 64), "t": draw(5)}
INITS["k"] = np.array([1, -1])
FEEDS = [{"x": draw(1, 4, 8, 8, seed=i)} for i in range(8)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulator")
    path = save(folder, text(BODY, "float[1,4,8,8] x", "float[1,5] y"), INITS)
    return edgeq.quantize(path, "nnapi", FEEDS, folder / "out")


def test_the_target_is_verified_on_it(made):
    assert made.report.runtime.name == emulator.TITLE
    assert made.report.outputs[0].sqnr_db > 25
    assert made.report.verification.levels["disabled"] > 25  # beside it, what onnxruntime's CPU makes of the file


def test_it_is_a_code_from_onnxruntime(made):
    """On a random model: both round one exact sum, and only ties and fixed-point multipliers part them."""
    mine, its = (runner.open_session(made.artifact) for runner in (emulator, cpu))
    for feeds in FEEDS:
        left, right = mine.run(feeds, ["r_q", "s_q", "s"]), its.run(feeds, ["r_q", "s_q", "s"])
        assert list(left) == ["y", "r_q", "s_q", "s"]
        for name in left:
            assert left[name].shape == right[name].shape
            assert left[name].dtype == right[name].dtype
        steps = np.abs(left["s_q"].astype(int) - right["s_q"].astype(int))
        assert np.abs(left["r_q"].astype(int) - right["r_q"].astype(int)).max() <= 1
        assert steps.max() <= 2
        assert (steps == 0).mean() > 0.9
        assert sqnr_db(right["s"], left["s"]) > 30  # within a unit it has codes alone, dequantized
    mine.close()


def test_the_report_counts_what_nnapi_takes(made):
    found = {level: emulator.open_session(made.artifact, api_level=level) for level in ("27", "28", "29")}
    counts = {level: session.report["nnapi"] for level, session in found.items()}
    assert counts["29"]["cpu_nodes"] == 1  # the HardSwish
    assert counts["29"]["partitions"] == 2
    assert counts["27"]["cpu_nodes"] > counts["28"]["cpu_nodes"] > counts["29"]["cpu_nodes"]
    answers = {level: session.run(FEEDS[0])["y"] for level, session in found.items()}
    for level in ("27", "28"):  # less is in NumPy, and onnxruntime runs the rest
        assert sqnr_db(answers["29"], answers[level]) > 30


def test_on_digits_it_classifies_as_the_float_model(tmp_path):
    data = {"calib": str(SAMPLES / "digits_calib.npz"), "eval_data": str(SAMPLES / "digits.npz"), "labels": "label"}
    for target in ("nnapi", "nnapi-28"):
        shapes = (("input", (1, 1, 8, 8)),)
        report = edgeq.quantize(SAMPLES / "digits.onnx", target, output=tmp_path / target, shapes=shapes, **data).report
        assert report.metric.drop <= 0.006
        assert report.outputs[0].sqnr_db > (28 if target == "nnapi" else 20)


def test_values_of_if_bodies_and_captures(tmp_path):
    body = """
        c = Conv (x, w, b)
        s = ReduceSum <keepdims = 0> (c)
        more = Greater (s, zero)
        y = If (more) <then_branch = yes () => (float[1,4,6,6] p) { p = Relu (c) },
                    else_branch = no () => (float[1,4,6,6] q) { q = Neg (c) }>
    """
    path = save(tmp_path, text(body, "float[1,4,8,8] x", "float[1,4,6,6] y"), {**INITS, "zero": np.float32(0)})
    result = edgeq.quantize(path, "nnapi", FEEDS, tmp_path / "out")
    mine, its = (runner.open_session(result.artifact) for runner in (emulator, cpu))
    assert sqnr_db(its.run(FEEDS[0])["y"], mine.run(FEEDS[0])["y"]) > 30


def test_what_can_t_be_done_is_said(made):
    with pytest.raises(RecipeError, match="api_level='26' is not one of 27"):
        emulator.open_session(made.artifact, api_level="26")
    session = emulator.open_session(made.artifact, timeout=1e-9)
    with pytest.raises(ModelError, match="no array was given for the input 'x'"):
        session.run({})
    with pytest.raises(ToolError, match="raise the timeout option"):
        session.run(FEEDS[0])
    with pytest.raises(ModelError, match="no value 'nowhere'"):
        emulator.open_session(made.artifact).run(FEEDS[0], ["nowhere"])
