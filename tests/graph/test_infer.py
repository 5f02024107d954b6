"""Types and shapes over models that no serializer takes whole, and over values that are no tensors."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, parser

from edgeq.graph import io
from edgeq.graph.infer import infer
from edgeq.graph.prepare import prepare
from tests.graph.written import CONV, draw, save, text


def sparse(folder, opset=21, side=16384, layers=3):
    """`layers` square weights in one file that claims over 2 GB, and takes no room on the disk."""
    size = side * side * 4
    nodes, weights = [], []
    for index in range(layers):
        weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[side, side])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", index * size), ("length", size)):
            weight.external_data.add(key=key, value=str(value))
        weights.append(weight)
        before, after = f"h{index}" if index else "x", f"h{index + 1}" if index < layers - 1 else "y"
        nodes += [helper.make_node("MatMul", [before, f"w{index}"], [f"m{index}"], f"mm{index}")]
        nodes += [helper.make_node("Relu", [f"m{index}"], [after], f"relu{index}")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", side]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), folder / "m.onnx")
    with open(folder / "w.bin", "wb") as file:
        file.truncate(layers * size)
    return folder / "m.onnx"


def resident():
    """Bytes of this process that are in memory, those of mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("opset", [13, 21])
def test_over_two_gigabytes_are_prepared_without_reading_them(tmp_path, opset):
    model = io.load(sparse(tmp_path, opset))
    assert io.weight_bytes(model) > 2**31
    before = resident()
    prepared = prepare(model, 21)
    assert prepared.opset_imports[""] == 21
    for node in prepared.graph:
        assert node.outputs[0].dtype == ir.DataType.FLOAT
        assert [str(d) for d in node.outputs[0].shape] == ["N", "16384"]
    weights = [v.const_value for v in prepared.graph.initializers.values()]
    assert [type(w) for w in weights] == [ir.ExternalTensor] * 3
    assert resident() - before < 2**28


def test_weights_come_through_untouched(tmp_path):
    model = io.load(save(tmp_path, text("y = Conv (x, w, b)"), CONV | {"w": draw(400, 4, 3, 3), "b": draw(400)}))
    before = {k: v.const_value for k, v in model.graph.initializers.items()}
    infer(model)
    assert all(model.graph.initializers[k].const_value is v for k, v in before.items())
    assert [str(d) for d in model.graph.outputs[0].shape] == ["N", "400", "6", "6"]


def test_sequences_and_optionals_are_no_tensors(tmp_path):
    body = "s = SplitToSequence <axis = 1> (x) o = Optional (x) t = SequenceAt (s, zero) y = Identity (x)"
    model = io.load(save(tmp_path, text(body), {"zero": np.array(0)}))
    infer(model)
    types = {v.name: v.type for node in model.graph for v in node.outputs}
    assert types["s"] == ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    assert types["o"] == ir.OptionalType(ir.TensorType(ir.DataType.FLOAT))
    assert types["t"] == ir.TensorType(ir.DataType.FLOAT)


def test_what_inference_refuses_keeps_what_it_has():
    wrong = "agraph (float[2,3] x) => (float[2,7] y) { y = MatMul (x, x) }"
    model = ir.from_proto(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {wrong}'))
    infer(model)
    assert list(model.graph.outputs[0].shape) == [2, 7]
