"""Shapes, biases and outputs that exporters write and few tools expect, through the whole pipeline."""

import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from tests.graph.written import CONV, draw, integer, quantize, samples, save, text


@pytest.mark.parametrize("inputs", ["float[] x", "float[N,4,8,8] x"])
def test_shapes_that_nobody_knows(tmp_path, inputs):
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        y = Reshape (a, form)
    """
    path = save(tmp_path, text(body, f"{inputs}, int64[K] form"), CONV)
    feeds = [f | {"form": np.array([4, 64])} for f in samples(1, 4, 8, 8)]
    result = quantize(tmp_path, path, feeds, check=[*feeds[:1], feeds[1] | {"form": np.array([2, 2, 64])}])
    assert integer(result) == {"Conv_0"}


def test_an_output_declared_with_the_wrong_rank(tmp_path):
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        y = Identity (a)
    """
    path = save(tmp_path, text(body, outputs="float y"), CONV)
    assert integer(quantize(tmp_path, path, samples(1, 4, 8, 8))) == {"Conv_0"}


@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 8), (3, 1), (3, 8)])
@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_a_bias_of_any_shape(tmp_path, shape, method):
    """Verification warns when onnxruntime runs in float what was meant as integer, as QGemm does without a vector."""
    inits = {"w": draw(16, 8), "b": np.asarray(draw(*shape), np.float32)}
    path = save(tmp_path, text("y = Gemm <beta = 2.0> (x, w, b)", "float[3,16] x"), inits)
    result = quantize(tmp_path, path, samples(3, 16), method=method)
    assert integer(result) == {"Gemm_0"}
    assert result.report.warnings == ()


def test_a_bias_that_comes_with_the_sample(tmp_path):
    path = save(tmp_path, text("y = Gemm (x, w, b)", "float[3,16] x, float[3,8] b"), {"w": draw(16, 8)})
    result = quantize(tmp_path, path, [f | {"b": draw(3, 8)} for f in samples(3, 16)])
    assert integer(result) == {"Gemm_0"}
    assert result.report.warnings == ()


def test_an_infinite_weight_keeps_its_node_float_and_says_so(tmp_path):
    weight = draw(16, 8)
    weight[3, 3] = np.inf
    body = "a = MatMul (x, good) y = MatMul (a, w)"
    path = save(tmp_path, text(body, "float[N,16] x"), {"good": draw(16, 16), "w": weight})
    result = edgeq.quantize(path, "x86_64", samples(3, 16), tmp_path / "out", check=False)
    assert integer(result) == {"MatMul_0"}
    assert {n.name: n.reason for n in result.report.nodes.float}["MatMul_1"]
    assert ort.InferenceSession(str(result.artifact)).run(None, samples(3, 16)[0])[0].shape == (3, 8)


@pytest.mark.parametrize("outputs", ["float[] y, float[4,4,3,3] w", "float[] y, float[N,4,8,8] x"])
def test_a_weight_or_an_input_is_an_output(tmp_path, outputs):
    path = save(tmp_path, text("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", outputs=outputs), CONV)
    assert integer(quantize(tmp_path, path, samples(1, 4, 8, 8))) == {"Conv_0"}


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_a_loop_body_whose_state_is_also_its_output(tmp_path, method):
    body = """
        start = ReduceSum <keepdims = 0> (x, axis)
        last, y = Scan <num_scan_inputs = 1, body = step (float[16] s, float[16] xi) => (float[16] so, float[16] yo) {
            t = Unsqueeze (xi, axis)
            m = MatMul (t, w)
            q = Squeeze (m, axis)
            so = Add (s, q)
            yo = Identity (so)
        }> (start, x)
    """
    inits = {"w": draw(16, 16), "axis": np.array([0])}
    path = save(tmp_path, text(body, "float[6,16] x"), inits)
    result = quantize(tmp_path, path, samples(6, 16), method=method)
    found = {n.op: (n.decision, n.reason) for n in result.plan.nodes}["MatMul"]
    assert found[0] == ("float" if method == "static" else "dynamic")
    assert method == "dynamic" or "in the body of a Scan" in found[1]


@pytest.mark.parametrize("inner", ["p", "r"])
def test_an_if_that_passes_on_what_was_computed_before_it(tmp_path, inner):
    body = f"""
        p = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (p)
        top = ReduceMean <keepdims = 0> (x)
        c = Greater (top, zero)
        v = If (c) <
            then_branch = yes () => (float[N,4,8,8] to) {{ to = Identity ({inner}) }},
            else_branch = no () => (float[N,4,8,8] eo) {{ eo = Conv <pads = [1, 1, 1, 1]> (r, w, b) }}
        >
        y = Neg (v)
    """
    path = save(tmp_path, text(body), CONV | {"zero": np.float32(0)})
    assert "Conv_0" in integer(quantize(tmp_path, path, samples(1, 4, 8, 8)))
