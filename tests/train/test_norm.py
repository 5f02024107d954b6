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
from torch.nn import functional  # noqa: E402

from edgeq.train.fit import Fit, fit  # noqa: E402
from edgeq.train.graph import TorchGraph  # noqa: E402
from edgeq.train.norm import Normed, freeze, normable, normalize, reestimate  # noqa: E402
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


def stacked():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))


def test_it_is_measured_anew_as_torch_does(calibration):
    """Against torch.optim.swa_utils.update_bn, on batches that are not alike."""
    batches = [(index + 1) * x for index, (x, _) in enumerate(calibration)]
    ours, theirs = stacked().eval(), stacked()
    reestimate(ours, (ours(batch) for batch in batches))
    torch.optim.swa_utils.update_bn(batches, theirs)
    for name in ("running_mean", "running_var"):
        for index in (1, 4):
            torch.testing.assert_close(getattr(ours[index], name), getattr(theirs[index], name))
    assert not ours.training
    assert ours[1].momentum == 0.1
    assert not torch.allclose(ours[1].running_var, torch.ones(8), atol=0.1)


def test_training_ends_with_averages_of_its_last_weights(calibration):
    """A layer alone: the mean of each channel over all pictures is what numpy says of its outputs."""
    first = [x for x, _ in calibration]
    qat = prepare_qat(SAMPLES / "digits.onnx", Recipe(target="generic"), batches=first)
    node, norm = next((n, m) for n in qat.model.graph if isinstance(m := qat.instead.get(n.name), Normed))
    started = norm.mean.clone()

    def end(measured):
        fit(qat, lambda: calibration, lambda _: 0.0, Fit(epochs=1, lr=1e-2, measured=measured))
        weight = qat.constant(node.inputs[1].name)
        read = node.inputs[0].name
        with torch.no_grad():
            x = torch.cat([qat.quantizer(read)(batch) for batch in first])
            made = functional.conv2d(x, qat.quantizer(node.inputs[1].name)(weight), padding=1)
        return made.mean((0, 2, 3))

    assert (end(0) - norm.mean).abs().max() > 1e-4
    wanted = end(32)
    torch.testing.assert_close(norm.mean, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(norm.mean, started)


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
