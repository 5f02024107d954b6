"""onnxruntime's own quantizer, as a peer: MODEL FEEDS OUT --calibrator NAME --samples N; prints one JSON line.

Its best sane settings: quant_pre_process first, QDQ, uint8 activations, int8 weights per channel.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import Feeds, Reader, at_least_opset, main


def quantize(model: Path, feeds: Feeds, out: Path, calibrator: str) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    prepared = out.with_suffix(".prepared.onnx")
    # the symbolic shape inference of that step needs sympy and fails on some exporters' shapes; it only adds shapes
    loaded = onnx.load(model)
    upgraded = at_least_opset(loaded, 13)
    quant_pre_process(str(model) if upgraded is loaded else upgraded, str(prepared), skip_symbolic_shape=True)
    try:
        quantize_static(
            str(prepared),
            str(out),
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=methods[calibrator],
        )
    finally:
        prepared.unlink(missing_ok=True)


if __name__ == "__main__":
    main(quantize)
