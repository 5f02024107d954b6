"""Run the float reference and the artifact on the same samples and measure what was lost, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.data import Dataset, load_object
from edgeq.errors import CalibrationError, EdgeqError, RecipeError, VerifyError
from edgeq.numerics.metrics import Drift
from edgeq.registry import load
from edgeq.report.schema import LayerDrift, LostSlice, Metric, OutputDrift, Runtime, Verification
from edgeq.runners import fusion
from edgeq.runners.feedback import Pairs, with_state
from edgeq.runners.session import Session
from edgeq.target import Target

LEVEL_SAMPLES = 8
LEVELS_AGREE_DB = 40.0

Outputs = Mapping[str, np.ndarray]
Fed = Callable[[Session], Session]
"""Gives a session of either model that is fed its state."""
Keep = Callable[[Outputs, Outputs], None]
MetricFunction = Callable[[list[dict[str, np.ndarray]], dict[str, np.ndarray]], float]


@dataclass
class Budget:
    """What the artifact may lose. max_drop: of the metric, absolute. min_sqnr: dB, of the worst output."""

    max_drop: float | None = None
    min_sqnr: float | None = None


@dataclass
class _Scores:
    """The task metric of both models: top-1 against labels as it streams, or a function over all outputs at the end."""

    labels: np.ndarray | None = None
    label_name: str = ""
    function: MetricFunction | None = None
    name: str = ""
    hits: list[int] = field(default_factory=lambda: [0, 0])
    kept: tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]] = field(default_factory=lambda: ([], []))
    seen: int = 0

    def update(self, reference: Outputs, quantized: Outputs) -> None:
        if self.labels is not None:
            rows = 0
            for side, outputs in enumerate((reference, quantized)):
                scores = next(iter(outputs.values()))
                scores = scores.reshape(-1, scores.shape[-1])
                rows = len(scores)
                wanted = self.labels[self.seen : self.seen + rows].reshape(-1)
                self.hits[side] += int((scores.argmax(-1)[: len(wanted)] == wanted).sum())
            self.seen += rows
        elif self.function is not None:
            for side, outputs in enumerate((reference, quantized)):
                self.kept[side].append({k: np.array(v) for k, v in outputs.items()})

    def result(self, extras: dict[str, np.ndarray]) -> Metric | None:
        if self.labels is not None:
            if self.labels.size != self.seen:
                raise CalibrationError(
                    f"{self.label_name!r} holds {self.labels.size} labels for {self.seen} predictions"
                )
            float_score, quantized = (h / max(self.seen, 1) for h in self.hits)
            return Metric(f"top-1 ({self.label_name})", float_score, quantized, float_score - quantized)
        if self.function is not None:
            try:
                float_score, quantized = (float(self.function(k, extras)) for k in self.kept)
            except Exception as error:  # the user's own code may raise anything
                raise CalibrationError(f"metric {self.name} failed: {type(error).__name__}: {error}") from None
            return Metric(self.name, float_score, quantized, float_score - quantized)
        return None


def scores(data: Dataset, labels: str | None, metric: str | MetricFunction | None) -> _Scores:
    """The metric asked for. Raises CalibrationError when the labels are not in the data, or no metric is callable."""
    if labels is not None:
        if labels not in data.extras:
            raise CalibrationError(
                f"{data.name} has no array {labels!r} for labels: it has {', '.join(data.extras) or 'none'}"
            )
        return _Scores(labels=np.asarray(data.extras[labels]), label_name=labels)
    if metric is not None:
        function = load_object(metric) if isinstance(metric, str) else metric
        if not callable(function):
            raise CalibrationError(f"metric {metric!r} is a {type(function).__name__}; give a function")
        return _Scores(
            function=function, name=metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
        )
    return _Scores()


def verify(
    reference: Path,
    quantized: Path,
    target: Target,
    data: Dataset,
    *,
    labels: str | None = None,
    metric: str | MetricFunction | None = None,
    budget: Budget | None = None,
    layers: Sequence[tuple[str, str, str]] = (),
    layers_on_failure: bool = False,
    state: Pairs = (),
    threads: int = 1,
    keep: Keep = lambda feeds, outputs: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Verification:
    """Measure the artifact against the reference on the target's runtime, or on its stand-in where that is missing.

    layers: (node, op, value) triples whose value is compared in both models; layers_on_failure: only when the budget
    is not met. state: (output, input) pairs that each of the models is fed back, its own. keep: called with each
    sample and what the artifact made of it. A budget that is not met is
    written into `failures`; nothing is raised for it. Raises CalibrationError, ModelError, RecipeError, VerifyError.
    """
    if budget is not None and budget.max_drop is not None and labels is None and metric is None:
        raise RecipeError("a largest drop needs something to measure: give --labels or --metric beside --max-drop")
    runner, note = pick_runner(target)
    warnings = [note] if note else []
    options: dict[str, Any] = {"threads": threads} | (target.runner_options if note is None else {})
    float_runner = load("edgeq.runners", "cpu")
    judged = scores(data, labels, metric)
    fed = partial(with_state, model=reference, pairs=state)
    float_session = float_runner.open_session(reference, threads=threads)
    session = runner.open_session(quantized, **options)
    try:
        drifts, samples = _compare(fed(float_session), fed(session), data, judged, keep, progress)
        found = tuple(_drift(name, drift) for name, drift in drifts.items())
        runtime = Runtime(
            runner.TITLE,
            runner.version(),
            session.latency_ms if runner.TIMED else None,
            float_session.latency_ms if runner.TIMED else None,
        )
        levels, level_warnings = _levels(quantized, float_session, data, target, threads, fed)
    finally:
        float_session.close()
        session.close()
    warnings += level_warnings
    for output in found:
        if output.lost_slices:
            parts = ", ".join(f"[axis {s.axis}, index {s.index}]" for s in output.lost_slices[:5])
            more = f" and {len(output.lost_slices) - 5} more" if len(output.lost_slices) > 5 else ""
            warnings.append(f"output {output.name}: {parts}{more} lost, though the whole reads {output.sqnr_db:.1f} dB")
    if target.cpu_kernels:
        placed = fusion.placement(quantized, target)
        warnings += [f"node {name} is quantized but onnxruntime runs it in float" for name in placed.float]
    scored = judged.result(data.extras)
    failures = _failures(found, scored, budget or Budget())
    wanted = layers if failures or not layers_on_failure else ()
    layer_drifts = _layers(reference, quantized, wanted, data, threads, fed) if wanted else ()
    return Verification(samples, found, runtime, scored, levels, layer_drifts, tuple(warnings), failures)


def pick_runner(target: Target) -> tuple[Any, str | None]:
    """The target's runner, or its stand-in with the line that says why."""
    why: str | None = "it runs on a device only"
    if target.runner:
        runner = load("edgeq.runners", target.runner, "open_session")
        why = runner.missing()
        if why is None:
            return runner, None
    stand_in = load("edgeq.runners", target.stand_in, "open_session")
    return stand_in, f"verified on {stand_in.TITLE} instead of {target.title}: {why}"


