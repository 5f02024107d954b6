"""The spine: prepare → plan → collect → solve → rewrite → save → verify, each step the next one's input."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, TopologicalSortPass

from edgeq import recipe as recipes
from edgeq import target as targets
from edgeq.calibrate.collect import collect
from edgeq.calibrate.summary import Summary
from edgeq.costs import costly_joins
from edgeq.data import Dataset, open_data
from edgeq.errors import CalibrationError, ModelError, RecipeError
from edgeq.graph import io
from edgeq.graph.observe import observable
from edgeq.graph.prepare import prepare
from edgeq.passes.dynamic import make_dynamic
from edgeq.passes.qdq import insert_qdq
from edgeq.passes.tables import store_tables
from edgeq.plan import BRIDGE, DYNAMIC, FLOAT, FOLDED, INTEGER, Plan
from edgeq.planner import plan
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.report.folder import publish, work_folder
from edgeq.report.schema import FileInfo, FloatNode, Nodes, Report, Verification, dump
from edgeq.solve import solve
from edgeq.target import Method, Target
from edgeq.verify import Budget, MetricFunction, verify

Progress = Callable[[str, int, int | None], None]
"""Called with a step's name, how far it is, and of how many (None where that is not known)."""

# Nodes that compute shapes, move data or hold no arithmetic: their being float is expected and costs nothing.
QUIET = ("Shape", "Constant", "Cast", "Identity", "Gather", "ConstantOfShape", "Range", "If", "Loop", "Scan")


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


def _silent(step: str, done: int, total: int | None) -> None:
    pass


def _counted(progress: Progress, step: str, total: int | None, done: int) -> None:
    progress(step, done, total)


def input_shapes(model: ir.Model) -> dict[str, tuple[int | None, ...] | None]:
    """Names and shapes of the inputs that a caller must give."""
    return {
        v.name or "": None if v.shape is None else tuple(d if isinstance(d, int) else None for d in v.shape)
        for v in model.graph.inputs
        if v.name not in model.graph.initializers
    }


def quantize(
    model: str | os.PathLike[str],
    target: str | Target | None = None,
    calib: Any = None,
    output: str | os.PathLike[str] = "out",
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    method: str | None = None,
    calibrator: str | None = None,
    eval_data: Any = None,
    labels: str | None = None,
    metric: str | MetricFunction | None = None,
    budget: Budget | None = None,
    check: bool = True,
    progress: Progress = _silent,
) -> Result:
    """Quantize the model in `model` for a target and write `model.onnx`, `recipe.toml`, `report.json` to `output`.

    target: by default the recipe's. calib: see `edgeq.data.open_data`; not needed for dynamic.
    eval_data: what to verify on, by default `calib`.
    check: whether to verify. Raises an EdgeqError, and then leaves nothing behind.
    """
    path = Path(model)
    chosen = resolve_recipe(recipe, target, method, calibrator)
    aim = target if isinstance(target, Target) else targets.load(chosen.target)
    budget = budget or Budget()
    if (budget.max_drop, budget.min_sqnr) != (None, None) and (not check or (calib is None and eval_data is None)):
        raise RecipeError("a budget needs a verification: give --calib or --eval, and leave out --no-verify")
    with work_folder(Path(output)) as work:
        source = io.load(path)
        shapes = input_shapes(source)
        data = open_data(calib, shapes) if calib is not None else None
        held_out = open_data(eval_data, shapes) if eval_data is not None else data
        progress("prepare", 0, None)
        prepared_path, prepared = _prepare(path, source, aim, work)
        found, solution_plan, about = _quantize(prepared, prepared_path, aim, chosen, data, work, progress)
        for name in aim.passes_after:
            load("edgeq.passes", name, "rewrite").rewrite(found)
        progress("save", 0, None)
        artifact = work / "model.onnx"
        _finish(found)
        io.save(found, artifact)
        io.check(io.load(artifact) if io.weight_bytes(found) < io.INLINE_LIMIT else found, str(path))
        verification = None
        if check and held_out is not None:
            verification = verify_files(
                path, artifact, aim, held_out, labels=labels, metric=metric, budget=budget, progress=progress
            )
        (work / "recipe.toml").write_text(recipes.dump(chosen))
        report = _report(path, artifact, aim, chosen, solution_plan, about, verification)
        (work / "report.json").write_bytes(dump(report))
        publish(work, Path(output))
    return Result(Path(output), Path(output) / "model.onnx", report, solution_plan)


def resolve_recipe(
    recipe: Recipe | str | os.PathLike[str] | None,
    target: str | Target | None,
    method: str | None,
    calibrator: str | None,
) -> Recipe:
    """The recipe with what was asked for beside it written in. Raises RecipeError for an unknown name."""
    chosen = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else recipes.load(recipe)
    changes: dict[str, Any] = {}
    if target is not None:
        changes["target"] = target.name if isinstance(target, Target) else target
    changes |= {k: v for k, v in {"method": method, "calibrator": calibrator}.items() if v is not None}
    chosen = msgspec.structs.replace(chosen, **changes)
    if chosen.method not in get_args(Method):
        raise RecipeError(f"no method {chosen.method!r}: choose one of {', '.join(get_args(Method))}")
    load("edgeq.calibrate", chosen.calibrator, "choose")
    load("edgeq.weights", chosen.weight, "quantize")
    for row in chosen.rule:
        for package, name, having in (("calibrate", row.calibrator, "choose"), ("weights", row.weight, "quantize")):
            if name is not None:
                load(f"edgeq.{package}", name, having)
    return chosen


