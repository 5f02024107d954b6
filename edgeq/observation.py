"""Statistics for a plan: the float model runs on the data once, and observers look at what the plan needs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from edgeq.calibrate.collect import collect
from edgeq.calibrate.summary import Summary
from edgeq.data import Dataset
from edgeq.errors import CalibrationError
from edgeq.graph.observe import observable
from edgeq.plan import Plan
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.types import Progress


def observe(
    made: Plan, prepared: ir.Model, path: Path, recipe: Recipe, data: Dataset, work: Path, progress: Progress
) -> tuple[dict[str, Summary], int]:
    """Summaries of the values that the plan observes, and how many samples were seen.

    path: the file of `prepared`, which runs on the data; work: a folder for what is only needed meanwhile. Raises
    CalibrationError when the data holds no sample.
    """
    constants = {name for graph in (prepared.graph, *prepared.graph.subgraphs()) for name in graph.initializers}
    wanted = {v.name: v.calibrator for v in made.observed() if v.name not in constants}
    used = data.take(recipe.samples)
    total = used.count
    with tempfile.TemporaryDirectory(dir=work) as folder:
        observed, outputs = observable(path, wanted, Path(folder))
        # One sample a core beats all cores on one sample, and the reductions run in parallel too.
        session = load("edgeq.runners", "cpu").open_session(observed, threads=1)
        workers = os.cpu_count() or 1
        try:
            summaries, seen = collect(session, used, wanted, outputs, lambda n: progress("collect", n, total), workers)
        finally:
            session.close()
    if seen == 0:
        raise CalibrationError(f"{data.name} holds no samples: give at least one")
    return summaries, seen
