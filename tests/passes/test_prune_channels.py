"""Channels that nothing reads are removed without a trace in the outputs; others where the shapes must still agree."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.passes.prune_channels import prune_channels
from tests.graph.written import draw, save, text

DIGITS = Path(__file__).resolve().parents[2] / "sample_models" / "digits.onnx"
RESIDUAL = """
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, wa, ba)
    r = Relu(a)
    d = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=16>(r, wd)
    h = HardSwish(d)
    b = Conv(h, wb)
    s = Add(b, r)
    m = GlobalAveragePool(s)
    f = Flatten(m)
    y = Gemm<transB=1>(f, wg, bg)
"""


def weights(dead):
    """Those of RESIDUAL, with the channels `dead` of all joined values made and read with nothing."""
    made = {
        "wa": draw(16, 4, 3, 3), "ba": draw(16), "wd": draw(16, 1, 3, 3), "wb": draw(16, 16, 1, 1),
        "wg": draw(10, 16), "bg": draw(10),
    }  # fmt: skip
    for name, axis in (("wa", 0), ("ba", 0), ("wd", 0), ("wb", 0), ("wb", 1), ("wg", 1)):
        np.moveaxis(made[name], axis, 0)[dead] = 0
    return made


def run(model, x, name="x"):
    proto = ir.serde.serialize_model(model)
    return ort.InferenceSession(proto.SerializeToString()).run(None, {name: x})[0]


def test_channels_of_nothing_are_removed_exactly(tmp_path):
    dead = [1, 2, 5, 7, 8, 11, 13, 15]
    model = prepare(io.load(save(tmp_path, text(RESIDUAL, outputs="float[N,10] y"), weights(dead))), 21)
    io.to_memory(model)
    x = draw(3, 4, 8, 8)
    wanted = run(model, x)
    found = prune_channels(model, 0.5)
    assert set(found.values()) == {(8, 16)}
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)
    shapes = {n.inputs[1].name: tuple(n.inputs[1].shape) for n in model.graph if n.op_type in ("Conv", "Gemm")}
    assert sorted(shapes.values()) == [(8, 1, 3, 3), (8, 4, 3, 3), (8, 8, 1, 1), (10, 8)]


def test_the_heaviest_stay(tmp_path):
    held = weights([])
    for name, axis in (("wa", 0), ("wd", 0), ("wb", 0), ("wb", 1), ("wg", 1)):
        np.moveaxis(held[name], axis, 0)[[3, 4, 6, 9, 10, 12, 14, 15]] *= 10
    model = prepare(io.load(save(tmp_path, text(RESIDUAL, outputs="float[N,10] y"), held)), 21)
    io.to_memory(model)
    prune_channels(model, 0.5)
    kept = next(v.const_value.numpy() for v in model.graph.initializers.values() if v.shape == (10, 8))
    np.testing.assert_array_equal(kept, held["wg"][:, [3, 4, 6, 9, 10, 12, 14, 15]])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_mobile_network_shrinks_and_runs(share):
    """Squeeze-and-excite, residual sums and a Concat (whose channels stay) in one network."""
    model = prepare(io.load(DIGITS), 21)
    io.to_memory(model)
    before = sum(v.const_value.size for v in model.graph.initializers.values())
    assert prune_channels(model, share)
    after = sum(v.const_value.size for v in model.graph.initializers.values())
    assert after < before * (1 - share / 2)
    assert run(model, draw(2, 1, 8, 8), "input").shape == (2, 10)


def test_what_others_see_is_kept(tmp_path):
    body = "a = Conv(x, wa) \n b = Conv(a, wb) \n y = Concat<axis=1>(a, b)"
    path = save(tmp_path, text(body, outputs="float[] y"), {"wa": draw(16, 4, 1, 1), "wb": draw(16, 16, 1, 1)})
    model = prepare(io.load(path), 21)
    assert prune_channels(model, 0.5) == {}
    with pytest.raises(RecipeError, match="less than 1"):
        prune_channels(model, 1.0)
