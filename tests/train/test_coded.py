"""Ternary, binary and shared weights: numpy's codes, the scale's gradient, and the same integers in the artifact."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from edgeq import target as targets
from edgeq.errors import RecipeError
from edgeq.numerics.saturation import saturating_pairs
from edgeq.recipe import Override, Recipe
from edgeq.types import PerChannel, PerTensor, QSpec
from edgeq.weights import binary, ternary
from tests.require import require

require("torch", "pip install edgeq[torch]")

import torch  # noqa: E402

from edgeq.train.coded import Shared, Signs, TwoScales  # noqa: E402
from edgeq.train.fit import Fit, fit  # noqa: E402
from edgeq.train.qat import convert, prepare_qat, with_bits  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
WEIGHT = np.random.default_rng(0).normal(0, 0.1, (6, 5, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)])
@pytest.mark.parametrize(("threshold", "theirs"), [(0.7, ternary), (0.0, binary)])
def test_signs_start_as_numpy_has_them(granularity, threshold, theirs):
    spec = QSpec("int2", granularity=granularity)
    wanted, found = theirs.quantize(WEIGHT, spec), Signs(spec, WEIGHT, threshold)
    held = found.tensor(torch.from_numpy(WEIGHT))
    np.testing.assert_array_equal(held.data, wanted.data)
    np.testing.assert_array_equal(held.params.scale, wanted.params.scale)


def test_the_scales_gradient_is_the_sum_over_signs():
    found, w = Signs(QSpec("int2"), WEIGHT, 0.7), torch.tensor(WEIGHT, requires_grad=True)
    g = torch.from_numpy(np.random.default_rng(1).normal(size=WEIGHT.shape).astype(np.float32))
    (found(w) * g).sum().backward()
    signs = np.sign(WEIGHT) * (np.abs(WEIGHT) > 0.7 * np.abs(WEIGHT).mean())
    np.testing.assert_allclose(found.scale.grad, (signs * g.numpy()).sum() / np.sqrt(WEIGHT.size), rtol=1e-4)
    np.testing.assert_array_equal(w.grad, g)  # straight through


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)])
def test_two_scales_are_those_of_ttq(granularity):
    """Zhu et al., equations 5 to 8: levels, their gradients, and those of the weights, derived here in numpy."""
    spec = QSpec("int8", granularity=granularity)
    found, w = TwoScales(spec, WEIGHT), torch.tensor(WEIGHT, requires_grad=True)
    axes = tuple(d for d in range(4) if granularity == PerTensor() or d != granularity.axis)
    edge = 0.05 * np.abs(WEIGHT).max(axes, keepdims=True)
    above, below = edge < WEIGHT, -edge > WEIGHT
    assert 0.01 < 1 - (above | below).mean() < 0.3
    means = [(np.abs(WEIGHT) * m).sum(axes, keepdims=True) / m.sum(axes, keepdims=True) for m in (above, below)]
    y = found(w)
    wanted = np.where(above, means[0], np.where(below, -means[1], 0))
    np.testing.assert_allclose(y.detach(), wanted, atol=np.maximum(*means).max() / 126)  # half a step of 64
    held = found.tensor(torch.from_numpy(WEIGHT))
    steps = held.params.scale.reshape([-1 if d not in axes else 1 for d in range(4)] if held.params.scale.ndim else ())
    np.testing.assert_array_equal((held.data * steps).astype(np.float32), y.detach().numpy())
    assert not saturating_pairs(held.data.reshape(len(WEIGHT), -1).T).any()  # in kernels without VNNI
    g = np.random.default_rng(1).normal(size=WEIGHT.shape).astype(np.float32)
    (y * torch.from_numpy(g)).sum().backward()
    scale = 1 / np.sqrt(WEIGHT.size / max(held.params.scale.size, 1))
    for index, sums in enumerate(((g * above).sum(axes), -(g * below).sum(axes))):
        np.testing.assert_allclose(found.scales.grad[index], scale * sums, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(w.grad, g * np.where(above, means[0], np.where(below, means[1], 1)), rtol=0.2)


def test_two_scales_need_eight_bits():
    with pytest.raises(RecipeError, match="two scales of a weight"):
        TwoScales(QSpec("int2"), WEIGHT)


def test_a_centroids_gradient_is_the_sum_over_its_weights():
    found = Shared(QSpec("int8", granularity=PerChannel(0)), WEIGHT, 4)
    g = torch.from_numpy(np.random.default_rng(1).normal(size=WEIGHT.shape).astype(np.float32))
    y = found(torch.from_numpy(WEIGHT))
    (y * g).sum().backward()
    wanted = [g.numpy()[found.index.numpy() == k].sum() for k in range(4)]
    np.testing.assert_allclose(found.centroids.grad, wanted, rtol=1e-4)
    held = found.tensor(torch.from_numpy(WEIGHT))
    assert len(np.unique(held.data)) == 4
    np.testing.assert_array_equal(held.data * held.params.scale[0], y.detach())


@pytest.mark.parametrize("weight", ["ternary", "ttq", "binary", "shared"])
def test_the_artifact_has_the_codes_that_were_trained(weight):
    with np.load(SAMPLES / "digits_calib.npz") as held:
        pictures, labels = torch.from_numpy(held["input"]), torch.from_numpy(held["label"])
    batches, aim, ends = [(pictures[i : i + 32], labels[i : i + 32]) for i in range(0, 128, 32)], None, ()
    recipe = Recipe(target="generic")
    if weight != "shared":
        aim = None if weight == "ttq" else with_bits(targets.load("generic"), 2, 8)
        ends = (Override(ops=("Gemm",), weight="rtn", weight_type="s8c" if weight == "ttq" else "s8c_8"),)
        recipe = Recipe(target="generic", weight="ternary" if weight == "ttq" else weight, rule=ends)
    qat = prepare_qat(
        SAMPLES / "digits.onnx", recipe, batches=[x for x, _ in batches], target=aim,
        centroids=16 if weight == "shared" else 0, two_scales=weight == "ttq",
    )  # fmt: skip
    fit(qat, lambda: batches, lambda _: 0.0, Fit(epochs=1))
    made = ir.serde.serialize_model(convert(qat))
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    most = {"ternary": 3, "ttq": 255, "binary": 3, "shared": 16}[weight]  # a binary weight of exactly 0 stays that
    for row in qat.plan.weights:
        wanted = qat.quantizer(row.value).tensor(qat.constant(row.value)).data.astype(np.int32)
        same = [a for n, a in stored.items() if n.startswith(row.value) and a.shape == wanted.shape]
        assert any(np.array_equal(a.astype(np.int32), wanted) for a in same if "int" in str(a.dtype))
        assert len(np.unique(wanted)) <= (256 if row.algorithm == "rtn" and weight != "shared" else most)
        if weight == "ttq" and row.algorithm == "ternary":
            assert all(len(np.unique(channel)) <= 3 for channel in wanted)
            assert any(np.unique(channel)[[0, -1]].sum() != 0 for channel in wanted)  # not the same on both sides
    with torch.no_grad():
        inside = qat.eval()(pictures).numpy()
    (outside,) = ort.InferenceSession(made.SerializeToString()).run(None, {"input": pictures.numpy()})
    step = np.ptp(inside) / 255  # the steps before the head are coarser than the logits' own
    assert np.quantile(np.abs(inside - outside), 0.99) <= 2 * step
