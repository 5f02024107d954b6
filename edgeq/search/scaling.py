"""Inputs of layers divided by what their weight algorithm asks for, and their weights multiplied: the same function.

The scales that AWQ searches go into what computes the input (`edgeq/graph/folding.py`), so that nothing is added to the
graph. Where that can't be, the plan says so, and the weight is rounded as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.collecting.layerwise import Layer, walk_layers
from edgeq.collecting.shards import chosen
from edgeq.data import Dataset
from edgeq.graph.edit import Names
from edgeq.graph.folding import divide, scale_inputs, unfolded
from edgeq.planning.planner import plan
from edgeq.recipe import Recipe
from edgeq.target import Target
from edgeq.types import Progress
from edgeq.weights import algorithm

SAMPLES = 32  # enough for means of features, and for the order of eleven errors


def scale(
    model: ir.Model, target: Target, recipe: Recipe, data: Dataset | None, work: Path, progress: Progress
) -> None:
    """Rewrite the prepared model in place, where layers' algorithms have an `input_scale` and there is data."""
    made = plan(model, target, recipe)
    nodes = {node.name: node for node in model.graph}
    asking = tuple(w for w in made.weights if hasattr(algorithm(w.algorithm), "input_scale") and w.node in nodes)
    asking = tuple(w for w in asking if w.index == 1 and not unfolded(nodes[w.node], model))
    if data is None or not asking:
        return

    def value(layer: Layer) -> str:
        return nodes[layer.plan.node].inputs[0].name or ""  # type: ignore[union-attr]

    found: dict[str, np.ndarray] = {}
    walk = walk_layers(replace(made, weights=asking), model, chosen(data, recipe).take(SAMPLES), work, sequential=False)
    for name, layers in groupby(walk, value):
        same = [layer for layer in layers if layer.stats is not None]
        if not same:
            continue  # one scale for a whole weight, which no statistics serve
        search: Callable[..., np.ndarray | None] = algorithm(same[0].plan.algorithm).input_scale
        best = search([(layer.weight, layer.plan.spec) for layer in same], same[0].stats)
        if best is not None:
            found[name] = best
        progress("scale", len(found), None)
    names = Names(model)
    for name, factors in found.items():
        shared = next(v for node in nodes.values() for v in node.inputs if v is not None and v.name == name)
        readers = list(dict.fromkeys(use.node for use in shared.uses()))
        assert not divide(shared, factors, readers, names)
        for reader in readers:
            scale_inputs(reader, factors, names)
