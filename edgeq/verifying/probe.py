"""Does a target file tell the truth? What it says of each operator, held against the graph that the runtime makes.

Every operator of `specimens.py` is put to the target's own runtime: as its rule says, and as it would be quantized if
there were a rule. A target file disagrees where it promises integers and the runtime computes in float, and where it
keeps an operator in float that the runtime has an integer kernel for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from edgeq import target as targets
from edgeq.errors import ModelError, ToolError
from edgeq.planning.planner import plan
from edgeq.planning.solve import solve
from edgeq.recipe import Recipe
from edgeq.registry import load, names
from edgeq.runners import cpu
from edgeq.runners.fusion import FLOAT_FORMS
from edgeq.target import Method, Rule, Target
from edgeq.verifying.specimens import OPERATORS, WEIGHTS, Specimen, feeds_of, model_of

PAIR = ("QuantizeLinear", "DequantizeLinear")
UNCALIBRATED: tuple[Method, ...] = ("dynamic", "weight_only")


@dataclass(frozen=True)
class Finding:
    """claimed: whether the target file says that it runs on integers, None where it says nothing.

    integer: whether it does. kernels: the operators that the runtime made of it. error: why it can't run at all.
    """

    specimen: Specimen
    method: Method
    claimed: bool | None
    integer: bool
    kernels: tuple[str, ...] = ()
    error: str = ""

    @property
    def disagrees(self) -> bool:
        return self.claimed is not None and self.claimed != self.integer


@dataclass(frozen=True)
class Probed:
    """runtime: the name and version of what was probed."""

    target: str
    runtime: str
    findings: tuple[Finding, ...]

    @property
    def disagreements(self) -> list[Finding]:
        return [row for row in self.findings if row.disagrees]


def probeable() -> list[str]:
    """The targets whose runtime shows the graph that it makes."""
    runners = names("edgeq.runners", "optimized")
    return [name for name in targets.names() if targets.load(name).runner in runners]


def probe(target: Target) -> Probed:
    """Put every specimen to the target's runtime. Raises ToolError when it is not installed, or can't be read."""
    if target.runner not in names("edgeq.runners", "optimized"):
        raise ToolError(f"{target.name}: its runtime shows no optimized graph; probe one of {', '.join(probeable())}")
    runner = load("edgeq.runners", target.runner)
    if why := runner.missing():
        raise ToolError(f"{target.name}: {why}")
    found = _static(target, runner)
    for method in UNCALIBRATED:
        found += _rewritten(target, runner, method)
    return Probed(target.name, f"{runner.TITLE} {runner.version()}", tuple(found))


def cases(target: Target) -> Iterator[tuple[Specimen, bool | None]]:
    """Static specimens, each with what the target file claims of it."""
    first = next(rule for rule in target.rule if rule.method == "static" and rule.role == "compute")
    for name, (inputs, attributes) in OPERATORS.items():
        op = name.partition(":")[0]
        weighted = any(token in WEIGHTS for token in inputs.split())
        rule = target.find(op, "static")
        if rule is not None and any(attributes.get(k) != v for k, v in rule.only.items()):
            rule = None
        if op == "LSTM" or (rule is not None and rule.role == "table"):
            continue
        if weighted:
            yield from _weighted(name, target, rule, first)
        else:
            yield from _unweighted(name, target, rule, first)


def _weighted(name: str, target: Target, rule: Rule | None, first: Rule) -> Iterator[tuple[Specimen, bool | None]]:
    used = rule or first
    act, row = target.types[used.act].dtype, target.types[used.weight]
    claimed = rule is not None
    yield Specimen(name, act, row.dtype, row.per, bias=used.bias), claimed
    yield Specimen(name, act, row.dtype, row.per, ends="float", bias=used.bias), claimed and used.output_q == "optional"
    for behind in used.folds if claimed else ():
        yield Specimen(name, act, row.dtype, row.per, behind, bias=used.bias), True
    for other in ("uint8", "int8"):
        for weight in ("int8", "uint8"):
            for per in ("tensor", "channel"):
                if (other, weight, per) != (act, row.dtype, row.per):
                    yield Specimen(name, other, weight, per, bias=used.bias), None


def _unweighted(name: str, target: Target, rule: Rule | None, first: Rule) -> Iterator[tuple[Specimen, bool | None]]:
    act = target.types[rule.act if rule is not None else first.act].dtype
    role = rule.role if rule is not None else "none"
    fixed = (rule.output.scale, rule.output.zero_point) if rule is not None and rule.output is not None else None
    integer = role in ("join", "same")
    yield Specimen(name, act, same=True, fixed=fixed), integer
    yield Specimen(name, act, fixed=fixed), None if role == "same" else integer
    for behind in rule.folds if rule is not None and integer else ():
        yield Specimen(name, act, behind=behind), True


def _static(target: Target, runner: ModuleType) -> list[Finding]:
    found: list[Finding] = []
    runs: list[tuple[Specimen, bool | None]] = []
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        for specimen, claimed in cases(target):
            error = _refused(specimen, target.opset, Path(folder))
            if error:
                found.append(Finding(specimen, "static", claimed, False, error=error))
            else:
                runs.append((specimen, claimed))
        model = model_of([specimen for specimen, _ in runs], target.opset)
        graph = _optimized(model, target, runner, Path(folder))
    for index, (specimen, claimed) in enumerate(runs):
        nodes = _branch(graph, f"y{index}")
        kernels = tuple(node.op_type for node in nodes if node.op_type not in PAIR)
        found.append(Finding(specimen, "static", claimed, all(map(_at_an_end, nodes)), kernels))
    return found


def _refused(specimen: Specimen, opset: int, folder: Path) -> str:
    """Why this machine's runtime can't load or run a specimen; one that can't be run would take the others with it."""
    model = model_of([specimen], opset)
    ir.save(model, folder / "one.onnx")
    try:
        cpu.optimized(folder / "one.onnx", feeds_of(model))
    except ModelError as error:
        return str(error)
    return ""


