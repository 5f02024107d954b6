"""Put together what `report.json` says."""

from __future__ import annotations

import importlib.metadata
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from edgeq.graph import io
from edgeq.planning.plan import BRIDGE, DYNAMIC, FLOAT, FOLDED, HALVES, INTEGER, QUIET, STORED, Plan
from edgeq.recipe import Recipe
from edgeq.report.evidence import Evidence
from edgeq.report.schema import FileInfo, FloatNode, Nodes, Report, Verification
from edgeq.runners import cpu
from edgeq.target import Target


def build(
    source: FileInfo,
    artifact: Path,
    target: Target,
    recipe: Recipe,
    made: Plan,
    evidence: Evidence,
    verification: Verification | None,
) -> Report:
    """The report of an artifact file that was made from the model file `source`."""
    listed = tuple(
        FloatNode(n.name, n.op, n.reason)
        for n in made.nodes
        if n.decision in (FLOAT, BRIDGE, STORED) and n.op not in QUIET
    )
    integer = sum(n.decision in (INTEGER, FOLDED, DYNAMIC) for n in made.nodes)
    warnings = dict.fromkeys([*evidence.warnings, *made.warnings, *(verification.warnings if verification else ())])
    return Report(
        model=source,
        artifact=file_info(artifact),
        target=target.name,
        recipe=msgspec.to_builtins(recipe),
        versions=versions(),
        nodes=Nodes(len(made.nodes), integer, listed, sum(n.decision in HALVES.values() for n in made.nodes)),
        calibration=evidence.calibration,
        outputs=verification.outputs if verification else (),
        runtime=verification.runtime if verification else None,
        metric=verification.metric if verification else None,
        warnings=tuple(warnings),
        verification=verification,
        graph=evidence.graph,
        ranges=evidence.ranges,
        compiled=evidence.compiled,
        sensitivity=evidence.sensitivity,
    )


def file_info(path: Path) -> FileInfo:
    with ThreadPoolExecutor(1) as beside:
        alone = beside.submit(io.sha256, [path])  # while a large file is searched for others that it names
        files = io.files(path)
        digest = alone.result() if files == [path] else io.sha256(files)
    return FileInfo(path.name, digest, sum(f.stat().st_size for f in files))


def versions() -> dict[str, str]:
    """Of everything that can change the artifact: the processor too, on which float32 sums depend."""
    found = {"processor": cpu.processor(), "python": platform.python_version()}
    for package in ("edgeq", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "ml_dtypes"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
