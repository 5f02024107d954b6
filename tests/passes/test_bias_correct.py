"""Bias correction: the means of outputs come back, with the shift that a direct calculation gives."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.passes.bias_correct import analytic, correct, significant, with_biases
from tests.graph.written import draw
from tests.passes.test_equalize import loaded, run, written

FORMS = {
    "conv": ("y = Conv(x, w, b)", (6, 4, 1, 1), (9, 4, 5, 5)),
    "grouped": ("y = Conv<group=2>(x, w, b)", (6, 2, 3, 3), (9, 4, 5, 5)),
    "gemm": ("y = Gemm(x, w, b)", (4, 6), (9, 4)),
    "gemm, transposed": ("y = Gemm<transB=1>(x, w, b)", (6, 4), (9, 4)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_analytic_shift_restores_the_mean(form):
    body, shape, x_shape = FORMS[form]
    w, b = draw(*shape), draw(6)
    real = np.rint(w * 2) / 2
    x = np.broadcast_to(draw(1, 4, *[1] * (len(x_shape) - 2), seed=3), x_shape).astype(np.float32)  # E[x] is exact
    shape_text = ",".join(map(str, x_shape))
    want = run(written(body, {"w": w, "b": b}, shape_text), x)
    rounded = written(body, {"w": real.astype(np.float32), "b": b}, shape_text)
    axes = tuple(i for i in range(want.ndim) if i != 1)
    assert np.abs(run(rounded, x).mean(axes) - want.mean(axes)).max() > 0.05
    node = next(iter(loaded(written(body, {"w": w, "b": b}, shape_text)).graph))
    shift = analytic(node, real, x.mean(axes))
    made = ir.serde.serialize_model(correct(loaded(rounded), {node.name: shift}))
    np.testing.assert_allclose(run(made, x).mean(axes), want.mean(axes), atol=1e-4)


def test_int32_biases_move_by_whole_codes():
    codes, scale = np.arange(6, dtype=np.int32) * 1000, np.linspace(0.001, 0.002, 6).astype(np.float32)
    proto = written(
        "b = DequantizeLinear<axis=0>(q, s) y = Gemm(x, w, b)", {"q": codes, "s": scale, "w": draw(4, 6)}, "3,4"
    )
    x, by = draw(3, 4), np.linspace(-1, 1, 6)
    made = ir.serde.serialize_model(correct(loaded(proto), {"Gemm_1": by}))
    moved = run(made, x) - run(proto, x)
    assert np.abs(moved - by).max() <= scale.max() / 2 + 1e-5
    assert np.abs(moved).max() > 0.9


def test_every_layer_gets_a_bias():
    proto = written(
        "a = Conv(x, w1) r = Relu(a) y = Conv<group=2>(r, w2)", {"w1": draw(6, 4, 1, 1), "w2": draw(8, 3, 1, 1)}
    )
    model = with_biases(loaded(proto))
    assert [len(n.inputs) for n in model.graph if n.op_type == "Conv"] == [3, 3]
    x = draw(2, 4, 8, 8)
    np.testing.assert_array_equal(run(ir.serde.serialize_model(model), x), run(proto, x))


def test_what_may_be_chance_is_left_out():
    rng = np.random.default_rng(0)
    sure, noise = np.linspace(1, 3, 8), rng.normal(size=(16, 8))
    np.testing.assert_allclose(significant(sure + 0.01 * noise), sure, atol=0.02)
    assert np.abs(significant(noise - noise.mean(0))).max() == 0
    drawn = rng.normal(size=(500, 16, 1))  # 500 channels, nothing but chance
    plain, kept = drawn.mean(1), np.array([significant(x) for x in drawn])
    assert (kept**2).mean() < (plain**2).mean() / 2
    assert (significant(sure[None]) == 0).all()  # of one sample nothing tells
