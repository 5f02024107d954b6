"""What rounding took from a layer's output, added back by few numbers of full precision.

    E = W - W',  H = E x xᵀ = S Sᵀ
    outliers   y += x[…, f] R    R = H_ff⁻¹ H_f: E                   the best for the features f, by least squares
    low rank   y += (x L) R      L R = S⁻ᵀ (Sᵀ E)_r                  the best of rank r: (·)_r is the truncated SVD

both of them the argmin of tr (E - L R)ᵀ H (E - L R). (LLM.int8(), Dettmers et al., 2022, leaves outlying features out
of the integer product; ZeroQuant-V2, Yao et al., 2023, section 4, adds the SVD of E, here in the metric of the inputs,
as LQER, Zhang et al., 2024.) Without data H is the identity. Weights are (K, N) here, whatever their layout is.
"""

from __future__ import annotations

import numpy as np

from edgeq.types import Correction, QSpec, Stats
from edgeq.weights.rows import hessian, rows

DAMPING = 0.01


def outlying(w: np.ndarray, spec: QSpec, stats: Stats | None, share: float) -> np.ndarray:
    """int64, ascending: the `share` of the features k that give the output most, H_kk Σ w_k²."""
    found = rows(w, spec)
    given = (found.x[: found.features].astype(np.float64) ** 2).sum(1)
    if stats is not None:
        given *= hessian(stats, found.features, found.features, 0.0).diagonal()
    return np.sort(np.argsort(-given, kind="stable")[: round(share * found.features)])


def without(w: np.ndarray, spec: QSpec, features: np.ndarray) -> np.ndarray:
    """The weight with 0 for all weights of those features, so that no group's range need hold them."""
    found = rows(w, spec)
    kept = found.x[: found.features].copy()
    kept[features] = 0
    return found.layout(kept)


def corrections(
    w: np.ndarray, real: np.ndarray, spec: QSpec, stats: Stats | None, features: np.ndarray, rank: int
) -> tuple[tuple[Correction, ...], np.ndarray]:
    """The corrections that a layer gets, outliers first, and the weight that it has with them, in the layout of `w`.

    real: what its codes stand for. features: of the outliers, may be empty. rank: of the low-rank part, may be 0.
    """
    of, now = rows(w, spec), rows(real, spec)
    k = of.features
    lacking = (of.x[:k] - now.x[:k]).astype(np.float64)
    h = np.eye(k) if stats is None else hessian(stats, k, k, DAMPING)
    found = []
    if features.size:
        right = np.linalg.solve(h[np.ix_(features, features)], h[features] @ lacking)
        found.append(Correction(features, right.astype(np.float32)))
        lacking[features] -= right
    rank = min(rank, *lacking.shape)
    if rank:
        s = np.linalg.cholesky(h)
        scaled = s.T @ lacking
        u = np.linalg.eigh(scaled @ scaled.T)[1][:, : -rank - 1 : -1]
        left, right = np.linalg.solve(s.T, u), u.T @ scaled
        share = np.sqrt(np.abs(right).max() / max(float(np.abs(left).max()), 1e-30)) or 1.0  # alike in size
        found.append(Correction((left * share).astype(np.float32), (right / share).astype(np.float32)))
        lacking -= left @ right
    return tuple(found), of.layout((of.x[:k] - lacking).astype(np.float32))
