"""torchao as a peer of `benchmarks.training`: its QAT of PT2E, with the quantizer for x86 set to fewer bits.

Weights per channel, asymmetric activations, ranges that follow a moving average; BatchNorm is folded while it trains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    MovingAveragePerChannelMinMaxObserver,
    allow_exported_model_train_eval,
)
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import QuantizationConfig, X86InductorQuantizer

from benchmarks.peers.qat import linear, main


def config(weight: int, activation: int) -> QuantizationConfig:
    """The quantizer's default for QAT, of other widths."""
    fake, eps = FusedMovingAvgObsFakeQuantize, 2**-12
    act = QuantizationSpec(
        dtype=torch.uint8, quant_min=0, quant_max=2**activation - 1, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=fake.with_args(eps=eps),
    )  # fmt: skip
    codes = QuantizationSpec(
        dtype=torch.int8, quant_min=-(2 ** (weight - 1)), quant_max=2 ** (weight - 1) - 1,
        qscheme=torch.per_channel_symmetric, ch_axis=0,
        observer_or_fake_quant_ctr=fake.with_args(eps=eps, observer=MovingAveragePerChannelMinMaxObserver),
    )  # fmt: skip
    return QuantizationConfig(act, act, codes, None, True)


def quantized(network: nn.Module, batch: Tensor, weight: int, activation: int) -> nn.Module:
    layers = linear(network)
    quantizer = X86InductorQuantizer().set_global(config(weight, activation))
    for name in (layers[0][0], layers[-1][0]):
        quantizer.set_module_name_qconfig(name, config(8, 8))
    count = torch.export.Dim("batch", min=2)
    traced = torch.export.export(network.train(), (batch,), dynamic_shapes=({0: count},)).module()
    return allow_exported_model_train_eval(prepare_qat_pt2e(traced, quantizer))


if __name__ == "__main__":
    main(quantized)
