"""Calibration without data: synthetic inputs, and activations as BatchNormalization remembers them of training.

A BatchNormalization in inference form was trained so that its output has mean β and standard deviation |γ| in each
channel. A calibration run on noise keeps to that: the value x that stands for the output becomes

    |γ| (√½ x̂ + √½ u) + β

with x̂ = (x - mean) / std over the space of each sample and channel, and u ~ N(0, 1) drawn once a sample and channel.
Without u all samples would have the same mean in every channel, which averages over space would turn into a range of
no width. (Nagel et al., "Data-Free Quantization", 2019, section 4.2.1, take β ± 6 |γ| for the range of one such
output; run through the network, the same statistics serve every calibrator, and what lies between the norms.)
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.data import Dataset, Feeds
from edgeq.data.images import convert
from edgeq.errors import CalibrationError
from edgeq.graph import io
from edgeq.graph.edit import Names, add_initializer, insert_after, make_node, rank
from edgeq.recipe import Preprocess, Recipe

SAMPLES = 32
SIDE, LENGTH = 224, 32  # of free dimensions: the last two of four, and all others but the first
_MOVES = ("Cast", "Identity", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Clip", "Where", "Transpose")
_SCALES = (1, 4, 16, 64)  # pixels of one random value: pictures are alike at every scale

Moments = dict[str, tuple[np.ndarray, np.ndarray]]
"""Value → (β, |γ|) of its channels."""


def batch_moments(model: ir.Model) -> Moments:
    """What the BatchNormalizations of a model remember of their outputs, before they are folded away."""
    found: Moments = {}
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.attributes.get_int("training_mode", 0) == 1:
            continue
        gamma, beta = (ir.convenience.get_const_tensor(v) for v in node.inputs[1:3] if v is not None)
        if gamma is not None and beta is not None:
            found[node.outputs[0].name or ""] = (
                beta.numpy().astype(np.float32),
                np.abs(gamma.numpy(), dtype=np.float32),
            )
    return found


def renormalized(path: Path, moments: Moments, target: Path) -> dict[str, tuple[int, ...]]:
    """Write a copy of the prepared model in which the values of `moments` follow them; gives {input of u: its shape}.

    A value that the prepared model no longer has, or that has no space to take a mean over, is left as it is.
    """
    model = io.load(path)
    names, drawn = Names(model), {}
    for node in list(model.graph):
        for value in node.outputs:
            if value.name in moments and (rank(value) or 0) > 2 and not value.is_graph_output():
                shift = _renormalize(model, value, *moments[value.name], names)
                drawn[shift.name or ""] = tuple(shift.shape or ())
    io.save(model, target)
    return drawn  # type: ignore[return-value]


def _renormalize(model: ir.Model, value: ir.Value, beta: np.ndarray, gamma: np.ndarray, names: Names) -> ir.Value:
    graph, name, uses = model.graph, value.name or "", list(value.uses())
    value.name = names.new(f"{name}_raw")
    half = (gamma * np.sqrt(0.5)).astype(np.float32)
    column = (1, len(gamma), *[1] * ((rank(value) or 0) - 2))
    shift = ir.Value(name=names.new(f"{name}_u"), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(column))
    graph.inputs.append(shift)
    constants = [add_initializer(graph, names.new(f"{name}_{k}"), a) for k, a in (("scale", half), ("mean", beta))]
    spread = add_initializer(graph, names.new(f"{name}_spread"), half.reshape(column))
    steps = [make_node("InstanceNormalization", [value, *constants], names.new(f"{name}_n"), value.dtype, value.shape)]
    steps.append(make_node("Mul", [shift, spread], names.new(f"{name}_s"), value.dtype, shift.shape))
    steps.append(make_node("Add", [steps[0].outputs[0], steps[1].outputs[0]], name, value.dtype, value.shape))
    insert_after(value, graph, *steps)
    for use in uses:
        use.node.replace_input_with(use.idx, steps[-1].outputs[0])
    return shift


def synthetic(model: ir.Model, drawn: dict[str, tuple[int, ...]], recipe: Recipe) -> Dataset:
    """`SAMPLES` seeded samples for the inputs of a prepared model, and N(0, 1) for those in `drawn`.

    Float inputs are N(0, 1), smooth where they are pictures, or random pixels made ready by the recipe's `preprocess`.
    Integers are rows of the embedding that they select from, else 1; booleans are true. Free dimensions are 1 for the
    first axis, else `SIDE` or `LENGTH`, the same for the same name.
    """
    fed_back = {into for _, into in recipe.state}
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers and v.name not in fed_back]

    def get(index: int) -> Feeds:
        rng = np.random.default_rng([recipe.seed % 2**64, index])
        feeds = {v.name or "": _draw(v, recipe.preprocess, rng) for v in inputs}
        return feeds | {name: rng.standard_normal(shape, np.float32) for name, shape in drawn.items()}

    norms = f"BatchNormalization statistics of {len(drawn)} values, " if drawn else ""
    return Dataset.indexed(f"data-free: {norms}{SAMPLES} synthetic inputs", get, SAMPLES)


def _draw(value: ir.Value, how: Preprocess | None, rng: np.random.Generator) -> np.ndarray:
    if value.shape is None or value.dtype is None:
        raise CalibrationError(f"input {value.name!r} has no known shape, so no data can be made up: give --calib")
    size = len(value.shape)
    free = [1] + [SIDE if size == 4 and axis > 1 else LENGTH for axis in range(1, size)]
    shape = [dim if isinstance(dim, int) else free[axis] for axis, dim in enumerate(value.shape)]
    dtype = value.dtype.numpy()
    if value.dtype == ir.DataType.BOOL:
        return np.ones(shape, dtype)
    if value.dtype.is_integer():
        rows = _embedding_rows(value)
        return np.ones(shape, dtype) if rows is None else rng.integers(0, rows, shape).astype(dtype)
    if size != 4:
        return rng.standard_normal(shape, np.float32).astype(dtype)
    if how is None:
        return _picture(shape, rng).astype(dtype)
    height, width = shape[1:3] if how.layout == "NHWC" else shape[2:]
    noise = _picture([1, 1 if how.channels == "gray" else 3, height, width], rng)[0].transpose(1, 2, 0)
    return convert(np.clip(noise * 64 + 128, 0, 255).astype(np.uint8), how).astype(dtype)


def _picture(shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """Noise of several scales over the last two axes, N(0, 1) at every pixel."""
    height, width = shape[2:]
    total = np.zeros(shape, np.float32)
    for scale in _SCALES:
        noise = rng.standard_normal((*shape[:2], -(-height // scale), -(-width // scale)), np.float32)
        total += noise.repeat(scale, 2).repeat(scale, 3)[:, :, :height, :width]
    return total / np.float32(np.sqrt(len(_SCALES)))


def _embedding_rows(value: ir.Value) -> int | None:
    """How many rows the smallest constant table has that the value selects from."""
    rows: list[int] = []
    seen, queue = {value}, deque([value])
    while queue:
        for use in queue.popleft().uses():
            node, table = use.node, use.node.inputs[0]
            if node.op_type == "Gather" and use.idx == 1 and table is not None and table.const_value is not None:
                rows.append(table.const_value.numpy().shape[node.attributes.get_int("axis", 0)])
            elif node.op_type in _MOVES and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                queue.append(node.outputs[0])
    return min(rows, default=None)
