"""What NNAPI takes, and the pieces that are left: each condition has a graph that breaks it alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from edgeq.graph.infer import infer
from edgeq.intops.quant import Quant
from edgeq.nnapi.partition import groups, partition
from edgeq.nnapi.support import LEVELS, refusal
from edgeq.nnapi.units import units
from tests.nnapi.written import layer, moved

U8, OUT = Quant(0.05, 128, "uint8"), Quant(0.1, 3, "uint8")
W = np.ones((4, 2, 3, 3), np.int8)
S = np.float32([0.01, 0.02, 0.03, 0.04])
X = (1, 2, 6, 6)
NONE = np.zeros(0, np.float32)


def conv(x=U8, shape=X, w=W, scale=S, out=OUT, bias=None, **more):
    return layer("Conv", x, shape, w, scale, out, bias, **more)


def resize(**attributes):
    more = {"roi": NONE, "scales": NONE, "sizes": np.array((1, 2, 12, 12))}
    return moved("Resize", (U8,), (X,), U8, more, **attributes)


CASES = [  # text, first level that takes it (None: none does), a word of the reason below
    (conv(), 29, "scale a channel"),
    (conv(scale=np.float32(0.01)), 28, "needs API 28"),
    (conv(scale=np.float32(0.01), dilations=[2, 2]), 29, "dilated"),
    (conv(w=np.ones((4, 1, 3, 3), np.int8), group=2, dilations=[2, 2]), 29, "scale a channel"),
    (conv(w=np.ones((4, 2, 3, 3), np.int8), shape=(1, 4, 6, 6), group=2, dilations=[2, 2]), None, "groups"),
    (conv(w=W.astype(np.uint8)), None, "only the int8 weights of a Conv"),
    (conv(scale=np.float32(0.01), zero=3), None, "zero point"),
    (conv(x=Quant(0.05, 0, "int8")), None, "int8, not uint8"),
    (conv(out=Quant(0.05, 0, "int8")), None, "int8, not uint8"),
    (conv(scale=np.float32(4.0)), 29, "not below the output scale"),
    (conv(bias=np.ones(4, np.int32), bias_scale=S * np.float32(0.05001)), None, "bias scale"),
    (conv(bias=np.ones(4, np.int32)), 29, "scale a channel"),
    (conv(w=np.ones((4, 2, 3), np.int8), shape=(1, 2, 6)), None, "rank 3, not 4"),
    (layer("MatMul", U8, (3, 2), np.ones((2, 4), np.int8), np.float32(0.01), OUT), 27, ""),
    (layer("MatMul", U8, (3, 2), np.ones((2, 4), np.int8), S, OUT, axis=1), None, "only the int8 weights of a Conv"),
    (layer("MatMul", U8, (1, 3, 2), np.ones((2, 4), np.int8), np.float32(0.01), OUT), None, "rank 3, not 2"),
    (layer("Gemm", U8, (3, 2), np.ones((2, 4), np.int8), np.float32(0.01), OUT, alpha=2.0), None, "alpha"),
    (moved("MatMul", (U8, U8), ((3, 2), (2, 4)), OUT), None, "isn't constant"),
    (moved("Add", (U8, OUT), (X, X), OUT), 27, ""),
    (moved("Add", (U8, OUT), ((1, *X), X), OUT), None, "rank 5"),
    (moved("Sub", (U8, OUT), (X, X), OUT), None, "in float alone"),
    (moved("HardSwish", (U8,), (X,), OUT), None, "no HardSwish"),
    (moved("Concat", (U8, U8), (X, X), U8, axis=1), 27, ""),
    (moved("Concat", (U8, OUT), (X, X), U8, axis=1), 29, "other scales"),
    (moved("Softmax", (U8,), ((2, 5),), Quant(1 / 256, 0, "uint8"), axis=1), 28, "needs API 28"),
    (moved("Softmax", (U8,), (X,), Quant(1 / 256, 0, "uint8"), axis=3), 29, "axis"),
    (moved("Softmax", (U8,), ((2, 3, 5),), Quant(1 / 256, 0, "uint8"), axis=1), None, "rank 3, not 2 or 4"),
    (moved("Softmax", (U8,), ((2, 5),), Quant(1 / 255, 0, "uint8"), axis=1), None, "1/256"),
    (moved("AveragePool", (U8,), (X,), U8, kernel_shape=[2, 2]), 28, "needs API 28"),
    (moved("AveragePool", (U8,), (X,), OUT, kernel_shape=[2, 2]), None, "another scale"),
    (moved("AveragePool", (U8,), (X,), U8, kernel_shape=[2, 2], ceil_mode=1), None, "ceil_mode"),
    (moved("Transpose", (U8,), (X,), U8, perm=[0, 2, 3, 1]), 28, "needs API 28"),
    (moved("Reshape", (U8,), (X,), U8, {"shape": np.array([2, -1])}), 27, ""),
    (resize(mode="linear", coordinate_transformation_mode="asymmetric"), 28, "needs API 28"),
    (resize(mode="linear"), 30, "need API 30"),
    (resize(mode="linear", coordinate_transformation_mode="pytorch_half_pixel"), None, "aren't taken"),
    (resize(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"), 28, "needs API 28"),
    (resize(mode="nearest"), None, "rounded down"),
    (resize(mode="cubic"), None, "cubic"),
]


@pytest.mark.parametrize(("text", "first", "word"), CASES, ids=range(len(CASES)))
def test_each_condition_has_its_reason(text, first, word) -> None:
    unit = text.unit()
    assert unit.joined
    for level in LEVELS:
        reason = refusal(unit, level)
        if first is not None and level >= first:
            assert reason == ""
        else:
            assert reason
    assert word in refusal(unit, (first or max(LEVELS) + 1) - 1)


def read(body: str, inputs: str = "float[1,4] x", outputs: str = "float[1,4] y") -> ir.Graph:
    head = '<ir_version: 8, opset_import: ["" : 17]> g'
    scales = "float s = {0.5}, float t = {0.25}, uint8 z = {128}, uint8 o = {0}"
    proto = parser.parse_model(f"{head} ({inputs}) => ({outputs}) <{scales}> {{ {body} }}")
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{i}"
    model = ir.from_proto(proto)
    infer(model)
    return model.graph


ENDS = "a = QuantizeLinear (x, s, z) b = DequantizeLinear (a, s, z)", "y = DequantizeLinear (q, t, z)"


def test_what_is_only_known_at_run_time_is_refused() -> None:
    free = units(read(f"{ENDS[0]} c = Add (b, b) q = QuantizeLinear (c, t, z) {ENDS[1]}", "float[N,4] x"))
    assert [refusal(unit, 35) for unit in free] == [f"the shape of {name} isn't fixed" for name in ("x", "a", "q")]
    scale = "a = QuantizeLinear (x, u, z) b = DequantizeLinear (a, u, z) c = Add (b, b) q = QuantizeLinear (c, t, z)"
    given = units(read(f"{scale} {ENDS[1]}", "float[1,4] x, float u"))
    assert [refusal(unit, 35) for unit in given] == ["the scale of a isn't constant"] * 2 + [""]


def test_weights_in_a_file_of_their_own_are_refused(tmp_path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    graph = conv().graph()
    held = graph.initializers["w"].const_value
    graph.initializers["w"].const_value = ir.ExternalTensor(
        "w.bin", 0, W.nbytes, held.dtype, shape=held.shape, name="w", base_dir=tmp_path
    )
    (unit,) = (unit for unit in units(graph) if unit.name == "it")
    assert refusal(unit, 35) == "w is in a file of its own"


def test_a_relu_that_changes_no_code_is_of_its_unit() -> None:
    def ops(zero: str) -> list[str]:
        graph = read(f"{ENDS[0]} c = Add (b, b) r = Relu (c) q = QuantizeLinear (r, t, {zero}) {ENDS[1]}")
        return [unit.op for unit in units(graph)]

    assert ops("o") == ["QuantizeLinear", "Add", "DequantizeLinear"]  # the DequantizeLinear is read by the Add alone
    assert ops("z") == ["QuantizeLinear", "DequantizeLinear", "Add", "Relu", "QuantizeLinear", "DequantizeLinear"]


def test_copies_are_counted_in_bytes() -> None:
    """Sin, Abs: the provider has neither HardSwish nor, before API 29, these."""
    graph = read(f"{ENDS[0]} c = Add (b, b) q = QuantizeLinear (c, t, z) d = DequantizeLinear (q, t, z)"
                 " h = HardSwish (d) y = Abs (h)")  # fmt: skip
    found = partition(graph, 29)
    assert [p.nodes for p in found.partitions] == [("QuantizeLinear0", "Add2", "DequantizeLinear4"), ("Abs6",)]
    assert [(p.inputs, p.outputs) for p in found.partitions] == [({"x": 16}, {"d": 16}), ({"h": 16}, {"y": 16})]
    assert [(f.node, f.op) for f in found.cpu] == [("HardSwish5", "HardSwish")]
    assert found.bytes == 64
    before = partition(graph, 28)  # no QuantizeLinear, no Abs: codes come in
    assert [p.nodes for p in before.partitions] == [("Add2", "DequantizeLinear4")]
    assert [(p.inputs, p.outputs) for p in before.partitions] == [({"a": 4}, {"d": 16})]
    assert {f.reason for f in before.cpu} >= {"QuantizeLinear on codes needs API 29", "Abs needs API 29"}


def test_a_reshape_alone_stays_where_it_is() -> None:
    graph = read("h = HardSwish (x) r = Flatten (h) y = HardSwish (r)")
    assert partition(graph, 29).partitions == ()
    assert {f.op for f in partition(graph, 29).cpu} == {"HardSwish", "Flatten"}


def test_what_isn_t_taken_runs_before_the_group_unless_it_needs_it() -> None:
    """Beside a → b (CPU) → c there is d (CPU) → e: a and e are one group, since d can run first."""
    graph = read("a = Abs (x) b = HardSwish (a) c = Abs (b) d = HardSwish (x) e = Abs (d) y = Add (c, e)")
    made = groups(units(graph), lambda unit: unit.op != "HardSwish")
    shown = [(group.taken, [unit.outputs[0].name for unit in group.units]) for group in made]
    assert shown == [(False, ["d"]), (True, ["a", "e"]), (False, ["b"]), (True, ["c", "y"])]


def test_groups_can_run_in_their_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        body, names = "", ["x"]
        for i in range(30):
            left, right = rng.choice(names, 2)
            body += f" v{i} = {rng.choice(['Add', 'Mul'])} ({left}, {right})"
            names.append(f"v{i}")
        found = units(read(body + f" y = Add ({names[-1]}, {names[-2]})"))
        made = groups(found, lambda unit: unit.op == "Mul")
        ready = {"x"}
        for group in made:
            for unit in group.units:
                assert {x.name for x in unit.reads()} <= ready
                ready.add(unit.outputs[0].name)
        assert sorted(u.name for g in made for u in g.units) == sorted(u.name for u in found)
