"""onnx-ir without SymPy, until a shape is worked out with it: a third of a second, and 35 MB, of every start.

onnx-ir imports SymPy for sizes such as `N + 2`, which few models have. While onnx-ir is imported, and then alone, what
needs SymPy is imported as `importlib.util.LazyLoader` does it: run when first something is asked of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

LAZY = ("sympy", "onnx_ir._symbolic_shapes")


class Finder(MetaPathFinder):
    """Finds onnx-ir, to be imported as above; everything else is left to the finders behind it."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ("onnx_ir",)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self.names else None
        if spec is not None and spec.loader is not None:
            spec.loader = Light(spec.loader, self) if name == "onnx_ir" else LazyLoader(spec.loader)
        return spec


class Light(Loader):
    """The loader of onnx-ir."""

    def __init__(self, loader: Loader, finder: Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._finder.names = LAZY
        try:
            self._loader.exec_module(module)
        finally:
            sys.meta_path.remove(self._finder)
            module.__loader__ = self._loader
            if module.__spec__ is not None:
                module.__spec__.loader = self._loader


def install() -> None:
    """To be called before onnx-ir is imported; does nothing behind that."""
    if "onnx_ir" not in sys.modules:
        sys.meta_path.insert(0, Finder())
