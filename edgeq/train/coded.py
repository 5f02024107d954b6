"""Weights whose codes are not simply the nearest ones: ternary, binary, and shared among few values.

Each stands where a `FakeQuantize` would: it has `spec`, `step`, `params` and `tensor`.

    Signs     y = s · sign(w) where |w| > t · mean |w|, else 0      t = 0.7: TWN (Li and Liu, 2016), 0: XNOR-Net
    Shared    y = s · round(c[k] / s)                                k: the nearest centroid of w before training

The scale s of a channel starts at the closed form of `edgeq.weights.ternary` and is then learned, as in TTQ (Zhu et
al., 2017), but with one scale for both signs: no integer format has two. Gradients pass straight through to w.
Centroids (Han et al., "Deep Compression", 2016) get the sum of their weights' gradients; s puts them on a grid.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from edgeq.errors import RecipeError
from edgeq.numerics.affine import params_shape, quantize, storage_dtype
from edgeq.numerics.codebook import kmeans, nearest
from edgeq.train.fake import TINY, aligned, round_through, scaled_gradient
from edgeq.types import PerChannel, QParams, QSpec, QTensor
from edgeq.weights.ternary import of_signs

TTQ_THRESHOLD = 0.05
TTQ_STEPS = 64
"""Of the greater level. All weights have one of two codes here, and 255 · (64 + 64) is within the 16 bits that kernels
of x86 without VNNI add two products in; 255 · (127 + 127) is not, and each sum would saturate."""
THRESHOLDS = {"ternary": 0.7, "binary": 0.0}
"""The t of the weight algorithms of these names."""


class Signs(nn.Module):
    """Codes -1, 0 and 1 of a weight, per tensor or per channel, and a learned scale. Raises what `ternary` does."""

    def __init__(self, spec: QSpec, weight: np.ndarray, threshold: float) -> None:
        super().__init__()
        self.spec, self.threshold = spec, threshold
        self.scale = nn.Parameter(torch.from_numpy(of_signs(weight, spec, None, threshold).params.scale.copy()))

    def step(self) -> Tensor:
        stepped: Tensor = self.scale.abs().clamp(min=TINY)
        return stepped

    def rescale(self, gain: Tensor) -> None:
        self.scale.mul_(gain)

    def params(self) -> QParams:
        scale = self.step().detach().cpu().numpy()
        return QParams(scale, np.zeros(scale.shape, np.int32), self.spec)

    def tensor(self, weight: Tensor) -> QTensor:
        codes = self._signs(weight).cpu().numpy().astype(storage_dtype(self.spec.dtype))
        return QTensor(codes, self.params())

    def _signs(self, w: Tensor) -> Tensor:
        """As float, without a gradient."""
        size = w.detach().abs()
        return w.detach().sign() * (size > self.threshold * size.mean(*_group(size, self.spec)))

    def forward(self, w: Tensor) -> Tensor:
        step = self.step()
        step = scaled_gradient(step, 1 / math.sqrt(w.numel() / max(step.numel(), 1)))
        return aligned(step, w, self.spec) * self._signs(w) + (w - w.detach())


class TwoScales(nn.Module):
    """Two learned levels a tensor or channel, for weights above and below zero. scales: (2, *channels).

    Raises RecipeError for a type of fewer than 8 bits, whose grid can't hold the two beside one another.
    """

    def __init__(self, spec: QSpec, weight: np.ndarray) -> None:
        super().__init__()
        if spec.bits < 8 or not spec.symmetric:
            raise RecipeError(f"two scales of a weight lie on the grid of a symmetric 8-bit type, not of {spec.dtype}")
        self.spec, self.shape = spec, params_shape(weight.shape, spec.granularity)
        w = torch.from_numpy(weight)
        signs, where = self._signs(w), _group(w, spec)
        sides = [(signs == sign).float() for sign in (1, -1)]
        means = [(w.abs() * side).sum(*where) / side.sum(*where).clamp(min=1) for side in sides]
        self.scales = nn.Parameter(torch.stack([mean.reshape(self.shape) for mean in means]))

    def step(self) -> Tensor:
        return self.scales.detach().abs().amax(0).clamp(min=1e-6) / min(self.spec.qmax, TTQ_STEPS)

    def rescale(self, gain: Tensor) -> None:
        self.scales.mul_(gain)

    def params(self) -> QParams:
        return QParams(self.step().cpu().numpy().copy(), np.zeros(self.shape, np.int32), self.spec)

    def tensor(self, weight: Tensor) -> QTensor:
        up, down = (aligned(level, weight, self.spec) for level in self._codes().detach())
        codes = self._chosen(weight, up, -down, torch.zeros_like(up))
        return QTensor(codes.cpu().numpy().astype(storage_dtype(self.spec.dtype)), self.params())

    def _codes(self) -> Tensor:
        return round_through(self.scales.abs() / self.step()).clamp(0, self.spec.qmax)

    def _signs(self, w: Tensor) -> Tensor:
        size = w.detach().abs()
        return w.detach().sign() * (size > TTQ_THRESHOLD * size.amax(*_group(size, self.spec)))

    def _chosen(self, w: Tensor, above: Tensor, below: Tensor, between: Tensor) -> Tensor:
        signs = self._signs(w)
        return torch.where(signs > 0, above, torch.where(signs < 0, below, between))

    def forward(self, w: Tensor) -> Tensor:
        levels = scaled_gradient(self._codes() * self.step(), 1 / math.sqrt(2 * w.numel() / self.scales.numel()))
        up, down = (aligned(level, w, self.spec) for level in levels)
        slope = self._chosen(w, up, down, torch.ones_like(up)).detach()
        return self._chosen(w, up, -down, torch.zeros_like(up)) + slope * (w - w.detach())


def _group(w: Tensor, spec: QSpec) -> tuple[list[int], bool]:
    """What a reduction over each group of a weight is called with: the axes, and that they are kept."""
    axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else None
    return [d for d in range(w.dim()) if d != axis], True


class Shared(nn.Module):
    """At most `count` learned values for all of a weight. Codes are theirs on the type's grid, with one scale."""

    index: Tensor

    def __init__(self, spec: QSpec, weight: np.ndarray, count: int) -> None:
        super().__init__()
        self.spec, self.shape = spec, params_shape(weight.shape, spec.granularity)
        levels = kmeans(weight, count)
        self.centroids = nn.Parameter(torch.from_numpy(levels))
        self.register_buffer("index", torch.from_numpy(nearest(weight, levels).astype(np.int64)))

    def step(self) -> Tensor:
        peak = self.centroids.detach().abs().max().clamp(min=TINY)
        return (peak / self.spec.qmax).expand(self.shape)

    def params(self) -> QParams:
        return QParams(self.step().cpu().numpy().copy(), np.zeros(self.shape, np.int32), self.spec)

    def tensor(self, weight: Tensor) -> QTensor:
        params, index = self.params(), self.index.cpu().numpy()
        values = self.centroids.detach().cpu().numpy()[index]
        return QTensor(quantize(values, params), params)

    def forward(self, w: Tensor) -> Tensor:
        step = self.step().reshape(-1)[0]
        values: Tensor = round_through(self.centroids / step).clamp(self.spec.qmin, self.spec.qmax) * step
        return values[self.index]
