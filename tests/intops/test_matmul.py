"""Exact products against int64 matmul, BATCH_MATMUL and FULLY_CONNECTED against LiteRT's reference kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops.fully_connected import FullyConnectedParams, add_bias, fully_connected
from edgeq.intops.matmul import MatMulParams, batch_matmul, exact_matmul, exact_type, largest, product_bound
from edgeq.intops.quant import Quant, check_int32
from edgeq.numerics.fixedpoint import multiplier, requantize
from tests.intops.drawn import SEEDS, codes, quants
from tests.intops.litert import activation, constant, run_op, same

ACTIVATIONS = st.sampled_from(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 3000), st.integers(1, 4), st.sampled_from([8, 9, 12, 16]))
def test_exact_matmul(seed: int, m: int, k: int, n: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    top = 2 ** (bits - 1)
    x, w = rng.integers(-top, top, (2, m, k)), rng.integers(-top, top, (k, n))
    if rng.random() < 0.5:  # the worst case: every product of one sign
        x[:], w[:] = -top, -top
    assert np.array_equal(exact_matmul(x, w).astype(np.int64), x @ w)
    assert np.abs(x).max() * np.abs(w).sum(0).max() == product_bound(x, w)


def test_the_type_follows_the_bound() -> None:
    x = np.full((1, 1), 2**12)
    assert exact_matmul(x, np.full((1, 1), 2**12 - 1)).dtype == np.float32
    assert exact_matmul(x, np.full((1, 1), 2**12)).dtype == np.float64
    with pytest.raises(ValueError, match="not exact"):
        exact_matmul(np.full((1, 1), 2**31), np.full((1, 1), 2**22))


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.booleans(), st.booleans(), quants(), quants(), quants())
def test_batch_matmul(seed: int, adj_x: bool, adj_y: bool, x_q: Quant, w_q: Quant, y_q: Quant) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 12, 3)
    x = codes(rng, (2, k, m) if adj_x else (2, m, k))
    w = codes(rng, (2, n, k) if adj_y else (2, k, n))
    want = run_op(
        "BATCH_MATMUL",
        [activation("x", x.shape, x_q), activation("w", w.shape, w_q)],
        {"x": x, "w": w}, activation("y", (2, m, n), y_q), {"adjX": adj_x, "adjY": adj_y},
    )  # fmt: skip
    same(batch_matmul(x, w, MatMulParams(x_q, w_q, y_q, adj_x, adj_y)), want)


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 6), st.booleans(), st.booleans(), quants(), quants(), ACTIVATIONS)
def test_fully_connected(seed, k, n, per_channel, biased, x_q, y_q, fused) -> None:
    rng = np.random.default_rng(seed)
    x, w = codes(rng, (3, k)), codes(rng, (n, k))
    usual = y_q.scale * 100 / (x_q.scale * 127 * 127 * k**0.5)
    scale = (usual * 2.0 ** rng.uniform(-14, 8, n if per_channel else 1)).astype(np.float32)
    bias = rng.integers(-5000, 5000, n).astype(np.int32) if biased else None
    want = run_op(
        "FULLY_CONNECTED",
        [activation("x", x.shape, x_q), constant("w", w, scale),
         constant("b", bias, np.float32(x_q.scale) * scale) if bias is not None else None],
        {"x": x}, activation("y", (3, n), y_q), {"fusedActivationFunction": fused},
    )  # fmt: skip
    same(fully_connected(x, w, bias, FullyConnectedParams(x_q, scale, y_q, activation=fused)), want)


@settings(max_examples=50, deadline=None)
@given(SEEDS, quants("uint8"), quants("uint8"), st.integers(0, 255))
def test_uint8_fully_connected(seed: int, x_q: Quant, y_q: Quant, w_zero: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = codes(rng, (30, 20), "uint8"), codes(rng, (40, 20), "uint8")
    scale = np.float32([y_q.scale * 2.0 ** rng.uniform(-12, -6) / x_q.scale])
    bias = rng.integers(-5000, 5000, 40).astype(np.int32)
    want = run_op(
        "FULLY_CONNECTED",
        [activation("x", x.shape, x_q), constant("w", w, scale, np.array([w_zero])),
         constant("b", bias, np.float32(x_q.scale) * scale)],
        {"x": x}, activation("y", (30, 40), y_q), {},
    )  # fmt: skip
    same(fully_connected(x, w, bias, FullyConnectedParams(x_q, scale, y_q, w_zero)), want)


def test_halves_are_rounded_away_from_zero() -> None:
    """Where the real multiplier, and both ways with a mantissa, give three answers."""
    x, w = np.arange(256, dtype=np.uint8).reshape(256, 1), np.array([[129], [131]], np.uint8)
    one = Quant(1.0, 128, "uint8")
    operands = [activation("x", x.shape, one), constant("w", w, np.float32(0.5), np.array([128])), None]
    want = run_op("FULLY_CONNECTED", operands, {"x": x}, activation("y", (256, 2), one), {})
    params = [FullyConnectedParams(one, np.float32(0.5), one, 128, rounding=r) for r in ("real", "single", "half_even")]
    answers = [fully_connected(x, w, None, p) for p in params]
    same(answers[0], want)
    assert all((other != want).any() for other in answers[1:])


def test_overflow_is_reported() -> None:
    x, w = np.full((1, 140_000), 127, np.int8), np.full((1, 140_000), 127, np.int8)
    with pytest.raises(ModelError, match="FULLY_CONNECTED: an accumulator reaches"):
        fully_connected(x, w, None, FullyConnectedParams(Quant(1.0), np.float32([1e-9]), Quant(1.0)))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.booleans())
def test_int16_fully_connected(seed: int, per_channel: bool) -> None:
    rng = np.random.default_rng(seed)
    x_q, y_q = (Quant(float(np.float32(2.0 ** rng.uniform(-12, -6))), 0, "int16") for _ in range(2))
    x, w = codes(rng, (3, 30), "int16"), codes(rng, (4, 30))
    usual = y_q.scale / (x_q.scale * 127 * 30**0.5)
    scale = (usual * 2.0 ** rng.uniform(-6, 0, 4 if per_channel else 1)).astype(np.float32)
    bias = rng.integers(-(2**34), 2**34, 4)
    want = run_op(
        "FULLY_CONNECTED",
        [activation("x", x.shape, x_q), constant("w", w, scale),
         constant("b", bias, np.float32(x_q.scale) * scale)],
        {"x": x}, activation("y", (3, 4), y_q), {},
    )  # fmt: skip
    same(fully_connected(x, w, bias, FullyConnectedParams(x_q, scale, y_q)), want)


def test_fully_connected_keeps_all_dimensions_but_the_last() -> None:
    rng = np.random.default_rng(6)
    x, w = codes(rng, (2, 3, 5)), codes(rng, (4, 5))
    params = FullyConnectedParams(Quant(0.1), np.float32([0.1]), Quant(0.5))
    got = fully_connected(x, w, None, params)
    assert got.shape == (2, 3, 4)
    np.testing.assert_array_equal(got.reshape(6, 4), fully_connected(x.reshape(6, 5), w, None, params))


@pytest.mark.parametrize(("sums", "worst"), [
    ([-(2**31), 2**31 - 1], None), ([], None), ([-(2**31) - 1, 7], -(2**31) - 1), ([2**31, -9], 2**31),
    ([2**31, -(2**33)], -(2**33)),
])  # fmt: skip
def test_int32_is_left_by_the_first_integer_beyond_it(sums: list[int], worst: int | None) -> None:
    acc = np.array(sums, np.float64)
    if worst is None:
        check_int32(acc, "OP", 1e12)
    else:
        with pytest.raises(ModelError, match=f"OP: an accumulator reaches {worst},"):
            check_int32(acc, "OP", 1e12)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shapes", [((4, 5), (5, 3)), ((2, 1, 4, 5), (3, 5, 2)), ((1, 7), (2, 7, 1))])
def test_batch_matmul_broadcasts_and_takes_any_zero_point(dtype: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Sums in int64, and the multiplier as a mantissa and a shift: by `requantize`, which tests of its own hold."""
    rng = np.random.default_rng(3)
    low = int(np.iinfo(dtype).min)
    x_q, y_q, out = Quant(0.1, low + 3, dtype), Quant(0.07, low + 200, dtype), Quant(1.3, low + 100, dtype)
    x, y = codes(rng, shapes[0], dtype), codes(rng, shapes[1], dtype)
    acc = np.matmul(x.astype(np.int64) - x_q.zero_point, y.astype(np.int64) - y_q.zero_point)
    q, shift = multiplier(x_q.scale * y_q.scale / out.scale)
    want = requantize(acc, q, shift, out.zero_point, out.lo, out.hi, dtype=dtype)
    same(batch_matmul(x, y, MatMulParams(x_q, y_q, out)), want)
    turned = np.ascontiguousarray(np.swapaxes(x, -1, -2)), np.ascontiguousarray(np.swapaxes(y, -1, -2))
    same(batch_matmul(*turned, MatMulParams(x_q, y_q, out, True, True)), want)


