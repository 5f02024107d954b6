"""An artifact at several places at once: what each runtime lost of the reference, and how far it is from the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import EdgeqError, VerifyError
from edgeq.graph import io
from edgeq.graph.edit import constant
from edgeq.numerics.metrics import Drift, max_abs
from edgeq.report.schema import LostSlice, OutputDrift, PlaceOutput, PlaceRow, Runtime
from edgeq.runners import fusion
from edgeq.runners.places import Place
from edgeq.runners.session import Session
from edgeq.target import Target
from edgeq.verifying.scores import Outputs, Scores

MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice")


@dataclass
class Column:
    """One place of a comparison. apart: by output, the largest difference from the first place; differ: in any bit."""

    place: Place
    session: Session
    judged: Scores
    drifts: dict[str, Drift] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)
    differ: set[str] = field(default_factory=set)

    def update(self, reference: Outputs, got: Outputs, first: Outputs) -> None:
        """One sample's outputs. Raises VerifyError for one that is missing or of another shape."""
        for name, wanted in reference.items():
            if name not in got or got[name].shape != wanted.shape:
                shape = got[name].shape if name in got else "missing"
                raise VerifyError(
                    f"{self.place.name}: output {name!r} has shape {wanted.shape} in the reference, here it is {shape}"
                )
            self.drifts.setdefault(name, Drift()).update(wanted, got[name])
            if got is not first and got[name].tobytes() != first[name].astype(got[name].dtype).tobytes():
                self.differ.add(name)
                self.apart[name] = max(self.apart.get(name, 0.0), max_abs(first[name], got[name]))
        self.judged.update(reference, got)

    def outputs(self) -> tuple[OutputDrift, ...]:
        return tuple(_drift(name, drift) for name, drift in self.drifts.items())

    def runtime(self, reference: Session | None = None) -> Runtime:
        """Of the last run: name, version, latencies where the runner has a clock of its own."""
        version = self.session.report.get("version") or self.place.runner.version()
        timed = self.place.runner.TIMED
        return Runtime(
            self.place.runner.TITLE,
            str(version).split("-")[0],  # OpenVINO adds its commit and branch
            self.session.latency_ms if timed else None,
            reference.latency_ms if timed and reference else None,
        )


def finite_db(db: float) -> float | None:
    return None if db == np.inf else (-300.0 if db == -np.inf else float(db))


def _drift(name: str, drift: Drift) -> OutputDrift:
    result = drift.result()
    lost = tuple(LostSlice(s.axis, s.index, finite_db(s.sqnr_db) or 0.0) for s in result.lost)
    return OutputDrift(name, finite_db(result.sqnr_db), result.cosine, result.max_abs, lost)


def rows(
    columns: Sequence[Column],
    artifact: Path,
    few: Iterable[Any],
    extras: dict[str, np.ndarray],
    fed: Callable[[Session], Session],
) -> tuple[PlaceRow, ...]:
    """The matrix, after the last sample. few: samples to read codes inside the graph with, where outputs differ."""
    made = []
    codes = output_codes(artifact) if artifact.suffix == ".onnx" else {}
    runtimes = [column.runtime() for column in columns]  # before the codes are read: that is no run to be timed
    samples = list(few)
    for column, runtime in zip(columns, runtimes, strict=True):
        steps = _steps(columns[0], column, codes, samples, fed)
        outputs = tuple(
            PlaceOutput(
                d.name, d.sqnr_db, column.apart.get(d.name, 0.0), d.name not in column.differ, steps.get(d.name)
            )
            for d in column.outputs()
        )
        made.append(PlaceRow(column.place.name, runtime, outputs, column.judged.result(extras), column.place.note))
    return tuple(made)


def prove(
    columns: Sequence[Column], artifact: Path, target: Target, feeds: Mapping[str, np.ndarray]
) -> tuple[list[dict[str, int]], list[str]]:
    """The operators of the graph that each place's runtime makes of the artifact; and what is not as it was meant.

    target: whose rules hold on a board. feeds: a sample, since some runtimes show their graph only after a run.
    """
    kernels: list[dict[str, int]] = []
    lines: list[str] = []
    for place in (column.place for column in columns):
        aim = place.target or target
        graph = place.optimized(artifact, feeds) if artifact.suffix == ".onnx" else None
        if graph is None:
            kernels.append({})
            lines.append(f"{place.name}: its runtime doesn't show the graph that it runs, so no kernel is proven there")
            continue
        placed = fusion.placement(artifact, aim, graph)
        kernels.append(placed.kernels)
        if aim.cpu_kernels:
            lines += [f"node {name} is quantized but {place.name} runs it in float" for name in placed.float]
    return kernels, lines


@dataclass(frozen=True)
class Codes:
    """The quantized values before an output. step: their scale, when the output is nothing but those codes, scaled."""

    step: float | None
    names: tuple[str, ...]


def output_codes(artifact: Path) -> dict[str, Codes]:
    """Of each output, the last codes on every way to it; outputs that no codes lead to are left out."""
    found = {}
    for output in io.read_graph(artifact).graph.outputs:
        names, seen, stack = set(), set(), [output]
        while stack:
            node = stack.pop().producer()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.op_type != "DequantizeLinear":
                stack += [v for v in node.inputs if v is not None]
            elif node.inputs[0] is not None and node.inputs[0].producer() is not None:  # weights have none
                names.add(node.inputs[0].name or "")
        if names:
            found[output.name or ""] = Codes(_step(output), tuple(sorted(names)))
    return found


def _step(output: ir.Value) -> float | None:
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            scale = constant(node.inputs[1])
            return float(scale.item()) if scale is not None and scale.size == 1 else None
        value = node.inputs[0] if node.op_type in MOVES else None
    return None


def _steps(
    first: Column, column: Column, codes: dict[str, Codes], few: list[Any], fed: Callable[[Session], Session]
) -> dict[str, int | None]:
    """How many codes apart a place's last codes are from the first place's, by output."""
    found: dict[str, int | None] = {}
    wanted: set[str] = set()
    for name, made in codes.items():
        if name not in column.differ:
            found[name] = 0
        elif made.step:
            found[name] = round(column.apart[name] / made.step)
        else:
            wanted.update(made.names)
    if not wanted:
        return found
    try:
        runs = [list(fed(place.session).run_many(few, sorted(wanted))) for place in (first, column)]
    except EdgeqError:  # not every runtime makes an output of any value
        return found
    apart = {
        value: max(int(np.abs(a[value].astype(np.int64) - b[value]).max(initial=0)) for a, b in zip(*runs, strict=True))
        for value in wanted
    }
    for name, made in codes.items():
        if name not in found:
            found[name] = max(apart[value] for value in made.names)
    return found
