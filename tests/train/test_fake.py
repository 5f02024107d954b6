"""Fake quantization against numpy's, and its gradients against the formulas of LSQ and LSQ+."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.numerics.affine import fake_quantize, params_shape, qparams, weight_ranges
from edgeq.types import PerBlock, PerChannel, PerTensor, QSpec
from tests.require import require

require("torch", "pip install edgeq[torch]")

import torch  # noqa: E402

from edgeq.train.fake import TINY, FakeQuantize, Rounded, aligned, round_through, scaled_gradient  # noqa: E402

SPECS = [
    QSpec(dtype, symmetric, granularity)
    for dtype, symmetric in (
        ("uint8", False),
        ("int8", True),
        ("int8", False),
        ("int4", True),
        ("uint4", False),
        ("int2", True),
    )
    for granularity in (PerTensor(), PerChannel(0), PerChannel(1), PerBlock(1, 4))
]


@given(st.sampled_from(SPECS), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_it_computes_what_numpy_computes(spec, seed, size):
    x = (np.random.default_rng(seed).normal(0, size, (6, 10))).astype(np.float32)
    params = qparams(*weight_ranges(x * np.float32(0.7), spec.granularity), spec)
    quantizer = FakeQuantize(spec, x.shape).eval()
    quantizer.start(params)
    with torch.no_grad():
        found = quantizer(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, fake_quantize(x, params))
    kept = quantizer.params()
    np.testing.assert_array_equal(kept.scale, params.scale)
    np.testing.assert_array_equal(kept.zero_point, params.zero_point)


def test_the_steps_gradient_is_that_of_lsq():
    """Esser et al., equation 3: -v/s + round(v/s) inside, -Qn or Qp outside, times 1/sqrt(N·Qp)."""
    spec = QSpec("int4", True)
    x = torch.tensor([-30.0, -2.3, 0.2, 0.74, 3.1, 40.0])
    quantizer = FakeQuantize(spec, x.shape)
    with torch.no_grad():
        quantizer.scale.fill_(0.5)
    weights = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, 1.0])
    (quantizer(x) * weights).sum().backward()
    v = x.numpy() / 0.5
    inside = (v > -8) & (v < 7)
    slope = np.where(inside, np.rint(v) - v, np.where(v < 0, -8, 7))
    np.testing.assert_allclose(quantizer.scale.grad, (slope * weights.numpy()).sum() / np.sqrt(6 * 7), rtol=1e-5)


def test_the_gradient_passes_straight_through_inside_the_range_alone():
    quantizer = FakeQuantize(QSpec("uint8", False), (4,))
    with torch.no_grad():
        quantizer.scale.fill_(0.1)
        quantizer.zero_point.fill_(10.0)
    x = torch.tensor([-5.0, -0.93, 3.33, 100.0], requires_grad=True)
    quantizer(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 1, 1, 0])


def test_the_offsets_gradient_is_that_of_lsq_plus():
    """Bhalgat et al.: an offset matters only for what is clipped: there each unit of it moves the result by -s."""
    quantizer = FakeQuantize(QSpec("uint8", False), (3,))
    with torch.no_grad():
        quantizer.scale.fill_(0.1)
        quantizer.zero_point.fill_(10.0)
    quantizer(torch.tensor([-5.0, 3.3, 100.0])).sum().backward()
    np.testing.assert_allclose(quantizer.zero_point.grad, -2 * 0.1 / np.sqrt(3 * 255), rtol=1e-5)


@pytest.mark.parametrize(("steps", "wanted"), [("lsq", [True, True]), ("pact", [True, False]), ("fixed", [False] * 2)])
def test_only_what_is_learned_is_trained(steps, wanted):
    assert [p.requires_grad for p in FakeQuantize(QSpec("uint8", False), (), steps).parameters()] == wanted
    assert not FakeQuantize(QSpec("int8", True), ()).zero_point.requires_grad


def test_a_bound_keeps_its_step():
    quantizer = FakeQuantize(QSpec("uint8", False), ())
    quantizer.start(qparams(0.0, 6.0, QSpec("uint8", False)), (0.0, 6.0))
    with torch.no_grad():
        quantizer.scale.mul_(3)
    assert quantizer.params().scale == np.float32(6 / 255)
    assert params_shape((), PerTensor()) == ()


def test_the_clips_gradient_is_that_of_pact():
    """Choi et al., equation 3: of y by the clip, 1 where x lies beyond it and 0 below; the clip is 255 steps here."""
    quantizer = FakeQuantize(QSpec("uint8", False), (4,), "pact")
    with torch.no_grad():
        quantizer.scale.fill_(0.01)
    x = torch.tensor([-1.0, 0.333, 2.9, 3.0], requires_grad=True)
    y = quantizer(x)
    np.testing.assert_allclose(y.detach(), [0, 0.33, 2.55, 2.55], rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(quantizer.scale.grad, 2 * 255, rtol=1e-5)
    np.testing.assert_array_equal(x.grad, [0, 1, 0, 0])


@given(st.sampled_from(SPECS), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.01]), st.sampled_from([9.0, 0.3]))
def test_its_gradients_are_those_of_its_parts(spec, seed, factor, most):
    """Which torch finds by itself, where each rounding's gradient is that of the identity."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0, 2, (6, 10)).astype(np.float32)).requires_grad_()
    shape = params_shape((6, 10), spec.granularity)
    signs = rng.choice([-1, 1], shape)
    scale = torch.tensor(signs * rng.uniform(0.05, 0.5, shape), dtype=torch.float32, requires_grad=True)
    zero = torch.tensor(rng.uniform(spec.qmin - 1, spec.qmax + 1, shape), dtype=torch.float32, requires_grad=True)
    weights = torch.from_numpy(rng.normal(0, 1, (6, 10)).astype(np.float32))
    whole = Rounded.apply(x, scale, zero, spec, most, factor)
    step = aligned(scaled_gradient(scale.abs().clamp(TINY, most), factor), x, spec)
    middle = aligned(scaled_gradient(zero, factor), x, spec)
    middle = round_through(middle).clamp(spec.qmin, spec.qmax)
    parts = ((round_through(x / step) + middle).clamp(spec.qmin, spec.qmax) - middle) * step
    torch.testing.assert_close(whole, parts)
    wanted = torch.autograd.grad((parts * weights).sum(), (x, scale, zero))
    found = torch.autograd.grad((whole * weights).sum(), (x, scale, zero))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
