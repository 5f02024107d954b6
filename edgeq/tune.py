"""From a budget to an artifact: methods are tried in order of what they cost, and kept only if the metric says so.

    as given → observers → passes → learned rounding → nodes in float → passes again → dynamic

Each trial is a recipe, quantized and verified as `edgeq quantize` does it, in a folder named by the hash of all that it
depends on: one that is there already is not run again, so a tuning that was cut off goes on. Nodes go float in the
order of what their rounding does to the outputs (`edgeq.search.sensitivity`) for each multiply-accumulate that
is lost to float, the greedy solution of that knapsack; how many, is found by doubling and bisection over real runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeq.collecting.observation import statistics_key
from edgeq.errors import EdgeqError, RecipeError
from edgeq.graph import io
from edgeq.pipeline import quantize
from edgeq.planning.coverage import integer_share
from edgeq.planning.energy import energy
from edgeq.recipe import Override, Recipe
from edgeq.recipe import dump as dump_recipe
from edgeq.report.build import versions
from edgeq.report.folder import publish, work_folder
from edgeq.report.schema import Report, Trial, Tuning, dump, load
from edgeq.request import resolve_recipe
from edgeq.types import Progress, silent
from edgeq.verifying.scores import Agreement, MetricFunction

CALIBRATORS = ("mse", "percentile", "minmax", "entropy")
ROUNDINGS = ("mse", "adaround", "gptq")
TRIALS = ".trials"
SUITS = {"equalize": {"Conv", "Gemm"}, "smooth": {"MatMul", "Gemm"}, "bias_correct": {"Conv", "Gemm", "MatMul"}}


@dataclass(frozen=True)
class Goal:
    """What the artifact must have. max_drop: of the metric, absolute, or of float's value when `relative`.

    min_sqnr: dB, of the worst output. max_bytes: of the file. min_speedup: times as fast as float. max_energy: mJ of a
    run, as `edgeq.planning.energy` estimates them. min_integer: share of the multiply-accumulates. time_budget:
    seconds after which no second trial is begun.
    """

    max_drop: float | None = None
    relative: bool = False
    min_sqnr: float | None = None
    max_bytes: int | None = None
    min_speedup: float | None = None
    max_energy: float | None = None
    min_integer: float = 0.0
    time_budget: float = float("inf")

    def misses(self, trial: Trial) -> list[str]:
        """What a trial lacks, a phrase each."""
        found = []
        if self.max_drop is not None:
            limit = self.max_drop * (abs(trial.reference) if self.relative else 1.0)
            if not trial.drop <= limit + 1e-12:
                found.append(f"drops {trial.drop:.4f} where {limit:.4f} is allowed")
        if self.min_sqnr is not None and not trial.sqnr_db >= self.min_sqnr:
            found.append(f"has {trial.sqnr_db:.1f} dB of {self.min_sqnr:g}")
        if self.max_bytes is not None and trial.bytes > self.max_bytes:
            found.append(f"takes {trial.bytes} bytes of {self.max_bytes}")
        if self.min_speedup is not None and not trial.speedup >= self.min_speedup:
            found.append(f"is {trial.speedup:.2f} times as fast as float of {self.min_speedup:g}")
        if self.max_energy is not None and trial.energy > self.max_energy:
            found.append(f"takes {trial.energy:.4g} mJ of {self.max_energy:g}")
        if trial.integer < self.min_integer:
            found.append(f"has {trial.integer:.0%} of its multiplications in integers of {self.min_integer:.0%}")
        return found


@dataclass
class _Search:
    """The trials of one model, and the best recipe so far."""

    model: Path
    target: str
    calib: Any
    eval_data: Any
    labels: str | None
    metric: str | MetricFunction | None
    goal: Goal
    output: Path
    progress: Progress
    about: list[Any]
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    recipe: Recipe = field(default_factory=Recipe)
    began: float = field(default_factory=time.monotonic)

    def attempt(self, step: str, recipe: Recipe, rank: bool = False) -> Trial | None:
        """Run or find a trial, and keep it where it is better; None when time is up or the recipe can't be had."""
        if self.trials and time.monotonic() - self.began > self.goal.time_budget:
            return None
        digest = _digest([*self.about, dump_recipe(recipe), rank])
        folder, start = self.output / TRIALS / digest, time.monotonic()
        fresh = not (folder / "report.json").exists()
        try:
            report = self._run(recipe, folder, rank) if fresh else load(folder)
        except EdgeqError as error:
            self.trials.append(Trial(step, digest, problem=str(error), seconds=time.monotonic() - start))
            return None
        trial = _trial(step, digest, report, folder, time.monotonic() - start if fresh else 0.0)
        kept = self.best is None or self._order(trial) < self._order(self.best)
        self.trials.append(msgspec.structs.replace(trial, kept=kept, misses=tuple(self.goal.misses(trial))))
        if kept:
            self.best, self.recipe = self.trials[-1], recipe
        return self.trials[-1]

    def _run(self, recipe: Recipe, folder: Path, rank: bool) -> Report:
        stats = self.output / TRIALS / f"{statistics_key(self.about, recipe)}.stats"
        stats.parent.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Any] = {}
        if recipe.method == "static":
            kept = {"stats": stats} if stats.exists() else {"save_stats": stats}
        metric = self.metric or (Agreement() if self.labels is None else None)
        made = quantize(
            self.model, self.target, self.calib, folder, recipe=recipe, eval_data=self.eval_data, labels=self.labels,
            metric=metric, rank=rank, recorded=self.output / TRIALS / "answers", progress=self.progress, **kept,
        )  # fmt: skip
        return made.report

    def _order(self, trial: Trial) -> tuple[float, ...]:
        """The better trial is the lesser: what it drops over the budget, then the other misses, then noise."""
        allowed = 0.0
        if self.goal.max_drop is not None:
            allowed = self.goal.max_drop * (abs(trial.reference) if self.goal.relative else 1.0)
        return max(trial.drop - allowed, 0.0), len(self.goal.misses(trial)), -trial.sqnr_db

    def settle(self) -> None:
        """Of the trials that meet the goal, take the one that gives least up to float; it may not be the last."""
        met = [t for t in self.trials if not t.problem and not self.goal.misses(t)]
        self.best = min(met, key=lambda t: (-t.integer, t.bytes, t.drop, -t.sqnr_db), default=self.best)

    @property
    def done(self) -> bool:
        return self.best is not None and not self.goal.misses(self.best)


