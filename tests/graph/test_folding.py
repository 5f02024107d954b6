"""Factors of channels taken in by producers: the same function, or a reason and nothing changed."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.graph import folding
from edgeq.graph.edit import Names
from tests.graph.written import draw
from tests.passes.test_equalize import loaded, run, written

INITS = {
    "wq": draw(8, 8), "wv": draw(8, 8, seed=1), "wo": draw(8, 6, seed=2), "g": 1 + draw(8) / 4, "bv": draw(8, seed=3),
    "heads": np.array([0, 0, 2, 4]), "back": np.array([0, 0, 8]), "rows": np.array([5, 8]), "wide": draw(8, 16, seed=4),
    "halves": np.array([0, 0, 2, 8]), "big": np.array([2, 5, 8]),
}  # fmt: skip
ATTENTION = """q = MatMul(x, wq) q4 = Reshape(q, heads) qt = Transpose<perm=[0,2,1,3]>(q4)
    kt = Transpose<perm=[0,2,3,1]>(q4) s = MatMul(qt, kt) p = Softmax<axis=-1>(s)
    v = MatMul(x, wv) vb = Add(v, bv) v4 = Reshape(vb, heads) vt = Transpose<perm=[0,2,1,3]>(v4) a = MatMul(p, vt)
    at = Transpose<perm=[0,2,1,3]>(a) h = Reshape(at, back) y = MatMul(h, wo)"""
FOLDED = {
    "attention": (ATTENTION, "2,5,8"),
    "norm": ("h = LayerNormalization(x, g, bv) y = MatMul(h, wo)", "5,8"),
    "transposed weight": ("r = Gemm<transB=1>(x, wv, bv) h = Relu(r) y = MatMul(h, wo)", "5,8"),
    "axes joined and split": ("v = MatMul(x, wv) h = Reshape(v, big) y = MatMul(h, wo)", "10,8"),
}
KEPT = {
    "residual": ("h = Add(x, bv) m = MatMul(h, wo) k = MatMul(h, wv) y = Concat<axis=-1>(m, h)", "5,8", "Concat"),
    "input": ("y = MatMul(x, wo) ", "5,8", "an input of the graph"),
    "square": ("v = MatMul(x, wv) h = Mul(v, v) y = MatMul(h, wo)", "5,8", "squares it"),
    "function": ("v = MatMul(x, wv) h = Tanh(v) y = MatMul(h, wo)", "5,8", "Tanh 'Tanh_1' takes no factors in"),
    "no norm scale": ("t = Tanh(x) h = Mul(t, one) y = MatMul(h, wo)", "5,8", "no constant with a number for each"),
    "heads that share": (
        ATTENTION.replace("v4 = Reshape(vb, heads)", "v2 = Reshape(vb, heads) v4 = Expand(v2, heads2)"), "2,5,8",
        "Expand 'Expand_9' takes no factors in",
    ),
    "channels mixed": ("v = MatMul(x, wv) h = Reshape(v, rows) y = MatMul(h, wo)", "8,5", "Reshape 'Reshape_1' mixes"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "shape"), FOLDED.values(), ids=FOLDED)
def test_the_function_stays_without_a_node_more(body, shape):
    proto = written(body, INITS, shape)
    model, x = loaded(proto), draw(*map(int, shape.split(",")), seed=7)
    node = next(n for n in model.graph if any(v.name == "wo" for v in n.inputs if v is not None))
    before = {k: v.const_value.numpy().copy() for k, v in model.graph.initializers.items()}
    scale, names = np.exp(draw(8, seed=8)), Names(model)
    assert folding.unfolded(node, model) == ""
    assert folding.divide(node.inputs[0], scale, [node], names) == ""
    folding.scale_inputs(node, scale, names)
    made = ir.serde.serialize_model(model)
    np.testing.assert_allclose(run(made, x), run(proto, x), rtol=1e-4, atol=1e-5)
    assert len(made.graph.node) == len(proto.graph.node)
    changed = {k for k, v in model.graph.initializers.items() if not np.array_equal(v.const_value.numpy(), before[k])}
    assert "wo" in changed
    assert len(changed) > 1
    assert "wq" not in changed


@pytest.mark.parametrize(("body", "shape", "why"), KEPT.values(), ids=KEPT)
def test_what_cannot_take_factors_says_why(body, shape, why):
    inits = INITS | {"one": np.float32(2), "heads2": np.array([2, 5, 2, 4])}
    if "rows" in body:
        inits["wv"] = draw(5, 5)
    model = loaded(written(body, inits, shape))
    node = next(n for n in model.graph if any(v.name == "wo" for v in n.inputs if v is not None))
    before = {k: v.const_value.numpy().copy() for k, v in model.graph.initializers.items()}
    assert why in folding.unfolded(node, model)
    readers = [use.node for use in node.inputs[0].uses() if folding.linear(use.node)]
    assert folding.divide(node.inputs[0], np.full(8, 2.0), readers, Names(model)) != ""
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])


def test_a_large_constant_is_scaled_when_it_is_read(monkeypatch):
    monkeypatch.setattr(folding, "MANY", 10)
    model = loaded(written("h = MatMul(x, wv) y = MatMul(h, wo)", INITS, "5,8"))
    last = list(model.graph)[-1]
    for _ in range(2):  # lazily of what is lazy
        folding.divide(last.inputs[0], np.full(8, 2.0), [last], Names(model))
        folding.scale_inputs(last, np.full(8, 2.0), Names(model))
    held = model.graph.initializers["wo"].const_value
    assert isinstance(held, ir.LazyTensor)
    np.testing.assert_allclose(held.numpy(), 4 * INITS["wo"], rtol=1e-6)
    np.testing.assert_allclose(model.graph.initializers["wv"].const_value.numpy(), INITS["wv"] / 4, rtol=1e-6)
