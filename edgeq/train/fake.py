"""Fake quantization with gradients: what the artifact computes, in floats that can be trained.

    y = (clip(round(x / s) + z, qmin, qmax) - z) · s

`round` is half-even and passes gradients straight through (Bengio et al., 2013). Where the step `s` is learned, its
gradient is that of LSQ (Esser et al., 2020): d y/d s = round(x/s) - x/s inside the range and the end's code outside,
scaled by 1 / sqrt(N · qmax). The offset of an asymmetric activation is learned as in LSQ+ (Bhalgat et al., 2020).
Where it is the clip that is learned, the step has the gradient of the range's ends alone (PACT, Choi et al., 2018).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.numerics.affine import params_shape, quantize
from edgeq.types import PerBlock, PerChannel, QParams, QSpec, QTensor

TINY = 1e-8
"""The least step there is."""
Steps = Literal["lsq", "pact", "fixed"]
"""How a step is trained: by LSQ, by its clip alone, or not at all (straight-through estimator)."""


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity."""
    return x + (x.round() - x).detach()


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, with its gradient multiplied by `factor`."""
    return x.detach() + (x - x.detach()) * factor


class Rounded(torch.autograd.Function):
    """y = s · q, q = clamp(round(x / s), low - z, high - z), with all gradients in one step, from what they need alone.

        dy/dx = 1 inside the range, else 0      dy/ds = q - (x / s) · dy/dx      dy/dz = s · (dy/dx - 1)

    Those of LSQ (Esser et al., 2020, equation 3) and LSQ+ (Bhalgat et al., 2020), multiplied by `factor` for s and z.
    scale, zero: in the shape of `params_shape`; s is |scale| within [TINY, most], z is zero rounded, within the codes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, spec: QSpec, most: float, factor: float) -> Tensor:
        step, middle = scale.abs().clamp_(TINY, most), zero.round().clamp_(spec.qmin, spec.qmax)
        wide = aligned(step, x, spec)
        ratio = x / wide
        unbounded = ratio.round()
        if middle.numel() == 1 and not middle.is_cuda:  # a device would be waited for
            least = spec.qmin - float(middle)
            codes = unbounded.clamp(least, least + spec.qmax - spec.qmin)
        else:
            low = aligned(spec.qmin - middle, x, spec)
            codes = unbounded.maximum(low)  # clamp takes tensors too, but four times as long
            torch.minimum(codes, low + (spec.qmax - spec.qmin), out=codes)
        inside = unbounded.eq_(codes)  # 1 and 0 as float, which are multiplied with sooner than bool
        slope = torch.addcmul(codes, ratio, inside, value=-1, out=ratio) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inside, slope, scale, zero, step, middle)
        ctx.spec, ctx.factor = spec, factor
        return codes.mul_(wide)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inside, slope, scale, zero, step, middle = ctx.saved_tensors
        passed, of_scale, of_zero = gradient * inside, None, None
        if slope is not None:
            within = scale.abs().eq_(step)
            of_scale = _folded(gradient * slope, scale, ctx.spec).mul_(scale.sign()).mul_(within).mul_(ctx.factor)
        if ctx.needs_input_grad[2]:
            beyond = _folded(passed, zero, ctx.spec).sub_(_folded(gradient, zero, ctx.spec))
            of_zero = beyond.mul_(step).mul_(zero.round().eq_(middle)).mul_(ctx.factor)
        return passed, of_scale, of_zero, None, None, None


def _folded(x: Tensor, params: Tensor, spec: QSpec) -> Tensor:
    """The sums of x over all that one of the parameters stands for, in their shape."""
    match spec.granularity:
        case PerChannel(axis):
            return x.sum([d for d in range(x.dim()) if d != axis]).reshape(params.shape)
        case PerBlock(axis, size):
            short = params.shape[axis] * size - x.shape[axis]
            whole = functional.pad(x, [0, 0] * (x.dim() - 1 - axis) + [0, short])
            return whole.unflatten(axis, (-1, size)).sum(axis + 1)
    return x.sum().reshape(params.shape)


class FakeQuantize(nn.Module):
    """One quantizer. steps: how step and offset are trained.

    scale, zero_point: in the shape of `params_shape`; the zero point is kept as a real number and rounded when used.
    """

    def __init__(self, spec: QSpec, shape: tuple[int, ...], steps: Steps = "lsq") -> None:
        super().__init__()
        self.spec, self.steps, self.most = spec, steps, math.inf
        learned = steps != "fixed"
        self.scale = nn.Parameter(torch.ones(params_shape(shape, spec.granularity)), requires_grad=learned)
        offset = torch.zeros_like(self.scale)
        self.zero_point = nn.Parameter(offset, requires_grad=steps == "lsq" and not spec.symmetric)

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

    def tensor(self, weight: Tensor) -> QTensor:
        """The codes of a weight as the artifact will hold them."""
        params = self.params()
        return QTensor(quantize(weight.detach().cpu().numpy(), params), params)

    def rescale(self, gain: Tensor) -> None:
        """Follow a weight whose channels are multiplied by `gain`: its codes stay what they are."""
        self.scale.mul_(gain)

    def step(self) -> Tensor:
        """The scale that is used: never 0, nor beyond what a bound allows."""
        stepped: Tensor = self.scale.abs().clamp(TINY, self.most)
        return stepped

    def forward(self, x: Tensor) -> Tensor:
        if self.steps == "pact":
            return self._clipped(x)
        shared = x.numel() / max(self.scale.numel(), 1)
        factor = 1.0 / math.sqrt(shared * max(self.spec.qmax, 1)) if self.steps == "lsq" and self.training else 1.0
        rounded: Tensor = Rounded.apply(x, self.scale, self.zero_point, self.spec, self.most, factor)
        return rounded

    def _clipped(self, x: Tensor) -> Tensor:
        low, high = self.spec.qmin, self.spec.qmax
        step, zero = aligned(self.step(), x, self.spec), aligned(self.zero_point.round().clamp(low, high), x, self.spec)
        x = x.minimum((high - zero) * step).maximum((low - zero) * step)
        codes = ((x / step).round() + zero).clamp(low, high)
        return x + ((codes - zero) * step - x).detach()


def aligned(params: Tensor, x: Tensor, spec: QSpec) -> Tensor:
    """Steps or zero points that broadcast against x; blocks are repeated, the last one possibly short."""
    match spec.granularity:
        case PerChannel(axis):
            dims = [1] * x.dim()
            dims[axis] = x.shape[axis]
            return params.reshape(dims)
        case PerBlock(axis, size):
            return params.repeat_interleave(size, axis).narrow(axis, 0, x.shape[axis])
    return params


class FakeBias(nn.Module):
    """A bias as int32 at the scale that its layer's sums have: activation step · weight step of each channel."""

    def __init__(self, activation: FakeQuantize, weight: FakeQuantize) -> None:
        super().__init__()
        self._layer = (activation, weight)  # in a tuple, since they are children of the graph already

    def forward(self, bias: Tensor) -> Tensor:
        activation, weight = self._layer
        with torch.no_grad():
            step = activation.step() * weight.step()
        return round_through(bias / step) * step
