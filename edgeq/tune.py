"""From a budget to an artifact: what promises most for its time is tried first, and kept only if the metric says so.

    as given → repairs → calibrators → rounding of weights → fitting → mixed precision → repairs again → dynamic

Fitting (`edgeq.fitting`) is for budgets of bytes, energy or time that are not met.

Mixed precision asks for the `edgeq.search.sensitivity` of each node, and gives a wider type to those that the knapsack
of `edgeq.search.mixing` picks: 16-bit activations where the target has them, then float. The most that the goal allows
is tried first, since what that can't do no less can; then a bisection over real runs finds the least that does.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgeq import target as targets
from edgeq.errors import EdgeqError, RecipeError
from edgeq.fitting import fit_budget
from edgeq.graph import io
from edgeq.planning.plan import HALVES
from edgeq.recipe import Override, Recipe
from edgeq.report.folder import publish, work_folder
from edgeq.report.schema import Trial, Tuning, dump
from edgeq.request import resolve_recipe
from edgeq.search.budgets import forms, wide_type
from edgeq.search.goal import Goal, front
from edgeq.search.mixing import mixes
from edgeq.speculation import ahead
from edgeq.trials import FOLDER, Trials
from edgeq.types import Progress, silent
from edgeq.verifying.scores import MetricFunction

CALIBRATORS = ("mse", "lp", "percentile", "minmax", "entropy")
SLIM = (*HALVES, "8-bit weights")
ROUNDINGS = ("mse", "gptq", "adaround")
SUITS = {"equalize": {"Conv", "Gemm"}, "smooth": {"MatMul", "Gemm"}, "bias_correct": {"Conv", "Gemm", "MatMul"}}
Step = tuple[str, Callable[[Recipe], Recipe]]


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
    workers: int = 1,
    dask: str | None = None,
    progress: Progress = silent,
) -> Tuning:
    """The first artifact that meets the goal, in `output`, with `tuning.json` beside it; else the best there is.

    Without labels and metric, a drop is that of agreement with the float model (of the greatest element of each row of
    the first output). everything: go on when the goal is met, as long as no node is given up. Trials lie in
    `output/.trials`; with data that has no name (a callable, an iterator) they are found again only by the same call.
    workers, dask: processes, or a Dask cluster that sees the same files, which run the trials that may come next; the
    trials are those of one process (`edgeq.speculation`). Raises CalibrationError without data, and what the first
    trial raises.
    """
    if (goal.max_drop, goal.min_sqnr) == (None, None):
        raise RecipeError("a tuning needs to know what may be lost: give --max-drop or --min-sqnr")
    if calib is None:
        raise RecipeError("a tuning needs data: give --calib")
    path, chosen = Path(model), resolve_recipe(recipe, target)
    trials = Trials(path, calib, eval_data, labels, metric, goal, Path(output), progress, chosen)
    with ahead(trials, workers, dask):
        _search(trials, everything)
    trials.settle()
    assert trials.best is not None
    trials.complete()
    best, about = trials.best, (str(path), chosen.target, tuple(trials.made))
    found = Tuning(*about, best.digest, trials.done, _sentence(trials), front(trials.made))
    _deliver(found, best, Path(output))
    return found


def _search(trials: Trials, everything: bool) -> None:
    given = trials.recipe
    if trials.attempt("as given", given) is None:
        raise EdgeqError(trials.made[-1].problem)
    ops = {node.op_type for node in io.read_graph(trials.model).graph.all_nodes()}
    _climb(trials, _repairs(ops), everything)
    _climb(trials, _settings(), everything)
    if not trials.done:
        fit_budget(trials)
    if not trials.done:
        _mix(trials)
        if trials.done:
            _slim(trials, given)
        _climb(trials, _repairs(ops, " behind that"))  # what one bad layer made useless may help now that it is float
    if not trials.done:
        trials.attempt("dynamic", replace(given, method="dynamic", passes=()))


def _climb(trials: Trials, steps: Iterator[Step], everything: bool = False) -> None:
    """Each step changes the best recipe so far, for accuracy's sake alone."""
    listed = list(steps)
    for at, (name, change) in enumerate(listed):
        if trials.accurate and not everything:
            return
        trials.expect((later(trials.recipe) for _, later in listed[at:]), False)
        changed = change(trials.recipe)
        if changed != trials.recipe:
            trials.attempt(name, changed)


