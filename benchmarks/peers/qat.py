"""What the peers of quantization-aware training share: the networks, the loop, and a line of JSON a row.

A peer's runner is executed by its own interpreter, with the repository root on PYTHONPATH. It trains the network of
`benchmarks.training` from the same float weights, with the same pictures, passes, rates, seed and teacher, by edgeq's
own loop; what differs is how it quantizes. The first and the last layer have 8 bits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks import pictures
from benchmarks.networks import network
from benchmarks.training import pictures_of, settings
from edgeq.train.fit import fit

Quantized = Callable[[nn.Module, torch.Tensor, int, int], nn.Module]


def linear(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that are quantized, by name; the first and the last have 8 bits."""
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def main(quantized: Quantized) -> None:
    """Train a network that `quantized(network, a batch, weight bits, activation bits)` makes of the float one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path, help="the float network's state, named as the network is")
    parser.add_argument("--bits", type=int, nargs=2, default=(4, 4))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def trained() -> nn.Module:
        made: nn.Module = network(args.weights.stem)
        made.load_state_dict(torch.load(args.weights, weights_only=True))
        return made.eval()

    started, held = time.process_time(), pictures_of(args.weights)
    shown, labels = pictures.read(held)[2:]
    module = quantized(trained(), shown[:64], *args.bits)
    chosen = settings(tuple(args.bits), args.epochs)
    fit(module, pictures.batches(held, seed=args.seed), pictures.score(held), chosen, teacher=trained())
    with torch.no_grad():
        right = (module(shown).argmax(1) == labels).float().mean()
    print(json.dumps({"accuracy": float(right), "seconds": round(time.process_time() - started, 1)}))
