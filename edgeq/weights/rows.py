"""A weight as output channels by input features, whatever its layout: what every algorithm that uses statistics sees.

Of a layer's output and its error:

    y = x Wᵀ,  W (N, K)        E ‖(W - W') x‖² = tr (W - W') H (W - W')ᵀ,  H = E x xᵀ = gram / count
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import RecipeError
from edgeq.numerics import affine
from edgeq.types import PerBlock, PerChannel, PerTensor, QParams, QSpec, QTensor, Stats

SHRINKAGE, LEAST_DAMPING = 0.2, 0.003  # see `hessian`


@dataclass(frozen=True, eq=False)
class Rows:
    """x: float32 (K, N), the weight with a contiguous row a feature, K filled up with zeros to whole groups.

    group: how many features share a scale. shape, axis: of the weight; the axis of its features, None for all but
    the channels' one.
    """

    x: np.ndarray
    group: int
    shape: tuple[int, ...]
    axis: int | None
    channel: int
    spec: QSpec

    @property
    def features(self) -> int:
        return self.shape[self.axis] if self.axis is not None else int(np.prod(self.shape)) // self.shape[self.channel]

    def pack(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> QTensor:
        """A QTensor of codes (K, N), less their zero point, and of scale and zero point (groups, N)."""
        whole = codes.reshape(scale.shape[0], self.group, -1) + zero[:, None]
        data = self.layout(whole.reshape(codes.shape)[: self.features])
        data = data.astype(affine.storage_dtype(self.spec.dtype))
        shape = affine.params_shape(self.shape, self.spec.granularity)
        if isinstance(self.spec.granularity, PerBlock):
            scale, zero = (p if self.axis == 0 else p.T for p in (scale, zero))
        elif isinstance(self.spec.granularity, PerTensor):
            scale, zero = scale[:, :1], zero[:, :1]
        scale = np.ascontiguousarray(scale, np.float32).reshape(shape)
        return QTensor(data, QParams(scale, np.ascontiguousarray(zero, np.int32).reshape(shape), self.spec))

    def grids(self, params: QParams) -> tuple[np.ndarray, np.ndarray]:
        """Copies of scale, float32, and zero point, both (groups, N): the inverse of what `pack` does to them."""
        groups, n = len(self.x) // self.group, self.x.shape[1]
        found = []
        for p in (params.scale, params.zero_point):
            columns = p.T if isinstance(self.spec.granularity, PerBlock) and self.axis == 1 else p
            found.append(np.array(np.broadcast_to(columns, (groups, n))))
        return found[0], found[1]

    def layout(self, x: np.ndarray) -> np.ndarray:
        """(K, N) as the weight lies."""
        if self.axis is not None and len(self.shape) == 2:
            return np.ascontiguousarray(x if self.axis == 0 else x.T)
        moved = [self.shape[self.channel], *(n for i, n in enumerate(self.shape) if i != self.channel)]
        return np.ascontiguousarray(np.moveaxis(x.T.reshape(moved), 0, self.channel))


def rows(w: np.ndarray, spec: QSpec) -> Rows:
    """The weight's rows. Raises RecipeError for blocks of anything but a matrix, ModelError for a bad weight."""
    affine.weight_ranges(w, PerTensor())  # refuses NaN, infinity and emptiness
    w = np.asarray(w, np.float32)
    axis: int | None
    match spec.granularity:
        case PerBlock(axis, size):
            if w.ndim != 2:
                raise RecipeError(f"blocks of a weight of rank {w.ndim} can't use statistics: leave them out")
            axis = axis % 2
            channel, group = 1 - axis, size
        case PerChannel(channel):
            channel %= w.ndim
            axis, group = (1 - channel if w.ndim == 2 else None), w.size // w.shape[channel]
        case PerTensor():
            channel, axis, group = 0, (1 if w.ndim == 2 else None), w.size // w.shape[0]
    x = np.moveaxis(w, channel, 0).reshape(w.shape[channel], -1).T
    x = np.pad(x, ((0, -len(x) % group), (0, 0)))
    return Rows(np.ascontiguousarray(x), group, w.shape, axis, channel, spec)


def hessian(stats: Stats, features: int, size: int, damping: float | None) -> np.ndarray:
    """H + damping · mean(diag H) · I, float64 (size, size); features beyond those of the statistics are independent.

    damping: None for what the data asks for. The fewer rows there are for each feature, the less of what H says is so
    of other data, and the nearer it should be to a multiple of I (Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004). A feature that is always 0 gets the mean. Raises RecipeError when
    the statistics are of other features.
    """
    if len(stats.gram) != features:
        raise RecipeError(f"statistics of {len(stats.gram)} features do not fit a weight of {features}")
    if damping is None:
        damping = max(SHRINKAGE * features / max(stats.count, 1), LEAST_DAMPING)
    h = np.eye(size)
    h[:features, :features] = stats.gram / max(stats.count, 1)
    diagonal = h.diagonal()[:features]
    mean = float(diagonal.mean()) or 1.0
    fill = np.full(size, mean)
    fill[:features] = np.where(diagonal <= 0, mean, damping * mean)
    h[np.arange(size), np.arange(size)] += fill
    return h


def output_error(w: np.ndarray, real: np.ndarray, spec: QSpec, stats: Stats) -> float:
    """tr (W - W') H (W - W')ᵀ: the mean over rows of x of the squared error of the layer's output."""
    found = rows(np.asarray(w, np.float32) - real, spec)
    e = found.x[: found.features].astype(np.float64)
    return float(np.einsum("kn,kn->", e, (stats.gram / max(stats.count, 1)) @ e))


def corrected(
    w: np.ndarray, spec: QSpec, stats: Stats, cross: np.ndarray, behind: np.ndarray | None = None, damping: float = 0.01
) -> np.ndarray:
    """The weight that makes the most of inputs already changed by the layers before: argmin_V E ‖W x + r - r' - V x'‖².

        V = W + (W E (x - x') x'ᵀ + E (r - r') x'ᵀ) (E x' x'ᵀ + λ I)⁻¹

    stats: of x'. cross: float64 (K, K), the sum of (x - x') x'ᵀ over the rows of `stats`. behind: float64 (N, K), that
    of (r - r') x'ᵀ, where the output is added to a value r: the layer then also makes up for the error r came with.
    Rounding V with the Hessian of x' minimises the error against the float model (cf. Li et al., "GPTAQ", 2025).
    """
    found = rows(w, spec)
    k = found.features
    lacking = cross.T @ found.x[:k]
    if behind is not None:
        lacking += behind.T
    h = hessian(stats, k, k, damping)
    return found.layout((found.x[:k] + np.linalg.solve(h, lacking / max(stats.count, 1))).astype(np.float32))
