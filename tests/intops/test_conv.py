"""Convolutions against LiteRT's reference kernels: every stride, padding, dilation and group count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops.conv import ConvParams, conv_2d, depthwise_conv_2d, transpose_conv
from edgeq.intops.quant import Quant
from edgeq.intops.windows import same_pads
from edgeq.numerics.fixedpoint import multiplier, requantize
from tests.intops.drawn import SEEDS, codes, quants
from tests.intops.litert import activation, constant, run_op, same

ACTIVATIONS = st.sampled_from(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
KERNELS = st.tuples(st.integers(1, 4), st.integers(1, 4))
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


def spread(rng: np.random.Generator, channels: int, x: Quant, out: Quant, terms: int) -> np.ndarray:
    """Weight scales that put the outputs anywhere from all zero to all saturated, one channel at least in between."""
    usual = out.scale * 100 / (x.scale * 127 * 127 * terms**0.5)
    return (usual * 2.0 ** rng.uniform(-14, 8, channels)).astype(np.float32)


def geometry(
    size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int], padding: str
) -> tuple[tuple[tuple[int, int], tuple[int, int]], tuple[int, int]]:
    if padding == "SAME":
        rows, columns = (-(-n // s) for n, s in zip(size, strides, strict=True))
        return same_pads(size, kernel, strides, dilations), (rows, columns)
    rows, columns = (
        (n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    )
    return ((0, 0), (0, 0)), (rows, columns)


def options(strides: tuple[int, int], dilations: tuple[int, int], padding: str, fused: str) -> dict[str, object]:
    return {
        "padding": padding, "fusedActivationFunction": fused,
        "strideH": strides[0], "strideW": strides[1],
        "dilationHFactor": dilations[0], "dilationWFactor": dilations[1],
    }  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    SEEDS, SIZES, KERNELS, PAIRS, PAIRS, st.sampled_from(["SAME", "VALID"]), st.sampled_from([1, 1, 2, 3]),
    st.tuples(st.integers(1, 5), st.integers(1, 4)), st.booleans(), st.booleans(), quants(), quants(), ACTIVATIONS,
)  # fmt: skip
def test_conv_2d(seed, size, kernel, strides, dilations, padding, groups, channels, per_channel, biased, x_q, y_q,
                 fused) -> None:  # fmt: skip
    if padding == "VALID":
        size = tuple(n + (k - 1) * d for n, k, d in zip(size, kernel, dilations, strict=True))
    rng = np.random.default_rng(seed)
    cg, o = channels[0], channels[1] * groups
    x, w = codes(rng, (2, *size, cg * groups)), codes(rng, (o, *kernel, cg))
    scale = spread(rng, o if per_channel else 1, x_q, y_q, w[0].size)
    bias = rng.integers(-5000, 5000, o).astype(np.int32) * np.int32(biased)  # LiteRT's int8 kernel asks for one
    pads, out = geometry(size, kernel, strides, dilations, padding)
    want = run_op(
        "CONV_2D",
        [activation("x", x.shape, x_q), constant("w", w, scale),
         constant("b", bias, np.float32(x_q.scale) * scale)],
        {"x": x}, activation("y", (2, *out, o), y_q), options(strides, dilations, padding, fused),
    )  # fmt: skip
    params = ConvParams(x_q, scale, y_q, strides, pads, dilations, activation=fused)
    same(conv_2d(x, w, bias if biased else None, params), want)


@settings(max_examples=200, deadline=None)
@given(
    SEEDS, SIZES, KERNELS, st.integers(1, 3), PAIRS, st.sampled_from(["SAME", "VALID"]), st.integers(1, 5),
    st.integers(1, 3), st.booleans(), quants(), quants(), ACTIVATIONS,
)  # fmt: skip
def test_depthwise_conv_2d(seed, size, kernel, stride, dilations, padding, c, multiple, per_channel, x_q, y_q,
                           fused) -> None:  # fmt: skip
    if padding == "VALID":
        size = tuple(n + (k - 1) * d for n, k, d in zip(size, kernel, dilations, strict=True))
    rng = np.random.default_rng(seed)
    o, strides = c * multiple, (stride, stride)
    x, w = codes(rng, (2, *size, c)), codes(rng, (1, *kernel, o))
    scale = spread(rng, o if per_channel else 1, x_q, y_q, kernel[0] * kernel[1])
    bias = rng.integers(-5000, 5000, o).astype(np.int32)
    pads, out = geometry(size, kernel, strides, dilations, padding)
    want = run_op(
        "DEPTHWISE_CONV_2D",
        [activation("x", x.shape, x_q), constant("w", w, scale, axis=3),
         constant("b", bias, np.float32(x_q.scale) * scale)],
        {"x": x}, activation("y", (2, *out, o), y_q),
        options(strides, dilations, padding, fused) | {"depthMultiplier": multiple},
    )  # fmt: skip
    got = depthwise_conv_2d(x, w, bias, ConvParams(x_q, scale, y_q, strides, pads, dilations, activation=fused))
    same(got, want)


@settings(max_examples=100, deadline=None)
@given(
    SEEDS, st.tuples(st.integers(1, 6), st.integers(1, 6)), KERNELS, PAIRS, st.sampled_from(["SAME", "VALID"]),
    st.integers(1, 4), st.integers(1, 4), quants(), quants(),
)  # fmt: skip
def test_transpose_conv(seed, size, kernel, strides, padding, c, o, x_q, y_q) -> None:
    rng = np.random.default_rng(seed)
    if padding == "SAME":
        out = tuple(n * s for n, s in zip(size, strides, strict=True))
    else:
        out = tuple((n - 1) * s + k for n, s, k in zip(size, strides, kernel, strict=True))
    pads = same_pads(out, kernel, strides) if padding == "SAME" else ((0, 0), (0, 0))
    x, w = codes(rng, (2, *size, c)), codes(rng, (o, *kernel, c))
    scale = spread(rng, o, x_q, y_q, w[0].size)
    bias = rng.integers(-5000, 5000, o).astype(np.int32)
    want = run_op(
        "TRANSPOSE_CONV",
        [constant("size", np.array([2, *out, o], np.int32)), constant("w", w, scale), activation("x", x.shape, x_q),
         constant("b", bias, np.float32(x_q.scale) * scale)],
        {"x": x}, activation("y", (2, *out, o), y_q),
        {"padding": padding, "strideH": strides[0], "strideW": strides[1]},
    )  # fmt: skip
    same(transpose_conv(x, w, bias, ConvParams(x_q, scale, y_q, strides, pads), out), want)


@pytest.mark.parametrize("ratio", [2.0**-40, 2.0**-33, 2.0**-32, 2.0**-31, 1 - 2.0**-24, 1.0, 1 + 2.0**-23, 2.0**7])
@pytest.mark.parametrize("zero_point", [-128, 127])
def test_extreme_multipliers(ratio: float, zero_point: int) -> None:
    """s_x * s_w / s_y near 0, beyond the last shift, and around 1, with the zero points at both ends."""
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)
    w = np.array([[[[127]]], [[[-127]]], [[[1]]], [[[0]]]], np.int8)
    scale, bias = np.full(4, ratio, np.float32), np.array([2**30, -(2**30), 7, -7], np.int32)
    x_q, y_q = Quant(1.0, zero_point), Quant(1.0, -1 - zero_point)
    want = run_op(
        "CONV_2D",
        [activation("x", x.shape, x_q), constant("w", w, scale), constant("b", bias, scale)],
        {"x": x}, activation("y", (1, 16, 16, 4), y_q), options((1, 1), (1, 1), "VALID", "NONE"),
    )  # fmt: skip
    same(conv_2d(x, w, bias, ConvParams(x_q, scale, y_q)), want)


@settings(max_examples=60, deadline=None)
@given(SEEDS, quants("uint8"), quants("uint8"), st.integers(0, 255), ACTIVATIONS)
def test_uint8_conv_with_weight_zero_point(seed, x_q, y_q, w_zero, fused) -> None:
    rng = np.random.default_rng(seed)
    x, w = codes(rng, (1, 6, 5, 3), "uint8"), codes(rng, (4, 3, 2, 3), "uint8")
    scale = spread(rng, 1, x_q, y_q, 18)
    bias = rng.integers(-5000, 5000, 4).astype(np.int32)
    pads, out = geometry((6, 5), (3, 2), (1, 1), (1, 1), "SAME")
    want = run_op(
        "CONV_2D",
        [activation("x", x.shape, x_q), constant("w", w, scale, np.array([w_zero])),
         constant("b", bias, np.float32(x_q.scale) * scale)],
        {"x": x}, activation("y", (1, *out, 4), y_q), options((1, 1), (1, 1), "SAME", fused),
    )  # fmt: skip
    params = ConvParams(x_q, scale, y_q, pads=pads, w_zero_point=w_zero, activation=fused)
    same(conv_2d(x, w, bias, params), want)


def test_what_overflows_is_reported() -> None:
    x, w = np.full((1, 1, 1, 600), 127, np.int8), np.full((1, 1, 1, 600), 127, np.int8)
    params = ConvParams(Quant(1.0, -128), np.float32(1e-9), Quant(1.0))
    assert conv_2d(x, w, np.array([2**31 - 1 - 600 * 127 * 255], np.int32), params)[0, 0, 0, 0] == 2
    with pytest.raises(ModelError, match="CONV_2D: an accumulator reaches 2147483648"):
        conv_2d(x, w, np.array([2**31 - 600 * 127 * 255], np.int32), params)


def test_channels_that_do_not_divide_are_refused() -> None:
    params = ConvParams(Quant(1.0), np.float32(1), Quant(1.0))
    with pytest.raises(ModelError, match="5 input and 4 output"):
        conv_2d(np.zeros((1, 2, 2, 5), np.int8), np.zeros((4, 1, 1, 2), np.int8), None, params)
    with pytest.raises(ModelError, match="not a multiple"):
        depthwise_conv_2d(np.zeros((1, 2, 2, 5), np.int8), np.zeros((1, 1, 1, 4), np.int8), None, params)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"]))
def test_int16_activations(seed, code) -> None:
    """int16 x int8 with an int64 bias: a 64-bit accumulator and a 16-bit multiplier."""
    rng = np.random.default_rng(seed)
    x_q, y_q = (Quant(float(np.float32(2.0 ** rng.uniform(-12, -6))), 0, "int16") for _ in range(2))
    c, o = 5, 5 if code == "DEPTHWISE_CONV_2D" else 4
    x, w = codes(rng, (1, 6, 7, c), "int16"), codes(rng, (1 if o == 5 else o, 3, 2, 1 if o == 5 else c)).astype(np.int8)
    if code == "DEPTHWISE_CONV_2D":
        w = codes(rng, (1, 3, 2, o))
    usual = y_q.scale / (x_q.scale * 127 * 6**0.5)
    scale = (usual * 2.0 ** rng.uniform(-6, 0, o)).astype(np.float32)
    bias = rng.integers(-(2**34), 2**34, o)
    pads, size = geometry((6, 7), (3, 2), (1, 1), (1, 1), "SAME")
    operands = [
        activation("x", x.shape, x_q),
        constant("w", w, scale, axis=3 if code == "DEPTHWISE_CONV_2D" else 0),
        constant("b", bias, np.float32(x_q.scale) * scale),
    ]
    given_options = options((1, 1), (1, 1), "SAME", "NONE")
    if code == "DEPTHWISE_CONV_2D":
        given_options["depthMultiplier"] = 1
    if code == "TRANSPOSE_CONV":
        operands = [constant("size", np.array([1, *size, o], np.int32)), operands[1], operands[0], operands[2]]
        given_options = {"padding": "SAME", "strideH": 1, "strideW": 1}
    want = run_op(code, operands, {"x": x}, activation("y", (1, *size, o), y_q), given_options)
    params = ConvParams(x_q, scale, y_q, pads=pads, rounding="int16x8")
    if code == "TRANSPOSE_CONV":
        same(transpose_conv(x, w, bias, params, size), want)
    else:
        same((conv_2d if code == "CONV_2D" else depthwise_conv_2d)(x, w, bias, params), want)


def test_the_rounding_is_really_double() -> None:
    """The other roundings differ from the reference kernel somewhere, so that the tests above can tell them apart."""
    rng = np.random.default_rng(0)
    x, w = codes(rng, (1, 40, 40, 4)), codes(rng, (32, 3, 3, 4))
    scale = rng.uniform(1e-3, 4e-3, 32).astype(np.float32)
    results = [conv_2d(x, w, None, ConvParams(Quant(0.1), scale, Quant(0.1), rounding=r)) for r in ("double", "single")]
    assert 0 < np.count_nonzero(results[0] != results[1]) < results[0].size / 100


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"]), st.booleans())
def test_sums_are_exact_where_float32_is_not(seed, code, wide) -> None:
    """Large products that cancel: int64 sums at each place, one multiplier of 1, so that every unit is seen."""
    rng = np.random.default_rng(seed)
    dtype = "int16" if wide else "int8"
    x_q, out = Quant(1.0, 0 if wide else 5, dtype), Quant(1.0, 0, "int16")
    n = 24
    c = 1 if code == "DEPTHWISE_CONV_2D" else n
    kernel = (n, 1) if code == "DEPTHWISE_CONV_2D" else (1, 1)
    x = codes(rng, (1, kernel[0], 1, c), dtype)
    weights = np.array([127] * (n // 2) + [-127] * (n // 2))
    flat = x.reshape(-1).astype(np.int64) - x_q.zero_point
    w = weights.reshape(1, *kernel, c).astype(np.int8)
    total = int((flat * weights).sum())
    bias = np.array([int(rng.integers(-100, 100)) - total], np.int64 if wide else np.int32)
    params = ConvParams(x_q, np.float32(1.0), out, rounding="int16x8" if wide else "double")
    if code == "TRANSPOSE_CONV":
        got = transpose_conv(x, w, bias, params, (1, 1))
    else:
        got = (conv_2d if code == "CONV_2D" else depthwise_conv_2d)(x, w, bias, params)
    assert got.tolist() == [[[[total + int(bias[0])]]]]


def test_every_kind_of_convolution_reports_an_overflow() -> None:
    """By its own name, from the first integer beyond int32."""
    n = 66_000
    x, params = np.full((1, n, 1, 1), 127, np.int8), ConvParams(Quant(1.0, -128), np.float32(1e-9), Quant(1.0))
    w = np.full((1, n, 1, 1), 127, np.int8)
    room = 2**31 - 1 - n * 127 * 255
    held, beyond = np.array([room], np.int32), np.array([room + 1], np.int32)
    assert depthwise_conv_2d(x, w, held, params).tolist() == [[[[2]]]]
    with pytest.raises(ModelError, match="DEPTHWISE_CONV_2D: an accumulator reaches 2147483648"):
        depthwise_conv_2d(x, w, beyond, params)
    x, w = x.reshape(1, 1, 1, n), w.reshape(1, 1, 1, n)
    assert transpose_conv(x, w, held, params, (1, 1)).tolist() == [[[[2]]]]
    with pytest.raises(ModelError, match="TRANSPOSE_CONV: an accumulator reaches 2147483648"):
        transpose_conv(x, w, beyond, params, (1, 1))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.tuples(*[st.integers(1, 5)] * 2), KERNELS, PAIRS, PAIRS, st.integers(0, 255), st.integers(1, 3))
def test_uint8_weights_have_a_zero_point_in_every_kind(
    seed, size, kernel, strides, dilations, w_zero, multiple
) -> None:
    """Strides and dilations of their own along each axis, any pads: sums over taps one place at a time."""
    rng = np.random.default_rng(seed)
    pads = tuple(tuple(int(v) for v in rng.integers(0, 3, 2)) for _ in range(2))
    size = tuple(max(n, (k - 1) * d + 1) for n, k, d in zip(size, kernel, dilations, strict=True))
    c, x_q, out = 2, Quant(0.05, 99, "uint8"), Quant(0.3, 31, "uint8")
    x, scale = codes(rng, (2, *size, c), "uint8"), np.float32(0.002)
    params = ConvParams(x_q, scale, out, strides, pads, dilations, w_zero)
    q, shift = multiplier(x_q.scale * float(scale) / out.scale)
    whole = np.pad(x.astype(np.int64) - 99, ((0, 0), *pads, (0, 0)))
    places = [
        (n + sum(p) - (k - 1) * d - 1) // s + 1
        for n, p, k, d, s in zip(size, pads, kernel, dilations, strides, strict=True)
    ]

    def summed(weights: np.ndarray, shared: bool) -> np.ndarray:
        """weights: (KH, KW, C, O); shared: an output sums over all channels, else it sees its own alone."""
        acc = np.zeros((2, *places, weights.shape[-1]), np.int64)
        for i, j, a, b in np.ndindex(*places, *kernel):
            seen = whole[:, i * strides[0] + a * dilations[0], j * strides[1] + b * dilations[1]]
            acc[:, i, j] += seen @ weights[a, b] if shared else np.repeat(seen, multiple, -1) * weights[a, b, 0]
        return requantize(acc, q, shift, 31, 0, 255, dtype=np.uint8)

    w = codes(rng, (3, *kernel, c), "uint8")
    same(conv_2d(x, w, None, params), summed(w.astype(np.int64).transpose(1, 2, 3, 0) - w_zero, True))
    w = codes(rng, (1, *kernel, c * multiple), "uint8")
    got = depthwise_conv_2d(x, w, None, params)
    same(got, summed(w.astype(np.int64).reshape(*kernel, 1, -1) - w_zero, False))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.tuples(*[st.integers(1, 4)] * 2), KERNELS, PAIRS, st.integers(0, 255))
def test_transposed_uint8_weights_are_laid_one_input_at_a_time(seed, size, kernel, strides, w_zero) -> None:
    """With pads and sizes that cut at either side, or reach beyond what any input meets."""
    rng = np.random.default_rng(seed)
    full = [(n - 1) * s + k for n, s, k in zip(size, strides, kernel, strict=True)]
    top, left = (int(rng.integers(0, k)) for k in kernel)
    out_size = tuple(int(rng.integers(1, n + 3)) for n in full)
    x_q, out = Quant(0.05, 99, "uint8"), Quant(0.3, 31, "uint8")
    x, w = codes(rng, (2, *size, 2), "uint8"), codes(rng, (3, *kernel, 2), "uint8")
    params = ConvParams(x_q, np.float32(0.002), out, strides, ((top, 0), (left, 0)), w_zero_point=w_zero)
    acc = np.zeros((2, *out_size, 3), np.int64)
    for i, j, a, b in np.ndindex(*size, *kernel):
        row, column = i * strides[0] + a - top, j * strides[1] + b - left
        if 0 <= row < out_size[0] and 0 <= column < out_size[1]:
            acc[:, row, column] += (x[:, i, j].astype(np.int64) - 99) @ (w[:, a, b].astype(np.int64) - w_zero).T
    q, shift = multiplier(x_q.scale * float(np.float32(0.002)) / out.scale)
    same(transpose_conv(x, w, None, params, out_size), requantize(acc, q, shift, 31, 0, 255, dtype=np.uint8))


def test_channels_and_groups_divide_or_are_refused() -> None:
    params = ConvParams(Quant(1.0), np.float32(1), Quant(1.0))
    for c, o, cg, fits in ((4, 4, 2, True), (4, 3, 2, False), (3, 2, 2, False), (6, 4, 3, True), (4, 4, 0, False)):
        x, w = np.ones((1, 1, 1, c), np.int8), np.ones((o, 1, 1, cg), np.int8)
        if fits:
            assert conv_2d(x, w, None, params).tolist() == [[[[cg] * o]]]
        else:
            with pytest.raises(ModelError, match="do not divide into groups"):
                conv_2d(x, w, None, params)
    with pytest.raises(ModelError, match="not a multiple"):
        depthwise_conv_2d(np.zeros((1, 1, 1, 0), np.int8), np.zeros((1, 1, 1, 2), np.int8), None, params)
