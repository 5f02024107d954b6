"""Artifacts that are ONNX files: `model.onnx`, with its weights beside it when they are over 2 GB."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgeq.graph import io
from edgeq.target import Method

NAME = "model.onnx"


def write(model: ir.Model, folder: Path, source: Path, method: Method) -> Path:
    """Write the quantized model into `folder`, checked as it was written; `source` names it in errors."""
    artifact = folder / NAME
    io.save(model, artifact)
    io.check(io.load(artifact) if io.weight_bytes(model) < io.INLINE_LIMIT else model, str(source))
    return artifact
