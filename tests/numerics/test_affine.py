import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgeq.errors import CalibrationError, ModelError, RecipeError
from edgeq.numerics import affine
from edgeq.types import PerBlock, PerChannel, PerTensor, QParams, QSpec

DTYPES = ["int8", "uint8", "int4", "uint4", "int16", "uint16", "int2", "uint2"]
ONNX = {d: getattr(TensorProto, d.upper()) for d in DTYPES}
NUMPY = {d: getattr(ml_dtypes, d) if d[-1] in "42" else np.dtype(d) for d in DTYPES}


def onnx_qdq(x, params, axis, block):
    """Codes and reals by the ONNX reference evaluator."""
    dtype, opset = params.spec.dtype, 25 if params.spec.bits == 2 else 21
    attributes = {"axis": axis, "block_size": block}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "qdq",
        [info("x", 1, x.shape), info("s", 1, params.scale.shape), info("z", ONNX[dtype], params.scale.shape)],
        [info("q", ONNX[dtype], x.shape), info("y", 1, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    zero = params.zero_point.astype(NUMPY[dtype])
    return ReferenceEvaluator(model).run(None, {"x": x, "s": params.scale, "z": zero})


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6))
    kind = draw(st.sampled_from(["tensor", "channel", "block"]))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    block = 0
    granularity = PerTensor()
    if kind == "channel":
        granularity = PerChannel(axis)
    elif kind == "block":
        block = draw(st.integers(1, shape[axis]))
        granularity = PerBlock(axis, block)
    spec = QSpec(dtype, draw(st.booleans()), granularity)
    floats = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
    return draw(hnp.arrays(np.float32, shape, elements=floats)), spec, axis, block


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from([1.0, 0.3]))
def test_codes_and_reals_equal_the_onnx_reference(case, shrink):
    x, spec, axis, block = case
    lo, hi = affine.weight_ranges(x, spec.granularity)
    params = affine.qparams(lo * np.float32(shrink), hi * np.float32(shrink), spec)  # shrink < 1 saturates
    assert params.scale.shape == affine.params_shape(x.shape, spec.granularity)
    want_q, want_y = onnx_qdq(x, params, axis, block)
    q = affine.quantize(x, params)
    assert q.dtype == affine.storage_dtype(spec.dtype)
    # The reference overflows int32 above 2**31 where the operator's text says to saturate.
    sound = np.abs(x / affine.expand(params.scale, x.shape, spec.granularity)) < 2**30
    np.testing.assert_array_equal(q[sound], np.asarray(want_q).astype(np.int64)[sound])
    np.testing.assert_array_equal(affine.dequantize(q, params)[sound], want_y[sound])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2),
)
def test_the_range_is_covered_and_zero_is_exact(dtype, symmetric, narrow, reduce, ends):
    spec = QSpec(dtype, symmetric, narrow=narrow, reduce_range=reduce)
    if reduce and spec.bits == 2 and (symmetric or (narrow and spec.signed)):
        with pytest.raises(RecipeError, match="one code left"):
            affine.qparams(*sorted(ends), spec)
        return
    lo, hi = min(ends), max(ends)
    params = affine.qparams(lo, hi, spec)
    scale, zero = float(params.scale), int(params.zero_point)
    assert np.isfinite(scale)
    assert scale >= affine.MIN_SCALE
    assert spec.qmin <= zero <= spec.qmax
    assert affine.fake_quantize(np.zeros(1, np.float32), params)[0] == 0
    # Half a step may be lost at one end to the rounding of the zero point; float32 rounding is 2**-23 of a code.
    slack = scale * (0.5 + 1e-6 * (spec.qmax - spec.qmin))
    assert (spec.qmin - zero) * scale <= min(lo, 0) + slack
    assert (spec.qmax - zero) * scale >= max(hi, 0) - slack
    if symmetric:
        assert zero == (0 if spec.signed else (spec.qmax + 1) // 2)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.booleans(),
    st.floats(2.0**-50, 2.0**126, width=32),
    st.sampled_from([-1, 1]),
)
def test_a_constant_is_exact(dtype, symmetric, size, sign):
    c = np.float32(sign * size)
    params = affine.qparams(c, c, QSpec(dtype, symmetric))
    # The least scale is wider than a step of the smallest constants: those are as near as any code.
    away = params.scale / 2 if params.scale == affine.MIN_SCALE else 0
    assert np.all(np.abs(affine.fake_quantize(np.full(3, c), params) - c) <= away)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-30, 1e-20])
