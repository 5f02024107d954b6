"""AMD Quark with what it has against lost accuracy, CLE and AdaRound: as `quark_quantize`, which says the rest."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import quark_quantize
from benchmarks.peers.peer import Feeds, main


def quantize(model: Path, feeds: Feeds, out: Path, calibrator: str) -> None:
    from quark.onnx.quantization.config.algorithm import AdaRoundConfig, CLEConfig

    quark_quantize.quantize(model, feeds, out, calibrator, [CLEConfig(), AdaRoundConfig(num_workers=0)])


if __name__ == "__main__":
    main(quantize)
