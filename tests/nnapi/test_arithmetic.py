"""Units against LiteRT's reference kernels: uint8 where it has them, int8 on codes moved by 128 where it doesn't."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops.quant import Quant
from edgeq.intops.windows import same_pads
from edgeq.nnapi.arithmetic import execute
from edgeq.nnapi.support import refusal
from tests.intops.drawn import codes, quants
from tests.intops.litert import activation, constant, run_op, same
from tests.nnapi.written import Text, layer, moved

SEEDS = st.integers(0, 2**32)
UINT8 = quants("uint8")
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def result(text: Text, rounding="double", **arrays: np.ndarray) -> np.ndarray:
    unit = text.unit()
    assert refusal(unit, 30) == ""
    return execute(unit, arrays, rounding)


def scales(rng: np.random.Generator, x: Quant, out: Quant, count: int, terms: int) -> np.ndarray:
    """From all zero to all saturated, most in between."""
    usual = out.scale * 100 / (x.scale * 127 * 127 * terms**0.5)
    return (usual * 2.0 ** rng.uniform(-8, 4, count)).astype(np.float32)


def less(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.int16) - 128).astype(np.int8)


def int8(quant: Quant, scale: float | None = None) -> Quant:
    return Quant(quant.scale if scale is None else scale, quant.zero_point - 128, "int8")


@settings(max_examples=120, deadline=None)
@given(
    SEEDS, st.tuples(*[st.integers(4, 8)] * 2), st.tuples(*[st.integers(1, 3)] * 2), st.integers(1, 2),
    st.integers(1, 2), st.sampled_from(["SAME_UPPER", "VALID"]), st.sampled_from([1, 1, 2, "depthwise"]),
    st.booleans(), UINT8, UINT8,
)  # fmt: skip
def test_conv(seed, size, kernel, stride, dilation, padding, groups, biased, x_q, y_q) -> None:
    """uint8 codes by int8 weights a channel. The file holds scale 1 for x, and the product in the weight's."""
    rng = np.random.default_rng(seed)
    depthwise, many = groups == "depthwise", 4 if groups == "depthwise" else groups
    if many == 2:
        dilation = 1  # NNAPI has no dilated groups
    size = tuple(max(n, (k - 1) * dilation + 1) for n, k in zip(size, kernel, strict=True))
    x, w = codes(rng, (2, 4, *size), "uint8"), codes(rng, (4, 4 // many, *kernel))
    scale = scales(rng, x_q, y_q, 4, w[0].size)
    bias = rng.integers(-5000, 5000, 4).astype(np.int32) if biased else None
    text = layer("Conv", x_q, x.shape, w, scale, y_q, bias, group=many, strides=[stride] * 2,
                 dilations=[dilation] * 2, auto_pad=padding)  # fmt: skip
    got = result(text, x=x)
    product = np.float32(x_q.scale) * scale
    turned = w.transpose(1, 2, 3, 0) if depthwise else w.transpose(NHWC)
    want = run_op(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [activation("x", (2, *size, 4), int8(x_q, 1.0)), constant("w", turned, product, axis=3 if depthwise else 0),
         constant("b", np.zeros(4, np.int32) if bias is None else bias, product)],
        {"x": less(x.transpose(NHWC))}, activation("y", [got.shape[i] for i in NHWC], int8(y_q)),
        {"padding": padding.partition("_")[0], "strideH": stride, "strideW": stride, "dilationHFactor": dilation,
         "dilationWFactor": dilation} | ({"depthMultiplier": 1} if depthwise else {}),
    )  # fmt: skip
    same(less(got), want.transpose(NCHW))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.booleans(), st.integers(0, 255), UINT8, UINT8)
def test_conv_of_uint8_weights(seed, explicit, zero, x_q, y_q) -> None:
    rng = np.random.default_rng(seed)
    x, w = codes(rng, (1, 3, 6, 5), "uint8"), codes(rng, (4, 3, 3, 2), "uint8")
    scale, bias = scales(rng, x_q, y_q, 1, 18)[0], rng.integers(-5000, 5000, 4).astype(np.int32)
    (top, bottom), (left, right) = same_pads((6, 5), (3, 2), (1, 1))
    padding = {"pads": [top, left, bottom, right]} if explicit else {"auto_pad": "SAME_UPPER"}
    got = result(layer("Conv", x_q, x.shape, w, scale, y_q, bias, zero, **padding), x=x)
    product = np.float32(x_q.scale) * scale
    want = run_op(
        "CONV_2D",
        [activation("x", (1, 6, 5, 3), Quant(1.0, x_q.zero_point, "uint8")),
         constant("w", w.transpose(NHWC), product, np.array([zero])), constant("b", bias, product)],
        {"x": x.transpose(NHWC)}, activation("y", (1, 6, 5, 4), y_q),
        {"padding": "SAME", "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1},
    )  # fmt: skip
    same(got, want.transpose(NCHW))


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.sampled_from(["MatMul", "Gemm", "transposed"]), st.integers(1, 300), UINT8, UINT8)
def test_matmul(seed, op, k, x_q, y_q) -> None:
    """LiteRT's uint8 kernel wants uint8 weights: the int8 ones moved by 128, as the provider moves them for NNAPI. It
    multiplies by the real multiplier; NNAPI's way differs in one of some hundred codes, by one."""
    rng = np.random.default_rng(seed)
    x, w = codes(rng, (3, k), "uint8"), codes(rng, (5, k))
    scale = scales(rng, x_q, y_q, 1, k)[0]
    bias = rng.integers(-5000, 5000, 5).astype(np.int32) if op != "MatMul" else None
    given_w, more = (w, {"transB": 1}) if op == "transposed" else (np.ascontiguousarray(w.T), {})
    text = layer("Gemm" if op == "transposed" else op, x_q, x.shape, given_w, scale, y_q, bias, **more)
    product = np.float32(x_q.scale) * scale
    want = run_op(
        "FULLY_CONNECTED",
        [activation("x", x.shape, Quant(1.0, x_q.zero_point, "uint8")),
         constant("w", (w.astype(np.int16) + 128).astype(np.uint8), product, np.array([128])),
         None if bias is None else constant("b", bias, product)],
        {"x": x}, activation("y", (3, 5), y_q),
    )  # fmt: skip
    same(result(text, "real", x=x), want)
    assert np.abs(result(text, x=x).astype(int) - want.astype(int)).max() <= 1


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.sampled_from(["Add", "Mul"]), st.booleans(), UINT8, UINT8, UINT8)
def test_add_and_mul(seed, op, broadcast, x_q, y_q, out) -> None:
    rng = np.random.default_rng(seed)
    x = codes(rng, (2, 3, 4, 5), "uint8")
    y = codes(rng, (1, 3, 1, 1) if broadcast else x.shape, "uint8")
    want = run_op(
        op.upper(), [activation("x", x.shape, x_q), activation("y", y.shape, y_q)], {"x": x, "y": y},
        activation("z", x.shape, out), {},
    )  # fmt: skip
    same(result(moved(op, (x_q, y_q), (x.shape, y.shape), out), x0=x, x1=y), want)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(-1, 3), UINT8, UINT8, UINT8)
