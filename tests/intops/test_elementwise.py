"""Element-wise operators, pools, reductions, resizing and moves against LiteRT's reference kernels."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops.elementwise import OPS, BinaryParams, add, maximum
from edgeq.intops.mean import ReduceParams, mean
from edgeq.intops.quant import Quant, clamp_range
from edgeq.intops.requantize import QuantizeParams, dequantize, quantize
from edgeq.numerics.fixedpoint import multiplier
from tests.intops.drawn import SEEDS, codes, quants
from tests.intops.litert import activation, constant, run_op, same

ACTIVATIONS = st.sampled_from(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])
SHAPES = st.sampled_from([((2, 3, 4, 5),) * 2, ((2, 3, 4, 5), (1, 1, 1, 5)), ((1, 1, 4, 1), (2, 3, 4, 5)), ((7,),) * 2])
TYPES = st.sampled_from(["int8", "int8", "uint8"])


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.sampled_from(["ADD", "SUB", "MUL"]), SHAPES, st.data(), TYPES, ACTIVATIONS)
def test_add_sub_mul(seed, code, shapes, data, dtype, fused) -> None:
    rng = np.random.default_rng(seed)
    x_q, y_q, out = (data.draw(quants(dtype)) for _ in range(3))
    x, y = codes(rng, shapes[0], dtype), codes(rng, shapes[1], dtype)
    shape = np.broadcast_shapes(*shapes)
    want = run_op(
        code, [activation("x", x.shape, x_q), activation("y", y.shape, y_q)], {"x": x, "y": y},
        activation("z", shape, out), {"fusedActivationFunction": fused},
    )  # fmt: skip
    same(OPS[code](x, y, BinaryParams(x_q, y_q, out, fused)), want)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(["ADD", "SUB", "MUL"]), SHAPES, st.lists(st.floats(-12, -6), min_size=3, max_size=3),
       st.booleans(), ACTIVATIONS)  # fmt: skip
def test_add_sub_mul_of_16_bits(seed, code, shapes, exponents, powers, fused) -> None:
    """Any scales by the one arithmetic, powers of two too, as the file says."""
    rng = np.random.default_rng(seed)
    x_q, y_q, out = (Quant(2.0 ** (round(e) if powers else e), 0, "int16") for e in exponents)
    x, y = (codes(rng, shape, "int16") for shape in shapes)
    shape = np.broadcast_shapes(*shapes)
    options = {"fusedActivationFunction": fused} | ({"potScaleInt16": False} if code != "MUL" else {})
    want = run_op(
        code, [activation("x", x.shape, x_q), activation("y", y.shape, y_q)], {"x": x, "y": y},
        activation("z", shape, out), options,
    )  # fmt: skip
    same(OPS[code](x, y, BinaryParams(x_q, y_q, out, fused)), want)


def test_every_pair_of_codes_adds_alike() -> None:
    x, y = (a.astype(np.int8) for a in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
    x_q, y_q, out = Quant(0.0173, -3), Quant(0.0411, 117), Quant(0.05, -128)
    want = run_op(
        "ADD", [activation("x", x.shape, x_q), activation("y", y.shape, y_q)], {"x": x, "y": y},
        activation("z", x.shape, out), {},
    )  # fmt: skip
    same(add(x, y, BinaryParams(x_q, y_q, out)), want)


@given(SEEDS, st.sampled_from(["MAXIMUM", "MINIMUM"]), SHAPES, quants())
@settings(max_examples=30, deadline=None)
def test_maximum_minimum(seed, code, shapes, quant) -> None:
    rng = np.random.default_rng(seed)
    x, y = codes(rng, shapes[0]), codes(rng, shapes[1])
    want = run_op(
        code, [activation("x", x.shape, quant), activation("y", y.shape, quant)], {"x": x, "y": y},
        activation("z", np.broadcast_shapes(*shapes), quant), {},
    )  # fmt: skip
    same(OPS[code](x, y, BinaryParams(quant, quant, quant)), want)


def test_what_can_not_be_computed_is_refused() -> None:
    x = np.zeros(3, np.int8)
    with pytest.raises(ModelError, match="output scale"):
        add(x, x, BinaryParams(Quant(1.0), Quant(1.0), Quant(2.0**-21)))
    with pytest.raises(ModelError, match="MAXIMUM"):
        maximum(x, x, BinaryParams(Quant(1.0), Quant(2.0), Quant(1.0)))
    with pytest.raises(ModelError, match="scale"):
        Quant(0.0)


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.sampled_from([(1, 2), (2, 1), (1,), (3,), (0, 1, 2, 3), (-1, 1)]), st.booleans(), TYPES, st.data(),
       st.booleans())  # fmt: skip
def test_mean(seed, axes, keep, dtype, data, same_scale) -> None:
    rng = np.random.default_rng(seed)
    x_q = data.draw(quants(dtype))
    out = x_q if same_scale else data.draw(quants(dtype))
    x = codes(rng, (2, *rng.integers(1, 9, 3)), dtype)
    shape = x.astype(float).mean(tuple(axes), keepdims=keep).shape
    want = run_op(
        "MEAN", [activation("x", x.shape, x_q), constant("axes", np.array(axes, np.int32))], {"x": x},
        activation("y", shape, out), {"keepDims": keep},
    )  # fmt: skip
    same(mean(x, ReduceParams(x_q, out, axes, keep)), want)


@settings(max_examples=100, deadline=None)
@given(SEEDS, quants(high=2.0**8), quants())
def test_quantize_int8_to_int8(seed, x_q, out) -> None:
    x = np.arange(-128, 128, dtype=np.int8)
    want = run_op("QUANTIZE", [activation("x", x.shape, x_q)], {"x": x}, activation("y", x.shape, out))
    same(quantize(x, QuantizeParams(x_q, out)), want)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from([("int8", "uint8"), ("uint8", "int8"), ("uint8", "uint8")]), st.data())
def test_quantize_between_types(seed, types, data) -> None:
    x_q, out = (data.draw(quants(t)) for t in types)
    x = np.arange(256).astype(types[0])
    want = run_op("QUANTIZE", [activation("x", x.shape, x_q)], {"x": x}, activation("y", x.shape, out))
    same(quantize(x, QuantizeParams(x_q, out)), want)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from(["int8", "uint8", "int16"]), st.data())
def test_quantize_and_dequantize(seed, dtype, data) -> None:
    rng = np.random.default_rng(seed)
    quant = data.draw(quants(dtype)) if dtype != "int16" else Quant(0.01, 0, "int16")
    steps = np.concatenate([rng.normal(0, 100, 100), np.arange(-300, 300) / 2, [0.0, -0.0, 1e9, -1e9]])
    x = (steps * quant.scale).astype(np.float32)
    real = activation("x", x.shape, quant)
    plain = type(real)("x", x.shape, "float32")
    same(quantize(x, QuantizeParams(None, quant)),
         run_op("QUANTIZE", [plain], {"x": x}, activation("y", x.shape, quant)))  # fmt: skip
    q = codes(rng, (500,), dtype)
    want = run_op("DEQUANTIZE", [activation("q", q.shape, quant)], {"q": q}, type(real)("y", q.shape, "float32"))
    same(dequantize(q, quant), want)


@pytest.mark.parametrize(("dtype", "bits"), [("int8", 19), ("uint8", 19), ("int16", 14)])
@pytest.mark.parametrize("larger", ["x", "y"])
def test_sums_take_output_scales_above_a_bound(dtype, bits, larger) -> None:
    """Of the larger input's: at 2**-19 (2**-14) the last multiplier would be 1."""
    x = np.zeros(3, dtype)
    sides = (Quant(1.0, 0, dtype), Quant(2.0**-30, 0, dtype))[:: 1 if larger == "x" else -1]
    least = np.float32(2.0**-bits)
    out = Quant(float(np.nextafter(least, np.float32(1))), 0, dtype)
    assert OPS["ADD"](x, x, BinaryParams(*sides, out)).tolist() == [0, 0, 0]
    for name in ("ADD", "SUB"):
        with pytest.raises(ModelError, match=rf"above 2\*\*-{bits} of"):
            OPS[name](x, x, BinaryParams(*sides, Quant(float(least), 0, dtype)))


