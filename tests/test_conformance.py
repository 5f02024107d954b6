"""One model, every target: each artifact keeps the laws that its target's file states, read from the file alone."""

from functools import partial

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import edgeq
from edgeq import target as targets
from edgeq.errors import TargetError
from edgeq.numerics.metrics import sqnr_db
from edgeq.pipeline import plan_file
from edgeq.recipe import Recipe
from tests.graph.written import draw, samples, save, text
from tests.require import kernels_like_a_targets

SHAPE = (1, 4, 16, 16)
BODY = """
a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a)
o = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) p = Transpose<perm=[0,1,3,2]>(o)
c = Conv<pads=[1,1,1,1]>(p, w2, b2) s = Sigmoid(c) m = Mul(c, s) t = Tanh(m)
d = Conv<group=8, pads=[1,1,1,1]>(t, w3, b2) k = Concat<axis=1>(m, d)
u = ConvTranspose<strides=[2,2]>(k, w4, b2) n = Resize<mode="nearest">(p, , up) v = Add(u, n)
q = AveragePool<kernel_shape=[4,4], strides=[4,4]>(v) f = Flatten(q) g = Gemm(f, w5, b5)
e = Softmax(g) y = MatMul(e, w6)
"""
INITS = {
    "w1": draw(8, 4, 3, 3), "b1": draw(8), "w2": draw(8, 8, 3, 3) / 8, "b2": draw(8, seed=2), "w3": draw(8, 1, 3, 3),
    "w4": draw(16, 8, 2, 2) / 4, "w5": draw(128, 10) / 32, "b5": draw(10), "w6": draw(10, 6),
    "up": np.array([1, 1, 2, 2], np.float32),
}  # fmt: skip
MOVES = ("MaxPool", "Concat", "Flatten", "Resize", "AveragePool", "Transpose")
STATIC = [n for n in targets.names() if targets.load(n).find("Conv", "static") and not targets.load(n).whole]


