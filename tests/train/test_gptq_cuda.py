"""The torch form of GPTQ, on the CPU: what it does there it does on a GPU, one kernel after another."""

import numpy as np
import pytest

from edgeq.types import PerBlock, PerChannel, QSpec
from edgeq.weights import gptq
from tests.require import require
from tests.weights.test_gptq import data, output_error, stats_of

require("torch", "pip install edgeq[torch]")

from edgeq.train import gptq_cuda  # noqa: E402


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("dtype", "block", "features"), [("int4", 32, 320), ("int2", 16, 144), ("int4", 128, 256)])
def test_rounds_as_numpy_does(axis, dtype, block, features):
    x = data(features)
    w = np.random.default_rng(0).normal(size=(20, features)).astype(np.float32)
    given = w if axis else np.ascontiguousarray(w.T)
    spec = QSpec(dtype, granularity=PerBlock(axis, block))
    ours = gptq_cuda.quantize(given, spec, stats_of(x), device="cpu")
    theirs = gptq.quantize(given, spec, stats_of(x), sweeps=0)
    a, b = (output_error(given, q, x, channel=1 - axis) for q in (ours, theirs))
    assert a == pytest.approx(b, rel=0.05)
    assert ours.data.shape == given.shape
    assert ours.params.scale.shape == theirs.params.scale.shape


def test_what_it_takes():
    assert gptq_cuda.takes(QSpec("int4", granularity=PerBlock(0, 32)))
    for spec in (
        QSpec("uint4", False, PerBlock(0, 32)),
        QSpec("int4", granularity=PerChannel(0)),
        QSpec("int4", granularity=PerBlock(0, 24)),
    ):
        assert not gptq_cuda.takes(spec)
