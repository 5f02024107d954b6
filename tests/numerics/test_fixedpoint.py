"""Fixed-point requantization against the C definitions written out in Python's unbounded integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.numerics import fixedpoint as fx

INT32 = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([-(2**31), -(2**31) + 1, -1, 0, 1, 2**30, 2**31 - 1]),
    st.integers(-300, 300),
)
MANTISSA = st.one_of(st.integers(2**30, 2**31 - 1), st.sampled_from([0, 2**30, 2**31 - 1]))
SHIFT = st.integers(-31, 8)


def truncate(numerator: int, denominator: int) -> int:
    """C integer division."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def srdhm_c(a: int, b: int) -> int:
    if a == b == -(2**31):
        return 2**31 - 1
    product = a * b
    nudge = 2**30 if product >= 0 else 1 - 2**30
    return truncate(product + nudge, 2**31)


def divide_by_pot_c(x: int, exponent: int) -> int:
    mask = 2**exponent - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if (x & mask) > threshold else 0)


def int32(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def double_c(x: int, q: int, shift: int) -> int:
    return divide_by_pot_c(srdhm_c(int32(x << max(shift, 0)), q), max(-shift, 0))


@given(INT32, INT32)
def test_srdhm_is_the_c_definition(a: int, b: int) -> None:
    assert fx.srdhm(a, b) == srdhm_c(a, b)


@given(INT32, st.integers(0, 31))
def test_divide_by_pot_is_the_c_definition_and_rounds_ties_away(x: int, exponent: int) -> None:
    got = int(fx.rounding_divide_by_pot(x, exponent))
    assert got == divide_by_pot_c(x, exponent)
    assert abs(got - Fraction(x, 2**exponent)) <= Fraction(1, 2)


@settings(max_examples=300)
@given(st.lists(INT32, min_size=1, max_size=8), MANTISSA, SHIFT)
def test_multiply_double(xs: list[int], q: int, shift: int) -> None:
    assert fx.multiply(xs, q, shift, "double").tolist() == [double_c(x, q, shift) for x in xs]


@settings(max_examples=300)
@given(st.lists(INT32, min_size=1, max_size=8), MANTISSA, SHIFT)
def test_multiply_single_is_floor_of_exact_product_plus_half(xs: list[int], q: int, shift: int) -> None:
    exact = [Fraction(x * q) * Fraction(2) ** (shift - 31) for x in xs]
    assert fx.multiply(xs, q, shift, "single").tolist() == [(f + Fraction(1, 2)).__floor__() for f in exact]


@given(st.integers(-(2**24), 2**24), st.floats(2.0**-24, 2.0**4, width=32))
def test_half_even_is_one_ieee_multiplication(x: int, scale: float) -> None:
    """For |x| <= 2**24 the float32 product is x * scale rounded once; check it against the exact fraction."""
    q, shift = fx.multiplier(scale)
    product = Fraction(x) * Fraction(scale)
    rounded = Fraction(float(np.float32(float(product)))) if abs(product) < 2**29 else None
    got = int(fx.multiply(x, q, shift, "half_even"))
    if rounded is not None:  # x * scale has at most 49 bits: exact as float64, so that float32() rounds once
        assert got == round(rounded)


@given(st.integers(-(2**47), 2**47 - 1), MANTISSA, st.integers(-31, 7))
def test_multiply_int64(x: int, q: int, shift: int) -> None:
    q16 = (q + 2**15) >> 16 if q < 0x7FFF0000 else 0x7FFF
    assert int(fx.multiply_int64(x, q, shift)) == (x * q16 + 2 ** (14 - shift)) >> (15 - shift)


@given(st.floats(2.0**-31, 2.0**29, exclude_min=True))
def test_multiplier_is_within_half_a_bit(m: float) -> None:
    q, shift = fx.multiplier(m)
    assert 2**30 <= q < 2**31
    assert abs(Fraction(int(q)) * Fraction(2) ** (int(shift) - 31) - Fraction(m)) <= Fraction(2) ** (int(shift) - 32)
    assert fx.real_multiplier(q, shift) == float(Fraction(int(q)) * Fraction(2) ** (int(shift) - 31))


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (1.0 - 2.0**-40, (2**30, 1)),  # rounds up to 2**31, which is halved
        (1.0 - 2.0**-31, (2**31 - 1, 0)),
        (2.0**-32, (2**30, -31)),
        (2.0**-33, (0, 0)),  # a shift beyond -31 flushes to zero
        (2.0**-33 * (2 - 2.0**-40), (2**30, -31)),  # but not where the carry brings it back
        (2.0**29, (2**30, 30)),
        (2.0**40, (2**31 - 1, 30)),
    ],
)
def test_multiplier_edges(m: float, expected: tuple[int, int]) -> None:
    q, shift = fx.multiplier(m)
    assert (int(q), int(shift)) == expected


