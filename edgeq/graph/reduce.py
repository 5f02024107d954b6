"""A graph that gives, in place of outputs, their extrema and a sample of their elements.

A runtime writes an output to memory of its own, in the layout of the file. Reductions read it where it was made, while
it is in the cache, in the layout that the runtime prefers. So this changes a graph that the runtime has optimized
already, and puts the nodes where they are to run: right behind the node that makes the value.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.glance import GROUP, SAMPLE, Glance, glance, stride
from edgeq.graph.edit import Names, add_initializer, constant, insert_after, make_node, rank, remove, values_of

EVERYTHING, NOTHING = np.array([np.iinfo(np.int64).max]), np.array([0])  # how far the samples are taken
NCHWC = "com.microsoft.nchwc"
BLOCKS = 16  # onnxruntime's NCHWc layout has blocks of 8 or 16 channels


@dataclass(frozen=True)
class Reduced:
    """What of a model holds what is left of a value; None for what it doesn't have.

    lo, hi: values of one element, among those of `Reduction.ends`. lo: None too where the value can't be below 0: that
    counts as its minimum, for every range holds 0. The others are outputs. step: every how many runs of `group`
    elements the part has one, or the output that tells. whole: all of it, in any layout.
    """

    lo: str | None = None
    hi: str | None = None
    part: str | None = None
    whole: str | None = None
    group: int = 1
    step: int | str = 1

    def read(self, results: Mapping[str, np.ndarray], ends: Mapping[str, float]) -> Glance | np.ndarray:
        """What the model's outputs say; not `near` when the values themselves are needed; an array if it is empty."""
        step = self.step if isinstance(self.step, int) else int(results[self.step].item())
        if self.whole is not None:
            whole = results[self.whole]
            return glance(whole, self.group, step) if whole.size else whole
        assert self.hi is not None
        lo, hi = ends[self.lo] if self.lo else 0.0, ends[self.hi]
        part = results[self.part] if self.part else _NOTHING
        if part.size and not part.max() <= hi:
            lo = hi = math.nan  # a maximum that passes NaN over; numpy's doesn't
        return Glance(lo, hi, part, step)


@dataclass(frozen=True)
class Reduction:
    """values: of which something is left. ends: output → the minima and maxima that it holds, in their order.

    upto: the input that takes `EVERYTHING` or, where no samples are wanted this time, `NOTHING`; '' without one.
    """

    values: dict[str, Reduced]
    ends: dict[str, list[str]]
    upto: str

    def read(self, results: Mapping[str, np.ndarray]) -> dict[str, Glance | np.ndarray]:
        ends: dict[str, float] = {}
        for output, names in self.ends.items():
            ends.update(zip(names, results[output].ravel().tolist(), strict=True))
        return {name: left.read(results, ends) for name, left in self.values.items()}


_NOTHING = np.zeros(0, np.float32)


def reduce_outputs(
    model: ir.Model,
    source: ir.Model,
    names: Container[str],
    parts: Container[str],
    whole: Container[str],
    kept: Container[str] = (),
) -> Reduction:
    """Reduce the outputs of `model`, an optimized `source`, that are in `names`, and drop all others but the `kept`.

    parts: of which a sample is wanted too. whole: which stay, but for their layout. An output that is not float, that
    no node makes, or that an `If` makes, which may not do so, stays as it is and has no entry.
    """
    known = {v.name: v for v in values_of(source.graph)}
    build = _Builder(model)
    outputs: list[ir.Value] = []
    found: dict[str, Reduced] = {}
    ends: dict[int, list[ir.Value]] = {}
    for output in list(model.graph.outputs):
        name, producer, like = output.name or "", output.producer(), known.get(output.name)
        if (name not in names and name not in kept) or output.is_graph_input():
            continue
        if (
            name in kept
            or producer is None
            or producer.op_type == "If"
            or like is None
            or like.dtype != ir.DataType.FLOAT
        ):
            outputs.append(output)
            continue
        value = _blocked(output)
        group, step = _sampling(like, value is not output)
        nodes: dict[str, ir.Node] = {}
        if name not in whole:
            nodes |= build.greatest(value, blocked=value is not output)
            if not _at_least_0(like):
                nodes["lo"] = build.node("ReduceMin", [value])
            ends.setdefault(rank(like) or 0, []).extend(nodes[k].outputs[0] for k in ("hi", "lo") if k in nodes)
        steps = build.constant([step]) if step else None
        if name in parts and steps is None:
            nodes |= build.steps(value)
            steps = nodes["step"].outputs[0]
        if name in parts and name not in whole:
            nodes["runs"] = build.node("Reshape", [value, build.constant([-1, group])])
            first = build.constant([0])
            nodes["part"] = build.node("Slice", [nodes["runs"].outputs[0], first, build.upto, first, steps])
        insert_after(value, model.graph, *nodes.values())
        given = {k: n.outputs[0] for k, n in nodes.items() if k in ("lo", "hi", "part", "step")}
        outputs += [*(v for k, v in given.items() if k in ("part", "step")), *([value] if name in whole else [])]
        named = {k: v.name or "" for k, v in given.items()}
        found[name] = Reduced(
            named.get("lo"),
            named.get("hi"),
            named.get("part"),
            value.name if name in whole else None,
            group,
            named.get("step", step or 1),
        )
    held = build.joined(ends)
    before = list(model.graph.outputs)
    model.graph.outputs.clear()
    model.graph.outputs.extend(dict.fromkeys([*outputs, *held]))
    for output in before:  # they would be computed though nobody reads them
        node = output.producer()
        if node is not None and node.op_type == "ReorderOutput" and not (output.uses() or output.is_graph_output()):
            remove(node)
    if build.upto.uses():
        model.graph.inputs.append(build.upto)
    names_held = {v.name or "": [one.name or "" for one in row] for v, row in held.items()}
    return Reduction(found, names_held, (build.upto.name or "") if build.upto.uses() else "")


