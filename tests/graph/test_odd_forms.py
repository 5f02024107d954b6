"""Shapes, biases and outputs that exporters write and few tools expect, through the whole pipeline."""

import numpy as np
import onnx
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


@pytest.mark.parametrize("spoiled", ["w", "b"])
def test_an_infinite_constant_of_a_convolution_too(tmp_path, spoiled):
    inits = {k: v.copy() for k, v in CONV.items()}
    inits[spoiled].flat[1] = np.inf
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Clip (a, low, high) y = Conv <pads = [1, 1, 1, 1]> (r, v)"
    inits |= {"low": np.float32(-9), "high": np.float32(9), "v": draw(4, 4, 3, 3, seed=3)}
    result = edgeq.quantize(save(tmp_path, text(body), inits), "x86_64", samples(1, 4, 8, 8), tmp_path / "out")
    assert integer(result) == {"Conv_2"}
    assert "NaN or infinity" in {n.name: n.reason for n in result.report.nodes.float}["Conv_0"]


def test_what_is_not_a_number_inside_the_model_stretches_no_scale(tmp_path):
    """Roots of negative numbers and quotients by 0, in one of the samples: the ranges are of the others."""
    body = "n = Sqrt (x) r = Reciprocal (x) s = Add (n, r) y = Conv <pads = [1, 1, 1, 1]> (s, w, b)"
    feeds = [{"x": np.abs(f["x"]) + np.float32(0.5)} for f in samples(1, 4, 8, 8)]
    bad = {"x": feeds[0]["x"].copy()}
    bad["x"].flat[:2] = (-1, 0)
    path = save(tmp_path, text(body), CONV)
    assert integer(quantize(tmp_path, path, [*feeds, bad], check=feeds)) == {"Conv_3"}


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


