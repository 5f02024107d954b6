"""`report.json`, schema_version 1: what an artifact is, where it runs, what it lost, and why each node is as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeq.errors import EdgeqError


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
    """integer counts nodes that run on codes, folded ones included; half those in float16 or bfloat16."""

    total: int
    integer: int
    float: tuple[FloatNode, ...]
    half: int = 0


class DrawnNode(msgspec.Struct, frozen=True):
    """A node as it was planned. reads: indices of the nodes whose results it reads, all of them earlier ones."""

    name: str
    op: str
    decision: str
    reason: str = ""
    reads: tuple[int, ...] = ()


class ActivationRange(msgspec.Struct, frozen=True):
    """A range that calibration chose. lo, hi: what was seen; low, high: what codes can express.

    clipped: share of the values beyond that, by the histogram. counts: values in bins of equal width over lo..hi;
    none for a calibrator that needs no histogram.
    """

    name: str
    dtype: str
    scale: float
    zero_point: int
    lo: float
    hi: float
    low: float
    high: float
    clipped: float = 0.0
    counts: tuple[int, ...] = ()


class Sensitivity(msgspec.Struct, frozen=True):
    """What one node's rounding alone does: mean squared change of the outputs over their variance.

    decision: what the plan makes of it. bytes, float_bytes: of its weights, scales included, and before.
    """

    name: str
    op: str
    error: float
    macs: int = 0
    decision: str = ""
    bytes: int = 0
    float_bytes: int = 0


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


class PlaceOutput(msgspec.Struct, frozen=True):
    """An output at one of several places. sqnr_db: against the reference, null where nothing changed.

    apart: the largest difference from the first place. identical: no bit differs from it. steps: the most codes by
    which the last quantized values before the output differ from the first place's; null where there are none.
    """

    name: str
    sqnr_db: float | None
    apart: float
    identical: bool
    steps: int | None


class PlaceRow(msgspec.Struct, frozen=True):
    """A target (or board) that the artifact ran at. stand_in: why another runtime took its place; else null.

    kernels: with proof, how many nodes of each operator the graph has that this runtime really runs.
    """

    target: str
    runtime: Runtime
    outputs: tuple[PlaceOutput, ...]
    metric: Metric | None = None
    stand_in: str | None = None
    kernels: dict[str, int] = {}


class Verification(msgspec.Struct, frozen=True):
    """levels: worst output SQNR against the reference at each optimization level, null where nothing differs.

    matrix: a row a place when there are several; the other fields are those of the first.
    """

    samples: int
    outputs: tuple[OutputDrift, ...]
    runtime: Runtime
    metric: Metric | None = None
    levels: dict[str, float | None] = {}
    layers: tuple[LayerDrift, ...] = ()
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    matrix: tuple[PlaceRow, ...] = ()


class BenchRow(msgspec.Struct, frozen=True):
    """latency_ms: the median over the rounds; low_ms, high_ms: their quartiles. ratio: times as fast as the first."""

    model: str
    threads: int
    bytes: int
    latency_ms: float
    low_ms: float
    high_ms: float
    ratio: float


class Bench(msgspec.Struct, frozen=True):
    """Models timed in turns on one runtime. inputs: name → shape of what the first model was fed."""

    place: str
    runtime: Runtime
    machine: str
    rounds: int
    inputs: dict[str, tuple[int, ...]]
    rows: tuple[BenchRow, ...]


class Report(msgspec.Struct, frozen=True):
    """compiled: figures of the target's compiler, such as an NPU's; empty without one. sensitivity: of every node
    that rounds, the most harmful first, where it was asked for.
    """

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
    graph: tuple[DrawnNode, ...] = ()
    ranges: tuple[ActivationRange, ...] = ()
    compiled: dict[str, Any] = {}
    sensitivity: tuple[Sensitivity, ...] = ()
    schema_version: Literal[1] = 1


class Trial(msgspec.Struct, frozen=True):
    """One recipe, quantized and verified. digest: the folder that holds it. drop: float's metric minus its own.

    integer: share of the multiply-accumulates. speedup: over float, 0 where nothing was timed. energy: mJ, as
    `edgeq.planning.energy` estimates it, 0 for other formats than ONNX. seconds: 0 where it was found, not run. kept:
    it was the best so far. misses: what of the budget it doesn't meet. problem: why it has no figures. latency_ms: of
    its artifact where speedup was measured.
    """

    step: str
    digest: str
    metric: str = ""
    reference: float = 0.0
    value: float = 0.0
    drop: float = 0.0
    sqnr_db: float = 0.0
    bytes: int = 0
    integer: float = 0.0
    speedup: float = 0.0
    energy: float = 0.0
    seconds: float = 0.0
    kept: bool = False
    misses: tuple[str, ...] = ()
    problem: str = ""
    latency_ms: float = 0.0


class Tuning(msgspec.Struct, frozen=True):
    """`tuning.json`. best: digest of the trial whose artifact was taken. front: those that none beats in loss and size.

    sentence: how it ended, and why where no trial meets the budget.
    """

    model: str
    target: str
    trials: tuple[Trial, ...]
    best: str
    met: bool
    sentence: str
    front: tuple[str, ...] = ()


def load(folder: Path) -> Report:
    """The report of a folder that edgeq quantize wrote.

    Raises EdgeqError for what is no such report, or names an artifact elsewhere.
    """
    path = folder / "report.json"
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise EdgeqError(f"{path}: can't be read ({error.strerror}); give a folder that edgeq quantize wrote") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise EdgeqError(f"{path}: not a report of this version ({error})") from None
    file = report.artifact.file
    if not file or len(file) > 255 or "\0" in file or Path(file).name != file:
        raise EdgeqError(f"{path}: its artifact {file[:255]!r} is no file of this folder")
    if "edgeq" not in report.versions or any(not -1 < i < n for n, node in enumerate(report.graph) for i in node.reads):
        raise EdgeqError(f"{path}: not a report of this version (versions, or the order of the graph); quantize again")
    return report


def dump(report: msgspec.Struct) -> bytes:
    """Indented JSON with a final newline; the same report gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
