"""The spine: prepare → plan → collect → solve → rewrite → save → verify, each step the next one's input."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, TopologicalSortPass

from edgeq import passes
from edgeq import recipe as recipes
from edgeq import target as targets
from edgeq.calibrate.summary import Summary
from edgeq.collecting.datafree import batch_moments
from edgeq.collecting.layerwise import solve_layers
from edgeq.collecting.observation import Ways, gather
from edgeq.collecting.shards import chosen as drawn_by
from edgeq.data import Dataset
from edgeq.errors import RecipeError, TargetError, ToolError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.graph.shapes import fix_shapes
from edgeq.memory import give_back
from edgeq.passes.integer_ends import as_codes, strip_ends
from edgeq.passes.integer_only import integer_only
from edgeq.passes.tables import store_tables
from edgeq.planning import plateaus
from edgeq.planning.costs import costly_joins
from edgeq.planning.coverage import Coverage, coverage
from edgeq.planning.outliers import split_outliers
from edgeq.planning.plan import Plan
from edgeq.planning.planner import plan
from edgeq.planning.solve import solve
from edgeq.processors import single_products
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.report import build as reports
from edgeq.report.evidence import Evidence, drawn, ranges
from edgeq.report.folder import publish, work_folder
from edgeq.report.schema import Report, dump
from edgeq.request import aim_of, open_samples, resolve_recipe, shaped_as, with_images, with_padding
from edgeq.runners.places import of_target
from edgeq.search import recovery, scaling
from edgeq.search.allocation import allocated
from edgeq.search.sensitivity import sensitivity
from edgeq.target import Target
from edgeq.types import Progress, Stats, silent
from edgeq.verifying import golden
from edgeq.verifying.verification import verify_files
from edgeq.verifying.verify import Budget, MetricFunction


@dataclass(frozen=True)
class Result:
    """Where everything lies, and the report that says what it is."""

    folder: Path
    artifact: Path
    report: Report
    plan: Plan

    @property
    def ok(self) -> bool:
        return self.report.verification is None or not self.report.verification.failures


def quantize(
    model: str | os.PathLike[str],
    target: str | Target | None = None,
    calib: Any = None,
    output: str | os.PathLike[str] = "out",
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    eval_data: Any = None,
    labels: str | None = None,
    metric: str | MetricFunction | None = None,
    budget: Budget | None = None,
    check: bool = True,
    layers: bool = False,
    at_levels: bool = True,
    also: Sequence[str] = (),
    workers: int = 1,
    dask: str | None = None,
    stats: str | os.PathLike[str] | None = None,
    save_stats: str | os.PathLike[str] | None = None,
    keep: str | os.PathLike[str] | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    rank: bool = False,
    bpw: float | None = None,
    max_bytes: int | None = None,
    recorded: Path | None = None,
    streams: int = 1,
    worth: Callable[[Path], bool] | None = None,
    data_free: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> Result:
    """Quantize the model in `model` for a target; write the artifact, `recipe.toml` and `report.json` to `output`.

    target: by default the recipe's. calib: see `edgeq.data.open_data`; only the static method needs it.
    eval_data: what to verify on, by default `calib`. check: whether to verify. layers: measure every layer too.
    at_levels: verify at onnxruntime's levels of optimization too.
    also: further targets to verify on.
    workers, dask, stats, save_stats, keep, device, rank: see `edgeq.collecting.observation.Ways`.
    recorded, streams: see `edgeq.verifying.verify`. worth: asked of the artifact; one that it declines is not verified.
    data_free: calibrate on made-up data. bpw, max_bytes: see `edgeq.search.allocation`.
    settings: fields of the recipe, which win over `recipe`'s; None leaves one as it is.
    Raises an EdgeqError, and then leaves nothing behind.
    """
    path = Path(model)
    ways = Ways(workers, dask, stats, save_stats, keep=keep, device=device, rank=rank)
    if data_free and not (calib is None and stats is None):
        raise RecipeError("--data-free makes data up: leave out --calib and --stats")
    chosen = resolve_recipe(recipe, target, **settings)
    aim = aim_of(target, chosen)
    if chosen.method != "static" and (data_free or stats is not None or save_stats is not None):
        raise RecipeError(f"method {chosen.method} has no statistics: leave out --data-free, --stats and --save-stats")
    budget = budget or Budget()
    if (budget.max_drop, budget.min_sqnr) != (None, None) and (not check or (calib is None and eval_data is None)):
        raise RecipeError("a budget needs a verification: give --calib or --eval, and leave out --no-verify")
    with work_folder(Path(output)) as work, ThreadPoolExecutor(1) as beside:
        source = io.load(path)
        hashed = beside.submit(reports.file_info, path)  # a large file is read by the time that its weights are
        chosen = with_images(chosen, source)
        if data_free:
            ways = replace(ways, moments=batch_moments(source))
        data, held_out = (open_samples(given, chosen, source) for given in (calib, eval_data))
        held_out = held_out or data
        if aim.static_shapes and held_out is not None:
            chosen = shaped_as(held_out, chosen, source)
        progress("prepare", 0, None)
        prepared_path, prepared = _prepare(source, aim, chosen, work)
        del source  # and with it the weights in memory: those of the prepared model are mapped
        give_back()
        chosen, data = with_padding(chosen, data, prepared)
        if bpw is not None or max_bytes is not None:
            chosen = allocated(chosen, prepared, aim, data, work, bpw, max_bytes, progress)
        with single_products() if chosen.method == "static" else nullcontext():  # packing large weights takes them all
            found, final, evidence = _quantize(prepared, prepared_path, aim, chosen, data, work, ways, progress)
        passes.run(found, aim.passes_after)
        progress("save", 0, None)
        _finish(found)
        write = partial(
            load("edgeq.formats", f"{aim.format}_artifact", "write").write,
            folder=work, source=path, method=chosen.method,
        )  # fmt: skip
        artifact = write(found)
        verification, kept = None, golden.Golden()
        if check and held_out is not None and (worth is None or worth(artifact)):
            verification = verify_files(
                path,
                artifact,
                aim,
                held_out,
                recipe=chosen,
                labels=labels,
                metric=metric,
                budget=budget,
                layers=layers,
                at_levels=at_levels,
                boards=[of_target(targets.load(name)) for name in also],
                keep=kept,
                recorded=recorded,
                streams=streams,
                progress=progress,
            )
        if chosen.integer_io:  # the ends are exact: what was verified with float ones holds for codes
            artifact = write(strip_ends(found))
            kept.samples = [(as_codes(found, fed), as_codes(found, answer)) for fed, answer in kept.samples]
        if verification is not None:
            golden.save(kept, work / golden.NAME)
        evidence = _compile(aim, artifact, evidence)
        (work / "recipe.toml").write_text(recipes.dump(chosen))
        report = reports.build(hashed.result(), artifact, aim, chosen, final, evidence, verification)
        (work / "report.json").write_bytes(dump(report))
        publish(work, Path(output))
    return Result(Path(output), Path(output) / artifact.name, report, final)


def plan_file(model: str | os.PathLike[str], target: str | Target, recipe: Recipe) -> Plan:
    """The plan for a model file, before any data is seen."""
    aim = aim_of(target, recipe)
    return plan(_ready(io.load(model), aim, recipe), aim, recipe)


def coverage_files(model: str | os.PathLike[str], names: Sequence[str], recipe: Recipe) -> list[Coverage]:
    """What each of the targets makes of a model file; for one that refuses it, why."""
    found = []
    for name in names:
        asked = msgspec.structs.replace(recipe, target=name)
        try:
            aim = aim_of(name, asked)
            prepared = _ready(io.load(model), aim, asked)
            found.append(coverage(prepared, plan(prepared, aim, asked), aim))
        except TargetError as error:
            found.append(Coverage(name, recipe.method, problem=str(error)))
    return found


def _ready(source: ir.Model, target: Target, recipe: Recipe) -> ir.Model:
    """The model prepared, with the recipe's shapes, and rewritten as the target's runtime likes it."""
    fix_shapes(source, dict(recipe.shapes))
    prepared = prepare(source, target.opset)
    passes.run(prepared, target.passes_before)
    return prepared


def _prepare(source: ir.Model, target: Target, recipe: Recipe, work: Path) -> tuple[Path, ir.Model]:
    """The prepared model, and the file it was saved to and is mapped from; weight-only has no use for one."""
    prepared = _ready(source, target, recipe)
    saved = work / ".prepared.onnx"
    if recipe.method == "weight_only":
        return saved, prepared
    io.save(prepared, saved, beside=True)
    return saved, io.load(saved)


def _quantize(
    prepared: ir.Model,
    path: Path,
    target: Target,
    recipe: Recipe,
    data: Dataset | None,
    work: Path,
    ways: Ways,
    progress: Progress,
) -> tuple[ir.Model, Plan, Evidence]:
    """Plan, collect, solve and rewrite. Gives the quantized model, the final plan and what to report of the way."""
    path = recovery.before(prepared, path, target, recipe, data, work, progress)
    if recipe.method == "weight_only":
        scaling.scale(prepared, target, recipe, data, work, progress)
    progress("plan", 0, None)
    excluded: dict[str, str] = {}
    made = plan(prepared, target, recipe, excluded)
    summaries: dict[str, Summary] = {}
    about: dict[str, Any] = {"samples": 0, "data": None}
    if recipe.method == "static":
        found = gather(made, prepared, path, target, recipe, data, work, ways, progress)
        summaries = plateaus.limited(made, prepared, found.summaries)
        about = {"samples": found.samples, "data": found.data}
        if ways.stats is not None:
            about["statistics"] = Path(ways.stats).name
        give_back()
        excluded |= costly_joins(made, prepared, target, recipe, summaries)
    samples = drawn_by(data, recipe) if data is not None and recipe.method == "weight_only" else None
    if samples is not None and data is not None:
        about = {"samples": samples.count, "data": data.name}
    known: dict[str, Stats] | None = None
    while True:
        made, limited = split_outliers(plan(prepared, target, recipe, excluded), prepared, target, recipe, summaries)
        if known is None:  # later plans have no other layers, only fewer
            known = recovery.layer_stats(prepared, path, made, data, recipe) if recipe.method == "static" else {}
        if recipe.method == "weight_only":
            keep = Path(ways.keep) if ways.keep else None
            solution, failed = solve_layers(
                made, prepared, samples, work, recipe.sequential, keep, progress, ways.device
            )
        else:
            counted = partial(_count, progress, "solve", len(made.weights))
            solution, failed = solve(made, prepared, limited, known, counted)
        if not failed:
            break
        excluded |= failed
    progress("rewrite", 0, None)
    warnings = ["calibrated on made-up data: measure the artifact on real samples"] if ways.data_free else []
    if data is None and not ways.data_free and recovery.corrects(recipe):
        warnings.append("biases are not corrected: that takes samples, not statistics alone; give --calib too")
    evidence = Evidence(drawn(prepared, made), ranges(made, limited, solution.groups), about, tuple(warnings))
    if ways.rank and data is not None and recipe.method == "static":
        evidence = replace(evidence, sensitivity=sensitivity(prepared, made, solution, data, work, progress))
    store_tables(prepared, made, solution)
    rewritten = passes.write(prepared, made, solution, target, recipe)
    if corrected := recovery.after(rewritten, path, made, recipe, data, work, progress):
        evidence = replace(evidence, calibration=about | {"corrected": corrected})
    return integer_only(rewritten, recipe.rounding) if recipe.integer_only else rewritten, made, evidence


def _compile(target: Target, artifact: Path, evidence: Evidence) -> Evidence:
    """With the figures of the target's compiler, or a warning where that is missing or declines."""
    if not target.compiler:
        return evidence
    try:
        made = load("edgeq.formats", target.compiler, "compile").compile(artifact, target.compiler_options)
    except ToolError as error:
        return replace(evidence, warnings=(*evidence.warnings, str(error)))
    return replace(evidence, compiled=made)


def _count(progress: Progress, step: str, total: int, done: int) -> None:
    progress(step, done, total)


def _finish(model: ir.Model) -> None:
    """Order the nodes and make sure of unique names: onnx-ir itself accepts names that collide."""
    TopologicalSortPass()(model)
    NameFixPass()(model)
