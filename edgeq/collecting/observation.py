"""Statistics for a plan: the float model runs on the data once, and observers look at what the plan needs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx_ir as ir

from edgeq.collecting import stats, workers
from edgeq.collecting.datafree import Moments, renormalized, synthetic
from edgeq.collecting.shards import Task, chosen, count, split
from edgeq.collecting.stats import Statistics
from edgeq.data import BLOCK, Dataset
from edgeq.errors import CalibrationError, ModelError, RecipeError
from edgeq.graph import io
from edgeq.graph.edit import all_graphs
from edgeq.graph.observe import observable
from edgeq.planning.outliers import splittable
from edgeq.planning.plan import Plan
from edgeq.planning.planner import plan
from edgeq.processors import processors
from edgeq.recipe import Recipe
from edgeq.target import Target
from edgeq.types import Progress

WITH_HISTOGRAM = "mse"
"""A calibrator that needs all that a summary can hold, so that saved statistics serve every calibrator."""


@dataclass(frozen=True)
class Ways:
    """How statistics are come by. workers: processes; dask: a scheduler's address, whose workers run instead.

    stats: a file of them to use in place of data. save_stats: a file to write them to. moments: of the model's
    BatchNormalizations, to run it on made-up data (`edgeq.collecting.datafree`). keep: a folder for finished layers, of
    weight-only quantization, so that a run that was cut off goes on where it was. device: where GPTQ solves a
    layer, if it can. rank: also measure what each node's rounding alone does (`edgeq.search.sensitivity`).
    """

    workers: int = 1
    dask: str | None = None
    stats: str | os.PathLike[str] | None = None
    save_stats: str | os.PathLike[str] | None = None
    moments: Moments | None = None
    keep: str | os.PathLike[str] | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    rank: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise RecipeError(f"--workers {self.workers}: give 1 or more")
        if self.workers > 1 and self.dask is not None:
            raise RecipeError("--dask has workers of its own: leave out --workers")
        if self.stats is not None and (self.save_stats is not None or self.dask is not None or self.workers > 1):
            raise RecipeError("--stats runs on no data: leave out --save-stats, --workers and --dask")

    @property
    def data_free(self) -> bool:
        return self.moments is not None


def gather(
    made: Plan,
    prepared: ir.Model,
    path: Path,
    target: Target,
    recipe: Recipe,
    data: Dataset | None,
    work: Path,
    ways: Ways,
    progress: Progress,
) -> Statistics:
    """Statistics of the values that the plan observes, from the data or from a file of an earlier run.

    path: the file of `prepared`. work: a folder for what is only needed meanwhile. Raises CalibrationError without
    data or for a file that doesn't fit.
    """
    wanted = observed(prepared, made)
    if ways.stats is not None:
        return _saved(Path(ways.stats), path, recipe, wanted)
    running = path
    if ways.moments is not None:
        running = work / ".renormalized.onnx"
        data = synthetic(prepared, renormalized(path, ways.moments, running), recipe)
    if data is None:
        raise CalibrationError("static quantization needs data: give --calib, --data-free, or use --method dynamic")
    if ways.save_stats is not None:  # also what plans of other recipes would look at
        others = [{"elementwise": "all", "attention": True}, {"elementwise": "none", "attention": False}]
        plans = [plan(prepared, target, msgspec.structs.replace(recipe, **other)) for other in others]
        wanted = dict.fromkeys({**wanted, **observed(prepared, *plans)}, WITH_HISTOGRAM)
    channels = tuple(splittable(made, prepared, target))
    found = replace(observe(wanted, channels, running, recipe, data, work, ways, progress), data=data.name)
    if found.samples == 0:
        raise CalibrationError(f"{data.name} holds no samples: give at least one")
    if ways.save_stats is not None:
        stats.save(replace(found, model=_digest(path), settings=_settings(recipe)), Path(ways.save_stats))
    return found


def observed(prepared: ir.Model, *plans: Plan) -> dict[str, str]:
    """Value → calibrator, for all that plans need to see and that is no constant."""
    constants = {name for graph in all_graphs(prepared) for name in graph.initializers}
    return {v.name: v.calibrator for made in plans for v in made.observed() if v.name not in constants}


def observe(
    wanted: dict[str, str],
    channels: tuple[str, ...],
    path: Path,
    recipe: Recipe,
    data: Dataset,
    work: Path,
    ways: Ways,
    progress: Progress,
) -> Statistics:
    """Run the model of `path` on the data, here or wherever `ways` says: the result is the same, to the bit.

    channels: those of the wanted values whose channels count too.
    """
    samples = chosen(data, recipe)
    total = samples.count
    with tempfile.TemporaryDirectory(dir=work) as folder:
        model, outputs = observable(path, wanted, Path(folder))

        def advance(done: int) -> None:
            progress("collect", done, total)

        def tasks(parts: int) -> list[bytes]:
            blocks = parts if total is None else -(-total // BLOCK)
            return split(task, data, 1 if recipe.state else max(min(parts, blocks), 1))

        task = Task(
            wanted,
            outputs,
            channels,
            shapes=io.input_shapes(io.load(path)),
            samples=recipe.samples,
            seed=recipe.seed % 2**64,
            preprocess=recipe.preprocess,
            state=recipe.state,
            threads=1 if ways.dask else max(processors() // ways.workers, 1),
        )
        try:
            if ways.dask is not None:
                return _together(workers.on_dask(ways.dask, model, tasks, advance))
            if ways.workers > 1:
                return _together(workers.in_processes(model, tasks(ways.workers), Path(folder), advance))
            return count(model, task, samples, advance)
        except ModelError as error:
            if not data.padding:
                raise
            raise ModelError(
                f"{error}; padding was left out, which a model may not take: padding = [] in the recipe keeps it"
            ) from None


def _together(parts: Iterable[bytes]) -> Statistics:
    first, *rest = (stats.parse(part) for part in parts)
    for part in rest:
        first = first.merged(part)
    return first


def _saved(file: Path, path: Path, recipe: Recipe, wanted: dict[str, str]) -> Statistics:
    found = stats.load(file)
    if found.model != _digest(path):
        raise CalibrationError(
            f"{file}: statistics of another model, or of this one prepared for another target; collect them anew"
        )
    changed = [
        k
        for k in ("preprocess", "state", "padding")
        if (found.settings.get(k) or None) != (_settings(recipe)[k] or None)
    ]
    if changed:
        raise CalibrationError(f"{file}: collected with another {changed[0]} than the recipe's; collect them anew")
    if missing := [name for name in wanted if name not in found.values]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CalibrationError(
            f"{file}: has nothing of {', '.join(missing[:3])}{more}, which the plan needs; collect them anew"
        )
    return found


def statistics_key(parts: Sequence[Any], recipe: Recipe) -> str:
    """A name for statistics in a cache. parts: what tells model, data, target and versions apart.

    The rest is what of the recipe the statistics depend on; calibrators and rules are not of it.
    """
    fields = msgspec.to_builtins(recipe)
    kept = [fields[name] for name in ("samples", "seed", "preprocess", "state", "shapes", "padding", "passes")]
    return hashlib.sha256(json.dumps([*parts, *kept], sort_keys=True, default=str).encode()).hexdigest()


def _settings(recipe: Recipe) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(recipe)
    kept = ("samples", "seed", "preprocess", "state", "padding")
    return msgspec.json.decode(msgspec.json.encode({k: fields[k] for k in kept}))


def _digest(path: Path) -> str:
    return io.sha256(io.files(path))
