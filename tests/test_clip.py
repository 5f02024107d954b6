"""A Clip behind an integer kernel: part of the output's range where that loses nothing, else float between integers."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.numerics.affine import dequantize, qparams, within
from edgeq.types import QSpec
from tests.graph.written import CONV, integer, quantize, samples, save, text

U8 = QSpec("uint8", symmetric=False)


def clipped(folder, lo, hi, feeds):
    """Conv, Clip, Conv, quantized; the artifact as onnxruntime runs it."""
    names = [name if bound is not None else "" for name, bound in (("lo", lo), ("hi", hi))]
    body = f"""
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        c = Clip (a, {", ".join(names).rstrip(", ") if any(names) else ""})
        y = Conv <pads = [1, 1, 1, 1]> (c, w, b)
    """.replace("(a, )", "(a)")
    inits = {n: np.float32(v) for n, v in (("lo", lo), ("hi", hi)) if v is not None}
    result = quantize(folder, save(folder, text(body), CONV | inits), feeds, least=24)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(result.artifact, options)
    return result, [n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("bounds", [(0, 6), (-1, 1), (-0.3, 3), (-3, 0.7), (None, 2), (-2, None), (-5, 0), (-100, 100)])
def test_bounds_around_zero_vanish_into_the_range(tmp_path, bounds):
    result, ops = clipped(tmp_path, *bounds, samples(1, 4, 8, 8))
    assert {n.name: n.decision for n in result.plan.nodes}["Clip_1"] == "folded"
    assert set(ops) <= {"DequantizeLinear", "QLinearConv", "QuantizeLinear", "Transpose"}
    assert ops.count("QLinearConv") == 2
    assert result.report.warnings == ()


@pytest.mark.parametrize("bounds", [(0.5, 6), (-6, -0.5)])
def test_bounds_beside_zero_run_in_float_between_integers(tmp_path, bounds):
    result, ops = clipped(tmp_path, *bounds, samples(1, 4, 8, 8))
    assert {n.name: n.decision for n in result.plan.nodes}["Clip_1"] == "bridge"
    assert ops.count("QLinearConv") == 2
    assert ops.count("Clip") == 1
    assert integer(result) == {"Conv_0", "Conv_2"}


SIZE = st.floats(1e-3, 1e3) | st.just(0.0)


@given(SIZE.map(lambda v: -v), SIZE, SIZE.map(lambda v: -v), SIZE)
def test_no_code_means_more_than_the_bounds_allow(lo, hi, low, high):
    params = qparams(low, high, U8)
    found = within(params, lo, hi)
    codes = dequantize(np.arange(256, dtype=np.uint8), found)
    zero = int(found.zero_point)
    assert zero == params.zero_point
    assert found.scale <= params.scale
    for steps, bound, end in ((zero, -lo, -codes[0]), (255 - zero, hi, codes[-1])):
        assert end <= bound or not steps or bound == 0
    # And no lower than that needs: little more would reach out, or the scale is as it was.
    more = float(found.scale) * (1 + 1e-6)
    ends = [s * more > b for s, b in ((zero, -lo), (255 - zero, hi)) if s and b > 0]
    assert found.scale == params.scale or any(ends)
