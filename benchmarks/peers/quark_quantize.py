"""AMD Quark as a peer: MODEL FEEDS OUT --calibrator NAME --samples N; prints one JSON line.

QDQ with uint8 activations and symmetric int8 weights per channel, float scales, no extra algorithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Feeds, Reader, at_least_opset, main


def quantize(model: Path, feeds: Feeds, out: Path, calibrator: str, algorithms: Sequence[Any] = ()) -> None:
    import onnx
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config.config import QConfig
    from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QLayerConfig, QuantGranularity, UInt8Spec

    method = {"minmax": CalibMethod.MinMax, "percentile": CalibMethod.Percentile, "entropy": CalibMethod.Entropy}
    config = QConfig(
        QLayerConfig(
            activation=UInt8Spec(calibration_method=method[calibrator]),
            weight=Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel),
        ),
        algo_config=list(algorithms),
    )
    upgraded = at_least_opset(onnx.load(model), 13)
    ModelQuantizer(config).quantize_model(upgraded, str(out), Reader(feeds))


if __name__ == "__main__":
    main(quantize)