def test_batch_matmul_reports_what_int32_can_not_hold() -> None:
    """133,144 products of 127 squared are the last that it can."""
    x = np.full((1, 133_145), 127, np.int8)
    params = MatMulParams(Quant(1.0), Quant(1.0), Quant(1e9))
    assert batch_matmul(x[:, 1:], x[:, 1:].T, params).tolist() == [[2]]
    with pytest.raises(ModelError, match=f"BATCH_MATMUL: an accumulator reaches {133_145 * 127**2}"):
        batch_matmul(x, x.T, params)


@pytest.mark.parametrize(("array", "most"), [([], 0), ([-5, 3], 5), ([-5, 9], 9), ([-128], 128), ([7, 9], 9), ([0], 0)])
def test_the_largest_is_of_either_sign(array: list[int], most: int) -> None:
    x = np.array(array, np.int8)
    assert largest(x) == most
    assert product_bound(x[None], np.zeros((len(array), 0), np.int8)) == 0
    assert product_bound(x[None], np.array([[1, -3]] * len(array), np.int8).reshape(-1, 2)) == most * 3 * len(array)


@pytest.mark.parametrize(("bound", "found"), [
    (0.0, np.float32), (2.0**24 - 1, np.float32), (2.0**24, np.float64), (2.0**53 - 1, np.float64), (2.0**53, None),
])  # fmt: skip
def test_integers_are_exact_below_two_to_the_mantissa(bound: float, found: type | None) -> None:
    if found is None:
        with pytest.raises(ValueError, match="not exact"):
            exact_type(bound)
        return
    assert exact_type(bound) is found
    assert int(found(bound)) == int(bound)


