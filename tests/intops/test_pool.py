"""Pools against LiteRT's reference kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.intops.pool import PoolParams, average_pool_2d, max_pool_2d
from edgeq.intops.quant import Quant
from edgeq.intops.windows import same_pads, taps
from tests.intops.drawn import codes, quants
from tests.intops.litert import activation, run_op, same


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32), st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 4)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2), st.sampled_from(["SAME", "VALID"]), st.data(),
    st.sampled_from(["int8", "uint8"]), st.sampled_from(["NONE", "RELU", "RELU6", "RELU_N1_TO_1"]),
)  # fmt: skip
def test_pools(seed, size, kernel, strides, padding, data, dtype, fused) -> None:
    rng = np.random.default_rng(seed)
    quant = data.draw(quants(dtype))
    if padding == "VALID":
        size = tuple(max(n, k) for n, k in zip(size, kernel, strict=True))
        pads = ((0, 0), (0, 0))
        out = tuple((n - k) // s + 1 for n, k, s in zip(size, kernel, strides, strict=True))
    else:
        pads = same_pads(size, kernel, strides)
        out = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    x = codes(rng, (2, *size, 3), dtype)
    options = {
        "padding": padding, "strideH": strides[0], "strideW": strides[1],
        "filterHeight": kernel[0], "filterWidth": kernel[1], "fusedActivationFunction": fused,
    }  # fmt: skip
    params = PoolParams(quant, kernel, strides, pads, fused)
    for code, function in (("AVERAGE_POOL_2D", average_pool_2d), ("MAX_POOL_2D", max_pool_2d)):
        want = run_op(code, [activation("x", x.shape, quant)], {"x": x}, activation("y", (2, *out, 3), quant), options)
        same(function(x, params), want)


def test_a_window_of_padding_alone_is_refused() -> None:
    with pytest.raises(ModelError, match="padding altogether"):
        average_pool_2d(np.zeros((1, 2, 2, 1), np.int8), PoolParams(Quant(1.0), (1, 1), pads=((1, 0), (0, 0))))


def test_nothing_is_padded_unless_told() -> None:
    x = np.arange(16, dtype=np.int8).reshape(1, 4, 4, 1)
    quant = Quant(1.0, 0, "int8")
    want = x.reshape(4, 4).reshape(2, 2, 2, 2).max(axis=(1, 3)).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(max_pool_2d(x, PoolParams(quant, (2, 2), (2, 2))), want)


def test_a_window_larger_than_the_picture_has_no_place() -> None:
    x = np.zeros((1, 2, 5, 1), np.int8)
    assert taps(x, (3, 3), (1, 1)).shape == (1, 0, 3, 3, 3, 1)
