"""Brevitas on the rows of `benchmarks.training`: `python -m benchmarks.peers.brevitas_qat [--epochs 12]`.

Run by a Python that has brevitas beside torch, onnx and scikit-learn. The same network from the same float weights, the
same pictures, passes, rate and teacher; weights per channel, asymmetric activations at the inputs of linear layers, and
the first and last layer in 8 bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import onnx
import torch
from brevitas.quant import Int8WeightPerChannelFloat, ShiftedUint8ActPerTensorFloat
from onnx import numpy_helper
from torch import nn

from benchmarks.training import BATCH, VALIDATION, data
from edgeq.train.fit import Fit, fit
from sample_models.digits import Digits, augment

MODEL = Path(__file__).resolve().parents[2] / "sample_models" / "digits.onnx"


def network() -> Digits:
    """The float network with the weights of the sample's file."""
    made = Digits()
    held = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(MODEL).graph.initializer}
    state = made.state_dict()
    for name, tensor in state.items():
        if name in held:
            state[name] = held[name].reshape(tensor.shape)
    made.load_state_dict(state)
    return made.eval()


def quantized(bits: int) -> nn.Module:
    made = network()
    layers = [(name, m) for name, m in made.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for index, (name, layer) in enumerate(layers):
        width = 8 if index in (0, len(layers) - 1) else bits
        options = {
            "weight_quant": Int8WeightPerChannelFloat,
            "weight_bit_width": width,
            "input_quant": ShiftedUint8ActPerTensorFloat,
            "input_bit_width": width,
            "input_collect_stats_steps": 16,
        }
        if isinstance(layer, nn.Conv2d):
            new = qnn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                groups=layer.groups, bias=layer.bias is not None, **options,
            )  # fmt: skip
        else:
            new = qnn.QuantLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, **options)
        new.weight.data.copy_(layer.weight.data)
        if layer.bias is not None:
            new.bias.data.copy_(layer.bias.data)
        parent, _, last = name.rpartition(".")
        setattr(made.get_submodule(parent), last, new)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.brevitas_qat")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pictures, labels, held, wanted = data()
    count = len(pictures) - VALIDATION
    teacher = network()

    def score(module: nn.Module) -> float:
        logits, right = module(pictures[count:]), labels[count:]
        return float(
            (logits.argmax(1) == right).float().mean() - 1e-3 * torch.nn.functional.cross_entropy(logits, right)
        )

    with torch.no_grad():
        print(f"float {float((teacher(held).argmax(1) == wanted).float().mean()):.4f}", flush=True)
    for bits in (4, 2):
        order, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)

        def batches(order=order, generator=generator):  # type: ignore[no-untyped-def]
            shuffled = torch.from_numpy(order.permutation(count))
            for index in shuffled[: count // BATCH * BATCH].view(-1, BATCH):
                yield augment(pictures[index], generator), labels[index]

        module = quantized(bits)
        fit(module, batches, score, Fit(epochs=args.epochs, lr=2e-3, scale_lr=1e-3, alpha=0.7), teacher=teacher)
        with torch.no_grad():
            print(f"W{bits}A{bits} {float((module(held).argmax(1) == wanted).float().mean()):.4f}", flush=True)


if __name__ == "__main__":
    main()
