"""Latency of several models side by side, in turns, so that a noisy machine is as noisy to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.data import open_data
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.report.schema import Bench, BenchRow, Runtime
from edgeq.runners.places import Place
from edgeq.runners.session import Session
from edgeq.types import Progress, silent

TURN_MS = 100.0  # a turn takes as many inferences as fill this, and the median of a turn is one observation
LEAST, MOST = 5, 200  # inferences in a turn: the first ones are slow, until caches and branches have settled


def bench(
    models: Sequence[Path],
    place: Place,
    data: Any = None,
    *,
    threads: Sequence[int] = (1,),
    rounds: int = 9,
    progress: Progress = silent,
) -> Bench:
    """The median over `rounds` turns of each model at each thread count; ratios are to the first model.

    data: see `edgeq.data.open_data`, of which the first sample is taken; without it the input is drawn by `drawn`.
    The order is reversed from round to round. Raises RecipeError where seconds would mean nothing, ModelError.
    """
    if not models:
        raise RecipeError("nothing to compare: give at least one model")
    if not place.timed:
        raise RecipeError(f"{place.name}: {place.runner.TITLE} tells no speed: give --host, a board of that kind")
    feeds = [_sample(model, data) for model in models]
    rows: list[BenchRow] = []
    version = machine = ""
    total = len(threads) * rounds
    for step, count in enumerate(threads):
        sessions = [place.open(model, threads=count) for model in models]
        try:
            observed = _turns(sessions, feeds, rounds, partial(_advance, progress, step * rounds, total))
            version, machine = (str(sessions[0].report.get(key, "")) for key in ("version", "machine"))
        finally:
            for session in sessions:
                session.close()
        first = float(np.median(observed[0]))
        for model, times in zip(models, observed, strict=True):
            low, middle, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
            size = sum(file.stat().st_size for file in io.files(model))
            rows.append(BenchRow(str(model), count, size, middle, low, high, first / middle))
    shapes = {name: array.shape for name, array in feeds[0].items()}
    return Bench(place.name, Runtime(place.runner.TITLE, version), machine, rounds, shapes, tuple(rows))


def _advance(progress: Progress, before: int, total: int, done: int) -> None:
    progress("bench", before + done, total)


def _turns(
    sessions: Sequence[Session], feeds: Sequence[Mapping[str, np.ndarray]], rounds: int, progress: Callable[[int], None]
) -> list[list[float]]:
    """Milliseconds, `rounds` observations of each session."""

    def turn(index: int, inferences: int) -> float:
        for _ in sessions[index].run_many([feeds[index]] * inferences):
            pass
        return sessions[index].latency_ms or 0.0

    everyone = list(range(len(sessions)))
    inferences = [int(np.clip(TURN_MS / max(turn(i, LEAST), 1e-3), LEAST, MOST)) for i in everyone]
    observed: list[list[float]] = [[] for _ in sessions]
    for done in range(rounds):
        for index in everyone[:: -1 if done % 2 else 1]:
            observed[index].append(turn(index, inferences[index]))
        progress(done + 1)
    return observed


def _sample(model: Path, data: Any) -> dict[str, np.ndarray]:
    """The first sample of the data, or one that is drawn for the model."""
    source = io.load(model)
    if data is None:
        return drawn(source)
    shapes = io.input_shapes(source)
    dataset = open_data(data, shapes)
    feeds = next(iter(dataset), None)
    if feeds is None:
        raise CalibrationError(f"{dataset.name} holds no sample to time: give at least one")
    return {name: feeds[name] for name in shapes if name in feeds}


def drawn(model: ir.Model) -> dict[str, np.ndarray]:
    """Inputs of a model, the same each time: unit normal, integers 0 or 1; a size that is left open is taken as 1."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise CalibrationError(f"input {value.name!r} has no declared type and rank to draw it by: give --data")
        shape = [size if isinstance(size, int) and size >= 0 else 1 for size in value.shape]
        kind = value.dtype.numpy()
        floating = value.dtype.is_floating_point()
        feeds[value.name or ""] = (rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)).astype(kind)
    return feeds
