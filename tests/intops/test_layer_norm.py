"""Layer normalization in integers against float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops.layer_norm import LayerNormParams, constants, layer_norm, reciprocal_root, reciprocal_root_table
from edgeq.intops.quant import Quant
from tests.intops.drawn import codes, quants


@given(st.data())
def test_it_is_the_formula_rounded(data):
    """Half a code, and what the rounding of epsilon to an integer costs: nothing where it is large or small."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(["int8", "uint8"]))
    quant, out = draw(quants(dtype)), Quant(2.0 ** draw(st.floats(-7, -3)), draw(quants(dtype)).zero_point, dtype)
    length = draw(st.sampled_from([32, 100, 768, 4096]))
    gamma, beta = rng.normal(1, 0.5, length), rng.normal(0, 1, length)
    x = codes(rng, (5, length), dtype)
    got = layer_norm(x, LayerNormParams(quant, gamma, beta, out, 1e-5))
    assert got.dtype == dtype
    real = quant.scale * (x.astype(np.float64) - quant.zero_point)
    normal = (real - real.mean(-1, keepdims=True)) / np.sqrt(real.var(-1, keepdims=True) + 1e-5)
    want = np.clip((normal * gamma + beta) / out.scale + out.zero_point, out.lo, out.hi)
    assert np.abs(got - want).max() <= 0.51


def test_rows_without_variance_give_the_bias():
    out = Quant(0.1, 3, "int8")
    x = np.full((1, 50), -77, np.int8)
    got = layer_norm(x, LayerNormParams(Quant(0.1), np.ones(50), np.linspace(-1, 1, 50), out))
    np.testing.assert_array_equal(got[0], np.floor(np.linspace(-1, 1, 50) / out.scale + 0.5) + 3)


def test_reciprocal_roots_at_all_sizes():
    rng = np.random.default_rng(0)
    powers = 2 ** np.arange(61)
    w = np.concatenate([np.arange(1, 3000), powers, powers[1:] - 1, rng.integers(1, 2**60, 50000)])
    r, half = reciprocal_root(w)
    assert (w < 4**half).all()
    assert (w >= 4 ** (half - 1)).all()
    np.testing.assert_allclose(r / 2.0**29 / 2.0**half, 1 / np.sqrt(w.astype(np.float64)), rtol=3e-9)


@pytest.mark.parametrize(("length", "gamma", "said"), [(5000, 1, "5000 features"), (8, 1e9, "too large")])
def test_what_integers_can_not_hold_is_refused(length, gamma, said):
    with pytest.raises(ModelError, match=said):
        layer_norm(
            np.zeros((1, length), np.int8),
            LayerNormParams(Quant(0.1), np.full(length, gamma), np.zeros(length), Quant(0.1)),
        )


def test_constants_are_rounded_to_the_nearest():
    rng = np.random.default_rng(3)
    gamma, beta = rng.normal(1, 0.5, 40), rng.normal(0, 1, 40)
    params = LayerNormParams(Quant(0.05), gamma, beta, Quant(0.07, -3, "int8"))
    found = constants(params)
    scale = params.out.scale
    assert found.q.tolist() == [round(Fraction(float(g) / scale) * 2**24) for g in gamma]
    assert found.b.tolist() == [round(Fraction(float(b) / scale - 3) * 2**40) for b in beta]
    table = reciprocal_root_table()
    assert np.abs(table - 2.0**29 / np.sqrt((np.arange(64, 256) + 0.5) / 256)).max() <= 0.5


def test_rows_are_of_the_last_axis():
    rng = np.random.default_rng(4)
    x = codes(rng, (2, 3, 16), "int8")
    params = LayerNormParams(Quant(0.05), np.ones(16), np.zeros(16), Quant(0.02, 0, "int8"))
    np.testing.assert_array_equal(layer_norm(x, params), layer_norm(x.reshape(6, 16), params).reshape(x.shape))


