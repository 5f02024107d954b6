"""More graphs that break quantizers: what is tied, hidden, missing, infinite or outside the file."""

import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from edgeq import target as targets
from edgeq.data import open_data
from edgeq.errors import CalibrationError
from edgeq.numerics.metrics import sqnr_db
from edgeq.verifying.verify import verify
from tests.graph.written import CONV, draw, integer, quantize, samples, save, text


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_an_output_layer_tied_to_the_embedding(tmp_path, method):
    body = """
        e = Gather (table, x)
        h = MatMul (e, w)
        t = Transpose <perm = [1, 0]> (table)
        y = MatMul (h, t)
    """
    ids = [{"x": np.random.default_rng(i).integers(0, 300, (2, 7))} for i in range(8)]
    inits = {"table": draw(300, 16), "w": draw(16, 16)}
    path = save(tmp_path, text(body, "int64[N,T] x"), inits)
    result = quantize(tmp_path, path, ids, method=method, least=22)
    assert {"MatMul_1", "MatMul_3"} <= integer(result)


def test_one_weight_read_along_two_axes(tmp_path):
    body = """
        a = Gemm <transB = 1> (x, w, b)
        y = Gemm <transB = 0> (a, w, b)
    """
    path = save(tmp_path, text(body, "float[N,16] x"), {"w": draw(16, 16), "b": draw(16)})
    assert integer(quantize(tmp_path, path, samples(5, 16))) == {"Gemm_0", "Gemm_1"}


def test_a_bias_that_an_activation_reads_too(tmp_path):
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        s = Reshape (b, form)
        c = Mul (a, s)
        d = Add (c, s)
        y = Conv <pads = [1, 1, 1, 1]> (d, w, b)
    """
    path = save(tmp_path, text(body), CONV | {"form": np.array([1, 4, 1, 1])})
    quantize(tmp_path, path, samples(1, 4, 8, 8))


def test_every_name_that_we_would_give_is_taken(tmp_path):
    body = """
        x_q = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        x_scale = Relu (x_q)
        x_zero_point = Conv <pads = [1, 1, 1, 1]> (x_scale, w_q, w_scale)
        x_QuantizeLinear = Sigmoid (x_zero_point)
        w_dq = Mul (x_QuantizeLinear, x_zero_point)
        y = Conv <pads = [1, 1, 1, 1]> (w_dq, w_zero_point, b_q)
    """
    inits = CONV | {"w_q": draw(4, 4, 3, 3, seed=1), "w_scale": draw(4, seed=1)}
    inits |= {"w_zero_point": draw(4, 4, 3, 3, seed=2), "b_q": draw(4, seed=2)}
    path = save(tmp_path, text(body), inits)
    for method in ("static", "dynamic"):
        quantize(tmp_path, path, samples(1, 4, 8, 8), method=method)


@pytest.mark.parametrize("masked", [-1e4, -np.inf, np.finfo(np.float32).min])
def test_a_mask_that_is_computed_stretches_no_scale(tmp_path, masked):
    """Everything else lies within ±20: with one step of 1e4/255 between, nothing would be left."""
    body = """
        a = MatMul (x, w)
        k = Cast <to = 1> (keep)
        m = Where (keep, zero, masked)
        b = Add (a, m)
        s = Softmax <axis = -1> (b)
        r = MatMul (s, v)
        y = MatMul (r, w)
    """
    inits = {"w": draw(16, 16), "v": draw(16, 16, seed=1), "zero": np.float32(0), "masked": np.float32(masked)}
    path = save(tmp_path, text(body, "float[N,5,16] x, bool[5,16] keep"), inits)
    keep = np.arange(80).reshape(5, 16) % 3 > 0
    feeds = [f | {"keep": keep} for f in samples(2, 5, 16)]
    result = quantize(tmp_path, path, feeds, least=28)
    assert {"MatMul_0", "MatMul_5", "MatMul_6"} <= integer(result)


def test_not_a_number_in_the_samples_is_refused_in_one_line(tmp_path):
    path = save(tmp_path, text("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)"), CONV)
    feeds = samples(1, 4, 8, 8)
    feeds[3]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError) as caught:
        edgeq.quantize(path, "x86_64", feeds, tmp_path / "out")
    assert "NaN" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("far", [np.inf, -np.inf])
def test_an_infinite_number_in_the_samples_stretches_no_scale(tmp_path, far):
    path = save(tmp_path, text("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)"), CONV)
    feeds = samples(1, 4, 8, 8)
    spoiled = [{"x": f["x"].copy()} for f in feeds]
    spoiled[3]["x"][0, 0, 0, 0] = far
    quantize(tmp_path, path, spoiled, check=feeds)


def test_a_constant_activation(tmp_path):
    body = """
        z = Mul (x, zero)
        c = Add (z, five)
        y = Conv <pads = [1, 1, 1, 1]> (c, w, b)
    """
    path = save(tmp_path, text(body), CONV | {"zero": np.float32(0), "five": np.float32(5)})
    quantize(tmp_path, path, samples(1, 4, 8, 8))


def test_constants_in_nodes_and_local_functions(tmp_path):
    function = """
        <opset_import: ["" : 17], domain: "local">
        Block (v, w) => (r) {
            n = Conv <pads = [1, 1, 1, 1]> (v, w)
            k = Constant <value = float {0.5}> ()
            m = Mul (n, k)
            r = Relu (m)
        }
    """
    body = "a = local.Block (x, w) y = local.Block (a, w)"
    path = save(tmp_path, text(body) + function, {"w": CONV["w"]})
    assert quantize(tmp_path, path, samples(1, 4, 8, 8)).plan.counts() == {"integer": 2, "folded": 2}


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_an_optional_input_keeps_its_default_and_its_effect(tmp_path, method):
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        y = Mul (a, gain)
    """
    path = save(tmp_path, text(body, "float[N,4,8,8] x, float[1] gain"), CONV | {"gain": np.ones(1, np.float32)})
    feeds = samples(1, 4, 8, 8)
    result = quantize(tmp_path, path, feeds, method=method)
    quantize(tmp_path, path, feeds, method=method, check=[f | {"gain": np.array([3], np.float32)} for f in feeds])
    assert integer(result) == {"Conv_0"}


