"""Brevitas as a peer of `benchmarks.training`: weights per channel with learned (max) steps, as it comes; asymmetric
activations at the inputs of linear layers.
"""

from __future__ import annotations

import brevitas.nn as qnn
from brevitas.quant import Int8WeightPerChannelFloat, ShiftedUint8ActPerTensorFloat
from torch import Tensor, nn

from benchmarks.peers.qat import linear, main


def quantized(network: nn.Module, batch: Tensor, weight: int, activation: int) -> nn.Module:
    layers = linear(network)
    for index, (name, layer) in enumerate(layers):
        end = index in (0, len(layers) - 1)
        options = {
            "weight_quant": Int8WeightPerChannelFloat,
            "weight_bit_width": 8 if end else weight,
            "input_quant": ShiftedUint8ActPerTensorFloat,
            "input_bit_width": 8 if end else activation,
            "input_collect_stats_steps": 16,
        }
        if isinstance(layer, nn.Conv2d):
            new = qnn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                groups=layer.groups, bias=layer.bias is not None, **options,
            )  # fmt: skip
        else:
            new = qnn.QuantLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, **options)
        new.load_state_dict(layer.state_dict(), strict=False)
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, new)
    return network


if __name__ == "__main__":
    main(quantized)
