"""Run the float reference and the artifact on the same samples and measure what was lost, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from edgeq.data import Dataset
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.numerics.metrics import Drift
from edgeq.planning import saturation
from edgeq.report.schema import LayerDrift, Metric, OutputDrift, Verification
from edgeq.runners import fusion
from edgeq.runners.feedback import Pairs, with_state
from edgeq.runners.places import Place, of_target, open_here
from edgeq.runners.recorded import Recorded
from edgeq.runners.session import Session
from edgeq.target import Target
from edgeq.verifying.levels import LEVEL_SAMPLES, Fed, worst_at_levels
from edgeq.verifying.matrix import Column, finite_db, prove, rows
from edgeq.verifying.scores import MetricFunction, Outputs, scores

Keep = Callable[[Outputs, Outputs], None]


@dataclass
class Budget:
    """What the artifact may lose. max_drop: of the metric, absolute. min_sqnr: dB, of the worst output."""

    max_drop: float | None = None
    min_sqnr: float | None = None


def verify(
    reference: Path,
    quantized: Path,
    target: Target,
    data: Dataset,
    *,
    places: Sequence[Place] = (),
    strict: bool = False,
    proof: bool = False,
    labels: str | None = None,
    metric: str | MetricFunction | None = None,
    budget: Budget | None = None,
    layers: Sequence[tuple[str, str, str]] = (),
    layers_on_failure: bool = False,
    at_levels: bool = True,
    state: Pairs = (),
    threads: int = 1,
    keep: Keep = lambda feeds, outputs: None,
    recorded: Path | None = None,
    streams: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Verification:
    """Measure the artifact against the reference on the target's runtime, or on its stand-in where that is missing.

    places: where it is to run too; the result then has a matrix of all, and the budget holds everywhere. strict: the
    target's own runtime must be here. proof: the matrix has the operators that each runtime really runs. layers:
    (node, op, value) triples whose value is compared in both models; layers_on_failure: only when the budget is not
    met. at_levels: look at onnxruntime's levels of optimization too. state: (output, input) pairs that each of the
    models is fed back, its own. keep: called with each sample and what the artifact made of it. recorded: a folder that
    keeps what the reference answered, for the next time. streams: samples under way at once, which takes their memory.
    A budget that is not met is written into `failures`; nothing is raised for it.
    Raises CalibrationError, ModelError, RecipeError, ToolError, VerifyError.
    """
    if budget is not None and budget.max_drop is not None and labels is None and metric is None:
        raise RecipeError("a largest drop needs something to measure: give --labels or --metric beside --max-drop")
    everywhere = (of_target(target, strict), *places)
    warnings = [place.note for place in everywhere if place.note]
    fed = partial(with_state, model=reference, pairs=state)
    with ExitStack() as stack:
        float_session = _open_reference(reference, recorded, threads, streams)
        stack.callback(float_session.close)
        columns = []
        for place in everywhere:
            session = place.open(quantized, streams, threads=threads)
            columns.append(Column(place, session, scores(data, labels, metric)))
            stack.callback(columns[-1].session.close)
        samples, feeds = _compare(fed(float_session), columns, data, fed, keep, progress)
        first, found = columns[0], columns[0].outputs()
        runtime = first.runtime(float_session)
        budgeted = budget or Budget()
        failures = _failures(found, first.judged.result(data.extras), budgeted)
        for column in columns[1:]:
            missed = _failures(column.outputs(), column.judged.result(data.extras), budgeted)
            failures += tuple(f"{column.place.name}: {line}" for line in missed)
        matrix = rows(columns, quantized, data.take(LEVEL_SAMPLES), data.extras, fed) if places or proof else ()
        levels: dict[str, float | None] = {}
        level_warnings: list[str] = []
        if at_levels and quantized.suffix == ".onnx":  # the levels are onnxruntime's
            levels, level_warnings = worst_at_levels(quantized, float_session, data, target, threads, fed)
    warnings += level_warnings
    for output in found:
        if output.lost_slices:
            parts = ", ".join(f"[axis {s.axis}, index {s.index}]" for s in output.lost_slices[:5])
            more = f" and {len(output.lost_slices) - 5} more" if len(output.lost_slices) > 5 else ""
            warnings.append(f"output {output.name}: {parts}{more} lost, though the whole reads {output.sqnr_db:.1f} dB")
    if proof:
        kernels, lines = prove(columns, quantized, target, feeds)
        matrix = tuple(replace(row, kernels=found) for row, found in zip(matrix, kernels, strict=True))
        warnings += lines
    elif target.cpu_kernels:
        placed = fusion.placement(quantized, target)
        warnings += [f"node {name} is quantized but onnxruntime runs it in float" for name in placed.float]
    if target.saturates:
        warnings += saturation.written(io.load(quantized))
    elif quantized.suffix == ".onnx":
        warnings += _saturated_here(quantized, everywhere)
    scored = first.judged.result(data.extras)
    wanted = layers if failures or not layers_on_failure else ()
    layer_drifts = _layers(reference, quantized, wanted, data, threads, fed) if wanted else ()
    return Verification(samples, found, runtime, scored, levels, layer_drifts, tuple(warnings), failures, matrix)


def _saturated_here(quantized: Path, places: Sequence[Place]) -> Iterator[str]:
    """A line when a machine like this one would lose what the target's doesn't."""
    if any(getattr(place.runner, "saturates", bool)() for place in places):
        lines = saturation.written(io.load(quantized))
        if lines:
            yield (
                "this machine has no VNNI: sums were made exactly, as the target makes them, but slower; "
                f"by its own kernels {len(lines)} layers may saturate, so for such machines quantize for x86_64-avx2"
            )


def _open_reference(reference: Path, recorded: Path | None, threads: int, streams: int) -> Session:
    if recorded is not None:
        return Recorded(reference, recorded, threads, streams)
    return open_here(reference, threads=threads, streams=streams)


def _compare(
    float_session: Session,
    columns: Sequence[Column],
    data: Dataset,
    fed: Fed,
    keep: Keep,
    progress: Callable[[int], None],
) -> tuple[int, dict[str, np.ndarray]]:
    """Runs every sample everywhere; how many there were, and the first with its state."""
    samples = 0
    first: dict[str, np.ndarray] = {}
    own, left, *copies = tee(data, 2 + len(columns))  # one walk: a loader that shuffles gives each walk another order
    runs = [fed(column.session, show=True).run_many(copy) for column, copy in zip(columns, copies, strict=True)]
    for feeds, reference, *got in zip(own, float_session.run_many(left), *runs, strict=True):
        for column, outputs in zip(columns, got, strict=True):
            column.update(reference, outputs, got[0])
        state_in = {name: got[0][name] for name in got[0] if name not in reference}
        first = first or {**state_in, **feeds}
        keep({**state_in, **feeds}, {name: got[0][name] for name in reference})
        samples += 1
        progress(samples)
    if not samples:
        raise CalibrationError(f"{data.name} holds no samples to verify on: give at least one")
    return samples, first


def _layers(
    reference: Path, quantized: Path, layers: Sequence[tuple[str, str, str]], data: Dataset, threads: int, fed: Fed
) -> tuple[LayerDrift, ...]:
    """SQNR of intermediate values that both models have, in graph order."""
    names = [value for _, _, value in layers]
    left, right = (fed(open_here(model, threads=threads)) for model in (reference, quantized))
    drifts = {name: Drift(axes=()) for name in names}
    for feeds in data.take(LEVEL_SAMPLES):
        a, b = left.run(feeds, names), right.run(feeds, names)
        for name in names:
            if a[name].shape == b[name].shape:
                drifts[name].update(a[name], b[name])
    left.close()
    right.close()
    return tuple(LayerDrift(node, op, finite_db(drifts[value].result().sqnr_db)) for node, op, value in layers)


def _failures(outputs: tuple[OutputDrift, ...], metric: Metric | None, budget: Budget) -> tuple[str, ...]:
    failures = []
    for output in outputs:
        if budget.min_sqnr is not None and output.sqnr_db is not None and not output.sqnr_db >= budget.min_sqnr:
            failures.append(
                f"output {output.name} has {output.sqnr_db:.1f} dB SQNR, under the {budget.min_sqnr:g} asked for"
            )
    if budget.max_drop is not None and metric is not None and not metric.drop <= budget.max_drop + 1e-12:
        failures.append(
            f"{metric.name} fell from {metric.reference:.4f} to {metric.quantized:.4f}: "
            f"{metric.drop:.4f}, over {budget.max_drop:g}"
        )
    return tuple(failures)