def test_old_models_list_their_weights_as_inputs(tmp_path):
    inputs = "float[N,4,8,8] x, float[4,4,3,3] w, float[4] b"
    path = save(tmp_path, text("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", inputs, opset=9, ir=3), CONV)
    result = edgeq.quantize(path, "x86_64", samples(1, 4, 8, 8), tmp_path / "out")
    left, right = ort.InferenceSession(str(path)), ort.InferenceSession(str(result.artifact))
    assert [v.name for v in right.get_inputs()] == ["x"]
    assert integer(result) == {"Conv_0"}
    feed = samples(1, 4, 8, 8)[0]
    assert sqnr_db(left.run(None, feed)[0], right.run(None, feed)[0]) > 30


def test_dynamic_shapes_stay_dynamic(tmp_path):
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (a)
        d = Shape (r)
        f = Slice (d, zero, two)
        s = Concat <axis = 0> (f, rest)
        t = Reshape (r, s)
        y = MatMul (t, t2)
    """
    inits = CONV | {"zero": np.array([0]), "two": np.array([2]), "rest": np.array([-1, 8]), "t2": draw(8, 5)}
    path = save(tmp_path, text(body, "float[N,4,H,W] x"), inits)
    sizes = [(1, 4, 8, 8), (2, 4, 16, 8), (3, 4, 4, 24)]
    feeds = [{"x": draw(*s)} for s in sizes] * 2
    result = quantize(tmp_path, path, feeds)
    session = ort.InferenceSession(str(result.artifact))
    assert session.get_inputs()[0].shape == ["N", 4, "H", "W"]
    assert "Conv_0" in integer(result)


def test_weights_in_half_precision_behind_a_cast(tmp_path):
    body = """
        w = Cast <to = 1> (half)
        y = Conv <pads = [1, 1, 1, 1]> (x, w)
    """
    path = save(tmp_path, text(body), {"half": CONV["w"].astype(np.float16)})
    assert integer(quantize(tmp_path, path, samples(1, 4, 8, 8))) == {"Conv_1"}


def test_half_precision_with_an_output_that_is_also_an_intermediate(tmp_path):
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (a)
        y = Conv <pads = [1, 1, 1, 1]> (r, w, b)
    """
    inits = {k: v.astype(np.float16) for k, v in CONV.items()}
    path = save(tmp_path, text(body, "float16[N,4,8,8] x", "float16[] a, float16[] y"), inits)
    feeds = [{"x": f["x"].astype(np.float16)} for f in samples(1, 4, 8, 8)]
    assert integer(quantize(tmp_path, path, feeds)) == {"Conv_0", "Conv_2"}


def test_external_data(tmp_path):
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = save(tmp_path, text("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)"), CONV, **options)
    assert (tmp_path / "weights.bin").stat().st_size >= CONV["w"].nbytes
    result = quantize(tmp_path, path, samples(1, 4, 8, 8))
    assert integer(result) == {"Conv_0"}
    assert result.report.model.bytes > path.stat().st_size