def test_concat(seed, axis, first, second, out) -> None:
    rng = np.random.default_rng(seed)
    arrays = [codes(rng, (2, 3, 4, 2), "uint8") for _ in range(3)]
    chosen = (first, second, out)
    shape = np.concatenate(arrays, axis).shape
    want = run_op(
        "CONCATENATION", [activation(f"x{i}", a.shape, q) for i, (a, q) in enumerate(zip(arrays, chosen, strict=True))],
        {f"x{i}": a for i, a in enumerate(arrays)}, activation("y", shape, out), {"axis": axis},
    )  # fmt: skip
    text = moved("Concat", chosen, [a.shape for a in arrays], out, axis=axis)
    same(result(text, **{f"x{i}": a for i, a in enumerate(arrays)}), want)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 3, -1]), quants("uint8", low=2.0**-8, high=8.0))
def test_softmax(seed, axis, x_q) -> None:
    x, out = codes(np.random.default_rng(seed), (2, 3, 4, 5), "uint8"), Quant(1 / 256, 0, "uint8")
    last = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    want = run_op("SOFTMAX", [activation("x", last.shape, x_q)], {"x": last}, activation("y", last.shape, out),
                  {"beta": 1.0})  # fmt: skip
    same(result(moved("Softmax", (x_q,), (x.shape,), out, axis=axis), x0=x), np.moveaxis(want, -1, axis))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.tuples(*[st.integers(3, 8)] * 2), st.tuples(*[st.integers(1, 3)] * 2), st.integers(1, 3),
       st.booleans(), UINT8)  # fmt: skip
