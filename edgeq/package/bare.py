"""Plain files: the model as .onnx and .ort, and the operators that a reduced build of onnxruntime has to have."""

from __future__ import annotations

from pathlib import Path

from edgeq.formats import ort_format
from edgeq.graph import io
from edgeq.package.contents import Contents, write_common

NOTES: tuple[str, ...] = ()


def build(contents: Contents, output: Path) -> None:
    """Write the package into the folder `output`."""
    write_common(contents, output, contents.artifact, "onnxruntime")
    if contents.artifact.suffix == ".onnx":
        io.copy_weights(contents.artifact, output)
        ort_format.convert(contents.artifact, output)
