"""What there is to choose from: targets, methods and runtimes, read from their files."""

from __future__ import annotations

import importlib
from typing import Any

from edgeq import registry, target


def target_rows() -> list[dict[str, Any]]:
    rows = []
    for name in target.names():
        found = target.load(name)
        runtime = "on a device only"
        if found.runner:
            runtime = registry.load("edgeq.runners", found.runner, "open_session").missing() or "here"
        methods = ", ".join(sorted({rule.method for rule in found.rule}))
        rows.append({"target": name, "title": found.title, "methods": methods, "runtime": runtime})
    return rows


def method_rows() -> list[dict[str, Any]]:
    rows = []
    for kind, package, having in (
        ("calibrator", "edgeq.calibrate", "choose"),
        ("weights", "edgeq.weights", "quantize"),
        ("codes", "edgeq.weights", "encode"),
    ):
        for name in registry.names(package, having):
            module = importlib.import_module(f"{package}.{name}")
            rows.append({"kind": kind, "name": name, "what": (module.__doc__ or "").strip().splitlines()[0]})
    return rows


def runtime_rows() -> list[dict[str, Any]]:
    rows = []
    for name in registry.names("edgeq.runners", "open_session"):
        module = importlib.import_module(f"edgeq.runners.{name}")
        missing = module.missing()
        rows.append({"runtime": name, "title": module.TITLE, "state": missing or f"here, {module.version()}"})
    return rows