def test_multiplier_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="finite"):
        fx.multiplier([1.0, np.nan])
    with pytest.raises(ValueError, match="rounding"):
        fx.requantize(np.zeros(1, np.int32), 1, 0, 0, -128, 127, "up")  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["double", "single", "half_even"]), st.integers(0, 2))
def test_requantize_per_channel_and_axis(data: st.DataObject, rounding: fx.Rounding, axis: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = tuple(rng.integers(1, 6, 3))
    acc = rng.integers(-(2**20), 2**20, shape).astype(np.int32)
    highest = data.draw(st.sampled_from([-1, 3]))  # the branch without left shifts and the general one
    q, shift = fx.multiplier(2.0 ** rng.uniform(-20, highest, shape[axis]))
    zero_point = data.draw(st.integers(-128, 127))
    got = fx.requantize(acc, q, shift, zero_point, -128, 127, rounding, axis)
    assert got.dtype == np.int8
    assert got.shape == acc.shape
    for index in np.ndindex(*shape):
        channel = index[axis]
        value = int(fx.multiply(int(acc[index]), int(q[channel]), int(shift[channel]), rounding)) + zero_point
        assert got[index] == min(max(value, -128), 127)


def test_requantize_crosses_chunks_and_takes_scalars() -> None:
    acc = np.arange(-70_000, 70_000, dtype=np.int32).reshape(70_000, 2)
    q, shift = fx.multiplier(0.001)
    got = fx.requantize(acc, q, shift, 3, -128, 127)
    assert got.ravel()[::997].tolist() == [
        min(max(double_c(int(x), int(q), int(shift)) + 3, -128), 127) for x in acc.ravel()[::997]
    ]
    assert fx.requantize(np.int32(5000).reshape(()), q, shift, 3, -128, 127) == 8


@given(st.integers(-(2**24), 2**24), st.floats(2.0**-20, 2.0), st.integers(-128, 127))
def test_requantize_real_is_the_product_rounded_half_away(acc: int, m: float, zero_point: int) -> None:
    product = Fraction(float(np.float64(acc) * np.float64(m)))
    rounded = int(abs(product) + Fraction(1, 2)) * (1 if product > 0 else -1)
    got = fx.requantize_real(np.array([acc], np.int32), m, zero_point, -100, 90)
    assert got.dtype == np.int8
    assert got.tolist() == [min(max(rounded + zero_point, -100), 90)]
    assert fx.requantize_real(np.array([-5, 5, 3]), 0.5, 7, -128, 127).tolist() == [4, 10, 9]


@pytest.mark.parametrize("shifts", [(0, 0, 0), (0, -1, -3), (-1, -2, -7)])
def test_requantize_without_left_shifts_is_the_c_definition(shifts: tuple[int, int, int]) -> None:
    """Ties of either sign among them, and multipliers from one half up, which are not shifted at all."""
    rng = np.random.default_rng(1)
    acc = np.concatenate([np.arange(-200, 200)[:, None].repeat(3, 1), rng.integers(-30000, 30000, (100, 3))])
    q = np.array([1 << 30, 3 << 29, 2**31 - 1])
    got = fx.requantize(acc.astype(np.int32), q, np.array(shifts), 5, -32768, 32767, dtype=np.int16)
    assert got.tolist() == [
        [double_c(int(x), int(m), s) + 5 for x, m, s in zip(row, q, shifts, strict=True)] for row in acc
    ]


def test_the_range_is_int32s() -> None:
    assert np.iinfo(np.int32).min == fx.INT32_MIN
    assert np.iinfo(np.int32).max == fx.INT32_MAX


@given(st.lists(st.integers(-(2**40), 2**40) | st.sampled_from([-(2**31) - 1, -(2**31), 2**31 - 1, 2**31]), min_size=1))
def test_wrapping_is_that_of_a_register(xs: list[int]) -> None:
    assert fx.wrap_int32(xs).tolist() == [int32(x) for x in xs]
    assert fx.wrap_int32(xs).tolist() == np.array(xs, np.int64).astype(np.int32).tolist()


@given(st.lists(INT32, min_size=1, max_size=6), st.data())
def test_every_element_may_have_its_own_exponent(xs: list[int], data: st.DataObject) -> None:
    shifts = data.draw(st.lists(st.integers(0, 31), min_size=len(xs), max_size=len(xs)))
    assert fx.rounding_divide_by_pot(xs, shifts).tolist() == [divide_by_pot_c(*v) for v in zip(xs, shifts, strict=True)]


@settings(max_examples=200)
@given(st.lists(st.tuples(INT32, MANTISSA, SHIFT), min_size=1, max_size=6))
def test_every_element_may_have_its_own_multiplier(rows: list[tuple[int, int, int]]) -> None:
    x, q, shift = zip(*rows, strict=True)
    assert fx.multiply(x, q, shift).tolist() == [double_c(*row) for row in rows]
    single = [(v * m + 2 ** (30 - s)) >> (31 - s) for v, m, s in rows]
    assert fx.multiply(x, q, shift, "single").tolist() == single


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(-1, 1), st.booleans())
def test_requantize_of_16_bits_per_channel_and_axis(seed: int, axis: int, whole: bool) -> None:
    """64-bit accumulators, one multiplier for each index of the axis or one for all."""
    rng = np.random.default_rng(seed)
    acc = rng.integers(-(2**40), 2**40, (3, 4))
    q, shift = fx.multiplier(2.0 ** rng.uniform(-31, -20, () if whole else acc.shape[axis]))
    got = fx.requantize(acc, q, shift, -5, -32768, 32000, "int16x8", axis, np.int16)
    assert got.dtype == np.int16
    for index in np.ndindex(*acc.shape):
        m, s = (int(v if whole else v[index[axis]]) for v in (q, shift))
        q16 = min((m + 2**15) >> 16, 2**15 - 1)
        assert got[index] == min(max(((int(acc[index]) * q16 + 2 ** (14 - s)) >> (15 - s)) - 5, -32768), 32000)


