"""GPTQ (`edgeq.weights.gptq`) in torch, for layers too large for NumPy to be quick about: the same recurrence.

The features of a block are rounded by one CUDA graph, captured for the first block and replayed for each: the kernels
are tiny, and launching them from Python is what a plain implementation spends its time on. On a CPU it runs as it is.
"""

from __future__ import annotations

import numpy as np
import torch

from edgeq.types import PerBlock, QSpec, QTensor, Stats
from edgeq.weights.rows import hessian, rows

BLOCK = 128


def takes(spec: QSpec) -> bool:
    """Whether a spec is one that this form is made for."""
    blocks = isinstance(spec.granularity, PerBlock) and BLOCK % spec.granularity.size == 0
    return blocks and spec.signed and spec.symmetric


def quantize(
    w: np.ndarray, spec: QSpec, stats: Stats, damping: float | None = None, candidates: int = 20, device: str = "cuda"
) -> QTensor:
    """Codes of `w`, as `gptq.quantize` without descent gives them up to float32 rounding, for a spec that it
    `takes`. Raises what `gptq.quantize` raises.
    """
    found = rows(w, spec)
    h = torch.from_numpy(hessian(stats, found.features, len(found.x), damping)).to(device)
    codes, scale = solve(torch.from_numpy(found.x).to(device), h, spec, found.group, candidates)
    return found.pack(codes.cpu().numpy(), scale.cpu().numpy(), np.zeros(scale.shape, np.int32))


def solve(
    x: torch.Tensor, h: torch.Tensor, spec: QSpec, group: int, candidates: int = 20
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (K, N), less their zero point, and scales (K / group, N) of x (K, N) float32; h: (K, K), damped."""
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h.double())), upper=True).float()
    x, k = x.clone(), len(x)
    codes, scale = torch.empty_like(x), x.new_empty(k // group, x.shape[1])
    step = _Step(x.new_zeros(BLOCK, x.shape[1]), u.new_zeros(BLOCK, BLOCK), spec, group, candidates)
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        step.run(x[start:stop], u[start:stop, start:stop])
        codes[start:stop] = step.codes[: stop - start]
        scale[start // group : stop // group] = step.scale[: (stop - start) // group]
        x[stop:] -= u[start:stop, stop:].T @ step.errors[: stop - start]
    return codes, scale


class _Step:
    """Rounds the features of one block; its tensors stay where they are, so that a graph of it can be replayed."""

    def __init__(self, x: torch.Tensor, u: torch.Tensor, spec: QSpec, group: int, candidates: int) -> None:
        self.x, self.u, self.spec, self.group = x, u, spec, group
        self.codes, self.errors = torch.zeros_like(x), torch.zeros_like(x)
        self.scale = x.new_zeros(len(x) // group, x.shape[1])
        factors = torch.linspace(1.0, 0.35, candidates, device=x.device)
        top = max(spec.qmax, 1)
        self.factors = torch.cat([factors / spec.qmin, -factors / spec.qmin, factors / top])
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, x: torch.Tensor, u: torch.Tensor) -> None:
        self.x.zero_()
        self.u.copy_(torch.eye(BLOCK, device=u.device))
        self.x[: len(x)], self.u[: len(u), : len(u)] = x, u
        if not x.is_cuda:
            self._round()
            return
        if self.graph is None:
            kept = self.x.clone()
            self._round()  # warms up what a capture may not do
            self.x.copy_(kept)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._round()
            self.x.copy_(kept)
        self.graph.replay()

    def _round(self) -> None:
        low, high, group = self.spec.qmin, self.spec.qmax, self.group
        importance = self.u.diagonal() ** -2
        for k in range(len(self.x)):
            b = k // group
            if k % group == 0:
                part = slice(k, k + group)
                self.scale[b] = self._search(self.x[part], importance[part, None])
            c = torch.clamp(torch.round(self.x[k] / self.scale[b]), low, high)
            error = (self.x[k] - c * self.scale[b]) / self.u[k, k]
            self.codes[k], self.errors[k] = c, error
            end = (k // group + 1) * group  # what lies behind is brought up to date when the group is done
            self.x[k + 1 : end].addr_(self.u[k, k + 1 : end], error, alpha=-1)
            if k + 1 == end:
                done = slice(end - group, end)
                self.x[end:].addmm_(self.u[done, end:].T, self.errors[done], alpha=-1)

    def _search(self, x: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """The scale of each column of x (group, N): the best of the candidates, and of what they are refitted to."""
        extreme = x.gather(0, x.abs().argmax(0, keepdim=True))
        scales = extreme * self.factors[:, None]  # (candidates, N)
        scales = torch.where(scales.abs() < 1e-18, 1e-18, scales)
        best, least = scales[0], torch.full_like(scales[0], torch.inf)
        for _ in range(2):
            c = torch.clamp(torch.round(x / scales[:, None]), self.spec.qmin, self.spec.qmax)
            loss = ((c * scales[:, None] - x) ** 2 * importance).sum(1)
            found, index = loss.min(0)
            taken = scales.gather(0, index[None])[0]
            best, least = torch.where(found < least, taken, best), torch.minimum(found, least)
            weighted = c * importance
            below = (weighted * c).sum(1)
            fitted = (weighted * x).sum(1) / torch.where(below > 0, below, 1.0)
            scales = torch.where((below > 0) & (fitted.abs() > 1e-18), fitted, scales)
        return best
