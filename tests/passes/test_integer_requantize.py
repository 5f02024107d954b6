"""Requantization on 64-bit integers against `numerics.fixedpoint`, and the operators against the formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.numerics.fixedpoint import INT32_MAX as LIMIT
from edgeq.numerics.fixedpoint import multiplier, multiply, requantize
from edgeq.passes.integer_requantize import constants, evaluate


def made(m, bound, rounding, bias=None, zero=128, lo=0, hi=255):
    m = np.atleast_1d(m)
    q, shift = multiplier(m)
    bias = np.zeros(len(m), np.int64) if bias is None else bias
    return q, shift, constants(
        q.tolist(), shift.tolist(), bias.tolist(), [bound] * len(m), zero, lo, hi, rounding, "Conv 'c'"
    )  # fmt: skip


def near_ties(rng, m, bound, count=200):
    """Accumulators within the bound: any, both ends, around zero, and those whose product is nearly half-way."""
    any_ = rng.integers(-bound, bound + 1, (count, len(m)))
    ties = np.round(np.clip((rng.integers(-300, 300, any_.shape) + 0.5) / m, -(2.0**31), 2.0**31))
    ties = ties.astype(np.int64) + rng.integers(-1, 2, any_.shape)
    found = np.where(np.abs(ties) <= bound, ties, any_)
    found[:5] = np.array([bound, -bound, 0, 1, -1])[:, None]
    return found


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_accumulator_becomes_the_code_of_fixedpoint(data):
    """Multipliers from 2^-34 (shift beyond 31, always zero) to 8, several a layer, biases, zero points at the ends."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    m = 2.0 ** np.array(data.draw(st.lists(st.floats(-34, 3), min_size=1, max_size=4)))
    rounding = data.draw(st.sampled_from(["single", "double"]))
    bound = data.draw(st.sampled_from([1, 255, 2**15, 2**22, 2**27, LIMIT]))
    while rounding == "double" and bound > 1 and bound * max(m) * (1 + 2**-20) >= 2**30:  # m is rounded to 31 bits yet
        bound //= 8
    zero = data.draw(st.sampled_from([0, 255, 128, 3]))
    lo, hi = data.draw(st.sampled_from([(0, 255), (zero, 255), (0, zero), (17, 230)]))
    bias = rng.integers(-bound // 4, bound // 4 + 1, len(m))
    q, shift, r = made(m, bound, rounding, bias, zero, lo, hi)
    total = near_ties(rng, m, bound)
    want = requantize(total, q, shift, zero, lo, hi, rounding, dtype=np.uint8)
    np.testing.assert_array_equal(evaluate(total - bias, r), want)


@pytest.mark.parametrize("rounding", ["single", "double"])
@pytest.mark.parametrize("m", [1.0, 1 - 2.0**-33, 1 + 2.0**-30, 0.5, 0.5 + 2.0**-31, 2.0**-31, 2.0**-32, 2.0**-33])
def test_multipliers_near_one_near_a_half_and_near_zero(m, rounding):
    bound = LIMIT if m < 2**-20 else 1000
    q, shift, r = made(m, bound, rounding)
    total = near_ties(np.random.default_rng(0), np.array([m]), bound)
    want = np.clip(multiply(total, q, shift, rounding) + 128, 0, 255)
    np.testing.assert_array_equal(evaluate(total, r), want)


def test_a_tie_goes_up_in_one_rounding_and_away_from_zero_in_two():
    total = np.array([[-3], [-1], [1], [3]])
    assert evaluate(total, made(0.5**2 * 2, 3, "single")[2]).ravel().tolist() == [127, 128, 129, 130]
    assert evaluate(2 * total, made(0.25, 6, "double")[2]).ravel().tolist() == [126, 127, 129, 130]


def test_channels_too_far_apart_for_one_shift_have_one_each():
    m = np.array([2.0**-2, 2.0**-26])
    q, shift, r = made(m, 2**29, "double")
    assert not r.uniform
    assert r.shift.tolist() == [32, 56]
    total = near_ties(np.random.default_rng(1), m, 2**29)
    want = requantize(total, q, shift, 128, 0, 255, "double", dtype=np.uint8)
    np.testing.assert_array_equal(evaluate(total, r), want)


def test_channels_that_only_give_zero_cost_the_others_nothing():
    _, _, r = made(np.array([2.0**-8, 2.0**-31]), 2**20, "double")
    assert r.uniform
    assert r.q.tolist()[1] == 0


def test_accumulators_that_runtimes_might_not_hold_are_refused():
    made(0.001, LIMIT, "double")
    with pytest.raises(ModelError, match=r"^Conv 'c': an accumulator may reach 2147483648, beyond int32"):
        made(0.001, LIMIT + 1, "double")
    with pytest.raises(ModelError, match=r"^Conv 'c': its output scale is so small that accumulators wrap"):
        made(8.0, 2**29, "double")
    made(8.0, 2**26, "double")