@pytest.mark.parametrize("shift", [-31, -7, -1, 0, 1, 5])
def test_requantize_has_every_bit_of_the_ends_of_int32(shift: int) -> None:
    """One multiplier and one for each of two channels, at accumulators where 32 bits overflow."""
    ends = [-(2**31), -(2**31) + 1, -(2**30), -3, -2, -1, 0, 1, 2, 3, 2**30, 2**31 - 2, 2**31 - 1]
    acc = np.array([[v, v] for v in ends], np.int64)
    lo, hi = -(2**31), 2**31 - 1
    for q in (0, 1 << 30, 2**31 - 1, -(1 << 30)):
        want = [[min(max(double_c(v, q, shift) + 1, lo), hi)] * 2 for v in ends]
        assert fx.requantize(acc, q, shift, 1, lo, hi, dtype=np.int64).tolist() == want
        both = fx.requantize(acc, np.array([q, 1 << 30]), np.array([shift, 0]), 1, lo, hi, dtype=np.int64)
        assert both[:, 0].tolist() == [row[0] for row in want]
        assert both[:, 1].tolist() == [double_c(v, 1 << 30, 0) + 1 for v in ends]


@pytest.mark.parametrize("channels", [1, 7, 40_000])
def test_rows_longer_than_what_is_done_at_a_time(channels: int) -> None:
    acc = np.random.default_rng(channels).integers(-(2**20), 2**20, (80_000 // channels, channels)).astype(np.int32)
    q, shift = fx.multiplier(0.0003)
    got = fx.requantize(acc, np.full(channels, q), np.full(channels, shift), -3, -128, 127)
    want = np.clip(fx.multiply(acc, q, shift) - 3, -128, 127)
    np.testing.assert_array_equal(got, want)


@given(st.floats(-(2.0**29), 2.0**29).filter(lambda m: abs(m) > 2.0**-31))
def test_negative_multipliers_mirror_positive_ones(m: float) -> None:
    (q, shift), (mirrored, same) = fx.multiplier(m), fx.multiplier(-m)
    assert (q, shift) == (-mirrored, same)
    assert fx.real_multiplier(q, shift) == pytest.approx(m, rel=2.0**-31)
    assert fx.multiplier([m, -m])[0].dtype == fx.multiplier([m, -m])[1].dtype == np.int32


def test_huge_and_tiny_multipliers_keep_their_sign_or_vanish() -> None:
    q, shift = fx.multiplier([-(2.0**31), 2.0**30, 2.0**30 - 1, -(2.0**-40), 2.0**-32])
    assert q.tolist() == [1 - 2**31, 2**31 - 1, 2**31 - 2, 0, 2**30]
    assert shift.tolist() == [30, 30, 30, 0, -31]


@pytest.mark.parametrize("rounding", ["double", "single"])
def test_one_mantissa_may_go_with_many_shifts_and_many_with_one(rounding: fx.Rounding) -> None:
    acc = np.random.default_rng(3).integers(-(2**20), 2**20, (5, 3))
    many, shifts = np.array([2**30, 2**31 - 1, 3 << 29]), np.array([-13, -12, -15])
    for q, shift in ((2**30 + 9, shifts), (many, -14)):
        got = fx.requantize(acc, q, shift, 2, -128, 127, rounding)
        want = fx.requantize(acc, np.broadcast_to(q, 3), np.broadcast_to(shift, 3), 2, -128, 127, rounding)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got, np.clip(fx.multiply(acc, q, shift, rounding) + 2, -128, 127))
        across = fx.requantize(np.ascontiguousarray(acc.T), q, shift, 2, -128, 127, rounding, axis=0)
        np.testing.assert_array_equal(across.T, want)
