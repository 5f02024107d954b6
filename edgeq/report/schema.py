"""`report.json`, schema_version 1: what an artifact is, where it runs, what it lost, and why each node is as it is."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class FileInfo(msgspec.Struct, frozen=True):
    """sha256 and bytes cover the file and its external data."""

    file: str
    sha256: str
    bytes: int


class FloatNode(msgspec.Struct, frozen=True):
    name: str
    op: str
    reason: str


class Nodes(msgspec.Struct, frozen=True):
    """integer counts nodes that run on codes, folded ones included."""

    total: int
    integer: int
    float: tuple[FloatNode, ...]


class LostSlice(msgspec.Struct, frozen=True):
    axis: int
    index: int
    sqnr_db: float


class OutputDrift(msgspec.Struct, frozen=True):
    """sqnr_db is null for an output that did not change at all."""

    name: str
    sqnr_db: float | None
    cosine: float
    max_abs: float
    lost_slices: tuple[LostSlice, ...] = ()


class Metric(msgspec.Struct, frozen=True):
    """Higher is better; drop = float - quantized."""

    name: str
    reference: float = msgspec.field(name="float")
    quantized: float
    drop: float


class Runtime(msgspec.Struct, frozen=True):
    """Which runtime verified the artifact. latency_ms: medians, when that is this machine's or a board's own."""

    name: str
    version: str
    latency_ms: float | None = None
    float_latency_ms: float | None = None


class LayerDrift(msgspec.Struct, frozen=True):
    name: str
    op: str
    sqnr_db: float | None


class Verification(msgspec.Struct, frozen=True):
    """levels: worst output SQNR against the reference at each optimization level, null where nothing differs."""

    samples: int
    outputs: tuple[OutputDrift, ...]
    runtime: Runtime
    metric: Metric | None = None
    levels: dict[str, float | None] = {}
    layers: tuple[LayerDrift, ...] = ()
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True):
    model: FileInfo
    artifact: FileInfo
    target: str
    recipe: dict[str, Any]
    versions: dict[str, str]
    nodes: Nodes
    calibration: dict[str, Any]
    outputs: tuple[OutputDrift, ...]
    runtime: Runtime | None
    metric: Metric | None
    warnings: tuple[str, ...]
    verification: Verification | None = None
    schema_version: Literal[1] = 1


def dump(report: msgspec.Struct) -> bytes:
    """Indented JSON with a final newline; the same report gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