def _rewritten(target: Target, runner: ModuleType, method: Method) -> list[Finding]:
    """The operators of a method that calibrates nothing, rewritten by its own pass."""
    rules = [rule for rule in target.rule if rule.method == method and rule.role in ("compute", "packed")]
    ops = dict.fromkeys(op for rule in rules for op in rule.ops)
    specimens = [
        Specimen(name, ends="float")
        for name, (inputs, _) in OPERATORS.items()
        if name in ops and set(inputs.split()) & set(WEIGHTS)
    ]
    if not specimens:
        return []
    model = model_of(specimens, target.opset)
    made = plan(model, target, Recipe(target=target.name, method=method))
    planned = {row.name for row in made.nodes if row.decision != "float"}
    claims = [any(node.name in planned for node in _branch(model.graph, f"y{i}")) for i in range(len(specimens))]
    solution, _ = solve(made, model, {})
    model = load("edgeq.passes", method, "apply").apply(model, made, solution, target)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        graph = _optimized(model, target, runner, Path(folder))
    found = []
    for index, (specimen, claimed) in enumerate(zip(specimens, claims, strict=True)):
        kernels = tuple(node.op_type for node in _branch(graph, f"y{index}"))
        integer = not set(kernels) & FLOAT_FORMS.get(specimen.op, {specimen.op})
        found.append(Finding(specimen, method, claimed, integer, kernels))
    return found


def _optimized(model: ir.Model, target: Target, runner: ModuleType, folder: Path) -> ir.Graph:
    ir.save(model, folder / "all.onnx")
    options: dict[str, Any] = {"config": dict(target.session_config)} if target.session_config else {}
    return runner.optimized(folder / "all.onnx", feeds_of(model), **options).graph


def _at_an_end(node: ir.Node) -> bool:
    """A Q or DQ anywhere but at the model's inputs and outputs stands beside a float kernel."""
    if node.op_type == "QuantizeLinear":
        return node.inputs[0] is not None and node.inputs[0].is_graph_input()
    return node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output()


def _branch(graph: ir.Graph, output: str) -> list[ir.Node]:
    """The nodes that an output is computed by, in the graph's order."""
    wanted = [value for value in graph.outputs if value.name == output]
    inside: set[ir.Node] = set()
    while wanted:
        producer = wanted.pop().producer()
        if producer is not None and producer not in inside:
            inside.add(producer)
            wanted += [value for value in producer.inputs if value is not None]
    return [node for node in graph if node in inside]