def test_a_bias_counts_towards_the_type_and_the_overflow() -> None:
    """A sum that float32 holds and a bias that it does not: 2**24 + 1."""
    acc, bias = np.array([[1.0, 2.0]], np.float32), np.array([2**24, -(2**24) - 1], np.int32)
    got = add_bias(acc, bias, "OP", 2.0, False)
    assert got.astype(np.int64).tolist() == [[2**24 + 1, 1 - 2**24]]
    for wide in (False, True):
        assert add_bias(acc, None, "OP", 2.0, wide) is acc
        assert add_bias(acc, np.zeros(0, np.int32), "OP", 2.0, wide) is acc
    top = np.array([2**31 - 1, 0])
    assert add_bias(acc, top, "OP", 2.0, True)[0, 0] == 2**31
    with pytest.raises(ModelError, match="OP: an accumulator reaches 2147483648"):
        add_bias(acc, top, "OP", 2.0, False)


@pytest.mark.parametrize("rounding", ["double", "single", "half_even"])
def test_fully_connected_by_mantissa_and_shift(rounding: str) -> None:
    rng = np.random.default_rng(8)
    x, w, bias = codes(rng, (5, 9)), codes(rng, (4, 9)), rng.integers(-900, 900, 4).astype(np.int32)
    x_q, out, scale = Quant(0.1, 5), Quant(0.9, -7), np.float32([0.01, 0.02, 0.03, 0.04])
    acc = (x.astype(np.int64) - 5) @ w.astype(np.int64).T + bias
    q, shift = multiplier(np.array([x_q.scale * float(s) / out.scale for s in scale]))
    want = requantize(acc, q, shift, -7, -128, 127, rounding)
    same(fully_connected(x, w, bias, FullyConnectedParams(x_q, scale, out, rounding=rounding)), want)
    one = fully_connected(x, w, bias, FullyConnectedParams(x_q, scale[:1], out, rounding=rounding))
    same(one, fully_connected(x, w, bias, FullyConnectedParams(x_q, np.float32(0.01), out, rounding=rounding)))
