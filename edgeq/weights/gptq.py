"""GPTQ: round the features one after another, and let those still to come make up for each one's error.

    H = E x xᵀ + λ I,  H⁻¹ = Uᵀ U (U upper triangular, by Cholesky)
    for k = 0 … K-1:   e = (w_k - w'_k) / U_kk,   w_j -= e U_kj  for all j > k

(Frantar et al., "GPTQ", 2023, algorithm 1, with its lazy updates in blocks of features.) Two things are done beyond
it. The scale of a group is searched when its turn comes, on the weights as they are by then, with each error weighted
by 1 / U_kk²: that is what the recurrence itself pays for it. And the result is the start of `descend`, which goes on
over codes and scales until nothing moves. Without statistics it is `mse`.
"""

from __future__ import annotations

import numpy as np

from edgeq.types import PerTensor, QSpec, QTensor, Stats
from edgeq.weights import mse
from edgeq.weights.descent import descend
from edgeq.weights.rows import hessian, rows

NEEDS_DATA = True


def quantize(
    w: np.ndarray, spec: QSpec, stats: Stats | None = None, damping: float | None = None, act_order: bool = False,
    static_groups: bool = False, block: int = 128, sweeps: int = 10, candidates: int = 20,
) -> QTensor:  # fmt: skip
    """Codes of `w` that give the least error of the layer's output on the data that `stats` are of.

    damping: λ over the mean of diag(H), None as `hessian` has it. act_order: features of large H_kk first; it implies
    static_groups, where all scales are chosen before the first rounding. block: features between two updates of all
    others. sweeps: of `descend`, 0 for the published algorithm. candidates: ranges tried for a scale.
    Raises ModelError for an empty or non-finite weight, RecipeError when statistics do not fit the weight.
    """
    if stats is None:
        return mse.quantize(w, spec, candidates=candidates)
    found = rows(w, spec)
    x, group = found.x, found.group
    h = hessian(stats, found.features, len(x), damping)
    groups, shared = len(x) // group, isinstance(spec.granularity, PerTensor)
    scale, zero = np.empty((groups, x.shape[1]), np.float32), np.empty((groups, x.shape[1]), np.int32)
    order = np.argsort(-h.diagonal(), kind="stable") if act_order else np.arange(len(x))
    u = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    static = static_groups or act_order or shared
    if shared:
        params = mse.quantize(w, spec, candidates=candidates).params
        scale[:], zero[:] = params.scale, params.zero_point
    elif static:
        for b in range(groups):
            part = slice(b * group, (b + 1) * group)
            scale[b], zero[b] = _search(x[part], h.diagonal()[part], spec, candidates)

    def choose(b: int, now: np.ndarray, u: np.ndarray) -> None:
        if not static:
            scale[b], zero[b] = _search(now, u.diagonal() ** -2, spec, candidates)

    codes = _recurrence(x[order], u, scale, zero, order // group, spec, max(block, 1), choose)
    codes = codes[np.argsort(order)]
    descend(x, codes, scale, zero, h, spec, sweeps, scales=not shared)
    return found.pack(codes, scale, zero)


def _search(x: np.ndarray, importance: np.ndarray, spec: QSpec, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each column of x (group, N), errors weighted by `importance` (group,)."""
    h = np.broadcast_to(importance.astype(np.float32), x.shape[::-1])
    return mse.search(np.ascontiguousarray(x.T), h, spec, np.linspace(1.0, 0.35, candidates), True)


def _recurrence(x, u, scale, zero, group_of, spec, block, choose):  # type: ignore[no-untyped-def]
    """Codes (K, N), less their zero point, of x (K, N), whose features come in the order of u's."""
    x, u = x.astype(np.float32), u.astype(np.float32)
    codes = np.empty_like(x)
    group = len(x) // len(scale)
    for start in range(0, len(x), block):
        stop = min(start + block, len(x))
        errors = np.zeros((stop - start, x.shape[1]), np.float32)
        for k in range(start, stop):
            b = group_of[k]
            if k % group == 0:
                now = x[k : k + group]
                if k + group > stop:  # its end has not seen this block's errors yet
                    now = now.copy()
                    now[stop - k :] -= u[start:k, stop : k + group].T @ errors[: k - start]
                choose(b, now, u[k : k + group, k : k + group])
            c = np.clip(np.rint(x[k] / scale[b]), spec.qmin - zero[b], spec.qmax - zero[b])
            error = (x[k] - c * scale[b]) / u[k, k]
            x[k + 1 : stop] -= u[k, k + 1 : stop, None] * error
            codes[k], errors[k - start] = c, error
        x[stop:] -= u[start:stop, stop:].T @ errors
    return codes