def tune(
    model: str | os.PathLike[str],
    target: str | None = None,
    calib: Any = None,
    output: str | os.PathLike[str] = "out",
    *,
    goal: Goal,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    eval_data: Any = None,
    labels: str | None = None,
    metric: str | MetricFunction | None = None,
    everything: bool = False,
    progress: Progress = silent,
) -> Tuning:
    """The first artifact that meets the goal, in `output`, with `tuning.json` beside it; else the best there is.

    Without labels and metric, a drop is that of agreement with the float model (of the greatest element of each row of
    the first output). everything: go on when the goal is met, up to learned rounding. Trials lie in `output/.trials`;
    with data that has no name (a callable, an iterator) they are found again only by the same call.
    Raises CalibrationError without data, and what the first trial raises.
    """
    if (goal.max_drop, goal.min_sqnr) == (None, None):
        raise RecipeError("a tuning needs to know what may be lost: give --max-drop or --min-sqnr")
    if calib is None:
        raise RecipeError("a tuning needs data: give --calib")
    path, chosen = Path(model), resolve_recipe(recipe, target)
    about = [io.sha256(io.files(path)), _content(calib), _content(eval_data), labels, _name(metric), versions()]
    search = _Search(
        path, chosen.target, calib, eval_data, labels, metric, goal, Path(output), progress, about, recipe=chosen
    )
    if search.attempt("as given", chosen) is None:
        raise EdgeqError(search.trials[-1].problem)
    ops = {node.op_type for node in io.read_graph(path).graph.all_nodes()}
    for step, change in _steps(ops):
        if search.done and not everything:
            break
        changed = change(search.recipe)
        if changed is not None and changed != search.recipe:
            search.attempt(step, changed)
    if not search.done:
        _mix(search)
    for step, change in _repairs(ops):  # what one bad layer made useless may help now that it is float
        changed = None if search.done else change(search.recipe)
        if changed is not None:
            search.attempt(f"{step} behind that", changed)
    if not search.done:
        search.attempt("dynamic", msgspec.structs.replace(chosen, method="dynamic", passes=()))
    search.settle()
    assert search.best is not None
    found = Tuning(
        str(path),
        chosen.target,
        tuple(search.trials),
        search.best.digest,
        search.done,
        _sentence(search),
        _front(search),
    )
    _deliver(found, search.best, Path(output))
    return found


def _steps(ops: set[str]) -> Iterator[tuple[str, Callable[[Recipe], Recipe | None]]]:
    """What suits the operators, tried before any node is given up; each a change of the best recipe so far."""

    def setting(**fields: Any) -> Callable[[Recipe], Recipe | None]:
        return lambda recipe: msgspec.structs.replace(recipe, **fields)

    for name in CALIBRATORS:
        yield f"calibrator {name}", setting(calibrator=name)
    yield from _repairs(ops)
    for name in ROUNDINGS:
        yield f"weights {name}", setting(weight=name)


