"""Graph rewrites, one a file: model in, model out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgeq.registry import load

if TYPE_CHECKING:
    import onnx_ir as ir


def run(model: ir.Model, names: Iterable[str]) -> None:
    """Rewrite the model in place by the passes of those names, one after the other."""
    for name in names:
        load("edgeq.passes", name, "rewrite").rewrite(model)
