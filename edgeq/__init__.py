"""edgeq: from a trained model to the artifact that an edge target really executes, with proof.

Everything heavy is imported on first use: `import edgeq` alone loads neither onnx nor onnxruntime nor torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from edgeq import lighter

if TYPE_CHECKING:  # a type checker sees the very functions that `__getattr__` finds when they are asked for
    from edgeq.errors import EdgeqError
    from edgeq.export import export
    from edgeq.graph.io import load, save
    from edgeq.graph.prepare import prepare
    from edgeq.pipeline import plan_file as plan
    from edgeq.pipeline import quantize
    from edgeq.recipe import Recipe
    from edgeq.types import QSpec
    from edgeq.verifying.verification import verify_files as verify

__version__ = "0.1.0"

_LAZY = {
    "load": ("edgeq.graph.io", "load"),
    "save": ("edgeq.graph.io", "save"),
    "export": ("edgeq.export", "export"),
    "prepare": ("edgeq.graph.prepare", "prepare"),
    "plan": ("edgeq.pipeline", "plan_file"),
    "quantize": ("edgeq.pipeline", "quantize"),
    "verify": ("edgeq.verifying.verification", "verify_files"),
    "Recipe": ("edgeq.recipe", "Recipe"),
    "QSpec": ("edgeq.types", "QSpec"),
    "EdgeqError": ("edgeq.errors", "EdgeqError"),
}
__all__ = [
    "EdgeqError",
    "QSpec",
    "Recipe",
    "__version__",
    "export",
    "load",
    "plan",
    "prepare",
    "quantize",
    "save",
    "verify",
]


class _Package(types.ModuleType):
    """Importing `edgeq.export` would put the module in the place of the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
lighter.install()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeq' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
