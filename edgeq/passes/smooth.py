"""SmoothQuant: outlying channels of a linear layer's input hand some of their range over to the weight.

    X W = (X S⁻¹)(S W),      s_j = max|X_j|^α / max|W_j|^(1-α)

S⁻¹ goes into what computes X where that is exact: a normalization's scale and bias, a linear layer, a constant factor
or summand, through Relu and one side of a product. Where X is read elsewhere too (a residual), or nothing can take it
in, a Mul is put in front of the linear layers alone. (Xiao et al., "SmoothQuant", 2023, equations 3 and 4.)

α is searched a value, with the error that the layers' outputs would get from both roundings:

    Δx²/12 Σ (s W)² + tr E H' Eᵀ,    Δx = (max X/s - min X/s) / 255,  E = s W - round(s W),  H' = S⁻¹ E[x xᵀ] S⁻¹
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, constant, make_node
from edgeq.numerics.affine import fake_quantize, qparams, weight_ranges
from edgeq.passes.equalize import put
from edgeq.types import PerChannel, QSpec, Stats

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WORTH = 0.8  # of the error: what is left must be less for a change to pay
_LEVELS = 255
_WEIGHTS = QSpec("int8", narrow=True, granularity=PerChannel(1))
_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def candidates(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Value → the MatMuls and Gemms of the main graph that multiply it by a constant matrix."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm") or node.domain != "" or node.attributes.get_int("transA", 0) != 0:
            continue
        weight, data = constant(node.inputs[1]), node.inputs[0]
        if weight is not None and weight.ndim == 2 and data is not None and data.const_value is None:
            found.setdefault(data.name or "", []).append(node)
    return found


def matrix(node: ir.Node) -> np.ndarray:
    """The weight, (inputs K, outputs N)."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight.T if node.attributes.get_int("transB", 0) else weight


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


def search(lo: np.ndarray, hi: np.ndarray, weights: Sequence[np.ndarray], stats: Stats) -> np.ndarray | None:
    """The best s of `ALPHAS`, or None when none leaves less than `WORTH` of the error."""
    peak = np.maximum(hi, -lo)
    tried = [scales(peak, weights, alpha) for alpha in ALPHAS]
    errors = [expected_error(lo, hi, weights, stats, s) for s in tried]
    before = expected_error(lo, hi, weights, stats, np.ones(len(peak), np.float32))
    best = int(np.argmin(errors))
    return tried[best] if errors[best] < WORTH * before else None


def smooth(model: ir.Model, found: Mapping[str, np.ndarray]) -> ir.Model:
    """Rewrite in place and return the model. found: value of `candidates` → s, (K,)."""
    names = Names(model)
    readers = candidates(model)
    for name, scale in found.items():
        nodes = readers[name]
        value = nodes[0].inputs[0]
        assert value is not None
        if not _divide(value, scale, set(nodes), names, dry=False):
            _multiply(model, value, nodes, 1 / scale, names)
        for node in nodes:
            scaled = matrix(node) * scale[:, None]
            put(node, 1, scaled.T if node.attributes.get_int("transB", 0) else scaled, names)
    return model


def _multiply(model: ir.Model, value: ir.Value, nodes: Sequence[ir.Node], by: np.ndarray, names: Names) -> None:
    factor = add_initializer(model.graph, names.new(f"{value.name}_smoothing"), by.astype(np.float32))
    mul = make_node("Mul", [value, factor], names.new(f"{value.name}_smooth"), value.dtype, value.shape)
    first = next(node for node in model.graph if node in set(nodes))
    model.graph.insert_before(first, mul)
    for node in nodes:
        node.replace_input_with(0, mul.outputs[0])


def _divide(value: ir.Value, scale: np.ndarray, readers: set[ir.Node], names: Names, dry: bool) -> bool:
    """Let the value's producers give value / scale, if nobody but `readers` sees it; dry: only say whether they can."""
    if not dry and not _divide(value, scale, readers, names, dry=True):
        return False
    node = value.producer()
    if node is None or value.is_graph_output() or any(use.node not in readers for use in value.uses()):
        return False
    if node.op_type in _NORMALIZATIONS:
        return _into_constants(node, range(1, len(node.inputs)), scale, names, dry)
    if node.op_type in ("MatMul", "Gemm") and node.domain == "":
        weight = constant(node.inputs[1])
        if weight is None or weight.ndim != 2 or matrix(node).shape[1] != len(scale):
            return False
        if len(node.inputs) > 2 and not _into_constants(node, [2], scale, names, dry):
            return False
        if not dry:
            divided = matrix(node) / scale
            put(node, 1, divided.T if node.attributes.get_int("transB", 0) else divided, names)
        return True
    if node.op_type == "Relu":
        return _divide(node.inputs[0], scale, {node}, names, dry)  # type: ignore[arg-type]
    if node.op_type not in ("Mul", "Add") or len(node.inputs) != 2:
        return False
    fixed = [i for i in (0, 1) if constant(node.inputs[i]) is not None]
    if node.op_type == "Mul" and fixed:
        return _into_constants(node, fixed, scale, names, dry)
    if node.op_type == "Mul":
        return any(_divide(v, scale, {node}, names, dry) for v in node.inputs)  # type: ignore[arg-type]
    if not fixed or not _into_constants(node, fixed, scale, names, dry=True):
        return False
    other = node.inputs[1 - fixed[0]]
    assert other is not None
    return _divide(other, scale, {node}, names, dry) and _into_constants(node, fixed, scale, names, dry)


def _into_constants(node: ir.Node, indices: Sequence[int] | range, scale: np.ndarray, names: Names, dry: bool) -> bool:
    """Divide constant vectors of as many elements as there are scales, all or none."""
    arrays = {i: constant(node.inputs[i]) for i in indices if node.inputs[i] is not None}
    if any(a is None or a.size != len(scale) or a.shape[-1:] != scale.shape for a in arrays.values()):
        return False
    if not dry:
        for index, array in arrays.items():
            put(node, index, array / scale, names)
    return True