def test_normal_values_are_rounded_and_not_cut():
    """To steps of 2**-16, which are an eighth of a code under a gain of 2**13."""
    rng = np.random.default_rng(5)
    x = codes(rng, (64, 512), "int8")
    params = LayerNormParams(Quant(0.5), np.full(512, 2.0**13), np.zeros(512), Quant(1.0, 0, "int16"), 1e-5)
    real = 0.5 * x.astype(np.float64)
    normal = (real - real.mean(-1, keepdims=True)) / np.sqrt(real.var(-1, keepdims=True) + 1e-5)
    want = np.floor(np.floor(normal * 2**16 + 0.5) / 8 + 0.5)
    assert np.mean(layer_norm(x, params) != want) < 0.001


def test_one_bias_too_large_is_enough():
    beta = np.array([0.0, 2.0**21])
    with pytest.raises(ModelError, match="too large"):
        constants(LayerNormParams(Quant(0.1), np.ones(2), beta, Quant(1.0)))


@pytest.mark.parametrize(("field", "held", "refused"), [
    ("gamma", 2.0**14 - 2.0**-10, 2.0**14), ("gamma", -(2.0**14) + 2.0**-10, -(2.0**14)),
    ("beta", 2.0**20 - 2.0**-10, 2.0**20), ("beta", -(2.0**20) + 2.0**-10, -(2.0**20)),
    ("epsilon", 2.0**38 - 2.0**6, 2.0**38),
])  # fmt: skip
def test_constants_reach_as_far_as_their_integers(field, held, refused):
    """|q| < 2^38, |b| < 2^60 and E < 2^40, of which a single one is enough; two features make N² four."""
    for value, fits in ((held, True), (refused, False)):
        gamma, beta, epsilon = np.array([1.0, 1.0]), np.array([0.0, 0.0]), 1e-5
        if field == "epsilon":
            epsilon = value
        else:
            {"gamma": gamma, "beta": beta}[field][1] = value
        params = LayerNormParams(Quant(1.0), gamma, beta, Quant(1.0), epsilon)
        if fits:
            found = constants(params)
            assert found.epsilon == max(1, round(Fraction(epsilon) * 4))
            assert found.q.tolist() == [round(Fraction(float(g)) * 2**24) for g in gamma]
            assert found.b.tolist() == [round(Fraction(float(b)) * 2**40) for b in beta]
        else:
            with pytest.raises(ModelError, match="too large"):
                constants(params)


@pytest.mark.parametrize("length", [4096, 4097])
def test_rows_are_summed_up_to_a_length(length):
    params = LayerNormParams(Quant(0.1), np.ones(length), np.zeros(length), Quant(0.1))
    if length <= 4096:
        assert constants(params).epsilon == round(Fraction(1e-5) * length**2 / Fraction(params.x.scale) ** 2)
    else:
        with pytest.raises(ModelError, match="4097 features"):
            constants(params)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_every_step_is_the_texts_in_unbounded_integers(dtype):
    """D, W, 1/sqrt(W) from the exact root, n rounded half up and y, for rows near and far from constant."""
    rng = np.random.default_rng(7)
    low = int(np.iinfo(dtype).min)
    rows = [
        rng.integers(low, low + 256, 24),
        np.full(24, low + 200),
        low + 7 + (np.arange(24) == 5),
        low + rng.integers(0, 2, 24),
    ]
    x = np.array(rows).astype(dtype)
    params = LayerNormParams(
        Quant(0.03, low + 90, dtype), rng.normal(1, 0.5, 24), rng.normal(0, 1, 24), Quant(0.02, low + 128, dtype)
    )
    k, got = constants(params), layer_norm(x, params)
    for row, found in zip(x.astype(int).tolist(), got.astype(int), strict=True):
        c, total = [v - low for v in row], sum(row) - 24 * low
        w = 24 * sum(v * v for v in c) - total**2 + k.epsilon
        for i, v in enumerate(c):
            normal = math.floor((24 * v - total) * 2**16 / math.sqrt(w) + 0.5)
            y = (normal * int(k.q[i]) + int(k.b[i]) + 2**39) >> 40
            assert found[i] == min(max(y, params.out.lo), params.out.hi)
