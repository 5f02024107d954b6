"""NNCF as a peer: MODEL FEEDS OUT --calibrator NAME --samples N; prints one JSON line.

Its defaults (mixed preset: symmetric weights per channel, asymmetric activations; fast bias correction), which is how
its documentation uses it, with the range estimator that the calibrator's name stands for.
"""

from __future__ import annotations

from pathlib import Path

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
        model_type=nncf.ModelType.TRANSFORMER if _is_transformer(model) else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges[calibrator]),
    )
    onnx.save(found, out)


def _is_transformer(model: Path) -> bool:
    """Whether attention and layer norm make up the model, which NNCF wants to be told."""
    import onnx

    ops = [node.op_type for node in onnx.load(model, load_external_data=False).graph.node]
    return "LayerNormalization" in ops and "Softmax" in ops and "Conv" not in ops


if __name__ == "__main__":
    main(quantize)
