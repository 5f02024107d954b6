"""Plug-ins by file name: `load("edgeq.calibrate", "mse")` is the module `edgeq/calibrate/mse.py`.

A folder is the registry; nothing registers itself when imported, and nothing is imported until it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from edgeq.errors import RecipeError


def names(package: str, *having: str) -> list[str]:
    """The plug-ins of a package, sorted; with `having`, those modules that define one of these attributes."""
    found = importlib.import_module(package)
    listed = sorted(m.name for m in pkgutil.iter_modules(found.__path__) if not m.name.startswith("_"))
    return [n for n in listed if not having or _has(importlib.import_module(f"{package}.{n}"), having)]


@functools.cache
def load(package: str, name: str, *having: str) -> ModuleType:
    """The module `package.name`, and no other of its package. Raises RecipeError that lists the valid names."""
    key = name.replace("-", "_")
    if key.isidentifier() and not key.startswith("_") and importlib.util.find_spec(f"{package}.{key}"):
        module = importlib.import_module(f"{package}.{key}")
        if not having or _has(module, having):
            return module
    kind, valid = package.rsplit(".", 1)[-1], names(package, *having)
    raise RecipeError(f"no {name!r} in {kind}: choose one of {', '.join(valid)}")


def _has(module: ModuleType, attributes: tuple[str, ...]) -> bool:
    return any(hasattr(module, attribute) for attribute in attributes)
