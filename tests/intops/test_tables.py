"""Activations and softmax against LiteRT: every code of every case, both softmax arithmetics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops import softmax as sm
from edgeq.intops.quant import Quant
from edgeq.intops.softmax import SoftmaxParams, softmax
from edgeq.intops.tables import OPS, FixedOutput, TableParams, hard_swish
from tests.intops.drawn import codes, quants
from tests.intops.litert import activation, run_op, same

ALL = np.arange(256)


def every_code(dtype: str) -> np.ndarray:
    return (ALL + np.iinfo(dtype).min).astype(dtype)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["int8", "uint8"]), st.data())
def test_fixed_outputs(dtype, data) -> None:
    x_q, x, lo = data.draw(quants(dtype)), every_code(dtype), int(np.iinfo(dtype).min)
    for code, out in (("LOGISTIC", Quant(1 / 256, lo, dtype)), ("TANH", Quant(1 / 128, lo + 128, dtype))):
        want = run_op(code, [activation("x", x.shape, x_q)], {"x": x}, activation("y", x.shape, out))
        same(OPS[code](x, TableParams(x_q, out)), want)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "GELU"]),
    st.sampled_from(["int8", "uint8"]),
    st.data(),
    st.sampled_from([0.01, 0.2, 1.0, 1.5]),
    st.booleans(),
)
def test_activations(code, dtype, data, alpha, approximate) -> None:
    x_q, out, x = data.draw(quants(dtype)), data.draw(quants(dtype)), every_code(dtype)
    options = {"LEAKY_RELU": {"alpha": alpha}, "GELU": {"approximate": approximate}}.get(code, {})
    want = run_op(code, [activation("x", x.shape, x_q)], {"x": x}, activation("y", x.shape, out), options)
    same(OPS[code](x, TableParams(x_q, out, alpha, approximate)), want)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["int8", "uint8"]), st.data())
def test_hard_swish(dtype, data) -> None:
    x_q, x = data.draw(quants(dtype)), every_code(dtype)
    # Beyond a ratio of 2**8 a 16-bit mask of the C code overflows, and it returns 1 for what is 0.
    out = data.draw(quants(dtype, low=x_q.scale / 64, high=x_q.scale * 128))
    want = run_op("HARD_SWISH", [activation("x", x.shape, x_q)], {"x": x}, activation("y", x.shape, out))
    same(hard_swish(x, TableParams(x_q, out)), want)


def test_hard_swish_refuses_an_output_scale_too_small() -> None:
    with pytest.raises(ModelError, match="too small"):
        hard_swish(every_code("int8"), TableParams(Quant(1.0), Quant(1 / 256)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.sampled_from(["int8", "uint8"]), st.data(),
       st.sampled_from([1.0, 0.5, 2.0]))  # fmt: skip
def test_softmax(seed, n, dtype, data, beta) -> None:
    rng = np.random.default_rng(seed)
    x_q, lo = data.draw(quants(dtype, low=2.0**-8, high=8.0)), int(np.iinfo(dtype).min)
    x, out = codes(rng, (3, n), dtype), Quant(1 / 256, lo, dtype)
    tensors = [activation("x", x.shape, x_q)], {"x": x}, activation("y", x.shape, out), {"beta": beta}
    same(softmax(x, SoftmaxParams(x_q, beta)), run_op("SOFTMAX", *tensors))
    same(softmax(x, SoftmaxParams(x_q, beta, "table")), run_op("SOFTMAX", *tensors, reference=False))


def test_fixed_point_functions_are_close_to_the_real_ones() -> None:
    a = -np.arange(0, 1 << 31, 1_000_003)
    real = np.exp(a / 2.0**26)
    assert np.abs(sm.exp_on_negative_values(a) / 2.0**31 - real).max() < 2.0**-20
    total = np.arange(1, 1 << 31, 1_000_003) + (1 << 19)
    m, bits = sm.reciprocal(total[total < 1 << 31])
    value = m / 2.0**31 * 2.0 ** -bits.astype(float)
    assert np.abs(value * total[total < 1 << 31] / 2.0**19 - 1).max() < 2.0**-24


@pytest.mark.parametrize(("code", "function"), [("LOGISTIC", lambda v: 1 / (1 + math.exp(-v))), ("TANH", math.tanh)])
def test_tables_stay_within_half_a_step(code, function) -> None:
    out = Quant(1 / 256, -128) if code == "LOGISTIC" else Quant(1 / 128)
    x, x_q = every_code("int8"), Quant(0.05, 11)
    got = OPS[code](x, TableParams(x_q, out)).astype(float)
    real = [function((int(v) - 11) * x_q.scale) / out.scale + out.zero_point for v in x]
    assert np.abs(got - np.clip(real, -128, 127)).max() <= 0.5001


def pot_c(x: int, exponent: int) -> int:
    """RoundingDivideByPOT for an exponent from 0 up, SaturatingRoundingMultiplyByPOT for one below."""
    if exponent < 0:
        return min(max(x << -exponent, -(2**31)), 2**31 - 1)
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def high_mul_c(a: int, b: int) -> int:
    """SaturatingRoundingDoublingHighMul, but for the one product that saturates."""
    nudged = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)


def exp_c(a: int) -> int:
    """exp_on_negative_values of gemmlowp's fixedpoint.h with its published constants, for Q5.26."""
    if a == 0:
        return 2**31 - 1
    quarter = 1 << 24
    less = (a & (quarter - 1)) - quarter
    x = pot_c(less, -5) + (1 << 28)
    x2 = high_mul_c(x, x)
    x3, x4 = high_mul_c(x2, x), high_mul_c(x2, x2)
    tail = pot_c(high_mul_c(pot_c(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + high_mul_c(1895147668, x + tail)
    barrel = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for exponent, factor in enumerate(barrel, -2):
        if (less - a) & (1 << (26 + exponent)):
            result = high_mul_c(result, factor)
    return result


def reciprocal_c(total: int) -> tuple[int, int]:
    """GetReciprocal of TFLite's common.h for x_integer_digits = 12, with one_over_one_plus_x_for_x_in_0_1."""
    leading = 32 - total.bit_length()
    a = (total << leading) - (1 << 31)
    half = (a + 2**31 - 1 + 1) // 2  # RoundingHalfSum of what is not negative
    x = 1515870810 + high_mul_c(half, -1010580540)
    for _ in range(3):
        x = x + pot_c(high_mul_c(x, (1 << 29) - high_mul_c(half, x)), -2)
    return pot_c(x, -1), 12 - leading


def test_fixed_point_functions_are_gemmlowps() -> None:
    rng = np.random.default_rng(0)
    edges = [max(n * 2**24 + d, 0) for n in (0, 1, 2, 4, 8, 16, 64, 127) for d in (0, 1, -1)]
    a = -np.array([*edges, *rng.integers(0, 2**31, 400), 2**31 - 1])
    assert sm.exp_on_negative_values(a).tolist() == [exp_c(int(v)) for v in a]
    total = np.concatenate([2 ** np.arange(31), 2 ** np.arange(1, 31) - 1, rng.integers(1, 2**31, 300)])
    m, bits = sm.reciprocal(total)
    assert list(zip(m.tolist(), bits.tolist(), strict=True)) == [reciprocal_c(int(v)) for v in total]


@pytest.mark.parametrize("scale", [2.0**-9, 0.011, 0.1, 0.5, 1.0, 3.1, 8.0, 31.9, 32.0, 100.0, 1e5])
@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_exponentials_of_every_difference_are_tflites(scale, beta) -> None:
    """PreprocessSoftmaxScaling and CalculateInputRadius, then the function above: 0 beyond what Q5.26 holds."""
    real = min(beta * scale * 2.0**26, 2.0**31 - 1.0)
    mantissa, shift = math.frexp(real)
    q = math.floor(mantissa * 2**31 + 0.5)
    if q == 2**31:
        q, shift = 2**30, shift + 1
    if shift > 30:  # QuantizeMultiplier saturates
        q, shift = 2**31 - 1, 30
    radius = math.floor(31.0 * 2**26 / 2.0**shift)
    want = [exp_c(high_mul_c(-d << shift, q)) if d <= radius else 0 for d in range(256)]
    assert sm.exp_table(scale, beta).tolist() == want


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_two_softmaxes_differ_as_litert_has_it(dtype) -> None:
    """One code in 20,000 is another: each arithmetic is that of its own kernels and not of the others."""
    rng = np.random.default_rng(1)
    x_q, x = Quant(0.2, 3, dtype), codes(rng, (8000, 16), dtype)
    tensors = (
        [activation("x", x.shape, x_q)],
        {"x": x},
        activation("y", x.shape, Quant(1 / 256, np.iinfo(dtype).min, dtype)),
    )
    fixed, table = (run_op("SOFTMAX", *tensors, {"beta": 1.0}, reference=r) for r in (True, False))
    assert (fixed != table).any()
    same(softmax(x, SoftmaxParams(x_q)), fixed)
    same(softmax(x, SoftmaxParams(x_q, arithmetic="fixed")), fixed)
    same(softmax(x, SoftmaxParams(x_q, arithmetic="table")), table)


def hard_swish_c(code: int, x: Quant, out: Quant) -> int:
    """HardSwish of TFLite's reference/hard_swish.h for one code, with the multipliers of its Prepare."""

    def int16(v: int) -> int:
        return min(max(v, -(2**15)), 2**15 - 1)

    def scale16(m: np.float32) -> tuple[int, int]:
        mantissa, exponent = math.frexp(float(m))
        q = math.floor(mantissa * 2**31 + 0.5)
        if q == 2**31:
            q, exponent = 2**30, exponent + 1
        if exponent < -31:
            q, exponent = 0, 0
        return (2**15 - 1 if q >= 2**31 - 1 - 2**15 else (q + 2**15) >> 16), exponent

    def high_mul16(a: int, b: int) -> int:
        nudged = a * b + (2**14 if a * b >= 0 else 1 - 2**14)
        return int16(abs(nudged) // 2**15 * (1 if nudged >= 0 else -1))

    fine = np.float32(1 / 128) * np.float32(x.scale)
    (out_q, out_shift), (gate_q, gate_shift) = (
        scale16(fine / np.float32(out.scale)),
        scale16(fine / np.float32(3 / 32768)),
    )
    value = (code - x.zero_point) << 7
    preshift = high_mul16(value, out_q)
    gate = int16(value << (gate_shift - 1)) if gate_shift > 0 else value
    gate = high_mul16(gate, gate_q)
    gate = int16(gate << 1) if gate_shift > 0 else pot_c(gate, -gate_shift)
    product = ((gate + 2**15) >> 1) * preshift
    cut = abs(product) // 2**15 * (1 if product >= 0 else -1)
    return min(max(pot_c(cut, -out_shift) + out.zero_point, out.lo), out.hi)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("scale", [1e-4, 3 / 256 - 1e-9, 3 / 256, 3 / 128, 0.05, 0.1, 0.75, 1 - 2.0**-16, 1.0, 3.0])
@pytest.mark.parametrize("ratio", [0.008, 1 - 2.0**-17, 1.0, 1.7, 100.0])
def test_hard_swish_is_the_c_code(dtype, scale, ratio) -> None:
    """Every code, for zero points at both ends and multipliers on both sides of a power of two."""
    x = every_code(dtype)
    for zero in (int(x.min()), int(x.min()) + 100, int(x.max())):
        x_q, out = Quant(scale, zero, dtype), Quant(scale * ratio, int(x.min()) + 128, dtype)
        want = [hard_swish_c(int(code), x_q, out) for code in x]
        assert hard_swish(x, TableParams(x_q, out)).tolist() == want


def test_hard_swish_takes_output_scales_above_the_128th() -> None:
    x = every_code("int8")
    hard_swish(x, TableParams(Quant(1.0), Quant(float(np.nextafter(np.float32(1 / 128), np.float32(1))))))
    with pytest.raises(ModelError, match="too small"):
        hard_swish(x, TableParams(Quant(1.0), Quant(1 / 128)))


@pytest.mark.parametrize("code", ["RELU", "RELU6", "RELU_N1_TO_1"])
@pytest.mark.parametrize(("scale", "zero"), [(0.5, -128), (0.1, 0), (4.0, 20), (0.01, 127), (1.0, -3)])
def test_relus_are_the_clamped_identity(code, scale, zero) -> None:
    """With one quantization for both sides nothing is rounded; the bounds are, half away from zero."""
    low, high = {"RELU": (0, np.inf), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}[code]
    x, quant = every_code("int8").astype(int), Quant(scale, zero)

    def bound(v: float) -> float:
        steps = float(np.float32(v) / np.float32(scale)) if np.isfinite(v) else v
        return zero + math.copysign(math.floor(abs(steps) + 0.5), steps) if np.isfinite(v) else v

    want = np.clip(x, max(bound(low), -128), min(bound(high), 127))
    assert OPS[code](x.astype(np.int8), TableParams(quant, quant)).tolist() == want.tolist()


def test_what_is_not_told_is_the_plain_function() -> None:
    """GELU by erf, LEAKY_RELU of slope 0, and the output that LiteRT fixes for int8 LOGISTIC."""
    x, x_q, out = every_code("int8"), Quant(0.05, -20), Quant(0.04, -100)
    real = [(int(v) + 20) * x_q.scale for v in x]
    want = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) / out.scale - 100 for v in real]
    assert np.abs(OPS["GELU"](x, TableParams(x_q, out)) - np.clip(want, -128, 127)).max() <= 0.5001
    tanh = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / out.scale - 100 for v in real]
    near = OPS["GELU"](x, TableParams(x_q, out, approximate=True))
    assert np.abs(near - np.clip(tanh, -128, 127)).max() <= 0.5001
    same(OPS["LEAKY_RELU"](x, TableParams(x_q, out)), OPS["RELU"](x, TableParams(x_q, out)))
    tensors = [activation("x", x.shape, x_q)], {"x": x}, activation("y", x.shape, FixedOutput)
    same(OPS["LOGISTIC"](x, TableParams(x_q, FixedOutput)), run_op("LOGISTIC", *tensors))


@pytest.mark.parametrize("arithmetic", ["fixed", "table"])
def test_softmax_is_of_the_last_axis(arithmetic) -> None:
    x, params = codes(np.random.default_rng(2), (2, 3, 9), "int8"), SoftmaxParams(Quant(0.1), arithmetic=arithmetic)
    same(softmax(x, params), softmax(x.reshape(6, 9), params).reshape(x.shape))
    for row in x.reshape(6, 9):
        same(softmax(row, params), softmax(row[None], params)[0])
