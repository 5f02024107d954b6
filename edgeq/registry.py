"""Plug-ins by file name: `load("edgeq.calibrate", "mse")` is the module `edgeq/calibrate/mse.py`.

A folder is the registry; nothing registers itself when imported, and nothing is imported until it is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from edgeq.errors import RecipeError


def names(package: str, having: str | None = None) -> list[str]:
    """The plug-ins of a package, sorted; with `having`, those modules that define that attribute."""
    found = importlib.import_module(package)
    listed = sorted(m.name for m in pkgutil.iter_modules(found.__path__) if not m.name.startswith("_"))
    if having is None:
        return listed
    return [n for n in listed if hasattr(importlib.import_module(f"{package}.{n}"), having)]


def load(package: str, name: str, having: str | None = None) -> ModuleType:
    """The module `package.name`. Raises RecipeError that lists the valid names when there is none."""
    key = name.replace("-", "_")
    valid = names(package, having)
    if key not in valid:
        kind = package.rsplit(".", 1)[-1]
        raise RecipeError(f"no {name!r} in {kind}: choose one of {', '.join(valid)}")
    return importlib.import_module(f"{package}.{key}")
