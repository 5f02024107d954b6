"""Layer normalization in integers against float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops.layer_norm import LayerNormParams, layer_norm, reciprocal_root
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