def plan_file(model: str | os.PathLike[str], target: str | Target, recipe: Recipe) -> Plan:
    """The plan for a model file, before any data is seen."""
    aim = targets.load(target) if isinstance(target, str) else target
    return plan(_ready(io.load(model), aim), aim, recipe)


def _ready(source: ir.Model, target: Target) -> ir.Model:
    """The model prepared, and rewritten as the target's runtime likes it."""
    prepared = prepare(source, target.opset)
    for name in target.passes_before:
        load("edgeq.passes", name, "rewrite").rewrite(prepared)
    return prepared


def _prepare(path: Path, source: ir.Model, target: Target, work: Path) -> tuple[Path, ir.Model]:
    """The prepared model, and the file it was saved to and is mapped from."""
    prepared = _ready(source, target)
    saved = work / ".prepared.onnx"
    io.save(prepared, saved)
    return saved, prepared


def _quantize(
    prepared: ir.Model, path: Path, target: Target, recipe: Recipe, data: Dataset | None, work: Path, progress: Progress
) -> tuple[ir.Model, Plan, dict[str, Any]]:
    """Plan, collect, solve and rewrite. Gives the quantized model, the final plan and what to report of the data."""
    progress("plan", 0, None)
    excluded: dict[str, str] = {}
    made = plan(prepared, target, recipe, excluded)
    summaries: dict[str, Summary] = {}
    about: dict[str, Any] = {"samples": 0, "data": None}
    if recipe.method == "static":
        if data is None:
            raise CalibrationError("static quantization needs calibration data: give --calib, or use --method dynamic")
        summaries, seen = _observe(made, prepared, path, recipe, data, work, progress)
        about = {"samples": seen, "data": data.name}
        excluded |= costly_joins(made, prepared, target, recipe, summaries)
        made = plan(prepared, target, recipe, excluded)
    while True:
        total = len(made.weights)
        solution, failed = solve(made, prepared, summaries, progress=partial(_counted, progress, "solve", total))
        if not failed:
            break
        excluded |= failed
        made = plan(prepared, target, recipe, excluded)
    progress("rewrite", 0, None)
    store_tables(prepared, made, solution)
    if recipe.method == "dynamic":
        return make_dynamic(prepared, made, solution), made, about
    return insert_qdq(prepared, made, solution, target.dedicated_pairs), made, about


def _observe(
    made: Plan, prepared: ir.Model, path: Path, recipe: Recipe, data: Dataset, work: Path, progress: Progress
) -> tuple[dict[str, Summary], int]:
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


def _finish(model: ir.Model) -> None:
    """Order the nodes and make sure of unique names: onnx-ir itself accepts names that collide."""
    TopologicalSortPass()(model)
    NameFixPass()(model)


def _report(
    path: Path,
    artifact: Path,
    target: Target,
    recipe: Recipe,
    made: Plan,
    about: dict[str, Any],
    verification: Verification | None,
) -> Report:
    listed = tuple(
        FloatNode(n.name, n.op, n.reason) for n in made.nodes if n.decision in (FLOAT, BRIDGE) and n.op not in QUIET
    )
    integer = sum(n.decision in (INTEGER, FOLDED, DYNAMIC) for n in made.nodes)
    warnings = list(verification.warnings) if verification else []
    return Report(
        model=_file_info(path, path.name),
        artifact=_file_info(artifact, artifact.name),
        target=target.name,
        recipe=msgspec.to_builtins(recipe),
        versions=versions(),
        nodes=Nodes(len(made.nodes), integer, listed),
        calibration=about,
        outputs=verification.outputs if verification else (),
        runtime=verification.runtime if verification else None,
        metric=verification.metric if verification else None,
        warnings=tuple(warnings),
        verification=verification,
    )


def _file_info(path: Path, name: str) -> FileInfo:
    files = io.files(path)
    return FileInfo(name, io.sha256(files), sum(f.stat().st_size for f in files))


def versions() -> dict[str, str]:
    """Of everything that can change the artifact."""
    found = {"python": platform.python_version()}
    for package in ("edgeq", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "ml_dtypes"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def verify_files(
    reference: str | os.PathLike[str],
    quantized: str | os.PathLike[str],
    target: str | Target = "x86_64",
    data: Any = None,
    *,
    labels: str | None = None,
    metric: str | MetricFunction | None = None,
    budget: Budget | None = None,
    layers: bool = False,
    progress: Progress = _silent,
) -> Verification:
    """Measure an artifact against its reference; see `edgeq.verify.verify`.

    The worst layers are measured when asked for, and when the budget is not met.
    """
    left, right = Path(reference), Path(quantized)
    aim = targets.load(target) if isinstance(target, str) else target
    source, made = io.load(left), io.load(right)
    dataset = open_data(data, input_shapes(source))
    missing = [n for n in input_shapes(made) if n not in input_shapes(source)]
    if missing:
        raise ModelError(f"{right}: has input {missing[0]!r}, which {left} does not: these are different models")

    return verify(
        left,
        right,
        aim,
        dataset,
        labels=labels,
        metric=metric,
        budget=budget,
        layers=shared_layers(source, made),
        layers_on_failure=not layers,
        progress=lambda n: progress("verify", n, dataset.count),
    )


def shared_layers(reference: ir.Model, quantized: ir.Model) -> list[tuple[str, str, str]]:
    """(node, op, value) of float values that both main graphs compute under one name, Q and DQ aside."""
    there = {
        v.name
        for n in reference.graph
        for v in n.outputs
        if v.dtype in (None, ir.DataType.FLOAT) and not v.is_graph_output()
    }
    return [
        (n.name or "", n.op_type, v.name or "")
        for n in quantized.graph
        for v in n.outputs
        if v.name in there and v.dtype == ir.DataType.FLOAT and n.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]
