"""ONNX files that nobody should send: each function writes one into a folder and gives its path."""

import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.command import matmul

FLOAT = TensorProto.FLOAT
DEEP = 100_000
TERABYTES = [1 << 20, 1 << 20]  # of float32: 4 TiB


def value(name, shape=("n", 8), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape) if shape is not None else None)


def write(folder, nodes, inputs=(), outputs=(), constants=(), functions=(), opset=17, name="bad.onnx"):
    graph = helper.make_graph(nodes, "g", list(inputs) or [value("x")], list(outputs) or [value("y")], list(constants))
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid("local", 1) for _ in functions[:1]]]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def relu(read, made, name=""):
    return helper.make_node("Relu", [read], [made], name=name)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


BRANCH = helper.make_graph([relu("x", "other")], "e", [], [value("other")])


def cycle(folder):
    return write(folder, [helper.make_node("Add", ["x", "y"], ["a"]), relu("a", "y")])


def self_loop(folder):
    return write(folder, [relu("y", "y")])


def missing_input(folder):
    return write(folder, [relu("nobody", "y")])


def missing_output(folder):
    return write(folder, [relu("x", "a")])


def doubled_output(folder):
    return write(folder, [relu("x", "y"), helper.make_node("Abs", ["x"], ["y"])])


def doubled_constant(folder):
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return write(folder, [node], constants=[constant("w", np.zeros(8, "f")), constant("w", np.ones(8, "f"))])


def doubled_input(folder):
    return write(folder, [relu("x", "y")], inputs=[value("x"), value("x")])


def doubled_node(folder):
    return write(folder, [relu("x", "a", "twin"), relu("a", "y", "twin")])


def unsorted(folder):
    return write(folder, [relu("a", "y"), relu("x", "a")])


def empty_names(folder):
    return write(folder, [relu("", "y")])


def unknown_operator(folder):
    return write(folder, [helper.make_node("NoSuchThing", ["x"], ["y"], domain="nowhere")])


def unknown_opset(folder):
    return write(folder, [relu("x", "y")], opset=9999)


def old_opset(folder):
    return write(folder, [relu("x", "y")], opset=1)


def negative_opset(folder):
    return write(folder, [relu("x", "y")], opset=-3)


def unknown_type(folder):
    return write(folder, [relu("x", "y")], inputs=[value("x", kind=77)])


def no_attribute(folder):
    return write(folder, [helper.make_node("Cast", ["x"], ["y"])])


def wrong_attribute(folder):
    return write(folder, [helper.make_node("Conv", ["x", "w"], ["y"], strides="two", group=0.5)],
                 constants=[constant("w", np.zeros((1, 1, 3, 3), "f"))])  # fmt: skip


def huge_attributes(folder):
    weight = constant("w", np.zeros((1, 1, 3, 3), "f"))
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[2**62] * 4, strides=[2**62, 1], dilations=[2**60, 2**60])
    return write(folder, [node], inputs=[value("x", (1, 1, 8, 8))], outputs=[value("y", (1, 1, 8, 8))],
                 constants=[weight])  # fmt: skip


def claims_terabytes(folder):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=TERABYTES, raw_data=b"abcd")
    return write(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], constants=[tensor])


def claims_terabytes_outside(folder):
    path = matmul(folder / "bad.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[:] = TERABYTES
    path.write_bytes(model.SerializeToString())
    return path


def overflowing_dims(folder):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2**62, 2**62, 16], raw_data=b"")
    return write(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], constants=[tensor])


def negative_dims(folder):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[-8, -4], raw_data=bytes(128))
    return write(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], constants=[tensor])


def short_floats(folder):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[8, 4], float_data=[1.0, 2.0])
    return write(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], constants=[tensor])


def fills_terabytes(folder):
    """Folding this constant would allocate what it describes."""
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["big"]), helper.make_node("ReduceSum", ["big"], ["r"]),
             helper.make_node("Add", ["x", "r"], ["y"])]  # fmt: skip
    return write(folder, nodes, constants=[constant("s", np.array(TERABYTES, np.int64))])


def expands_terabytes(folder):
    nodes = [helper.make_node("Expand", ["one", "s"], ["big"]), helper.make_node("Add", ["x", "big"], ["y"])]
    constants = [constant("s", np.array(TERABYTES, np.int64)), constant("one", np.ones((1, 1), "f"))]
    return write(folder, nodes, constants=constants)


def ranges_terabytes(folder):
    nodes = [helper.make_node("Range", ["a", "b", "c"], ["big"]), helper.make_node("ReduceMax", ["big"], ["r"]),
             helper.make_node("Add", ["x", "r"], ["y"])]  # fmt: skip
    ends = [constant(k, np.float32(v)) for k, v in (("a", 0), ("b", 1e12), ("c", 1))]
    return write(folder, nodes, constants=ends)


