"""A budget of bytes, energy or time that the best trial is over: a form for each node, checked by real runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from msgspec.structs import replace

from edgeq import target as targets
from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.report.schema import Trial
from edgeq.search import budgets
from edgeq.search.budgets import Form
from edgeq.target import Target
from edgeq.trials import Trials

FITS = 4
SAMPLES = 4
Offered = Mapping[str, Sequence[budgets.Choice]]
FINER = "gptq"  # of packed weights, where the budget is met and accuracy isn't


@dataclass(frozen=True)
class Budget:
    """limit: bytes, mJ or ms. cost: what a node costs of it in each form."""

    limit: float
    kind: str
    cost: budgets.Cost

    def taken(self, trial: Trial) -> float:
        return {"bytes": float(trial.bytes), "energy": trial.energy, "time": trial.latency_ms}[self.kind]


def fit_budget(trials: Trials) -> None:
    """Try what the knapsack picks, with less room as long as the artifact turns out to be over the budget.

    First of the forms that take less of it than what a node is now: the others give up more than was asked for.
    """
    assert trials.best is not None
    kind, start, best = trials.goal.short_of(trials.best), trials.recipe, trials.best
    aim = targets.load(start.target)
    if not kind or start.method != "static" or aim.format != "onnx":
        return
    could = budgets.forms(aim)
    rows = {f.name: trials.sensitivity(_whole(start, f), f"sensitivity, {f.name}") for f in could if not f.exact}
    budget = _budget(trials, kind, best, start, could, aim)
    if trials.late or budget is None:
        return
    offered = budgets.choices(rows, could, budget.cost)
    if _fit(trials, budgets.cheaper(offered), budget, best, start):
        return
    _fit(trials, offered, budget, best, start)  # also what costs more than the node does now, for accuracy's sake


def _fit(trials: Trials, offered: Offered, budget: Budget, best: Trial, start: Recipe) -> bool:
    """Whether no more than this is to be tried: the goal is met, time is up, or the budget can't be."""
    rest = budget.taken(best) - sum(row[0].cost for row in offered.values())  # of what is no layer
    room = budget.limit - max(rest, 0.0)  # kernels that are profiled may take longer than all together do
    tried: dict[str, budgets.Choice] = {}
    for _ in range(FITS):
        try:
            picked = budgets.fit(offered, room)
        except RecipeError:
            least = budget.taken(best) - sum(row[0].cost - min(c.cost for c in row) for row in offered.values())
            trials.note("fitting", f"no form of the nodes takes less than about {least:.4g} of {budget.kind}")
            return True
        trial = trials.attempt(budgets.said(picked), _with(start, picked), sure=True)
        if trial is None or picked == tried:
            return trial is None
        tried = picked
        if (over := budget.taken(trial) - budget.limit) <= 0:
            if trials.goal.inaccuracies(trial) and any(c.form.rule and c.form.rule.weight for c in picked.values()):
                trials.attempt(f"{budgets.said(picked)}, by {FINER}", _with(start, picked, FINER), sure=True)
            return trials.done
        room -= over
    return False


def _whole(recipe: Recipe, form: Form) -> Recipe:
    return recipe if form.rule is None else replace(recipe, rule=(*recipe.rule, form.rule))


def _with(recipe: Recipe, picked: dict[str, budgets.Choice], weight: str = "") -> Recipe:
    found = budgets.rules(picked)
    if weight:
        found = tuple(replace(rule, weight=weight) if rule.weight else rule for rule in found)
    return replace(recipe, rule=(*recipe.rule, *found))


def _budget(trials: Trials, kind: str, best: Trial, start: Recipe, could: list[Form], aim: Target) -> Budget | None:
    goal = trials.goal
    if kind == "bytes":
        assert goal.max_bytes is not None
        return Budget(goal.max_bytes, kind, budgets.bytes_of)
    if kind == "energy":
        assert goal.max_energy is not None
        return Budget(goal.max_energy, kind, budgets.energy_of)
    assert goal.min_speedup is not None
    if aim.runner != "cpu":
        trials.note(
            "fitting", f"the time of single nodes is measured on this machine's onnxruntime, not on {aim.runner}"
        )
        return None
    built = {form.name: trials.built(_whole(start, form)) for form in could}
    judges = trials.judges()
    samples = list(islice(iter(judges), SAMPLES)) if judges is not None else []
    time = load("edgeq.runners", "cpu").kernel_times
    kernels = {name: time(artifact, samples) for name, artifact in built.items()}
    graph = io.read_graph(built[could[-1].name]).graph  # in float all nodes are themselves
    outputs = {node.name or "": [v.name or "" for v in node.outputs] for node in graph}
    return Budget(best.latency_ms * best.speedup / goal.min_speedup, kind, budgets.time_of(kernels, outputs))