FUNCTIONS = """
    <opset_import: ["" : 17], domain: "local">
    Block (v, w) => (r) { n = Conv <pads = [1, 1, 1, 1]> (v, w) k = Constant <value = float {0.5}> () r = Mul (n, k) }
    <opset_import: ["" : 17, "local" : 1], domain: "local">
    Outer (v, w) => (r) { n = local.Block (v, w) p = Relu (n) r = local.Block (p, w) }
"""
CHOICE = "top = ReduceMean <keepdims = 0> (x) c = Greater (top, zero)"
# name: (body, how many of its Conv become integer from data and without it)
FORMS = {
    "functions in functions": ("a = local.Outer (x, w) y = local.Outer (a, w)", 4, 4),
    "an absent input": (
        """a = Conv <pads = [1, 1, 1, 1]> (x, w, ) c = Clip (a, , six) s = Resize <mode = "nearest"> (c, , twice)
        y = Conv <pads = [1, 1, 1, 1]> (s, w, b)""",
        2,
        2,
    ),
    "a sequence": (
        """a = Conv <pads = [1, 1, 1, 1]> (x, w, b) s = SequenceConstruct (a, x) i = SequenceAt (s, first)
        y = Conv <pads = [1, 1, 1, 1]> (i, w, b)""",
        2,
        2,
    ),
    "a sequence of parts": (
        """a = Conv <pads = [1, 1, 1, 1]> (x, w, b) s = SplitToSequence <axis = 1> (a)
        t = ConcatFromSequence <axis = 1> (s) y = Conv <pads = [1, 1, 1, 1]> (t, w, b)""",
        2,
        2,
    ),
    "an optional": (
        """a = Conv <pads = [1, 1, 1, 1]> (x, w, b) o = Optional (a) h = OptionalHasElement (o)
        y = If (h) <
            then_branch = yes () => (float[N,4,8,8] to) {
                g = OptionalGetElement (o) to = Conv <pads = [1, 1, 1, 1]> (g, w, b)
            },
            else_branch = no () => (float[N,4,8,8] eo) { eo = Conv <pads = [1, 1, 1, 1]> (a, w, b) }
        >""",
        2,  # and nothing went the other way
        3,
    ),
    "constants in branches": (
        CHOICE
        + """ y = If (c) <
            then_branch = yes () => (float[N,4,8,8] to) {
                k = Constant <value = float[4,4,1,1] {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 5}> ()
                to = Conv (x, k)
            },
            else_branch = no () => (float[N,4,8,8] eo) {
                k = Constant <value = float {0.5}> ()
                q = Conv <pads = [1, 1, 1, 1]> (x, w, b)
                eo = Mul (q, k)
            }
        >""",
        2,
        2,
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_forms_that_exporters_write(tmp_path, name, method):
    body, static, dynamic = FORMS[name]
    inits = {"six": np.float32(6), "twice": np.array([1, 1, 2, 2], np.float32), "first": np.array(0)}
    inits |= {"w": CONV["w"] * 0.3, "b": CONV["b"], "zero": np.float32(0)}
    path = save(tmp_path, text(body) + FUNCTIONS, inits)
    result = quantize(tmp_path, path, samples(1, 4, 8, 8), method=method)
    made = [n for n in result.plan.nodes if n.op == "Conv" and n.decision in ("integer", "dynamic")]
    assert len(made) == (static if method == "static" else dynamic)
    assert result.report.warnings == ()


def test_an_output_that_is_a_sequence_is_verified_item_by_item(tmp_path):
    body = "y = Conv <pads = [1, 1, 1, 1]> (x, w, b) s = SequenceConstruct (y, x)"
    path = save(tmp_path, text(body, outputs="float[] y, seq(float[]) s"), CONV)
    result = edgeq.quantize(path, "x86_64", samples(1, 4, 8, 8), tmp_path / "out")
    drifts = {o.name: o.sqnr_db for o in result.report.outputs}
    assert list(drifts) == ["y", "s[0]", "s[1]"]
    assert drifts["s[0]"] == drifts["y"] > 25
    assert drifts["s[1]"] is None  # the very same numbers


def test_branches_quantize_what_both_read_once_and_no_line_strays(tmp_path, caplog):
    body = f"""
        p = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (p)
        {CHOICE}
        y = If (c) <
            then_branch = yes () => (float[N,4,8,8] to) {{ to = Conv <pads = [1, 1, 1, 1]> (r, w, b) }},
            else_branch = no () => (float[N,4,8,8] eo) {{
                q = Conv <pads = [1, 1, 1, 1]> (r, b2, b)
                eo = If (c) <
                    then_branch = inner () => (float[N,4,8,8] ti) {{ ti = Identity (r) }},
                    else_branch = other () => (float[N,4,8,8] ei) {{ ei = Identity (q) }}
                >
            }}
        >
    """
    path = save(tmp_path, text(body), CONV | {"zero": np.float32(0), "b2": draw(4, 4, 3, 3, seed=2)})
    result = quantize(tmp_path, path, samples(1, 4, 8, 8))
    assert [r.message for r in caplog.records] == []
    assert len([n for n in result.plan.nodes if (n.op, n.decision) == ("Conv", "integer")]) == 3
    main = onnx.load(result.artifact).graph.node
    steps = [n for n in main if n.op_type == "QuantizeLinear"]
    assert len(steps) == 2  # of x, and of r for both branches
    inside = [n for node in main for a in node.attribute for n in a.g.node]
    assert [n.op_type for n in inside].count("QuantizeLinear") == 2  # of their outputs


def test_maps_are_declined_with_the_way_round_them(tmp_path):
    items = onnx.helper.make_map_type_proto(7, onnx.helper.make_tensor_type_proto(1, []))
    body = "y = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1]> (x)"
    path = save(tmp_path, text(body, "float[1,2] x"), {})
    model = onnx.load(path)
    model.graph.output[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(items))
    onnx.save(model, path)
    with pytest.raises(edgeq.errors.ModelError, match="zipmap"):
        edgeq.quantize(path, "x86_64", samples(1, 2), tmp_path / "out")
