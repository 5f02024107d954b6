"""The pictures of the training benchmark, and the comparison of what was trained with what was written."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pictures
from edgeq.graph.io import save
from edgeq.recipe import Recipe
from tests.require import require

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
FONTS = ("font_roboto", "font_source_sans_pro", "font_source_serif_pro", "font_caladea", "font_hanken_grotesk")


@pytest.fixture(scope="module")
def glyphs():
    packages = ("PIL", *FONTS)
    require("zoo", f"pip install edgeq[zoo] {' '.join(FONTS)}", lambda: all(find_spec(p) is not None for p in packages))
    return pictures.glyphs(900, 0)


def test_glyphs_are_the_same_each_time_and_others_for_another_seed(glyphs):
    again, others = pictures.glyphs(900, 0), pictures.glyphs(900, 1)
    np.testing.assert_array_equal(glyphs[0], again[0])
    np.testing.assert_array_equal(glyphs[1], again[1])
    flat = {part.tobytes() for part in glyphs[0]}
    assert len(flat) == 900
    assert not flat & {part.tobytes() for part in others[0]}


def test_each_class_is_as_often_and_is_told_by_its_pictures(glyphs):
    shown, labels = glyphs
    assert shown.shape == (900, 1, 16, 16)
    assert shown.dtype == np.float32
    assert set(np.bincount(labels)) == {20}
    assert len(np.bincount(labels)) == pictures.CLASSES["glyphs"]
    flat = (shown - shown.mean((1, 2, 3), keepdims=True)).reshape(900, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    nearest = (flat[450:] @ flat[:450].T).argmax(1)
    right = (labels[:450][nearest] == labels[450:]).mean()
    assert 0.25 < right < 0.9  # far above chance, and no easy set


def test_a_code_that_was_not_trained_is_counted(tmp_path):
    require("torch", "pip install edgeq[torch]")
    import torch

    from benchmarks.training import differing
    from edgeq.train.qat import convert, prepare_qat

    with np.load(SAMPLES / "digits_calib.npz") as held:
        batches = [torch.from_numpy(held["input"])]
    qat = prepare_qat(SAMPLES / "digits.onnx", Recipe(target="generic"), batches=batches)
    path = tmp_path / "made.onnx"
    save(convert(qat), path)
    assert differing(qat, path) == 0
    with torch.no_grad():
        weight = qat.constant(qat.plan.weights[0].value)
        weight.view(-1)[0] += 3 * float(qat.quantizer(qat.plan.weights[0].value).step().max())
    assert differing(qat, path) == 1


def test_a_teacher_is_asked_once_about_a_batch():
    require("torch", "pip install edgeq[torch]")
    import torch

    from benchmarks.networks import remembering

    asked = []
    one, other = (remembering(lambda x: asked.append(x) or x.sum(1), Path(name)) for name in ("one", "other"))
    batch = torch.arange(6.0).reshape(2, 3)
    for teacher in (one, one, other):
        torch.testing.assert_close(teacher(batch.clone()), torch.tensor([3.0, 12.0]))
    assert len(asked) == 2
    torch.testing.assert_close(one(batch + 1), torch.tensor([6.0, 15.0]))
    assert len(asked) == 3