def test_average_pool(seed, size, kernel, stride, padded, x_q) -> None:
    x = codes(np.random.default_rng(seed), (2, 3, *size), "uint8")
    how = "SAME_UPPER" if padded else "VALID"
    got = result(moved("AveragePool", (x_q,), (x.shape,), x_q, kernel_shape=kernel, strides=[stride] * 2,
                       auto_pad=how), x0=x)  # fmt: skip
    want = run_op(
        "AVERAGE_POOL_2D", [activation("x", (2, *size, 3), x_q)], {"x": x.transpose(NHWC)},
        activation("y", [got.shape[i] for i in NHWC], x_q),
        {"padding": how.partition("_")[0], "strideH": stride, "strideW": stride, "filterHeight": kernel[0],
         "filterWidth": kernel[1]},
    )  # fmt: skip
    same(got, want.transpose(NCHW))


RESIZES = ["linear half_pixel", "linear align_corners", "linear asymmetric", "nearest asymmetric"]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.tuples(*[st.integers(1, 8)] * 4), UINT8, st.sampled_from(RESIZES))
def test_resize(seed, sizes, x_q, how) -> None:
    mode, position = how.split()
    x = codes(np.random.default_rng(seed), (1, 2, *sizes[:2]), "uint8")
    shape, nothing = (1, 2, *sizes[2:]), np.zeros(0, np.float32)
    more = {"roi": nothing, "scales": nothing, "sizes": np.array(shape)}
    text = moved("Resize", (x_q,), (x.shape,), x_q, more, mode=mode, coordinate_transformation_mode=position,
                 nearest_mode="floor")  # fmt: skip
    want = run_op(
        "RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR",
        [activation("x", (1, *sizes[:2], 2), x_q), constant("size", np.array(sizes[2:], np.int32))],
        {"x": np.ascontiguousarray(x.transpose(NHWC))}, activation("y", (1, *sizes[2:], 2), x_q),
        {"half_pixel": {"halfPixelCenters": True}, "align_corners": {"alignCorners": True}}.get(position, {}),
    )  # fmt: skip
    same(result(text, x0=x), want.transpose(NCHW))


def test_moves_are_those_of_numpy() -> None:
    x, quant = codes(np.random.default_rng(0), (2, 3, 4, 5), "uint8"), Quant(0.1, 3, "uint8")
    same(result(moved("Transpose", (quant,), (x.shape,), quant, perm=[0, 3, 1, 2]), x0=x), x.transpose(0, 3, 1, 2))
    shaped = moved("Reshape", (quant,), (x.shape,), quant, {"shape": np.array([0, -1, 5])})
    same(result(shaped, x0=x), x.reshape(2, 12, 5))


def test_the_rounding_is_really_double() -> None:
    """Otherwise the tests above could not tell it from the other one."""
    rng = np.random.default_rng(3)
    x, w = rng.integers(0, 256, (8, 64), np.uint8), rng.integers(-127, 128, (512, 64), np.int8)
    text = layer("Gemm", Quant(0.07, 128, "uint8"), x.shape, w, np.float32(0.0002), Quant(0.04, 128, "uint8"),
                 np.zeros(512, np.int32), transB=1)  # fmt: skip
    assert (result(text, x=x) != result(text, "single", x=x)).any()


def test_an_overflow_names_its_node() -> None:
    x, w = np.full((1, 600), 255, np.uint8), np.full((1, 600), 127, np.int8)
    bias = np.array([2**31 - 600 * 127 * 255], np.int32)
    text = layer("Gemm", Quant(1.0, 0, "uint8"), x.shape, w, np.float32(1e-9), Quant(1.0, 0, "uint8"), bias, transB=1)
    with pytest.raises(ModelError, match="node it: FULLY_CONNECTED: an accumulator reaches 2147483648"):
        result(text, x=x)