def _repairs(ops: set[str], when: str = "") -> Iterator[Step]:
    """The passes that suit the operators."""
    for name, wanted in SUITS.items():
        if ops & wanted:
            yield f"{name}{when}", partial(_passed, name)


def _passed(name: str, recipe: Recipe) -> Recipe:
    return recipe if name in recipe.passes else replace(recipe, passes=(*recipe.passes, name))


def _settings() -> Iterator[Step]:
    for name in CALIBRATORS:
        yield f"calibrator {name}", partial(replace, calibrator=name)
    for name in ROUNDINGS:
        yield f"weights {name}", partial(replace, weight=name)


def _mix(trials: Trials) -> None:
    """Give nodes a wider type, as few multiply-accumulates as do; 16 bits are integers still.

    Then without corrected biases: beside float nodes they may lose what those have won.
    """
    best = trials.recipe
    bare = replace(best, passes=tuple(p for p in best.passes if p != "bias_correct"))
    rows = trials.sensitivity(bare) if bare.method == "static" else ()
    wide = wide_type(targets.load(best.target))
    wider = [(wide, Override(act_type=wide), 1.0)] if wide else []
    wider.append(("float", Override(float=True), 1.0 - trials.goal.min_integer))
    for form, rule, most in wider:
        for start in (best, bare) if bare != best else (best,):
            if not trials.done:
                _bisect(trials, start, mixes(rows, most), rule, f"of {len(rows)} nodes {form}")


def _slim(trials: Trials, given: Recipe) -> None:
    """Nodes that went float may take less as float16, or on 8-bit weights: what meets the goal still is taken then."""
    best = trials.recipe
    gone = [row for row in best.rule[len(given.rule) :] if row.float]
    for form in forms(targets.load(best.target)):
        if gone and form.rule is not None and form.name in SLIM:
            narrow = tuple(replace(form.rule, nodes=row.nodes, float=False) for row in gone)
            trials.attempt(f"those in float: {form.name}", replace(best, rule=(*best.rule, *narrow)), sure=True)


def _bisect(trials: Trials, start: Recipe, sets: list[tuple[str, ...]], rule: Override, title: str) -> None:
    """The last of the sets is tried first."""

    def mixed(at: int) -> Recipe:
        named = replace(rule, nodes=tuple(map(glob.escape, sets[at])))  # names, no patterns
        return replace(start, rule=(*start.rule, named))

    low, high = 0, len(sets) - 1
    probe = high
    while low <= high:
        trials.expect((mixed(at) for at in _probes(low, high, probe)), True)
        trial = trials.attempt(f"{len(sets[probe])} {title}", mixed(probe), sure=True)
        if trial is None:
            return
        enough = not trials.goal.inaccuracies(trial) or trial.integer < trials.goal.min_integer
        low, high = (low, probe - 1) if enough else (probe + 1, high)
        probe = (low + high) // 2


def _probes(low: int, high: int, probe: int) -> Iterator[int]:
    """What a bisection asks, and what it could ask next, the nearest first."""
    spans = [(low, high, probe)]
    for low, high, probe in spans:
        if low <= high:
            yield probe
            spans += [(low, probe - 1, (low + probe - 1) // 2), (probe + 1, high, (probe + 1 + high) // 2)]


def _sentence(trials: Trials) -> str:
    assert trials.best is not None
    best = trials.best
    if trials.done:
        return f"{best.step}: meets the budget after {len(trials.made)} trials"
    why = "the time budget ended before any did" if trials.late else "none of the methods is enough"
    return f"no trial meets the budget: the best ({best.step}) {'; '.join(trials.goal.misses(best))}; {why}"


def _deliver(found: Tuning, best: Trial, output: Path) -> None:
    with work_folder(output) as work:
        for file in (output / FOLDER / best.digest).iterdir():
            if file.is_file():
                shutil.copyfile(file, work / file.name)
        (work / "tuning.json").write_bytes(dump(found))
        publish(work, output)
