"""NNCF as a peer: MODEL FEEDS OUT --calibrator NAME --samples N; prints one JSON line.

Its defaults (mixed preset: symmetric weights per channel, asymmetric activations; fast bias correction), which is how
its documentation uses it, with the range estimator that the calibrator's name stands for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Feeds, at_least_opset, main


def quantize(model: Path, feeds: Feeds, out: Path, calibrator: str) -> None:
    import nncf
    import onnx
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    if calibrator == "entropy":
        raise ValueError("NNCF has no entropy calibrator")
    ranges = {"minmax": RangeEstimatorParametersSet.MINMAX, "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE}
    found = nncf.quantize(
        at_least_opset(onnx.load(model), 13),
        nncf.Dataset(feeds, lambda feed: feed),
        subset_size=len(feeds),
        model_type=model_type(model),
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges[calibrator]),
    )
    onnx.save(found, out)


def model_type(model: Path) -> Any:
    """TRANSFORMER where attention and layer norm make up the model, which NNCF wants to be told, else None."""
    import nncf
    import onnx

    ops = [node.op_type for node in onnx.load(model, load_external_data=False).graph.node]
    alike = "LayerNormalization" in ops and "Softmax" in ops and "Conv" not in ops
    return nncf.ModelType.TRANSFORMER if alike else None


if __name__ == "__main__":
    main(quantize)
