"""Each operator in onnxruntime's integers against the numpy kernel of `edgeq.intops`, over random quantizations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.intops import (
    conv,
    elementwise,
    fully_connected,
    layer_norm,
    matmul,
    mean,
    pool,
    resize,
    softmax,
    tables,
)
from edgeq.intops.quant import Quant
from edgeq.intops.requantize import QuantizeParams, quantize
from tests.intops.drawn import codes, quants
from tests.passes.integer import Weight, outputs, qdq, stored

ROUNDINGS = st.sampled_from(["single", "double"])
DTYPES = st.sampled_from(["uint8", "int8"])
DRAWN = settings(max_examples=25, deadline=None)


def nhwc(x):
    return x.transpose(0, *range(2, x.ndim), 1)


def nchw(x):
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def fitting(draw, accumulated, dtype):
    """An output quantization for sums of this real size: from saturating all to using a fraction of the codes."""
    scale = max(accumulated * 2.0 ** draw(st.floats(-10, -4)), 1e-7)
    info = np.iinfo(dtype)
    zero = draw(st.sampled_from([int(info.min), int(info.max), int(info.min) + 128]))
    return Quant(float(np.float32(scale)), zero, dtype)


def weights(rng, shape, dtype="int8"):
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -127), info.max + 1, shape).astype(dtype)


@DRAWN
@given(st.data())
def test_convolutions(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype, rounding = draw(DTYPES), draw(ROUNDINGS)
    x_quant = draw(quants(dtype))
    groups, each, per = draw(st.sampled_from([(1, 3, 4), (2, 2, 3), (4, 1, 1), (3, 1, 2)]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3)]))
    strides, dilations = draw(st.sampled_from([((1, 1), (1, 1)), ((2, 1), (1, 1)), ((1, 1), (2, 2)), ((2, 3), (1, 2))]))
    pads = draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 2, 1)]))
    activation, behind = draw(st.sampled_from([("NONE", []), ("RELU", [("Relu", [])]),
                                               ("RELU6", [("Clip", [np.float32(0), np.float32(6)])])]))  # fmt: skip
    channels, out_channels = groups * each, groups * per
    w = weights(rng, (out_channels, each, *kernel))
    w_scale = np.float32(2.0 ** rng.uniform(-12, -4, out_channels if draw(st.booleans()) else ()))
    bias = rng.integers(-(2**14), 2**14, out_channels).astype(np.int32) if draw(st.booleans()) else None
    size = x_quant.scale * float(np.max(w_scale)) * 255 * 100 * math.sqrt(each * math.prod(kernel))
    out = fitting(draw, size, dtype)
    x = codes(rng, (2, channels, 6, 7), dtype)
    constants = {"w": Weight(w, w_scale)}
    if bias is not None:
        b_scale = np.float32(x_quant.scale * w_scale.astype(np.float64))
        constants["b"] = Weight(bias, np.broadcast_to(b_scale, out_channels))
    model = qdq(
        "Conv", ["x", *constants], {"x": (x.shape, x_quant)}, constants, [out], behind, group=groups,
        kernel_shape=list(kernel), strides=list(strides), dilations=list(dilations), pads=list(pads),
    )  # fmt: skip
    got = outputs(model, {"x": x}, rounding)[0]
    params = conv.ConvParams(
        x_quant, w_scale, out, strides, ((pads[0], pads[2]), (pads[1], pads[3])), dilations,
        activation=activation, rounding=rounding,
    )  # fmt: skip
    if each == 1 and groups > 1:
        want = conv.depthwise_conv_2d(nhwc(x), nhwc(w).transpose(3, 1, 2, 0), bias, params)
    else:
        want = conv.conv_2d(nhwc(x), nhwc(w), bias, params)
    np.testing.assert_array_equal(got, nchw(want))


@DRAWN
@given(st.data())
def test_gemm_and_matmul(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype, rounding = draw(DTYPES), draw(ROUNDINGS)
    x_quant, k, n = draw(quants(dtype)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    transposed, w_dtype = draw(st.booleans()), draw(st.sampled_from(["int8", "uint8"]))
    w = weights(rng, (k, n), w_dtype)
    zero = 0 if w_dtype == "int8" else int(rng.integers(0, 256))
    w_scale = np.float32(2.0 ** rng.uniform(-12, -4, n if zero == 0 and draw(st.booleans()) else ()))
    out = fitting(draw, x_quant.scale * float(np.max(w_scale)) * 2e4 * math.sqrt(k), dtype)
    bias = rng.integers(-(2**16), 2**16, n).astype(np.int32)
    x = codes(rng, (5, k), dtype)
    b_scale = np.float32(x_quant.scale * w_scale.astype(np.float64)) + np.zeros(n, "f")
    params = fully_connected.FullyConnectedParams(x_quant, w_scale, out, zero, rounding=rounding)
    weight = Weight(w.T if transposed else w, w_scale, zero, 0 if transposed else 1)
    shape = {"x": (x.shape, x_quant)}
    gemm = qdq("Gemm", ["x", "w", "b"], shape, {"w": weight, "b": Weight(bias, b_scale)}, [out], transB=int(transposed))
    want = fully_connected.fully_connected(x, w.T, bias, params)
    np.testing.assert_array_equal(outputs(gemm, {"x": x}, rounding)[0], want)
    product = qdq("MatMul", ["x", "w"], shape, {"w": Weight(w, w_scale, zero, 1)}, [out])
    want = fully_connected.fully_connected(x, w.T, None, params)
    np.testing.assert_array_equal(outputs(product, {"x": x}, rounding)[0], want)


@DRAWN
@given(st.data())
def test_products_of_two_activations(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype, rounding, k = draw(DTYPES), draw(ROUNDINGS), draw(st.integers(1, 30))
    a_quant, b_quant = draw(quants(dtype)), draw(quants(dtype))
    out = fitting(draw, a_quant.scale * b_quant.scale * 2e4 * math.sqrt(k), dtype)
    a, b = codes(rng, (2, 3, 4, k), dtype), codes(rng, (2, 3, k, 5), dtype)
    model = qdq("MatMul", ["a", "b"], {"a": (a.shape, a_quant), "b": (b.shape, b_quant)}, {}, [out])
    want = matmul.batch_matmul(a, b, matmul.MatMulParams(a_quant, b_quant, out, rounding=rounding))
    np.testing.assert_array_equal(outputs(model, {"a": a, "b": b}, rounding)[0], want)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Max", "Min"])
@DRAWN
@given(data=st.data())
def test_elementwise(op_type, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype, rounding = draw(DTYPES), draw(ROUNDINGS)
    a_quant, b_quant = draw(quants(dtype)), draw(quants(dtype))
    size = a_quant.scale * b_quant.scale * 255 if op_type == "Mul" else max(a_quant.scale, b_quant.scale)
    out = fitting(draw, 255 * size, dtype)
    shapes = draw(st.sampled_from([((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((1, 1, 4), (2, 3, 4))]))
    a, b = (codes(rng, s, dtype) for s in shapes)
    activation, behind = draw(st.sampled_from([("NONE", []), ("RELU", [("Relu", [])])]))
    given_ = {"a": (a.shape, a_quant), "b": (b.shape, b_quant)}
    constants = {}
    if op_type not in ("Max", "Min") and draw(st.booleans()):
        constants = {"b": Weight(b, b_quant.scale, b_quant.zero_point)}
        del given_["b"]
    model = qdq(op_type, ["a", "b"], given_, constants, [out], behind)
    feeds = {n: {"a": a, "b": b}[n] for n in given_}
    got = outputs(model, feeds, rounding)[0]
    if op_type in ("Max", "Min"):
        a, b = (quantize(v, QuantizeParams(q, out, rounding)) for v, q in ((a, a_quant), (b, b_quant)))
        a_quant = b_quant = out
        want = (np.maximum if op_type == "Max" else np.minimum)(a, b)
        want = np.maximum(want, out.zero_point).astype(dtype) if behind else want
    else:
        params = elementwise.BinaryParams(a_quant, b_quant, out, activation, rounding)
        want = elementwise.OPS[op_type.upper()](a, b, params)
    np.testing.assert_array_equal(got, want)


FUNCTIONS = {
    "Relu": (tables.relu, {}), "LeakyRelu": (tables.leaky_relu, {"alpha": 0.25}), "Gelu": (tables.gelu, {}),
}  # fmt: skip


@pytest.mark.parametrize("op_type", FUNCTIONS)
@DRAWN
@given(data=st.data())
def test_functions_with_integer_kernels(op_type, data):
    dtype, rounding = data.draw(DTYPES), data.draw(ROUNDINGS)
    x_quant, out = data.draw(quants(dtype)), data.draw(quants(dtype))
    function, attributes = FUNCTIONS[op_type]
    x = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)
    model = qdq(op_type, ["x"], {"x": (x.shape, x_quant)}, {}, [out], **attributes)
    want = function(x, tables.TableParams(x_quant, out, attributes.get("alpha", 0.0), rounding=rounding))
    np.testing.assert_array_equal(outputs(model, {"x": x}, rounding)[0], want)


@pytest.mark.parametrize("op_type", ["Sigmoid", "Tanh"])
@DRAWN
@given(data=st.data())
def test_functions_with_a_fixed_output(op_type, data):
    """The kernel gives 1/256 or 1/128; another quantization is one more requantization, all in one table."""
    dtype, rounding = data.draw(DTYPES), data.draw(ROUNDINGS)
    x_quant, low = data.draw(quants(dtype)), int(np.iinfo(dtype).min)
    fixed = Quant(1 / 256, low, dtype) if op_type == "Sigmoid" else Quant(1 / 128, low + 128, dtype)
    out = data.draw(st.sampled_from([fixed, Quant(0.01, low + 20, dtype), Quant(0.002, low, dtype)]))
    x = np.arange(low, low + 256).astype(dtype)
    model = qdq(op_type, ["x"], {"x": (x.shape, x_quant)}, {}, [out])
    kernel = tables.logistic if op_type == "Sigmoid" else tables.tanh
    want = quantize(kernel(x, tables.TableParams(x_quant, fixed)), QuantizeParams(fixed, out, rounding))
    np.testing.assert_array_equal(outputs(model, {"x": x}, rounding)[0], want)


@DRAWN
@given(st.data())
def test_hard_swish(data):
    dtype = data.draw(DTYPES)
    x_quant = data.draw(quants(dtype, 2.0**-7, 2.0**-3))
    out = Quant(x_quant.scale * 0.7, data.draw(quants(dtype)).zero_point, dtype)
    x = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)
    model = qdq("HardSwish", ["x"], {"x": (x.shape, x_quant)}, {}, [out])
    want = tables.hard_swish(x, tables.TableParams(x_quant, out))
    np.testing.assert_array_equal(outputs(model, {"x": x})[0], want)


@DRAWN
@given(st.data())
def test_means(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype, rounding = draw(DTYPES), draw(ROUNDINGS)
    x_quant = draw(quants(dtype))
    out = Quant(x_quant.scale * 2.0 ** draw(st.floats(-3, 3)), draw(quants(dtype)).zero_point, dtype)
    axes, keep = draw(st.sampled_from([((2, 3), 1), ((2, 3), 0), ((1,), 0), ((3, 1), 1)]))
    x = codes(rng, (2, 5, 7, 6), dtype)
    shape = {"x": (x.shape, x_quant)}
    model = qdq("ReduceMean", ["x", "a"], shape, {"a": np.array(axes)}, [out], keepdims=keep)
    want = mean.mean(x, mean.ReduceParams(x_quant, out, axes, bool(keep), rounding))
    np.testing.assert_array_equal(outputs(model, {"x": x}, rounding)[0], want)
    if axes == (2, 3) and keep:
        model = qdq("GlobalAveragePool", ["x"], shape, {}, [out])
        np.testing.assert_array_equal(outputs(model, {"x": x}, rounding)[0], want)


@DRAWN
@given(st.data())
def test_average_pools(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(DTYPES)
    quant, kernel = draw(quants(dtype)), draw(st.sampled_from([(2, 2), (3, 3), (3, 2)]))
    strides, pads = draw(st.sampled_from([(1, 1), (2, 2)])), draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1)]))
    x = codes(rng, (1, 3, 6, 7), dtype)
    common = {"kernel_shape": list(kernel), "strides": list(strides)}
    shape = {"x": (x.shape, quant)}
    ends = ((pads[0], pads[2]), (pads[1], pads[3]))
    got = outputs(qdq("AveragePool", ["x"], shape, {}, [quant], pads=list(pads), **common), {"x": x})[0]
    want = pool.average_pool_2d(nhwc(x), pool.PoolParams(quant, kernel, strides, ends))
    np.testing.assert_array_equal(got, nchw(want))
    counted = qdq("AveragePool", ["x"], shape, {}, [quant], pads=list(pads), count_include_pad=1, **common)
    bordered = np.pad(nhwc(x), ((0, 0), *ends, (0, 0)), constant_values=quant.zero_point)
    want = pool.average_pool_2d(bordered, pool.PoolParams(quant, kernel, strides))
    np.testing.assert_array_equal(outputs(counted, {"x": x})[0], nchw(want))


@DRAWN
@given(st.data())
def test_softmax(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype, rounding = draw(DTYPES), draw(ROUNDINGS)
    quant, low = draw(quants(dtype)), int(np.iinfo(dtype).min)
    length, axis = draw(st.sampled_from([(1, -1), (2, -1), (10, 1), (300, -1), (1500, -1)]))
    fixed = Quant(1 / 256, low, dtype)
    out = draw(st.sampled_from([fixed, Quant(0.003, low + 3, dtype)]))
    shape = (2, 3, length) if axis == -1 else (2, length, 3)
    x = codes(rng, shape, dtype)
    model = qdq("Softmax", ["x"], {"x": (x.shape, quant)}, {}, [out], axis=axis)
    got = outputs(model, {"x": x}, rounding)[0]
    want = softmax.softmax(np.moveaxis(x, axis, -1), softmax.SoftmaxParams(quant))
    want = np.moveaxis(want, -1, axis)
    want = want if out == fixed else quantize(want, QuantizeParams(fixed, out, rounding))
    np.testing.assert_array_equal(got, want)


@DRAWN
@given(st.data())
def test_concatenations_requantize_what_differs(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype, rounding = draw(DTYPES), draw(ROUNDINGS)
    a_quant, b_quant = draw(quants(dtype)), draw(quants(dtype))
    out = draw(st.sampled_from([a_quant, Quant(b_quant.scale * 1.7, a_quant.zero_point, dtype)]))
    a, b = codes(rng, (2, 3, 4), dtype), codes(rng, (2, 5, 4), dtype)
    model = qdq("Concat", ["a", "b"], {"a": (a.shape, a_quant), "b": (b.shape, b_quant)}, {}, [out], axis=1)
    given_ = ((a, a_quant), (b, b_quant))  # on uint8 too: TFLite's own kernel for that is a float one
    want = np.concatenate([x if q == out else quantize(x, QuantizeParams(q, out, rounding)) for x, q in given_], 1)
    np.testing.assert_array_equal(outputs(model, {"a": a, "b": b}, rounding)[0], want)


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric"])
@DRAWN
@given(data=st.data())
def test_linear_resizes(mode, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(DTYPES)
    quant, size = draw(quants(dtype)), draw(st.sampled_from([(8, 10), (3, 5), (13, 7), (4, 9)]))
    x = codes(rng, (2, 3, 4, 5), dtype)
    sizes = np.array([2, 3, *size])
    model = qdq("Resize", ["x", "", "", "n"], {"x": (x.shape, quant)}, {"n": sizes}, [quant], mode="linear",
                coordinate_transformation_mode=mode)  # fmt: skip
    params = resize.ResizeParams(size, mode == "align_corners", mode == "half_pixel")
    want = resize.bilinear_q10(nhwc(x), params)
    np.testing.assert_array_equal(outputs(model, {"x": x})[0], nchw(want))


MOVES = {
    "transpose": ("Transpose", {}, {"perm": [0, 2, 3, 1]}, lambda x, z: nhwc(x)),
    "reshape": ("Reshape", {"s": np.array([0, -1])}, {}, lambda x, z: x.reshape(2, -1)),
    "max_pool": ("MaxPool", {}, {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]},
                 lambda x, z: nchw(pool.max_pool_2d(nhwc(x), pool.PoolParams(z, (2, 2), (1, 1), ((0, 1), (0, 1)))))),
    "pad": ("Pad", {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}, {},
            lambda x, z: np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)), constant_values=z.zero_point)),
    "reflect": ("Pad", {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}, {"mode": "reflect"},
                lambda x, z: np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)), mode="reflect")),
    "slice": ("Slice", {"b": np.array([1, -1]), "e": np.array([9, -9]), "a": np.array([1, 3]), "s": np.array([2, -1])},
              {}, lambda x, z: x[:, 1:9:2, :, ::-1]),
    "deep": ("DepthToSpace", {}, {"blocksize": 2},
             lambda x, z: x.reshape(2, 2, 2, 1, 3, 4).transpose(0, 3, 4, 1, 5, 2).reshape(2, 1, 6, 8)),
    "nearest": ("Resize", {"": 0, "n": np.float32([1, 1, 2, 2])},
                {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
                lambda x, z: x.repeat(2, 2).repeat(2, 3)),
    "gather": ("Gather", {"i": np.array([[2, 0], [1, 1]])}, {"axis": 1}, lambda x, z: x[:, [[2, 0], [1, 1]]]),
    "largest": ("ReduceMax", {"a": np.array([1])}, {"keepdims": 0}, lambda x, z: x.max(axis=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_codes_are_moved_as_they_are(name, dtype):
    op_type, constants, attributes, wanted = MOVES[name]
    quant = Quant(0.03, 7, dtype)
    x = codes(np.random.default_rng(3), (2, 4, 3, 4), dtype)
    operands = list(constants)
    model = qdq(op_type, ["x", *operands], {"x": (x.shape, quant)}, {k: v for k, v in constants.items() if k}, [quant],
                **attributes)  # fmt: skip
    np.testing.assert_array_equal(outputs(model, {"x": x})[0], wanted(x, quant))
    other = Quant(0.05, 30, dtype)
    elsewhere = qdq(op_type, ["x", *operands], {"x": (x.shape, quant)}, {k: v for k, v in constants.items() if k},
                    [other], **attributes)  # fmt: skip
    want = quantize(wanted(x, quant), QuantizeParams(quant, other))
    np.testing.assert_array_equal(outputs(elsewhere, {"x": x})[0], want)


def test_stored_codes_count_from_the_lowest():
    assert stored(np.array([-128, 0, 127], np.int8)).tolist() == [0, 128, 255]


@pytest.mark.parametrize("length", [3, 16, 300])
@DRAWN
@given(data=st.data())
def test_layer_normalizations(length, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(DTYPES)
    quant, out = draw(quants(dtype)), Quant(2.0 ** draw(st.floats(-7, -3)), draw(quants(dtype)).zero_point, dtype)
    gamma, beta = np.float32(rng.normal(1, 0.5, length)), np.float32(rng.normal(0, 1, length))
    x = codes(rng, (2, 3, length), dtype)
    x[0, 0] = x[0, 0, 0]  # a row without variance
    epsilon = draw(st.sampled_from([1e-5, 1e-12, 1e-2]))
    shape = {"x": (x.shape, quant)}
    model = qdq("LayerNormalization", ["x", "g", "b"], shape, {"g": gamma, "b": beta}, [out], epsilon=epsilon)
    want = layer_norm.layer_norm(x, layer_norm.LayerNormParams(quant, gamma, beta, out, float(np.float32(epsilon))))
    np.testing.assert_array_equal(outputs(model, {"x": x})[0], want)