@pytest.mark.parametrize("code", ["MAXIMUM", "MINIMUM"])
@pytest.mark.parametrize("odd", range(3))
def test_a_maximum_of_other_quantizations_is_refused(code, odd) -> None:
    x = np.zeros(3, np.int8)
    for other in (Quant(2.0), Quant(1.0, 1)):
        quants_ = [Quant(1.0)] * 3
        quants_[odd] = other
        with pytest.raises(ModelError, match=code):
            OPS[code](x, x, BinaryParams(*quants_))


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255), ("int16", -32768, 32767)])
def test_a_quantization_is_of_its_types_codes(dtype, low, high) -> None:
    for zero in (low, high):
        quant = Quant(0.1, zero, dtype)
        assert (quant.lo, quant.hi, quant.scale) == (low, high, float(np.float32(0.1)))
        x = np.array([low, zero, high]).astype(dtype)
        assert quant.shifted(x).tolist() == [low - zero, 0, high - zero]
        assert quant.shifted(x).dtype == np.int32
    for bad in ((0.1, low - 1), (0.1, high + 1), (0.0, 0), (-0.1, 0), (np.nan, 0), (np.inf, 0)):
        with pytest.raises(ModelError, match="not a quantization"):
            Quant(*bad, dtype)


@given(st.floats(2.0**-8, 2.0**4, width=32), st.integers(-128, 127))
def test_bounds_are_quantized_half_away_from_zero_and_kept_in_range(scale, zero) -> None:
    quant = Quant(scale, zero)
    for low, high in ((None, None), (0.0, None), (0.0, 6.0), (-1.0, 1.0), (-0.5, 2.5)):
        want = []
        for bound in (low, high):
            if bound is not None:
                steps = Decimal(float(np.float32(bound) / np.float32(scale)))
                bound = min(max(zero + int(steps.quantize(Decimal(1), ROUND_HALF_UP)), -(10**6)), 10**6)
            want.append(bound)
        got = clamp_range(low, high, quant)
        assert got == (-128 if low is None else max(want[0], -128), 127 if high is None else min(want[1], 127))


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 1000, 70_000])
@pytest.mark.parametrize("ratio", [2.0**-28, 0.01, 0.5, 1.0, 3.0, 200.0])
def test_a_mean_folds_the_count_in_its_mantissa(count, ratio) -> None:
    """QuantizedMeanOrSum of TFLite's reduce.h in unbounded integers."""
    x = np.random.default_rng(count).integers(-128, 128, (2, count)).astype(np.int8)
    x_q, out = Quant(ratio, 5), Quant(1.0, -7)
    q, shift = (int(v) for v in multiplier(ratio))
    k = 63 - (64 - count.bit_length())  # 63 - CountLeadingZeros
    k = min(k, 32, 31 + shift)
    m, shift = (q << k) // count, shift - k
    got = mean(x, ReduceParams(x_q, out, (1,)))
    assert got.shape == (2, 1)
    for row, found in zip(x.astype(int), got[:, 0].tolist(), strict=True):
        total = int((row - 5).sum()) << max(shift, 0)
        high = (total * m + 2**30) >> 31
        down = max(-shift, 0)
        y = (high >> down) + ((high & (2**down - 1)) > ((2**down - 1) >> 1) + (high < 0))
        assert found == min(max(y - 7, -128), 127)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (-1,), (-1, 0), (0, 1, 2)])
@pytest.mark.parametrize("keep", [True, False])
def test_a_mean_is_numpys_to_two_roundings(axes, keep) -> None:
    """The second one of halves at most: three quarters of a code."""
    x = codes(np.random.default_rng(1), (3, 4, 5))
    want = x.astype(float).mean(axes, keepdims=keep)
    got = mean(x, ReduceParams(Quant(1.0), Quant(1.0), axes, keep))
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 0.75 + 1e-6