def test_outputs_that_are_one_value(tmp_path):
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        also = Identity (a)
        y = Conv <pads = [1, 1, 1, 1]> (a, w, b)
    """
    path = save(tmp_path, text(body, outputs="float[] a, float[] also, float[] y"), CONV)
    assert integer(quantize(tmp_path, path, samples(1, 4, 8, 8))) == {"Conv_0", "Conv_2"}


def test_empty_batches_and_empty_weights(tmp_path):
    body = """
        a = MatMul (x, w)
        c = MatMul (x, none)
        y = Concat <axis = 1> (a, c)
    """
    path = save(tmp_path, text(body, "float[N,16] x"), {"w": draw(16, 8), "none": np.zeros((16, 0), np.float32)})
    result = quantize(tmp_path, path, samples(5, 16))
    assert integer(result) == {"MatMul_0"}
    session = ort.InferenceSession(str(result.artifact))
    assert session.run(None, {"x": np.zeros((0, 16), np.float32)})[0].shape == (0, 8)


@pytest.mark.parametrize("opset", [7, 9, 10, 12])
def test_every_kind_of_layer_of_an_old_opset(tmp_path, opset):
    body = """
        a = Conv <pads = [1, 1, 1, 1], group = 4> (x, dw)
        r = Relu (a)
        c = Conv (r, pw, b)
        p = GlobalAveragePool (c)
        f = Flatten (p)
        g = Gemm <transB = 1> (f, gw, b)
        y = MatMul (g, m)
    """
    inits = {"dw": draw(4, 1, 3, 3), "pw": draw(4, 4, 1, 1), "b": draw(4), "gw": draw(4, 4), "m": draw(4, 6)}
    path = save(tmp_path, text(body, opset=opset, ir=4), inits)
    # Averages over noise are small beside what each pixel's step rounds, hence the lower bar.
    result = quantize(tmp_path, path, samples(1, 4, 8, 8), least=18)
    assert {"Conv_0", "Conv_2", "Gemm_5", "MatMul_6"} <= integer(result)


def test_verify_names_the_scores_that_one_scale_for_boxes_and_scores_loses(tmp_path):
    """By hand, as a careless tool writes it: one Q and DQ over boxes of 0 to 300 beside scores of 0 to 1."""
    body = """
        p = MatMul (x, boxes)
        q = MatMul (x, scores)
        s = Sigmoid (q)
        c = Concat <axis = 1> (p, s)
    """
    inits = {"boxes": np.abs(draw(16, 4)) * 20, "scores": draw(16, 2)}
    feeds = [{"x": np.abs(f["x"])} for f in samples(5, 16)]
    path = save(tmp_path, text(body + "y = Identity (c)", "float[N,16] x"), inits)
    (tmp_path / "bad").mkdir()
    careless = body + "i = QuantizeLinear (c, step, zero) y = DequantizeLinear (i, step, zero)"
    pair = {"step": np.float32(2.5), "zero": np.uint8(0)}
    bad = save(tmp_path / "bad", text(careless, "float[N,16] x"), inits | pair)
    data = open_data(feeds, {"x": (None, 16)})
    found = verify(path, bad, targets.load("x86_64"), data)
    assert found.outputs[0].sqnr_db > 30
    assert {(s.axis, s.index) for s in found.outputs[0].lost_slices} == {(1, 4), (1, 5)}
    assert any("[axis 1, index 4], [axis 1, index 5] lost" in w for w in found.warnings)
    assert quantize(tmp_path, path, feeds).report.outputs[0].lost_slices == ()


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize(("size", "whole"), [(1e-30, 0), (1e-19, 0), (1e-15, 2)])
def test_numbers_too_small_for_a_step_stay_float_and_say_so(tmp_path, size, whole, method):
    """Scales below 2**-63 would be no normal numbers once multiplied: everything would round to 0."""
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (a)
        y = Conv <pads = [1, 1, 1, 1]> (r, w)
    """
    small = [{"x": f["x"] * np.float32(size)} for f in samples(1, 4, 8, 8)]
    path = save(tmp_path, text(body), {"w": CONV["w"]})
    result = quantize(tmp_path, path, small, method=method)
    assert len(integer(result)) == (2 if method == "dynamic" else whole)  # found anew for each sample, scales fit
    if method == "static" and not whole:
        assert all("too small for a step" in n.reason for n in result.report.nodes.float if n.op == "Conv")
    path = save(tmp_path, text("y = Conv <pads = [1, 1, 1, 1]> (x, w)"), {"w": CONV["w"] * np.float32(size)})
    result = quantize(tmp_path, path, samples(1, 4, 8, 8), method=method)
    assert len(integer(result)) == bool(whole)
