"""Artifacts that are TFLite files: `model.tflite`, images in NHWC, with a signature that has the ONNX model's names."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgeq.formats.tflite_convert import convert
from edgeq.formats.tflite_file import build
from edgeq.formats.tflite_scribe import Weights
from edgeq.target import Method

NAME = "model.tflite"
WEIGHTS: dict[Method, Weights] = {"float16": "float16", "float32": "float32"}


def write(model: ir.Model, folder: Path, source: Path, method: Method) -> Path:
    """Write the quantized model into `folder`. Raises TargetError, naming the node, for what TFLite can't express.

    Weights that are quantized beside float activations stay so ("dynamic range"): LiteRT then quantizes what they are
    multiplied with as it comes.
    """
    artifact = folder / NAME
    artifact.write_bytes(build(convert(model, WEIGHTS.get(method, "hybrid"))))
    return artifact
