"""Measure an artifact file against its reference, on a target's runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeq import recipe as recipes
from edgeq import target as targets
from edgeq.data import open_data
from edgeq.errors import ModelError
from edgeq.graph import io
from edgeq.recipe import Recipe
from edgeq.report.schema import Verification
from edgeq.runners.places import Place, of_target
from edgeq.target import Target
from edgeq.types import Progress, silent
from edgeq.verifying.scores import MetricFunction
from edgeq.verifying.verify import Budget, Keep, verify


def verify_files(
    reference: str | os.PathLike[str],
    quantized: str | os.PathLike[str],
    target: str | Target = "x86_64",
    data: Any = None,
    *,
    boards: Sequence[Place] = (),
    strict: bool = False,
    proof: bool = False,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    labels: str | None = None,
    metric: str | MetricFunction | None = None,
    budget: Budget | None = None,
    layers: bool = False,
    at_levels: bool = True,
    keep: Keep = lambda feeds, outputs: None,
    recorded: Path | None = None,
    streams: int = 1,
    progress: Progress = silent,
) -> Verification:
    """Measure an artifact against its reference; see `edgeq.verifying.verify.verify`.

    target: "x86_64,arm64,web" runs the artifact everywhere, and the first is what the others are compared with.
    The worst layers are measured when asked for, and when the budget is not met. recipe: says how images become
    samples, and which state is fed back.
    """
    left, right = Path(reference), Path(quantized)
    aim, *more = [targets.load(name) for name in target.split(",")] if isinstance(target, str) else [target]
    source, made = io.load(left), io.load(right) if right.suffix != ".tflite" else None
    asked = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else recipes.load(recipe)
    dataset = open_data(data, io.input_shapes(source), asked.preprocess, [into for _, into in asked.state])
    missing = [n for n in io.input_shapes(made) if n not in io.input_shapes(source)] if made is not None else []
    if missing:
        raise ModelError(f"{right}: has input {missing[0]!r}, which {left} does not: these are different models")

    return verify(
        left,
        right,
        aim,
        dataset,
        places=[*(of_target(other, strict) for other in more), *boards],
        strict=strict,
        proof=proof,
        labels=labels,
        metric=metric,
        budget=budget,
        layers=shared_layers(source, made) if made is not None else (),
        layers_on_failure=not layers,
        at_levels=at_levels,
        state=asked.state,
        keep=keep,
        recorded=recorded,
        streams=streams,
        progress=lambda n: progress("verify", n, dataset.count),
    )


def shared_layers(reference: ir.Model, quantized: ir.Model) -> list[tuple[str, str, str]]:
    """(node, op, value) of float values that both main graphs compute under one name, Q and DQ aside."""
    there = {
        v.name
        for n in reference.graph
        for v in n.outputs
        if v.dtype in (None, ir.DataType.FLOAT) and not v.is_graph_output()
    }
    return [
        (n.name or "", n.op_type, v.name or "")
        for n in quantized.graph
        for v in n.outputs
        if v.name in there and v.dtype == ir.DataType.FLOAT and n.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]
