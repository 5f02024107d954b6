"""BatchNorm in training: it starts as the layer that it was, follows torch's own, and is folded without a trace."""

from pathlib import Path

import numpy as np
import pytest

from edgeq import target as targets
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.recipe import Recipe
from tests.require import require

require("torch", "pip install edgeq[torch]")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from edgeq.train.fit import Fit, fit  # noqa: E402
from edgeq.train.graph import TorchGraph  # noqa: E402
from edgeq.train.norm import Normed, freeze, normable, normalize  # noqa: E402
from edgeq.train.prune import sparsify  # noqa: E402
from edgeq.train.qat import prepare_qat, with_bits  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"


@pytest.fixture(scope="module")
def calibration():
    with np.load(SAMPLES / "digits_calib.npz") as held:
        pictures, labels = torch.from_numpy(held["input"]), torch.from_numpy(held["label"])
    return [(pictures[i : i + 32], labels[i : i + 32]) for i in range(0, 128, 32)]


@pytest.fixture
def graph():
    return TorchGraph(prepare(io.load(SAMPLES / "digits.onnx"), 21)).eval()


def test_it_starts_as_the_layer_that_it_was(graph, calibration):
    x = calibration[0][0]
    with torch.no_grad():
        before = graph(x)
        made = normalize(graph, normable(graph), (graph(batch) for batch, _ in calibration))
        after = graph(x)
    assert len(made) == 17  # all convolutions but the ten of squeeze-and-excite
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_batch_is_normalized_as_torchs_batchnorm_does(graph, calibration):
    x = calibration[0][0]
    node = normable(graph)[0]
    weight, bias = (graph.constant(v.name) for v in node.inputs[1:])
    with torch.no_grad():
        (norm,) = normalize(graph, [node], (graph(batch) for batch, _ in calibration)).values()
        theirs = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)).train()
        theirs[0].weight.copy_(weight)
        theirs[1].weight.copy_(norm.gamma)
        theirs[1].bias.copy_(bias)
        theirs[1].running_mean.copy_(norm.mean)
        theirs[1].running_var.copy_(norm.variance)
        torch.testing.assert_close(norm.train()(node, x, weight, bias), theirs(x))
        torch.testing.assert_close(norm.mean, theirs[1].running_mean)
        torch.testing.assert_close(norm.variance, theirs[1].running_var)


@pytest.mark.parametrize(("weight", "two_scales", "sparse"), [
    ("rtn", False, False), ("ternary", False, False), ("ternary", True, False), ("rtn", False, True)])  # fmt: skip
def test_folding_leaves_codes_and_outputs_what_they_are(calibration, weight, two_scales, sparse):
    recipe = Recipe(target="generic", weight=weight)
    aim = with_bits(targets.load("generic"), 8, 8)  # with biases in float: else their rounding differs
    first = [x for x, _ in calibration]
    qat = prepare_qat(SAMPLES / "digits.onnx", recipe, batches=first, target=aim, two_scales=two_scales)
    if sparse:
        sparsify(qat, pattern=(2, 4))
    fit(qat, lambda: calibration, lambda _: 0.0, Fit(epochs=2))

    def codes():
        return {w.value: qat.quantizer(w.value).tensor(qat.constant(w.value)).data.copy() for w in qat.plan.weights}

    gains = torch.cat([norm.gain() for norm in qat.norms.values()])
    assert (gains - 1).abs().max() > 0.01
    x = calibration[0][0]
    with torch.no_grad():
        before, kept = qat(x), codes()
        freeze(qat)
        after, now = qat(x), codes()
    assert not any(isinstance(op, Normed) for op in qat.instead.values())
    apart = sum((kept[name] != now[name]).sum() for name in kept)
    assert apart <= 3  # a weight that lies between two codes
    assert torch.median((after - before).abs()) < 1e-5
    assert (after.argmax(1) == before.argmax(1)).all()
