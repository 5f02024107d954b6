"""The reference points of the accuracy benchmark, in plain onnxruntime: float, and its own static quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.version_converter
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.tasks import Feed, Task
from edgeq.runners import cpu


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def ort_static(model: Path, calib: list[Feed], out: Path, **options: object) -> str | None:
    """Quantize with onnxruntime's `quantize_static`, after its own pre-processing, and write the model to `out`.

    Models below opset 13 are upgraded first by onnx's converter: per-channel files of older opsets do not load.

    QDQ, int8 activations and weights, per-channel, MinMax, unless `options` say otherwise. Returns None when a model
    was written that loads, else the error in one line: a peer's failure is a result.
    """
    settings: dict[str, object] = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "calibrate_method": CalibrationMethod.MinMax,
    }
    settings.update(options)
    out.unlink(missing_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            upgraded, prepared = Path(folder) / "upgraded.onnx", Path(folder) / "prepared.onnx"
            proto = onnx.load(model)
            if any(o.domain == "" and o.version < 13 for o in proto.opset_import):
                proto = onnx.version_converter.convert_version(proto, 17)
            onnx.save(proto, upgraded)
            quant_pre_process(upgraded, prepared, skip_symbolic_shape=True)
            quantize_static(prepared, out, _Reader(calib), **settings)
        session(out)
    except Exception as error:  # whatever the peer raises is what the table must show
        out.unlink(missing_ok=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def session(model: Path, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:  # accuracy is that of a target, also on a machine without VNNI
        shown = cpu.exact(Path(model), Path(folder)) if cpu.saturates() else model
        return onnxruntime.InferenceSession(shown, options, providers=["CPUExecutionProvider"])


def run(model: Path, feeds: list[Feed], threads: int = 2) -> list[Feed]:
    """The outputs of every feed, by name."""
    runner = session(model, threads)
    outputs = [o.name for o in runner.get_outputs()]
    return [dict(zip(outputs, runner.run(outputs, feed), strict=True)) for feed in feeds]


def evaluate(model: Path, task: Task, threads: int = 2) -> float:
    """The task's metric for a model with the same inputs and outputs, in plain onnxruntime on the CPU."""
    return task.metric(run(model, task.eval, threads))
