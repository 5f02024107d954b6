"""Sums of codes in the arithmetics of several runtimes, over every pair of codes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeq import pipeline
from edgeq.graph import io
from edgeq.planning.plan import NodePlan, Plan, ValuePlan
from edgeq.planning.sums import tie_free, tie_free_scale
from edgeq.types import QParams, QSpec
from tests.require import require
from tests.runners.tiny import here

CODES = np.arange(256)
U8 = QSpec("uint8", symmetric=False)


def as_rounded_float(ra, rb, a, b):
    """Each product and each sum rounded to float32."""
    ra, rb = np.float32(ra), np.float32(rb)
    return np.rint(ra * a.astype(np.float32) + rb * b.astype(np.float32))


def as_one_sum(ra, rb, a, b):
    """Products with zero points folded into one constant, as fused multiply-adds keep them: rounded at the end."""
    return np.rint(np.float32(ra) * a.astype(np.float64) + np.float32(rb) * b.astype(np.float64))


def as_fixed_point(ra, rb, a, b):
    """22-bit multipliers and a rounding shift, halves upwards."""
    shift = 21 - int(np.floor(np.log2(max(ra, rb))))
    ia, ib = (int(np.rint(r * 2.0**shift)) for r in (ra, rb))
    return (ia * a + ib * b + (1 << (shift - 1))) >> shift


@pytest.mark.parametrize("seed", range(12))
def test_every_arithmetic_gives_the_same_code(seed):
    rng = np.random.default_rng(seed)
    total = np.float32(rng.uniform(0.01, 0.1))
    scales = (total * rng.uniform(0.1, 1.5, 2)).astype(np.float32)
    za, zb = rng.integers(0, 256, 2)
    a, b = (x.ravel() for x in np.meshgrid(CODES - za, CODES - zb))

    def apart(pair):
        ra, rb = (np.float64(s / total) for s in pair)
        exact = np.abs((ra * a + rb * b) - np.floor(ra * a + rb * b) - 0.5).min()
        one, *others = (f(ra, rb, a, b) for f in (as_rounded_float, as_one_sum, as_fixed_point))
        return sum(int((one != other).sum()) for other in others), exact

    chosen = [tie_free_scale(s, total) for s in scales]
    different, nearest = apart(chosen)
    assert different == 0
    assert nearest > 0.9 / 2046  # float32 scales cost up to a tenth
    for scale, before in zip(chosen, scales, strict=True):
        assert before * (1 - 1e-6) <= scale <= before * (1 + 1 / 32)
        assert tie_free_scale(scale, total) == scale


def test_scales_as_calibrated_do_differ():
    """The reason for all this: random ratios disagree in some pair of codes."""
    rng = np.random.default_rng(0)
    a, b = (x.ravel() for x in np.meshgrid(CODES, CODES))
    found = [as_rounded_float(*r, a, b) != as_fixed_point(*r, a, b) for r in rng.uniform(0.1, 1.5, (8, 2))]
    assert sum(f.any() for f in found) >= 4


def test_behind_a_clip_a_scale_shrinks():
    """Its range must not leave the Clip's, or the Clip would stay a node of its own."""
    scale = np.float32(6 / 255)
    less = tie_free_scale(scale, np.float32(0.041), up=False)
    assert scale * (1 - 1 / 32) < less < scale
    assert tie_free_scale(less, np.float32(0.041), up=False) == less


def test_a_tiny_operand_keeps_its_scale():
    assert tie_free_scale(np.float32(0.001), np.float32(0.1)) == np.float32(0.001)


def model_of(nodes, inputs, output, shape=(1, 4)):
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in inputs]
    ends = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", made, ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def planned(readers):
    values = [ValuePlan(n, U8, n, "minmax", True, tuple(r)) for n, r in readers.items()]
    names = dict.fromkeys(r for listed in readers.values() for r in listed)
    nodes = [NodePlan(n, "Add", "integer") for n in names]
    return Plan("t", "static", tuple(nodes), tuple(values))


def test_a_chain_is_settled_from_its_end(tmp_path):
    nodes = [helper.make_node("Add", ["x", "f"], ["c"], name="first"),
             helper.make_node("Add", ["c", "g"], ["d"], name="second")]  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(model_of(nodes, ["x", "f", "g"], "d"), path)
    scales = {"x": 0.02, "f": 0.013, "c": 0.031, "g": 0.011, "d": 0.04}
    groups = {n: QParams(np.float32(s), np.int32(7), U8) for n, s in scales.items()}
    readers = {"x": ["first"], "f": ["first"], "c": ["second"], "g": ["second"], "d": []}
    found = tie_free(planned(readers), io.load(path), groups)
    assert found["d"] is groups["d"]
    for part, total in (("c", "d"), ("g", "d"), ("x", "c"), ("f", "c")):
        count = found[part].scale / np.float64(found[total].scale) * 1023
        assert count == pytest.approx(round(count), abs=1e-4)
        assert found[part].scale >= groups[part].scale
        assert found[part].zero_point == 7


def test_an_artifact_adds_the_same_on_arm(tmp_path):
    """51,200 sums behind a residual of two convolutions, in integers."""
    from edgeq.runners import arm64

    require("arm64", "edgeq doctor --install arm64", lambda: arm64.missing() is None)
    rng = np.random.default_rng(2)
    weights = {n: rng.normal(0, 0.3, (8, 8, 1, 1)).astype(np.float32) for n in ("u", "v", "w")}
    nodes = [helper.make_node("Conv", ["x", "u"], ["a"], name="u"),
             helper.make_node("Conv", ["a", "v"], ["b"], name="v"),
             helper.make_node("Add", ["a", "b"], ["c"], name="sum"),
             helper.make_node("Conv", ["c", "w"], ["y"], name="w")]  # fmt: skip
    model = model_of(nodes, ["x"], "y", (1, 8, 40, 40))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    onnx.save(model, tmp_path / "m.onnx")
    feeds = [{"x": rng.normal(0, 1, (1, 8, 40, 40)).astype(np.float32)} for _ in range(4)]
    made = pipeline.quantize(tmp_path / "m.onnx", "arm64", feeds, tmp_path / "out", check=False)
    session = arm64.open_session(made.artifact, proof=True)
    for feed, got in zip(feeds, session.run_many(feeds), strict=True):
        np.testing.assert_array_equal(got["y"], here(made.artifact, feed))
    assert session.report["ops"]["QLinearAdd"] == 1
