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
from edgeq.intops.tables import OPS, TableParams, hard_swish
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
