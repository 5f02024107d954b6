"""BatchNorm of layers that it is folded into already, while they are trained with fake quantization.

A convolution is trained as

    y = γ · (conv(x, w) - μ) / σ + β          μ, σ of each channel: of the batch; in evaluation their running averages

(Ioffe and Szegedy, 2015) and starts as the layer that it was: γ and β are the deviation and the mean of the float
layer's outputs. What rounding moves and spreads is so taken back at each step. `freeze` folds it: weights, and the
scales of their codes, are multiplied by γ / σ, which leaves the codes what they are (Jacob et al., 2018, section 3.2,
folds before the weights are rounded, and needs a second convolution for it).

Running averages lag behind weights that still jump between two codes: `reestimate` measures them anew when all is
trained (Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", 2022, section 2.3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from edgeq.train.graph import TorchGraph
from edgeq.train.ops import conv

EPSILON, MOMENTUM = 1e-5, 0.1


class Normed(nn.Module):
    """In place of a convolution's operator. Its bias is β."""

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter((variance + EPSILON).sqrt())
        self.register_buffer("mean", mean.clone())
        self.register_buffer("variance", variance.clone())
        self.momentum = MOMENTUM

    def gain(self) -> Tensor:
        """What each channel of weights is multiplied by."""
        found: Tensor = self.gamma.abs() / (self.variance + EPSILON).sqrt()
        return found

    def forward(self, node: ir.Node, x: Tensor, weight: Tensor, beta: Tensor) -> Tensor:
        return functional.batch_norm(
            conv(node, x, weight),
            self.mean,
            self.variance,
            self.gamma.abs(),
            beta,
            self.training,
            self.momentum,
            EPSILON,
        )


def normable(graph: TorchGraph) -> list[ir.Node]:
    """The convolutions over more than one place, with a weight and a bias of their own."""
    own = graph.float_constants()
    found = []
    for node in graph.model.graph:
        places = list(node.outputs[0].shape or ())[2:]
        if node.op_type != "Conv" or len(node.inputs) < 3 or (places and all(size == 1 for size in places)):
            continue
        if all(v is not None and v.name in own and len(v.uses()) == 1 for v in node.inputs[1:]):
            found.append(node)
    return found


def normalize(graph: TorchGraph, nodes: list[ir.Node], calls: Iterable[object]) -> dict[str, Normed]:
    """Put BatchNorm in place of convolutions; its numbers are of what `calls` of the graph, one by one, give."""
    names = [node.outputs[0].name or "" for node in nodes]
    sums = dict.fromkeys(names, torch.zeros(()))
    squares, counts = dict(sums), dict.fromkeys(names, 0)
    graph.kept = dict.fromkeys(names, torch.empty(0))
    for _ in calls:
        for name, value in graph.kept.items():
            channels = value.detach().double().movedim(1, 0).flatten(1)
            sums[name], squares[name] = sums[name] + channels.sum(1), squares[name] + channels.square().sum(1)
            counts[name] += channels.shape[1]
    graph.kept = {}
    made = {}
    for node, name in zip(nodes, names, strict=True):
        if not counts[name]:
            continue
        mean = sums[name] / counts[name]
        variance = (squares[name] / counts[name] - mean.square()).clamp(min=0)
        beta = graph.constant(node.inputs[2].name or "")  # type: ignore[union-attr]
        made[node.name or ""] = Normed(mean.float() - beta.detach(), variance.float())
        beta.data = mean.float()
    graph.instead |= made
    graph.add_module("norms", nn.ModuleDict({f"n{index}": norm for index, norm in enumerate(made.values())}))
    graph.train(graph.training)
    return made


def reestimate(module: nn.Module, calls: Iterable[object]) -> None:
    """Replace running averages, torch's BatchNorm's too, by the plain mean over `calls` of the module, one by one.

    calls: made only if there are any averages.
    """
    norms: list[Any] = [m for m in module.modules() if isinstance(m, Normed | _BatchNorm)]
    if not norms:
        return
    training, before = module.training, [norm.momentum for norm in norms]
    module.train()
    with torch.no_grad():
        left, seen = iter(calls), 0
        while True:
            seen += 1
            for norm in norms:
                norm.momentum = 1 / seen
            if next(left, None) is None:
                break
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    module.train(training)


def freeze(graph: TorchGraph) -> None:
    """Fold what `normalize` put in. Outputs stay as they were, but for biases' rounding; training may go on."""
    for node in graph.model.graph:
        norm = graph.instead.get(node.name or "")
        if not isinstance(norm, Normed):
            continue
        weight, beta = (v.name or "" for v in node.inputs[1:] if v is not None)
        with torch.no_grad():
            gain = norm.gain()
            channels = graph.constant(weight)
            channels.mul_(gain.reshape(-1, *[1] * (channels.dim() - 1)))
            graph.constant(beta).sub_(gain * norm.mean)
            if (quantizer := graph.quantizer(weight)) is not None:
                quantizer.rescale(gain)
        del graph.instead[node.name or ""]
