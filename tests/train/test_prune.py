"""Masks by magnitude and of n in m, alone and beneath a quantizer: zeros in training are zeros in the artifact."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.recipe import Recipe
from tests.require import require

require("torch", "pip install edgeq[torch]")

import torch  # noqa: E402

from edgeq.train.fit import Fit, fit  # noqa: E402
from edgeq.train.graph import TorchGraph  # noqa: E402
from edgeq.train.prune import ramped, sparsify  # noqa: E402
from edgeq.train.qat import convert, copied, prepare_qat  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"


@pytest.fixture(scope="module")
def batches():
    with np.load(SAMPLES / "digits_calib.npz") as held:
        pictures, labels = torch.from_numpy(held["input"]), torch.from_numpy(held["label"])
    return [(pictures[i : i + 32], labels[i : i + 32]) for i in range(0, 128, 32)]


def graph():
    model = prepare(io.load(SAMPLES / "digits.onnx"), 21)
    io.to_memory(model)
    return TorchGraph(model)


def test_two_of_four_stay_through_training_and_quantization(batches):
    qat = prepare_qat(SAMPLES / "digits.onnx", Recipe(target="generic"), batches=[x for x, _ in batches])
    before = {name: qat.constant(name).detach().numpy().copy() for name in qat.float_constants()}
    found = sparsify(qat, pattern=(2, 4))
    assert len(found) > 5
    assert set(found.values()) == {0.5}
    fit(qat, lambda: batches, lambda _: 0.0, Fit(epochs=1))
    stored = {t.name: numpy_helper.to_array(t) for t in ir.serde.serialize_model(convert(qat)).graph.initializer}
    for name in found:
        codes = next(a for n, a in stored.items() if n.startswith(name) and a.dtype == np.int8 and a.ndim > 1)
        runs = np.moveaxis(codes, 1, -1).reshape(-1, 4)
        assert ((runs != 0).sum(1) <= 2).all()
        sizes = np.abs(np.moveaxis(before[name], 1, -1).reshape(-1, 4))
        lost = np.where(runs == 0, sizes, 0).max(1)
        least = np.where(runs != 0, sizes, np.inf).min(1)
        assert (lost <= least + sizes.max(1) * 0.05).mean() > 0.95  # the largest stay; codes of 0 are rare beside them


def test_the_smallest_go_first_as_the_schedule_says(batches):
    plain = graph()
    seen = []
    made = ramped(plain, lambda: seen.append(shares(plain)) or batches[:1], lambda _: 1.0, 0.8, 4)
    trained = fit(plain, *made, Fit(epochs=5, lr=1e-4))
    np.testing.assert_allclose(seen, 0.8 * (1 - (1 - np.array([1, 2, 3, 4, 4]) / 4) ** 3), atol=0.02)
    assert trained.scores[:3] == [-np.inf] * 3
    assert trained.best >= 3
    model = copied(plain)
    zeros = [float((v.const_value.numpy() == 0).mean()) for v in model.graph.initializers.values() if len(v.shape) == 4]
    assert np.mean(zeros) == pytest.approx(0.8, abs=0.03)


def shares(plain):
    masks = [m.mask for m in plain.weights.values()]
    return float(sum((m == 0).sum() for m in masks) / sum(m.numel() for m in masks))


def test_a_mask_that_is_none_is_refused():
    with pytest.raises(RecipeError, match="no mask of share 1"):
        sparsify(graph(), 1.0)
    with pytest.raises(RecipeError, match="n of m"):
        sparsify(graph(), pattern=(4, 4))
