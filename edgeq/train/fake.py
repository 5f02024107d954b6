"""Fake quantization with gradients: what the artifact computes, in floats that can be trained.

    y = (clip(round(x / s) + z, qmin, qmax) - z) · s

`round` is half-even and passes gradients straight through (Bengio et al., 2013). Where the step `s` is learned, its
gradient is that of LSQ (Esser et al., 2020): d y/d s = round(x/s) - x/s inside the range and the end's code outside,
scaled by 1 / sqrt(N · qmax). The offset of an asymmetric activation is learned as in LSQ+ (Bhalgat et al., 2020).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from edgeq.numerics.affine import params_shape
from edgeq.types import PerBlock, PerChannel, QParams, QSpec


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity."""
    return x + (x.round() - x).detach()


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient multiplied by `factor`."""
    return x * factor + (x * (1 - factor)).detach()


class FakeQuantize(nn.Module):
    """One quantizer. learned: whether step and offset are trained (LSQ, LSQ+), or stay as initialized (STE).

    scale, zero_point: in the shape of `params_shape`; the zero point is kept as a real number and rounded when used.
    """

    def __init__(self, spec: QSpec, shape: tuple[int, ...], learned: bool = True) -> None:
        super().__init__()
        self.spec, self.learned, self.most = spec, learned, math.inf
        self.scale = nn.Parameter(torch.ones(params_shape(shape, spec.granularity)), requires_grad=learned)
        offset = torch.zeros_like(self.scale)
        self.zero_point = nn.Parameter(offset, requires_grad=learned and not spec.symmetric)

    def start(self, params: QParams, bounds: tuple[float, float] = (-math.inf, math.inf)) -> None:
        """Take numbers that a calibrator or weight algorithm found.

        bounds: no code may come to mean a number outside; the zero point is then fixed, and the step can't grow.
        """
        if math.isfinite(bounds[0]) and math.isfinite(bounds[1]):
            self.most = float(params.scale)
            self.zero_point.requires_grad_(False)
        with torch.no_grad():
            self.scale.copy_(torch.as_tensor(np.asarray(params.scale, np.float32)))
            self.zero_point.copy_(torch.as_tensor(np.asarray(params.zero_point, np.float32)))

    def params(self) -> QParams:
        """The numbers as the artifact will hold them."""
        zero = self.zero_point.detach().round().clamp(self.spec.qmin, self.spec.qmax)
        return QParams(self.step().detach().cpu().numpy(), zero.cpu().numpy().astype(np.int32), self.spec)

    def step(self) -> Tensor:
        """The scale that is used: never 0, nor beyond what a bound allows."""
        stepped: Tensor = self.scale.abs().clamp(1e-8, self.most)
        return stepped

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.spec.qmin, self.spec.qmax
        step: Tensor = self.step()
        zero: Tensor = self.zero_point
        if self.learned and self.training:
            shared = x.numel() / max(step.numel(), 1)
            factor = 1.0 / math.sqrt(shared * max(high, 1))
            step, zero = scaled_gradient(step, factor), scaled_gradient(zero, factor)
        zero = round_through(zero).clamp(low, high)
        x, step, zero = _aligned(x, step, zero, self.spec)
        codes = (round_through(x / step) + zero).clamp(low, high)
        return (codes - zero) * step


def _aligned(x: Tensor, step: Tensor, zero: Tensor, spec: QSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Step and zero point that broadcast against x; blocks are repeated, the last one possibly short."""
    match spec.granularity:
        case PerChannel(axis):
            dims = [1] * x.dim()
            dims[axis] = x.shape[axis]
            return x, step.reshape(dims), zero.reshape(dims)
        case PerBlock(axis, size):
            keep = x.shape[axis]
            wide = [t.repeat_interleave(size, axis).narrow(axis, 0, keep) for t in (step, zero)]
            return x, wide[0], wide[1]
    return x, step, zero


class FakeBias(nn.Module):
    """A bias as int32 at the scale that its layer's sums have: activation step · weight step of each channel."""

    def __init__(self, activation: FakeQuantize, weight: FakeQuantize) -> None:
        super().__init__()
        self._layer = (activation, weight)  # in a tuple, since they are children of the graph already

    def forward(self, bias: Tensor) -> Tensor:
        activation, weight = self._layer
        step = (activation.step() * weight.step()).detach()
        return round_through(bias / step) * step