def _blocked(output: ir.Value) -> ir.Value:
    """The NCHWc value that an output is written from, if it holds the same elements and no padding; else the output."""
    producer = output.producer()
    if producer is None or producer.op_type != "ReorderOutput" or output.uses():
        return output
    value = producer.inputs[0]
    channels = producer.attributes["channels"].as_int()
    return output if value is None or channels % BLOCKS else value


def _sampling(value: ir.Value, blocked: bool) -> tuple[int, int | None]:
    """(group, step) by the shape alone, lest the data decide: a free first dimension counts as 1, others as unknown."""
    dims = [d if isinstance(d, int) and d > 0 else None for d in (value.shape if value.shape is not None else "??")]
    size = math.prod(d for d in dims if d is not None)
    return GROUP if blocked or size % GROUP == 0 else 1, None if None in dims[1:] else stride(size)


def _at_least_0(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and producer.op_type == "Clip" and len(producer.inputs) > 1:
        least = constant(producer.inputs[1])
        return least is not None and least.size == 1 and float(least.item()) == 0
    return producer is not None and producer.op_type == "Relu"


class _Builder:
    """Nodes with names of their own, and integer constants, each once."""

    def __init__(self, model: ir.Model) -> None:
        self._names, self._graph = Names(model), model.graph
        self._constants: dict[tuple[int, ...], ir.Value] = {}
        whole = ir.TensorType(ir.DataType.INT64)
        self.upto = ir.Value(name=self._names.new("upto"), type=whole, shape=ir.Shape([1]))

    def constant(self, numbers: list[int]) -> ir.Value:
        key = tuple(numbers)
        if key not in self._constants:
            name = self._names.new("integers")
            self._constants[key] = add_initializer(self._graph, name, np.array(numbers, np.int64))
        return self._constants[key]

    def node(self, op: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: int) -> ir.Node:
        whole = op in ("Size", "Div", "Mul", "Add")
        dtype = ir.DataType.INT64 if whole else ir.DataType.FLOAT
        return make_node(op, inputs, self._names.new(f"seen_{op}"), dtype, None, attributes, domain)

    def greatest(self, value: ir.Value, blocked: bool) -> dict[str, ir.Node]:
        """The nodes that find the maximum: in the NCHWc layout, pooling reads a quarter faster than ReduceMax does."""
        if not blocked:
            return {"hi": self.node("ReduceMax", [value])}
        pool = self.node("GlobalMaxPool", [value], NCHWC)
        return {"channels": pool, "hi": self.node("ReduceMax", [pool.outputs[0]])}

    def joined(self, ends: Mapping[int, list[ir.Value]]) -> dict[ir.Value, list[ir.Value]]:
        """Values of one element, by rank, in one output for each rank: an output costs more than what is in it.

        Those of rank 0, which stands for an unknown one too, can't be joined.
        """
        held = {value: [value] for value in ends.get(0, [])}
        for row in (row for size, row in ends.items() if size):
            node = self.node("Concat", row, axis=0)
            self._graph.append(node)
            held[node.outputs[0]] = row
        return held

    def steps(self, value: ir.Value) -> dict[str, ir.Node]:
        """The nodes that work out `stride` where the size is not known before."""
        size = self.node("Size", [value])
        half = self.node("Div", [size.outputs[0], self.constant([2 * SAMPLE])])
        even = self.node("Mul", [half.outputs[0], self.constant([2])])
        return {
            "size": size,
            "half": half,
            "even": even,
            "step": self.node("Add", [even.outputs[0], self.constant([1])]),
        }
