"""What the rounding of each node alone does to the model's outputs, in one session that can switch each of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.data import Dataset, Feeds
from edgeq.graph import io
from edgeq.passes.switched import INPUT, switched
from edgeq.planning.coverage import macs
from edgeq.planning.plan import Plan
from edgeq.processors import processors
from edgeq.registry import load
from edgeq.report.schema import Sensitivity
from edgeq.types import PerBlock, Progress, QTensor, Solution, silent

SAMPLES = 4
SHAPING = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze")
SLIGHT = 0.25  # of the mean over nodes, on the first sample: one under it is not looked at again


def sensitivity(
    model: ir.Model, plan: Plan, solution: Solution, data: Dataset, work: Path, progress: Progress = silent
) -> tuple[Sensitivity, ...]:
    """A row for each node that rounds something, the most harmful first.

    Errors are taken before a Softmax that makes an output: behind it they are those of the few rows that flip, which
    neither add up nor show in a handful of samples.

    error: mean squared change of the float outputs when this node alone is rounded, over their variance; summed over
    outputs, averaged over the first `SAMPLES` samples, or the first one's where it is `SLIGHT`. model: prepared; it
    stays as it is.
    """
    made, names = switched(model, plan, solution)
    if not names:
        return ()
    before_softmax(made)
    path = work / ".switched.onnx"
    io.save(made, path)
    session = load("edgeq.runners", "cpu").open_session(path, optimization="basic", threads=processors())
    samples = list(islice(data.take(SAMPLES).unpadded(), SAMPLES))
    errors, places = np.zeros((len(samples), len(names))), np.arange(len(names))
    for index, feeds in enumerate(samples):
        wanted = session.run({**feeds, INPUT: np.zeros(len(names), np.bool_)})
        for place in places:
            got = session.run({**feeds, INPUT: np.arange(len(names)) == place})
            errors[index:, place] = output_change(wanted, got)
            progress("sensitivity", index * len(names) + int(place) + 1, len(samples) * len(names))
        places = np.flatnonzero(errors[0] > SLIGHT * errors[0].mean())
    session.close()
    path.unlink()
    nodes = {n.name: n for n in model.graph}
    mean = errors.sum(0) / max(len(samples), 1)
    order = np.argsort(-mean, kind="stable")
    decisions, sizes = {n.name: n.decision for n in plan.nodes}, dict.fromkeys(names, (0, 0))
    for weight in plan.weights:
        if weight.node in sizes:
            tensor, before = solution.weights[weight.node, weight.index], sizes[weight.node]
            sizes[weight.node] = before[0] + stored_bytes(tensor), before[1] + 4 * tensor.data.size
    return tuple(
        Sensitivity(n, nodes[n].op_type, float(mean[i]), macs(nodes[n]), decisions[n], *sizes[n])
        for i, n in ((i, names[i]) for i in order)
    )


def before_softmax(model: ir.Model) -> None:
    """Give the logits in the place of outputs that a Softmax makes of them, where nothing else is given."""
    for index, output in enumerate(model.graph.outputs):
        producer = output.producer()
        while producer is not None and producer.op_type in SHAPING:
            producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
        if producer is not None and producer.op_type in ("Softmax", "LogSoftmax"):
            logits = producer.inputs[0]
            if logits is not None and logits.producer() is not None and not logits.is_graph_output():
                model.graph.outputs[index] = logits


def stored_bytes(tensor: QTensor) -> int:
    """What codes and scales take; scales of blocks are float16 (see `edgeq/passes/weight_only.py`), others float32."""
    scale = 2 if isinstance(tensor.params.spec.granularity, PerBlock) else 4
    return tensor.data.size * tensor.params.spec.bits // 8 + scale * tensor.params.scale.size


def output_change(wanted: Feeds, made: Feeds) -> float:
    """Mean squared change of each float output over its variance, summed over them."""
    pairs = zip(_floats(wanted), _floats(made), strict=True)
    return float(sum(np.mean((a - b) ** 2) / (a.var() + 1e-30) for a, b in pairs))


def _floats(outputs: Feeds) -> list[np.ndarray]:
    return [np.asarray(v, np.float64) for v in outputs.values() if np.issubdtype(v.dtype, np.floating)]