class Artifact:
    """What an ONNX file says of its Q and DQ nodes."""

    def __init__(self, path):
        self.graph = onnx.load(path).graph
        self.constants = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.readers = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def nodes(self, *ops):
        return [node for node in self.graph.node if node.op_type in ops]

    def parameters(self, node):
        return self.constants[node.input[1]], self.constants[node.input[2]] if len(node.input) > 2 else None

    def read(self, node, index):
        """The DequantizeLinear that an input comes from, if it does."""
        found = self.producer.get(node.input[index]) if index < len(node.input) else None
        return found if found is not None and found.op_type == "DequantizeLinear" else None

    def written(self, node):
        """The QuantizeLinear that an output goes to, behind an activation or at once."""
        for reader in self.readers.get(node.output[0], []):
            if reader.op_type == "QuantizeLinear":
                return reader
            if reader.op_type in ("Relu", "Clip"):
                return self.written(reader)
        return None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each target's artifact of the one model, as ONNX even where the target's own format is another."""
    folder = tmp_path_factory.mktemp("targets")
    path = save(folder, text(BODY, "float[N,4,16,16] x"), INITS)
    done = {}

    def make(name):
        if name not in done:
            # 16-bit QuantizeLinear is of opset 21
            target = msgspec.structs.replace(targets.load(name), format="onnx", runner="cpu", opset=21)
            data = samples(*SHAPE)
            result = edgeq.quantize(path, target, data, folder / name, elementwise="all", check=False)
            done[name] = target, result, Artifact(result.artifact)
        return done[name]

    return path, make


def types(target, role):
    names = {getattr(rule, role) for rule in target.rule if rule.method == "static"}
    return {target.types[name] for name in names if name}


each = partial(pytest.mark.parametrize, "name")


@each(STATIC)
def test_it_computes_what_the_float_model_does(made, name):
    path, make = made
    target, result, _ = make(name)
    if {row.dtype for row in types(target, "act")} == {"int8"}:
        kernels_like_a_targets()
    left, right = ort.InferenceSession(path), ort.InferenceSession(result.artifact)
    wants, gots = zip(*((s.run(None, f)[0] for s in (left, right)) for f in samples(*SHAPE, count=4)), strict=True)
    assert sqnr_db(np.stack(wants), np.stack(gots)) > 20


@each(STATIC)
def test_activations_have_the_targets_types_and_zero_points(made, name):
    target, _, found = made[1](name)
    wanted = {row.dtype for row in types(target, "act")}
    symmetric = all(row.symmetric for row in types(target, "act"))
    pairs = found.nodes("QuantizeLinear")
    assert len(pairs) > 3
    for node in pairs:
        scale, zero = found.parameters(node)
        assert scale.ndim == 0
        assert scale.dtype == np.float32
        assert zero.dtype.name in wanted
        assert not symmetric or zero == 0


@each(STATIC)
def test_weights_are_symmetric_and_within_their_range(made, name):
    target, _, found = made[1](name)
    seen = 0
    for node in found.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        rule, dq = target.find(node.op_type, "static"), found.read(node, 1)
        if dq is None:
            continue
        row, codes = target.types[rule.weight], found.constants[dq.input[0]]
        scale, zero = found.parameters(dq)
        assert codes.dtype.name == row.dtype == "int8"
        assert not zero.any()
        assert codes.min() >= (-64 if row.reduce_range else -127)
        assert codes.max() <= (63 if row.reduce_range else 127)
        channels = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}[node.op_type]
        assert scale.shape == ((codes.shape[channels],) if row.per == "channel" else ())
        assert found.read(node, 0) is not None
        seen += 1
    assert seen == sum(
        target.find(n.op_type, "static") is not None for n in found.nodes("Conv", "ConvTranspose", "Gemm", "MatMul")
    )


@each(STATIC)
def test_biases_are_as_the_kernel_takes_them(made, name):
    target, _, found = made[1](name)
    for node in found.nodes("Conv", "ConvTranspose", "Gemm"):
        rule, dq = target.find(node.op_type, "static"), found.read(node, 2)
        if rule is None or rule.bias == "float":
            assert dq is None
            assert found.constants[node.input[2]].dtype == np.float32
            continue
        product = found.parameters(found.read(node, 0))[0] * found.parameters(found.read(node, 1))[0]
        assert found.constants[dq.input[0]].dtype == np.int32
        np.testing.assert_array_equal(found.parameters(dq)[0], product.astype(np.float32))


@each(STATIC)
def test_outputs_with_fixed_parameters_have_them(made, name):
    target, _, found = made[1](name)
    rules = {op: target.find(op, "static") for op in ("Sigmoid", "Tanh", "Softmax")}
    fixed = {op: rule.output for op, rule in rules.items() if rule is not None and rule.output is not None}
    for op, wanted in fixed.items():
        for node in found.nodes(op):
            q = found.written(node)
            if found.parameters(q)[1].dtype.name in (wanted.dtype or found.parameters(q)[1].dtype.name):
                assert [v.item() for v in found.parameters(q)] == [wanted.scale, wanted.zero_point]
    assert all(found.nodes(op) for op in fixed)


@each(STATIC)
def test_operators_that_move_codes_share_their_parameters(made, name):
    target, _, found = made[1](name)
    checked = 0
    for node in found.nodes(*MOVES):
        rule, q = target.find(node.op_type, "static"), found.written(node)
        if rule is None or rule.role != "same" or q is None or found.read(node, 0) is None:
            continue
        for index in range(len(node.input) if node.op_type == "Concat" else 1):
            before, after = found.parameters(found.read(node, index)), found.parameters(q)
            assert [v.item() for v in before] == [v.item() for v in after]
            checked += 1
    assert checked


@each(STATIC)
def test_pairs_are_shared_or_dedicated(made, name):
    target, _, found = made[1](name)
    readers = [
        len(found.readers.get(node.output[0], []))
        for node in found.nodes("DequantizeLinear")
        if node.input[0] not in found.constants
    ]
    codes = [len(found.readers[node.output[0]]) for node in found.nodes("QuantizeLinear")]
    if target.dedicated_pairs:
        assert max(readers) == max(codes) == 1
    else:
        assert max(readers) > 1


@each(STATIC)
def test_shapes_are_fixed_where_they_must_be(made, name):
    path, make = made
    target, _, found = make(name)
    dims = [dim for value in found.graph.input for dim in value.type.tensor_type.shape.dim]
    assert all(dim.HasField("dim_value") for dim in dims) == target.static_shapes
    if target.static_shapes:  # a plan sees no data to take them from
        with pytest.raises(TargetError, match="--shape x=1,4,16,16"):
            plan_file(path, target, Recipe())


def test_targets_differ():
    """The laws above would hold of one target under many names."""
    loaded = [targets.load(name) for name in STATIC]
    assert {row.dtype for target in loaded for row in types(target, "act")} >= {"uint8", "int8"}
    assert any(target.dedicated_pairs for target in loaded)
    assert any(target.static_shapes for target in loaded)
    assert any(row.symmetric for target in loaded for row in types(target, "act"))
    assert {"nnapi", "tensorrt", "qnn", "xnnpack", "openvino", "web", "litert", "ethos-u", "x86_64-avx2"} <= set(STATIC)