def test_scales_never_vanish(value):
    for dtype in DTYPES:
        for symmetric in (True, False):
            scale = affine.qparams(np.float32(value), np.float32(value), QSpec(dtype, symmetric)).scale
            assert scale >= affine.MIN_SCALE
            assert np.float32(scale * scale) >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("ends", [(np.nan, 1), (0, np.inf), (2, 1)])
def test_impossible_ranges_are_refused(ends):
    with pytest.raises(CalibrationError, match="range"):
        affine.qparams(*ends, QSpec("int8"))


def test_weights_with_nan_or_nothing_are_refused():
    with pytest.raises(ModelError, match="NaN"):
        affine.weight_ranges(np.array([1, np.nan]), PerTensor())
    with pytest.raises(ModelError, match="empty"):
        affine.weight_ranges(np.zeros((0, 3)), PerChannel(1))


def test_nan_is_zero_and_infinity_saturates():
    params = QParams(np.float32(0.5), np.int32(3), QSpec("uint8", symmetric=False))
    x = np.array([np.nan, np.inf, -np.inf, 3e38, 0.25, 0.75], np.float32)
    assert affine.quantize(x, params).tolist() == [3, 255, 0, 255, 3, 5]


def test_narrow_and_reduced_codes():
    x = np.array([-1.0, 1.0], np.float32)
    for spec, limit in [(QSpec("int8", narrow=True), 127), (QSpec("int8", reduce_range=True, narrow=True), 63)]:
        codes = affine.quantize(x, affine.qparams(-1.0, 1.0, spec))
        assert codes.tolist() == [-limit, limit]
    assert affine.qparams(-1.0, 1.0, QSpec("uint8", reduce_range=True)).zero_point == 64


def test_storage_dtypes():
    want = {"int2": "int8", "uint4": "uint8", "int8": "int8", "uint16": "uint16", "int32": "int32"}
    assert {d: str(affine.storage_dtype(d)) for d in want} == want


def test_bias_codes_and_overflow():
    bias = np.array([1.0, -2.5, 3.0], np.float32)
    weight_scale = np.array([0.01, 0.02, 1e-12], np.float32)
    params = affine.bias_params(0.5, weight_scale)
    codes, overflow = affine.quantize_bias(bias, params)
    assert overflow.tolist() == [False, False, True]
    assert codes[:2].tolist() == [200, -250]
    wider = np.maximum(weight_scale, affine.least_weight_scale(bias, 0.5))
    assert wider[:2].tolist() == weight_scale[:2].tolist()
    codes, overflow = affine.quantize_bias(bias, affine.bias_params(0.5, wider))
    assert not overflow.any()
    np.testing.assert_allclose(affine.dequantize(codes, affine.bias_params(0.5, wider)), bias, rtol=1e-6)


def test_int32_codes_saturate():
    params = QParams(np.float32(1.0), np.int32(0), QSpec("int32"))
    assert affine.quantize(np.array([3e9, -3e9], np.float32), params).tolist() == [2**31 - 1, -(2**31)]


@given(
    st.sampled_from(["int8", "uint8", "int4"]),
    st.floats(1e-3, 1e3),
    st.floats(0, 1),
    st.floats(0.01, 4),
    st.floats(0.01, 4),
)
def test_within_is_the_largest_scale_whose_codes_stay_in_bounds(dtype, scale, place, below, above):
    spec = QSpec(dtype, symmetric=False)
    zero = spec.qmin + round(place * (spec.qmax - spec.qmin))
    given_ = QParams(np.float32(scale), np.int32(zero), spec)
    lo, hi = -below * scale * (spec.qmax - spec.qmin), above * scale * (spec.qmax - spec.qmin)
    got = affine.within(given_, lo, hi)
    assert got.zero_point == zero

    def inside(step):
        ends = (np.array([spec.qmin, spec.qmax]) - zero).astype(np.float32) * np.float32(step)
        return lo <= ends[0] and ends[1] <= hi

    assert inside(got.scale)
    assert got.scale <= given_.scale
    assert got.scale == given_.scale or not inside(got.scale * np.float32(1 + 1e-6))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_weight_ranges_are_those_of_each_part(size):
    w = np.random.default_rng(size).normal(size=(4, 7, 3)).astype(np.float32) - 0.5
    assert affine.weight_ranges(w, PerTensor()) == (min(w.ravel()), max(w.ravel()))
    lo, hi = affine.weight_ranges(w, PerChannel(-1))
    assert lo.tolist() == [min(w[..., i].ravel()) for i in range(3)]
    assert hi.tolist() == [max(w[..., i].ravel()) for i in range(3)]
    lo, hi = affine.weight_ranges(w, PerBlock(1, size))
    assert lo.shape == hi.shape == affine.params_shape(w.shape, PerBlock(1, size))
    for i, b, j in np.ndindex(lo.shape):
        part = w[i, b * size : (b + 1) * size, j]
        assert (lo[i, b, j], hi[i, b, j]) == (min(part), max(part))