def _repairs(ops: set[str]) -> Iterator[tuple[str, Callable[[Recipe], Recipe | None]]]:
    """The passes that suit the operators; None for a recipe that has one already."""

    def adding(name: str) -> Callable[[Recipe], Recipe | None]:
        return lambda r: msgspec.structs.replace(r, passes=(*r.passes, name)) if name not in r.passes else None

    for name, wanted in SUITS.items():
        if ops & wanted:
            yield name, adding(name)


def _mix(search: _Search) -> None:
    """Give nodes up to float, the worst for their cost first, as few as do."""
    start = search.recipe
    ranked = search.attempt("sensitivity", start, rank=True)
    if ranked is None:
        return
    rows = load(search.output / TRIALS / ranked.digest).sensitivity
    total = max(sum(row.macs for row in rows), 1)
    order = sorted(rows, key=lambda row: -row.error / (row.macs / total + 1e-3))
    low, high, count = 0, len(order), 1
    while low < high:
        rule = Override(nodes=tuple(row.name for row in order[:count]), float=True)
        trial = search.attempt(f"{count} of {len(order)} nodes float", _ruled(start, rule))
        if trial is None:
            return
        enough = not [m for m in trial.misses if m.startswith(("drops", "has")) and "integers" not in m]
        low, high = (low, count) if enough else (count, high)
        if high - low <= 1 or (not enough and trial.integer < search.goal.min_integer):
            return
        count = min(2 * count, high) if high == len(order) and not enough else (low + high) // 2


def _ruled(recipe: Recipe, rule: Override) -> Recipe:
    return msgspec.structs.replace(recipe, rule=(*recipe.rule, rule))


def _trial(step: str, digest: str, report: Report, folder: Path, seconds: float) -> Trial:
    assert report.verification is not None
    metric, runtime = report.metric, report.runtime
    assert metric is not None
    speed = 0.0
    if runtime is not None and runtime.latency_ms and runtime.float_latency_ms:
        speed = runtime.float_latency_ms / runtime.latency_ms
    decibels = [999.0 if o.sqnr_db is None else o.sqnr_db for o in report.outputs]
    made = io.read_graph(folder / report.artifact.file) if report.artifact.file.endswith(".onnx") else None
    share, joules = (integer_share(made), energy(made)) if made is not None else (1.0, 0.0)
    return Trial(
        step, digest, metric.name, metric.reference, metric.quantized, metric.drop, min(decibels, default=999.0),
        report.artifact.bytes, share, speed, joules, seconds,
    )  # fmt: skip


def _front(search: _Search) -> tuple[str, ...]:
    """Digests of the trials that no other beats in both loss and size."""
    able = [t for t in search.trials if not t.problem]
    return tuple(
        dict.fromkeys(
            t.digest
            for t in able
            if not any(
                (o.drop, -o.sqnr_db, o.bytes) != (t.drop, -t.sqnr_db, t.bytes)
                and o.drop <= t.drop and o.sqnr_db >= t.sqnr_db and o.bytes <= t.bytes
                for o in able
            )
        )
    )  # fmt: skip


def _sentence(search: _Search) -> str:
    assert search.best is not None
    best = search.best
    if search.done:
        return f"{best.step}: meets the budget after {len(search.trials)} trials"
    late = time.monotonic() - search.began > search.goal.time_budget
    why = "the time budget ended before any did" if late else "none of the methods is enough"
    return f"no trial meets the budget: the best ({best.step}) {'; '.join(search.goal.misses(best))}; {why}"


def _deliver(found: Tuning, best: Trial, output: Path) -> None:
    with work_folder(output) as work:
        for file in (output / TRIALS / best.digest).iterdir():
            if file.is_file():
                shutil.copyfile(file, work / file.name)
        (work / "tuning.json").write_bytes(dump(found))
        publish(work, output)


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _name(metric: str | MetricFunction | None) -> str:
    """Of a function where it is defined; what it computes is taken to be the same as long as that is."""
    if metric is None or isinstance(metric, str):
        return metric or ""
    return f"{getattr(metric, '__module__', '')}:{getattr(metric, '__qualname__', type(metric).__name__)}"


def _content(data: Any) -> str:
    """A hash of what the data holds; of a callable its name, of other objects what they are at this moment."""
    if isinstance(data, (str, os.PathLike)):
        return io.content(Path(data)) or str(data)
    rows: Iterable[Any] = [data] if isinstance(data, Mapping) else data if isinstance(data, Sequence) else ()
    if rows and all(isinstance(row, Mapping) for row in rows):
        digest = hashlib.sha256()
        for row in rows:
            for name, array in sorted(row.items()):
                digest.update(f"{name} {np.asarray(array).dtype} {np.shape(array)}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
    return str(data)
