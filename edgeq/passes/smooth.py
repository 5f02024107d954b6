"""SmoothQuant: outlying channels of a linear layer's input hand some of their range over to the weight.

    X W = (X S⁻¹)(S W),      s_j = max|X_j|^α / max|W_j|^(1-α)

S⁻¹ goes into what computes X where `graph/folding.py` finds a way. Where X is read elsewhere too (a residual), or
nothing can take it in, a Mul is put in front of the linear layers alone. (Xiao et al., "SmoothQuant", 2023, equations 3
and 4.)

α is searched a value, with the error that the layers' outputs would get: of static quantization, from both roundings,

    Δx²/12 Σ (s W)² + tr E H' Eᵀ,    Δx = (max X/s - min X/s) / 255,  E = s W - round(s W),  H' = S⁻¹ E[x xᵀ] S⁻¹
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, make_node
from edgeq.graph.folding import divide, linear, scale_inputs
from edgeq.numerics.affine import fake_quantize, qparams, weight_ranges
from edgeq.types import PerChannel, QSpec, Stats

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WORTH = 0.8  # of the error: what is left must be less for a change to pay
_LEVELS = 255
_WEIGHTS = QSpec("int8", narrow=True, granularity=PerChannel(1))


def candidates(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Value → the MatMuls and Gemms of the main graph that multiply it by a constant matrix."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if linear(node):
            found.setdefault(node.inputs[0].name or "", []).append(node)  # type: ignore[union-attr]
    return found


def scales(peak: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """s, float32 (K,), of geometric mean 1; 1 for a channel that is always 0 or meets no weight. peak: max |X_j|."""
    reach = np.max([np.abs(w).max(1) for w in weights], axis=0).astype(np.float64)
    alive = (peak > 0) & (reach > 0)
    found = np.ones(len(peak))
    found[alive] = np.asarray(peak, np.float64)[alive] ** alpha / reach[alive] ** (1 - alpha)
    if alive.any():
        found[alive] /= np.exp(np.log(found[alive]).mean())
    return found.astype(np.float32)


def expected_error(
    lo: np.ndarray, hi: np.ndarray, weights: Sequence[np.ndarray], stats: Stats, scale: np.ndarray
) -> float:
    """Mean squared error of the layers' outputs, summed over them; lo, hi: extrema of each channel of X, (K,)."""
    step = (max(float((hi / scale).max()), 0.0) - min(float((lo / scale).min()), 0.0)) / _LEVELS
    h = stats.gram / max(stats.count, 1) / np.outer(scale, scale)
    total = 0.0
    for weight in weights:
        scaled = weight * scale[:, None]
        error = (scaled - fake_quantize(scaled, qparams(*weight_ranges(scaled, PerChannel(1)), _WEIGHTS))).astype(float)
        total += step**2 / 12 * float((scaled.astype(float) ** 2).sum()) + float(np.einsum("kn,kn->", error, h @ error))
    return total


def search(
    lo: np.ndarray, hi: np.ndarray, weights: Sequence[np.ndarray], error: Callable[[np.ndarray], float]
) -> np.ndarray | None:
    """The best s of `ALPHAS`, or None when none leaves less than `WORTH` of the error, such as `expected_error`."""
    peak = np.maximum(hi, -lo)
    tried = [scales(peak, weights, alpha) for alpha in ALPHAS]
    errors = [error(s) for s in tried]
    best = int(np.argmin(errors))
    return tried[best] if errors[best] < WORTH * error(np.ones(len(peak), np.float32)) else None


def smooth(model: ir.Model, found: Mapping[str, np.ndarray]) -> ir.Model:
    """Rewrite in place and return the model. found: value of `candidates` → s, (K,)."""
    names = Names(model)
    readers = candidates(model)
    for name, scale in found.items():
        nodes = readers[name]
        value = nodes[0].inputs[0]
        assert value is not None
        if divide(value, scale, nodes, names):
            _multiply(model, value, nodes, 1 / scale, names)
        for node in nodes:
            scale_inputs(node, scale, names)
    return model


def _multiply(model: ir.Model, value: ir.Value, nodes: Sequence[ir.Node], by: np.ndarray, names: Names) -> None:
    factor = add_initializer(model.graph, names.new(f"{value.name}_smoothing"), by.astype(np.float32))
    mul = make_node("Mul", [value, factor], names.new(f"{value.name}_smooth"), value.dtype, value.shape)
    first = next(node for node in model.graph if node in set(nodes))
    model.graph.insert_before(first, mul)
    for node in nodes:
        node.replace_input_with(0, mul.outputs[0])