def _compare(
    float_session: Session,
    session: Session,
    data: Dataset,
    judged: _Scores,
    keep: Keep,
    progress: Callable[[int], None],
) -> tuple[dict[str, Drift], int]:
    drifts: dict[str, Drift] = {}
    samples = 0
    fed, left, right = tee(data, 3)  # one walk: a loader that shuffles gives each walk another order
    for feeds, reference, got in zip(fed, float_session.run_many(left), session.run_many(right), strict=True):
        for name in reference:
            if name not in got or got[name].shape != reference[name].shape:
                shape = got[name].shape if name in got else "missing"
                raise VerifyError(
                    f"output {name!r} has shape {reference[name].shape} in the reference, here it is {shape}"
                )
            drifts.setdefault(name, Drift()).update(reference[name], got[name])
        judged.update(reference, got)
        keep(feeds, got)
        samples += 1
        progress(samples)
    if not samples:
        raise CalibrationError(f"{data.name} holds no samples to verify on: give at least one")
    return drifts, samples


def finite_db(db: float) -> float | None:
    return None if db == np.inf else (-300.0 if db == -np.inf else float(db))


def _drift(name: str, drift: Drift) -> OutputDrift:
    result = drift.result()
    lost = tuple(LostSlice(s.axis, s.index, finite_db(s.sqnr_db) or 0.0) for s in result.lost)
    return OutputDrift(name, finite_db(result.sqnr_db), result.cosine, result.max_abs, lost)


def _levels(
    quantized: Path, float_session: Session, data: Dataset, target: Target, threads: int, fed: Fed
) -> tuple[dict[str, float | None], list[str]]:
    """The worst output SQNR at each optimization level of onnxruntime, over a few samples."""
    runner = load("edgeq.runners", "cpu")
    few = list(data.take(LEVEL_SAMPLES))
    fed_float = fed(float_session)
    references = [fed_float.run(feeds) for feeds in few]
    results: dict[str, list[dict[str, np.ndarray]]] = {}
    for level in ("disabled", "basic", "all"):
        try:
            # Without optimization all weights are dequantized at run time: that memory must not be kept.
            opened = runner.open_session(
                quantized, optimization=level, threads=threads, config=dict(target.session_config), keep=False
            )
        except EdgeqError as error:
            return {}, [f"optimization level {level}: {error}"]
        session = fed(opened)
        results[level] = [session.run(feeds) for feeds in few]
        session.close()
    levels = {level: finite_db(_worst(references, got)) for level, got in results.items()}
    between = _worst(results["disabled"], results["all"])
    if between < LEVELS_AGREE_DB and min(v if v is not None else 999.0 for v in levels.values()) < between + 10:
        return levels, [f"onnxruntime's optimization levels disagree: {between:.1f} dB between disabled and all"]
    return levels, []


def _worst(references: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    drifts: dict[str, Drift] = {}
    for left, right in zip(references, got, strict=True):
        for name, array in left.items():
            drifts.setdefault(name, Drift(axes=())).update(array, right[name])
    return min((d.result().sqnr_db for d in drifts.values()), default=np.inf)


def _layers(
    reference: Path, quantized: Path, layers: Sequence[tuple[str, str, str]], data: Dataset, threads: int, fed: Fed
) -> tuple[LayerDrift, ...]:
    """SQNR of intermediate values that both models have, in graph order."""
    runner = load("edgeq.runners", "cpu")
    names = [value for _, _, value in layers]
    left, right = (fed(runner.open_session(model, threads=threads)) for model in (reference, quantized))
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