@pytest.mark.parametrize(
    ("axis", "scales", "shape"), [(0, 1, (4, 3)), (0, 4, (4, 3)), (1, 3, (4, 3)), (2, 5, (2, 3, 5))]
)
def test_integers_of_any_size_mean_what_onnx_says(axis, scales, shape):
    rng = np.random.default_rng(axis)
    q = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    scale, zero = rng.uniform(0.1, 9, scales).astype(np.float32), np.zeros(scales, np.int32)
    single = scales == 1
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=axis)],
        "dq",
        [info("q", TensorProto.INT32, shape), info("s", 1, [] if single else [scales])],
        [info("y", 1, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (want,) = ReferenceEvaluator(model).run(None, {"q": q, "s": scale.reshape(()) if single else scale})
    got = affine.dequantize_along(q, scale, zero, axis)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=2e-7)
    np.testing.assert_array_equal(
        affine.dequantize_along(q, scale, zero + 7, axis),
        affine.dequantize_along(q.astype(np.int64) - 7, scale, zero, axis),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_reach_is_what_the_outermost_codes_mean(dtype):
    params = affine.qparams(-0.3, 1.1, QSpec(dtype, symmetric=False))
    ends = (
        np.array([np.iinfo(NUMPY[dtype]).min, np.iinfo(NUMPY[dtype]).max])
        if dtype[-1] not in "42"
        else np.array([ml_dtypes.iinfo(NUMPY[dtype]).min, ml_dtypes.iinfo(NUMPY[dtype]).max])
    )
    np.testing.assert_allclose(affine.reach(params), affine.dequantize(ends, params), rtol=1e-6)


def test_within_leaves_a_scale_that_fits_exactly_or_can_not_fit():
    exact = QParams(np.float32(0.5), np.int32(0), QSpec("int8"))
    assert affine.within(exact, -64.0, 63.5).scale == np.float32(0.5)
    assert affine.within(exact, 0.0, 1000.0).scale == np.float32(0.5)
    assert affine.within(QParams(np.float32(1), np.int32(0), QSpec("int8")), -128.0, 63.5).scale == np.float32(0.5)


def test_a_bias_overflows_from_the_first_integer_that_int32_lacks():
    params = affine.bias_params(1.0, np.ones(4, np.float32))
    codes, overflow = affine.quantize_bias(np.array([2.0**31 - 1, 2.0**31, -(2.0**31) + 1, -(2.0**31)]), params)
    assert codes.tolist() == [2**31 - 1, 2**31 - 1, 1 - 2**31, 1 - 2**31]
    assert overflow.tolist() == [False, True, False, True]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 1.0, -1.0, 127.0, -128.0, 255.0, 3.0, 6.0]) | st.floats(-1e3, 1e3, width=32),
    st.sampled_from([0.0, 1.0, 127.0, 128.0, 255.0]) | st.floats(0, 1e3, width=32),
)
def test_parameters_are_the_formulas_exactly(dtype, symmetric, narrow, lo, width):
    """The docstring's, one number at a time: a single value gets the power of two that makes it a code."""
    spec = QSpec(dtype, symmetric, narrow=narrow)
    hi = lo + width
    got = affine.qparams(np.array([lo]), np.array([hi]), spec)
    zero = 0 if spec.signed else (spec.qmax + 1) // 2
    steps = spec.qmax - (zero if symmetric else spec.qmin)
    low, high = min(lo, 0.0), max(hi, 0.0)
    if lo == hi:
        scale = abs(lo or 1.0) / 2 ** (len(f"{steps:b}") - 1)
        low, high = (-scale * steps, 0.0) if lo < 0 else (0.0, scale * steps)
    else:
        scale = (max(-low, high) if symmetric else high - low) / steps
    scale = np.float32(max(scale, affine.MIN_SCALE))
    np.testing.assert_allclose(got.scale, [scale], rtol=1.2e-7)
    if symmetric:
        assert got.zero_point.tolist() == [zero]
    else:
        point = spec.qmin - low / float(got.scale[0])
        assert abs(got.zero_point[0] - min(max(point, spec.qmin), spec.qmax)) <= 0.5 + 1e-9
    assert got.zero_point.dtype == np.int32


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32"])
def test_wide_codes_are_exact(dtype):
    """In integers: float32 alone holds no product of more than 24 bits, and int32 no difference of 33."""
    spec = QSpec(dtype, symmetric=False)
    zero = spec.qmin + 5
    params = QParams(np.float32(1.0), np.int32(zero), spec)
    q = np.array([spec.qmin, spec.qmin + 1, zero, zero + 2, spec.qmax - 1, spec.qmax]).astype(
        affine.storage_dtype(dtype)
    )
    np.testing.assert_array_equal(affine.dequantize(q, params), [np.float32(int(v) - zero) for v in q])
    small = np.array([-5.0, -4.0, 0, 2, 30000.0])
    assert affine.quantize(small, params).tolist() == [int(v) + zero for v in small]