def doubles_itself(folder):
    """40 nodes that each double a constant: 4 TiB if they are folded."""
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
    nodes += [helper.make_node("ReduceSum", ["c40"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    return write(folder, nodes, constants=[constant("c0", np.ones(1, "f"))])


def huge_input(folder):
    return write(folder, [relu("x", "y")], inputs=[value("x", (2**40, 8))], outputs=[value("y", (2**40, 8))])


def nested_ifs(folder, depth=30):
    """As deep as protobuf's parser allows."""
    graph = helper.make_graph([relu("x", "i0")], "b", [], [value("i0")])
    for level in range(1, depth):
        node = helper.make_node("If", ["c"], [f"i{level}"], then_branch=graph, else_branch=BRANCH)
        graph = helper.make_graph([node], "b", [], [value(f"i{level}")])
    last = graph.output[0].name
    return write(folder, list(graph.node), [value("x"), value("c", (), TensorProto.BOOL)], [value(last)])


def nested_bytes(folder, depth=100_000):
    """Nothing but the lengths of graphs in attributes in nodes in graphs: a parser that recurses runs out of stack."""
    data = b""
    for _ in range(depth):
        for field in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            data = field + _varint(len(data)) + data
        if len(data) > 1 << 20:
            break
    (folder / "bad.onnx").write_bytes(b"\x08\x09\x3a" + _varint(len(data)) + data)
    return folder / "bad.onnx"


def _varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _function(name, calls, times=1):
    read = ["a", *[f"t{i}" for i in range(1, times)]]
    nodes = [helper.make_node(calls, [source], [f"t{i + 1}"], domain="local") for i, source in enumerate(read)]
    nodes.append(helper.make_node("Identity", [f"t{times}"], ["b"]))
    return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17),
                                helper.make_opsetid("local", 1)])  # fmt: skip


def function_calls_itself(folder):
    node = helper.make_node("F", ["x"], ["y"], domain="local")
    return write(folder, [node], functions=[_function("F", "F")])


def functions_call_each_other(folder):
    node = helper.make_node("F", ["x"], ["y"], domain="local")
    return write(folder, [node], functions=[_function("F", "G"), _function("G", "F")])


def functions_double(folder):
    """30 functions that call the next one twice: 2³⁰ nodes once inlined."""
    leaf = helper.make_function("local", "F30", ["a"], ["b"], [relu("a", "b")], [helper.make_opsetid("", 17)])
    functions = [_function(f"F{i}", f"F{i + 1}", times=2) for i in range(30)]
    return write(folder, [helper.make_node("F0", ["x"], ["y"], domain="local")], functions=[*functions, leaf])


def deep_functions(folder):
    leaf = helper.make_function("local", "F3000", ["a"], ["b"], [relu("a", "b")], [helper.make_opsetid("", 17)])
    functions = [_function(f"F{i}", f"F{i + 1}") for i in range(3000)]
    return write(folder, [helper.make_node("F0", ["x"], ["y"], domain="local")], functions=[*functions, leaf])


def _external(folder, **entries):
    path = matmul(folder / "bad.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    held = {e.key: e.value for e in model.graph.initializer[0].external_data} | entries
    del model.graph.initializer[0].external_data[:]
    for key, text in held.items():
        if text is not None:
            model.graph.initializer[0].external_data.add(key=key, value=str(text))
    path.write_bytes(model.SerializeToString())
    return path


EXTERNAL = {
    "absolute": {"location": "/etc/passwd"},
    "climbing": {"location": "a/../../../etc/passwd"},
    "windows": {"location": "..\\..\\secret"},
    "nul": {"location": "w.bin\0.txt"},
    "nothing": {"location": ""},
    "itself, a folder": {"location": "."},
    "no location": {"location": None},
    "long": {"location": "w" * 100_000},
    "long for a file": {"location": "w" * 500},
    "device": {"location": "/dev/zero"},
    "offset behind": {"offset": 1 << 40},
    "offset below": {"offset": -4},
    "offset of words": {"offset": "many"},
    "offset beyond integers": {"offset": 10**30},
    "length behind": {"length": 1 << 40},
    "length below": {"length": -1},
    "length short": {"length": 4},
    "length of words": {"length": "1e99"},
}


def fifo(folder):
    path = matmul(folder / "bad.onnx", external=True)
    (folder / "w.bin").unlink()
    os.mkfifo(folder / "w.bin")
    return path


def folder_link(folder):
    """The data lies behind a link of its folder."""
    path = _external(folder, location="in/w.bin")
    (folder.parent / "elsewhere").mkdir(exist_ok=True)
    (folder / "w.bin").rename(folder.parent / "elsewhere" / "w.bin")
    (folder / "in").symlink_to(folder.parent / "elsewhere")
    return path


REFUSED = (
    cycle, self_loop, missing_input, missing_output, doubled_output, unknown_type, claims_terabytes,
    claims_terabytes_outside,
    overflowing_dims, negative_dims, short_floats, nested_bytes, deep_functions,
    function_calls_itself, functions_call_each_other, functions_double, fifo, folder_link,
)  # fmt: skip
"""No runtime could do anything with these."""

SURVIVED = (
    doubled_constant, doubled_input, doubled_node, unsorted, empty_names, unknown_operator, unknown_opset,
    negative_opset, no_attribute, wrong_attribute, old_opset, huge_attributes, fills_terabytes, expands_terabytes,
    ranges_terabytes, doubles_itself, huge_input, nested_ifs,
)  # fmt: skip
"""Odd but not beyond sense: a right result or a refusal."""


def all_models():
    for make in (*REFUSED, *SURVIVED):
        yield make.__name__, make
    for name, entries in EXTERNAL.items():
        yield f"external data: {name}", lambda folder, entries=entries: _external(folder, **entries)
