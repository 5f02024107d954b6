import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import RecipeError
from edgeq.numerics import affine
from edgeq.types import PerBlock, PerChannel, QSpec
from edgeq.weights import rtn


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["int8", "int4"]), st.booleans())
def test_no_weight_is_further_than_half_a_step(seed, dtype, symmetric):
    w = np.random.default_rng(seed).normal(size=(6, 40)).astype(np.float32)
    spec = QSpec(dtype, symmetric, PerChannel(0))
    q = rtn.quantize(w, spec)
    error = np.abs(affine.dequantize(q.data, q.params) - w)
    # An asymmetric range may lose another half step at its ends to the rounding of the zero point.
    assert (error <= q.params.scale[:, None] * (0.5 if symmetric else 1.0) * 1.0001).all()


def test_full_range_is_ggufs_q4_0():
    w = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    q = rtn.quantize(w, QSpec("int4", granularity=PerBlock(1, 32)), full_range=True)
    ours = affine.dequantize(q.data, q.params)
    kind = gguf.GGMLQuantizationType.Q4_0
    theirs = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    # Q4_0 rounds half up and keeps float16 scales: nearly all codes agree, and the errors are alike.
    assert (np.rint(theirs / q.params.scale.repeat(32, 1)) == q.data).mean() > 0.999
    assert np.mean((ours - w) ** 2) == pytest.approx(np.mean((theirs - w) ** 2), rel=1e-3)


def test_full_range_uses_the_lowest_code_for_the_extreme():
    w = np.array([[1.0, -0.5, 0.0, 0.25], [-2.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    q = rtn.quantize(w, QSpec("int4", granularity=PerChannel(0)), full_range=True)
    assert q.params.scale[:2].tolist() == [-1 / 8, 2 / 8]
    assert q.data.tolist() == [[-8, 4, 0, -2], [-8, 4, 2, 0], [0, 0, 0, 0]]
    for spec in (QSpec("int4", symmetric=False), QSpec("int4", narrow=True)):
        with pytest.raises(RecipeError, match="full_range"):
            rtn.quantize(w, spec, full_range=True)