def test_int32_codes_are_rounded_in_float64():
    params = QParams(np.float32(0.5), np.int32(0), QSpec("int32"))
    x = np.array([2.0**24 + 0.5, 2.0**29 + 0.25, -(2.0**29) - 0.75])
    assert affine.quantize(x, params).tolist() == [2**25 + 1, 2**30, -(2**30) - 2]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_scales_lie_along_their_axis(axis, size):
    """`expand` by an index of each element; a last block may be short."""
    shape = (3, 4, 5)
    for granularity in (PerChannel(axis), PerBlock(axis, size)):
        parts = affine.params_shape(shape, granularity)
        p = np.arange(np.prod(parts), dtype=np.float32).reshape(parts)
        found = np.broadcast_to(affine.expand(p, shape, granularity), shape)
        for index in np.ndindex(*shape):
            at = list(index)
            at[axis] //= size
            assert found[index] == (p[tuple(at)] if isinstance(granularity, PerBlock) else p[index[axis]])


@given(st.floats(2.0**-20, 2.0**20), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_the_least_weight_scale_leaves_half_of_int32(act_scale, bias):
    least = affine.least_weight_scale(np.array(bias), act_scale).astype(np.float64)
    codes = np.abs(bias) / np.where(least > 0, least, 1.0) / float(np.float32(act_scale))
    held = least > 1e-37
    np.testing.assert_allclose(codes[held], 2.0**30, rtol=1e-6)


def test_a_bias_that_is_not_a_number_overflows():
    params = affine.bias_params(2.0, np.float32([0.5, 0.5, 0.25]))
    assert params.scale.tolist() == [1.0, 1.0, 0.5]
    codes, overflow = affine.quantize_bias(np.array([np.nan, np.inf, 0.75]), params)
    assert overflow.tolist() == [True, True, False]
    assert codes.tolist() == [0, 2**31 - 1, 2]
    assert affine.bias_params(2.0, np.float32(0.5)).scale.shape == ()
    assert isinstance(affine.bias_params(2.0, np.float32(0.5)).spec.granularity, PerTensor)
    assert params.spec.granularity == PerChannel(0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerBlock(1, 2), PerBlock(1, 3)])
def test_one_value_that_is_not_finite_is_enough(bad, granularity):
    w = np.ones((2, 4))
    w[1, 3] = bad
    with pytest.raises(ModelError, match="NaN or infinity"):
        affine.weight_ranges(w, granularity)
    lo, hi = np.zeros(3), np.ones(3)
    for ends in (lo, hi):
        ends[1] = bad
        with pytest.raises(CalibrationError, match="range"):
            affine.qparams(lo, hi, QSpec("int8"))
        ends[1] = 0.5
    hi[2] = -0.5
    with pytest.raises(CalibrationError, match="minimum above"):
        affine.qparams(lo, hi, QSpec("int8"))
