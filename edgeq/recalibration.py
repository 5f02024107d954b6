"""New activation scales for an artifact from what it met in the field: without the float model, weights as they are."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.summary import Summary
from edgeq.collecting import stats as statistics
from edgeq.collecting.observation import Ways, observe
from edgeq.data import open_data
from edgeq.data.arrays import read_npz
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.numerics.affine import qparams, reach
from edgeq.passes.observer import HIGH, LOW, observed, observer
from edgeq.passes.rescale import groups, rescale
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.request import with_padding
from edgeq.types import Progress, QParams, silent


@dataclass(frozen=True)
class Drift:
    """A scale before and after. before, after: the least and greatest number that has a code.

    outside: share of what the field gave that the old range cut off, where there is a histogram. note: why it stayed.
    """

    value: str
    before: tuple[float, float]
    after: tuple[float, float]
    outside: float = 0.0
    note: str = ""

    @property
    def ratio(self) -> float:
        """Width of the new range over that of the old."""
        return (self.after[1] - self.after[0]) / (self.before[1] - self.before[0])


def recalibrate(
    artifact: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    stats: str | os.PathLike[str] | None = None,
    data: Any = None,
    save_stats: str | os.PathLike[str] | None = None,
    calibrator: str = "mse",
    samples: int = 0,
    progress: Progress = silent,
) -> list[Drift]:
    """Write the Q-DQ artifact with other activation scales to `output`; gives what moved, the farthest first.

    stats: statistics of its values, as `quantize --save-stats` or this writes them, or an .npz of what the observer
    gave (see `observe_file`). data: in place of them, what the artifact itself is to run on; save_stats: where to keep
    what was seen, so that several devices' can be merged.
    Raises CalibrationError without either, or for statistics that have none of its values.
    """
    if (stats is None) == (data is None):
        raise RecipeError("give --stats or --calib, one of the two")
    choose = load("edgeq.calibrate", calibrator, "choose").choose
    path, model = Path(artifact), io.load(artifact)
    held = groups(model)
    if not held:
        raise CalibrationError(f"{path}: has no Q-DQ pairs of edgeq's; give a static artifact")
    summaries = _summaries(Path(stats), model) if stats is not None else None
    if summaries is None:
        found = _seen(path, data, samples, progress)
        summaries = found.summaries
        if save_stats is not None:
            statistics.save(found, Path(save_stats))
    if not set(held) & set(summaries):
        raise CalibrationError(f"{stats or path}: has statistics of none of the artifact's values: of another model?")
    fresh: dict[str, QParams] = {}
    notes: dict[str, str] = {}
    for name, group in held.items():
        if name not in summaries:
            notes[name] = "no statistics"
        elif group.split:
            notes[name] = "outlying channels are split in steps of this size"
        else:
            chosen = choose(summaries[name], group.params.spec)
            fresh[name] = qparams(chosen.lo, chosen.hi, group.params.spec)
    settled = rescale(model, fresh)
    io.save(model, output)
    drifts = [
        Drift(n, reach(g.params), reach(settled[n]), _outside(summaries.get(n), reach(g.params)), notes.get(n, ""))
        for n, g in held.items()
    ]
    return sorted(drifts, key=lambda d: -abs(np.log(d.ratio)))


def observe_file(artifact: str | os.PathLike[str], output: str | os.PathLike[str]) -> int:
    """Write the artifact with the outputs `edgeq_low` and `edgeq_high`; gives how many values they tell of.

    Both are float32 (n,). `recalibrate` takes as `stats` an .npz of these names, a run a row: (runs, n).
    """
    model = observer(io.load(artifact))
    io.save(model, output)
    return len(observed(model))


def _summaries(path: Path, model: ir.Model) -> dict[str, Summary]:
    """Of statistics, or of what an observer gave: extrema alone, so that all calibrators choose what was seen."""
    try:
        rows = read_npz(path)
    except OSError as error:
        raise CalibrationError(f"{path}: can't be read ({error.strerror}); give a file of statistics") from None
    if LOW not in rows or HIGH not in rows:
        return statistics.load(path).summaries
    names, low, high = list(observed(model)), rows[LOW], rows[HIGH]
    if low.shape != high.shape or low.ndim != 2 or low.shape[1] != len(names) or not len(low):
        raise CalibrationError(f"{path}: {LOW} and {HIGH} must be (runs, {len(names)}), not {low.shape}, {high.shape}")
    if not (np.issubdtype(low.dtype, np.floating) and (low <= high).all()):
        raise CalibrationError(f"{path}: {LOW} must be floats, none above {HIGH}; give what the observer gave")
    found = {name: Summary() for name in names}
    for pair in zip(low.astype(np.float32), high.astype(np.float32), strict=True):
        for summary, ends in zip(found.values(), np.stack(pair, 1), strict=True):
            summary.update(ends)
    return found


def _outside(summary: Summary | None, codes: tuple[float, float]) -> float:
    mass = summary.mass() if summary is not None else None
    return 0.0 if mass is None else mass.outside(*codes, (codes[1] - codes[0]) / 255 / 2)


def _seen(path: Path, data: Any, samples: int, progress: Progress) -> statistics.Statistics:
    """What the artifact's own quantizers are given."""
    model = io.load(path)
    sources = {name: group.quantizers[0].inputs[0] for name, group in groups(model).items()}
    given = {name: source.name or "" for name, source in sources.items() if source is not None}
    dataset = open_data(data, io.input_shapes(model))
    wanted = dict.fromkeys(given.values(), "mse")
    with tempfile.TemporaryDirectory(prefix="edgeq-") as work:
        recipe, trimmed = with_padding(Recipe(samples=samples), dataset, model)
        found = observe(wanted, (), path, recipe, trimmed or dataset, Path(work), Ways(), progress)
    summaries = {name: found.summaries[value] for name, value in given.items() if value in found.summaries}
    return statistics.Statistics(summaries, tuple(given), found.samples, io.sha256(io.files(path)), dataset.name)
