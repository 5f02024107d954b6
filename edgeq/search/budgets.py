"""Bytes, energy or time: what each node becomes, so that a budget is met at the least error.

    minimise  Σ error_i(f_i)   subject to   Σ cost_i(f_i) ≤ budget       (a multiple-choice knapsack)

A form f is a rule of the recipe: none, another type of activations, packed weights of 8, 4 or 2 bits, float16, float.
error_i: what that rounding alone does to the model's outputs (`edgeq.search.sensitivity`), 0 in float16 and float.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from edgeq.planning.energy import DRAM, FLOAT16, FLOAT32, INT8
from edgeq.planning.plan import HALVES, INTEGER, PACKED
from edgeq.recipe import Bits, Override
from edgeq.report.schema import Sensitivity
from edgeq.search.knapsack import choose
from edgeq.target import Target

PARTS = 10_000
LAYERS = ("MatMul", "Gemm")
PACKABLE: tuple[Bits, ...] = (8, 4, 2)


@dataclass(frozen=True)
class Form:
    """name: for people. rule: for all nodes that it may be. decision: of those that it became."""

    name: str
    rule: Override | None
    decision: str = INTEGER

    @property
    def half(self) -> bool:
        return self.rule is not None and self.rule.method in HALVES

    @property
    def exact(self) -> bool:
        """Are its errors none to speak of, and not measured?"""
        return self.half or (self.rule is not None and self.rule.float is True)


@dataclass(frozen=True)
class Choice:
    """What a node would cost in a form, in bytes, mJ or ms, and its error."""

    form: Form
    cost: float
    error: float


Cost = Callable[[Form, Sensitivity], float]
"""Of a node in a form; the row is the one that was measured in it, the first form's for one that is exact."""


def wide_type(target: Target) -> str | None:
    """The type of 16-bit activations that a recipe may ask the target for."""
    other = target.types.keys() - {rule.act for rule in target.rule}
    return next((name for name in sorted(other) if target.types[name].dtype in ("int16", "uint16")), None)


def forms(target: Target) -> list[Form]:
    """What the target can make of a node, besides what the recipe has it make; that first."""
    found = [Form("as it is", None)]
    if wide := wide_type(target):
        found.append(Form("16-bit activations", Override(act_type=wide)))
    packed = target.find("MatMul", "weight_only")
    if packed is not None and packed.role == "packed":
        for bits in PACKABLE:
            rule = Override(ops=LAYERS, method="weight_only", weight="mse", bits=bits)
            found.append(Form(f"{bits}-bit weights", rule, PACKED))
    found += [Form(method, Override(method=method)) for method in HALVES if target.find("MatMul", method) is not None]
    return [*found, Form("float", Override(float=True))]


def bytes_of(form: Form, row: Sensitivity) -> float:
    """What its weights take in the file."""
    if form.exact:
        return row.float_bytes / (2 if form.half else 1)
    return row.bytes


def energy_of(form: Form, row: Sensitivity) -> float:
    """mJ of its arithmetic and of its weights' way, as `edgeq.planning.energy` has them."""
    each = INT8 if form.decision == INTEGER and not form.exact else FLOAT16 if form.half else FLOAT32
    return (row.macs * each + DRAM * bytes_of(form, row)) / 1e9


def time_of(kernels: Mapping[str, Mapping[str, float]], outputs: Mapping[str, Sequence[str]]) -> Cost:
    """kernels: form → node of the artifact that runs → ms, measured. outputs: of each node of the prepared model.

    What a node becomes is named by it, or by its output, with more behind that.
    """

    def cost(form: Form, row: Sensitivity) -> float:
        names = (row.name, *outputs.get(row.name, ()))
        mine = [k for k in kernels[form.name] if any(k == name or k.startswith(f"{name}_") for name in names)]
        return sum(kernels[form.name][kernel] for kernel in mine)

    return cost


def choices(rows: Mapping[str, Sequence[Sensitivity]], could: Sequence[Form], cost: Cost) -> dict[str, list[Choice]]:
    """Node → what it could be, the first being what it is. rows: form → what was measured in it, of those that were."""
    first = could[0]
    found: dict[str, list[Choice]] = {}
    for row in rows[first.name]:
        mine = [Choice(first, cost(first, row), row.error)]
        for form in could[1:]:
            measured = row if form.exact else next((r for r in rows.get(form.name, ()) if r.name == row.name), None)
            if measured is not None and (form.exact or measured.decision == form.decision):
                mine.append(Choice(form, cost(form, measured), 0.0 if form.exact else measured.error))
        found[row.name] = mine
    return found


def cheaper(could: Mapping[str, Sequence[Choice]]) -> dict[str, list[Choice]]:
    """Without what costs as much as the node as it is, or more."""
    return {name: [row[0], *(c for c in row[1:] if c.cost < row[0].cost)] for name, row in could.items()}


def fit(could: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, Choice]:
    """Node → what it shall be. Raises RecipeError when even the least of all doesn't fit."""
    unit = max(budget, 1e-30) / PARTS
    sizes = [[1 + math.ceil(c.cost / unit) for c in row] for row in could.values()]
    picked = choose(sizes, [[c.error for c in row] for row in could.values()], PARTS + len(sizes))
    return {name: row[index] for (name, row), index in zip(could.items(), picked, strict=True)}


def rules(picked: Mapping[str, Choice]) -> tuple[Override, ...]:
    """A rule for each form that nodes get, by their names."""
    found = []
    for form in dict.fromkeys(c.form for c in picked.values()):
        if form.rule is not None:
            named = tuple(glob.escape(name) for name, c in picked.items() if c.form is form)
            found.append(replace(form.rule, nodes=named))
    return tuple(found)


def said(picked: Mapping[str, Choice]) -> str:
    """How many nodes get which form, for people."""
    counts = {form: sum(c.form is form for c in picked.values()) for form in {c.form for c in picked.values()}}
    rest = sorted((form.name, n) for form, n in counts.items() if form.rule is not None)
    return ", ".join(f"{n} of {len(picked)} nodes {name}" for name, n in rest) or "nothing changed"
