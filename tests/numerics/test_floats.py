import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgeq.errors import CalibrationError
from edgeq.numerics import floats

ONNX = {f: getattr(TensorProto, f.upper()) for f in floats.FORMATS}
#        exponent bits, mantissa bits, bias, greatest
SHAPES = {
    "float16": (5, 10, 15, 65504.0),
    "bfloat16": (8, 7, 127, 255 * 2.0**120),
    "float8e4m3fn": (4, 3, 7, 448.0),
    "float8e5m2": (5, 2, 15, 57344.0),
    "float6e2m3": (2, 3, 1, 7.5),
    "float6e3m2": (3, 2, 3, 28.0),
    "float4e2m1": (2, 1, 1, 6.0),
}


def by_arithmetic(x, fmt):
    """Round half to even on the format's own grid, spelled out in float64."""
    _, mantissa, bias, limit = SHAPES[fmt]
    x = np.float64(x)
    exponent = np.maximum(np.frexp(np.abs(x))[1] - 1, 1 - bias)
    step = 2.0 ** (exponent - mantissa)
    return np.clip(np.rint(x / step) * step, -limit, limit)


@pytest.mark.parametrize("fmt", floats.FORMATS)
@given(hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False) | st.floats(-8, 8, width=32)))
def test_rounding_is_the_grids(fmt, x):
    want = by_arithmetic(np.clip(x, -1e38 * 3.4, 1e38 * 3.4), fmt)
    np.testing.assert_array_equal(floats.round_to(x, fmt), want.astype(np.float32))


@pytest.mark.parametrize("fmt", ["float16", "bfloat16", "float8e4m3fn", "float8e5m2"])
def test_cast_is_that_of_onnx(fmt):
    x = np.random.default_rng(0).standard_cauchy(5000).astype(np.float32)
    if fmt.startswith("float8"):
        x = np.concatenate([x, [1e9, -1e9, np.nan]]).astype(np.float32)
    node = helper.make_node("Cast", ["x"], ["y"], to=ONNX[fmt])
    info = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [info("x", 1, x.shape)], [info("y", ONNX[fmt], x.shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    want = np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])
    np.testing.assert_array_equal(floats.cast(x, fmt).astype(np.float32), want.astype(np.float32))


def test_edges():
    for fmt, (*_, limit) in SHAPES.items():
        assert floats.greatest(fmt) == limit
        assert floats.round_to([np.inf, -np.inf, 0], fmt).tolist() == [limit, -limit, 0]
        nan = floats.round_to([np.nan], fmt)[0]
        assert nan == 0 if fmt in ("float6e2m3", "float6e3m2", "float4e2m1") else np.isnan(nan)


@pytest.mark.parametrize("fmt", ["float8e4m3fn", "float4e2m1"])
def test_scales(fmt):
    x = np.random.default_rng(0).normal(scale=30, size=(6, 64)).astype(np.float32)
    reach = np.abs(x).max(1, keepdims=True)
    got = floats.fake_quantize(x, floats.scale_for(reach, fmt), fmt)
    np.testing.assert_allclose(np.abs(got).max(1, keepdims=True), reach, rtol=1e-6)
    power = floats.scale_for(reach, fmt, power_of_two=True)
    assert (np.frexp(power)[0] == 0.5).all()
    assert (power * floats.greatest(fmt) >= reach).all()
    assert (power < 2 * floats.scale_for(reach, fmt)).all()
    assert floats.scale_for(0.0, fmt) == 1
    with pytest.raises(CalibrationError, match="absolute maximum"):
        floats.scale_for(np.nan, fmt)


@pytest.mark.parametrize("fmt", ["float8e4m3fn", "float4e2m1"])
@pytest.mark.parametrize("exponent", [-20, -1, 0, 5])
def test_a_power_of_two_is_its_own_scale(fmt, exponent):
    reach = np.array([floats.greatest(fmt) * 2.0**exponent])
    for power_of_two in (False, True):
        np.testing.assert_array_equal(floats.scale_for(reach, fmt, power_of_two), np.float32([2.0**exponent]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_one_bad_maximum_is_enough(bad):
    with pytest.raises(CalibrationError, match="absolute maximum"):
        floats.scale_for(np.array([1.0, bad, 2.0]), "float8e4m3fn")


@pytest.mark.parametrize("fmt", ["float8e4m3fn", "float8e5m2"])
def test_codes_of_eight_bits_are_the_types_bits(fmt):
    """Sign, exponent and mantissa spelled out."""
    exponent_bits, mantissa_bits, bias, _ = SHAPES[fmt]
    values = floats.by_code(fmt)
    finite = np.isfinite(values)
    for code in np.flatnonzero(finite):
        sign, rest = (-1 if code >> 7 else 1), code & 127
        exponent, mantissa = rest >> mantissa_bits, rest % 2**mantissa_bits / 2**mantissa_bits
        want = (1 + mantissa) * 2.0 ** (exponent - bias) if exponent else mantissa * 2.0 ** (1 - bias)
        assert values[code] == sign * want
    assert (~finite).sum() == (2 if fmt == "float8e4m3fn" else 8)
    np.testing.assert_array_equal(floats.codes(values[finite], fmt), np.flatnonzero(finite))
    assert exponent_bits + mantissa_bits == 7


@pytest.mark.parametrize("fmt", floats.FORMATS)
@given(st.floats(1e-30, 1e30), st.sampled_from([1.0, 0.5, 3.0]))
def test_scales_are_the_reach_over_the_greatest(fmt, reach, factor):
    """And the next power of two from there up, but not below the least scale."""
    real = max(reach * factor / SHAPES[fmt][-1], 2.0**-63)
    assert floats.scale_for(reach * factor, fmt) == np.float32(real)
    power = float(floats.scale_for(reach * factor, fmt, power_of_two=True))
    assert np.frexp(power)[0] == 0.5
    assert power / 2 < real <= power


def test_fake_quantized_values_are_of_the_scaled_grid():
    x = np.random.default_rng(3).normal(scale=5, size=(4, 20)).astype(np.float32)
    scale = np.float32([[0.5], [1.0], [2.0], [0.25]])
    for fmt in floats.FORMATS:
        want = by_arithmetic(x / scale, fmt) * scale
        np.testing.assert_array_equal(floats.fake_quantize(x, scale, fmt), want.astype(np.float32))
