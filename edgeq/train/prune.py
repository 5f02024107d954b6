"""Weights of which only some may differ from zero, chosen by magnitude, alone or beneath a quantizer.

    share    the smallest of each weight are zero (Han et al., 2015); `ramped` raises the share from epoch to epoch as
             s · (1 - (1 - t/T)³) (Zhu and Gupta, "To prune, or not to prune", 2017)
    n of m   of every m weights along the inputs the n largest stay (2 of 4: Mishra et al., 2021)

Symmetric codes of zeros are zeros, so that the artifact is as sparse as what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.errors import RecipeError
from edgeq.planning.plan import WEIGHT_INDEX, weight_axis
from edgeq.train.graph import TorchGraph
from edgeq.types import QParams, QTensor


class Masked(nn.Module):
    """A weight times its mask, then what `inner` makes of it."""

    mask: Tensor

    def __init__(self, inner: Any, weight: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mask", torch.ones_like(weight, requires_grad=False))

    def forward(self, w: Tensor) -> Tensor:
        w = w * self.mask
        return w if self.inner is None else self.inner(w)

    def step(self) -> Tensor:
        stepped: Tensor = self.inner.step()
        return stepped

    def rescale(self, gain: Tensor) -> None:
        if self.inner is not None:
            self.inner.rescale(gain)

    def params(self) -> QParams:
        found: QParams = self.inner.params()
        return found

    def tensor(self, weight: Tensor) -> QTensor:
        found: QTensor = self.inner.tensor(weight.detach() * self.mask)
        return found


def sparsify(graph: TorchGraph, share: float = 0.0, pattern: tuple[int, int] | None = None) -> dict[str, float]:
    """Choose the masks of all linear layers' weights anew; the share of zeros of each weight, by its name.

    pattern: (n, m) in place of a share; weights whose inputs are no multiple of m are left alone. Raises RecipeError
    for a share outside [0, 1), or a pattern that is none.
    """
    if not 0 <= share < 1 or (pattern is not None and not 0 < pattern[0] < pattern[1]):
        raise RecipeError(
            f"no mask of share {share} and pattern {pattern}: choose a share below 1, or n of m like 2, 4"
        )
    found = {}
    for node in graph.model.graph:
        index = WEIGHT_INDEX.get(node.op_type, 0)
        name = node.inputs[index].name or "" if index and node.inputs[index] is not None else ""  # type: ignore[union-attr]
        if node.op_type not in ("Conv", "Gemm", "MatMul") or name not in graph.float_constants():
            continue
        weight, axis = graph.constant(name).detach(), weight_axis(node, "block")
        if pattern is not None and weight.shape[axis] % pattern[1]:
            continue
        held = graph.quantizer(name)
        if not isinstance(held, Masked):
            held = Masked(held, weight)
            graph.quantize_weight(name, held)
        held.mask.copy_(_largest(weight.abs(), share) if pattern is None else _of_each(weight.abs(), axis, *pattern))
        found[name] = float((held.mask == 0).float().mean())
    return found


def _largest(size: Tensor, share: float) -> Tensor:
    mask = torch.ones_like(size).reshape(-1)
    mask[size.reshape(-1).argsort(stable=True)[: math.floor(share * size.numel())]] = 0
    return mask.reshape(size.shape)


def _of_each(size: Tensor, axis: int, n: int, m: int) -> Tensor:
    runs = size.movedim(axis, -1).reshape(-1, m)
    mask = torch.zeros_like(runs).scatter_(1, runs.topk(n, dim=1).indices, 1.0)
    moved = size.movedim(axis, -1).shape
    return mask.reshape(moved).movedim(-1, axis)


def ramped(
    graph: TorchGraph,
    batches: Callable[[], Iterable[Any]],
    score: Callable[[nn.Module], float],
    share: float,
    epochs: int,
) -> tuple[Callable[[], Iterable[Any]], Callable[[nn.Module], float]]:
    """`batches` and `score` for `fit`: over the first `epochs` passes the share of zeros grows to `share`.

    The score is minus infinity until it is reached, so that no denser epoch is the best one.
    """
    passes = 0

    def masked() -> Iterable[Any]:
        nonlocal passes
        passes += 1
        if passes <= epochs:
            sparsify(graph, share * (1 - (1 - passes / epochs) ** 3))
        return batches()

    return masked, lambda module: score(module) if passes >= epochs else -math.inf
