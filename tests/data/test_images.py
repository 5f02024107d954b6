"""Images as inputs, checked against numpy and torch arithmetic, and all the way to an artifact."""

import sys
from pathlib import Path

import numpy as np
import pytest

import edgeq
from edgeq import recipe as recipes
from edgeq.data import open_data
from edgeq.data.images import convert, read_image, resolve
from edgeq.errors import CalibrationError, RecipeError, ToolError
from edgeq.recipe import Preprocess, Recipe
from tests.require import require

require("PIL", "pip install 'edgeq[images]'")
from PIL import Image  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
RNG = np.random.default_rng(0)


def picture(path, height=20, width=30, gray=False):
    """A smooth random image, saved; its pixels."""
    shape = (height // 5 + 1, width // 5 + 1) + (() if gray else (3,))
    small = RNG.integers(0, 256, shape, dtype=np.uint8)
    pixels = np.kron(small, np.ones((5, 5) + (() if gray else (1,)), np.uint8))[:height, :width]
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("channels", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_to_numbers(tmp_path, channels, layout):
    pixels = picture(tmp_path / "a.png", gray=channels == "gray")
    mean, std = ((0.5,), (0.25,)) if channels == "gray" else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    how = Preprocess(mean=mean, std=std, channels=channels, layout=layout)
    got = read_image(tmp_path / "a.png", how)
    assert got.dtype == np.float32
    planes = np.moveaxis(got[0], 0, -1) if layout == "NCHW" else got[0]
    for i in range(planes.shape[-1]):
        source = pixels if channels == "gray" else pixels[:, :, 2 - i if channels == "bgr" else i]
        np.testing.assert_allclose(planes[:, :, i], (source / 255.0 - mean[i]) / std[i], atol=1e-6)


def test_a_crop_is_centered_and_a_resize_keeps_the_ratio(tmp_path):
    pixels = picture(tmp_path / "a.png", 20, 30)
    plain = Preprocess(scale=1.0, layout="NHWC", crop=(6, 10))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", plain)[0], pixels[7:13, 10:20])
    for resize, shape in ((10, (10, 15)), (7, (7, 10)), ((4, 9), (4, 9)), (40, (40, 60))):
        got = read_image(tmp_path / "a.png", Preprocess(resize=resize, layout="NHWC"))
        assert got.shape == (1, *shape, 3)
    raw = read_image(tmp_path / "a.png", Preprocess(dtype="uint8", layout="NHWC"))
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw[0], pixels)


def test_a_resize_is_that_of_torch(tmp_path):
    require("torch", "pip install torch")
    import torch

    pixels = picture(tmp_path / "a.png", 60, 90)
    source = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    for size in ((24, 36), (31, 17)):
        wanted = torch.nn.functional.interpolate(source.float(), size, mode="bilinear", antialias=True).numpy()
        got = read_image(tmp_path / "a.png", Preprocess(resize=size, scale=1.0, layout="NCHW"))
        assert np.abs(got - wanted).max() <= 1.5  # pillow rounds to whole pixels, once a direction


def test_what_is_left_open_comes_from_the_model():
    how = Preprocess()
    assert resolve(how, (None, 3, 32, 48)) == Preprocess(layout="NCHW", resize=(32, 48))
    assert resolve(how, (1, 32, 48, 3)) == Preprocess(layout="NHWC", resize=(32, 48))
    assert resolve(how, (1, 3, None, None)) == Preprocess(layout="NCHW")  # each image keeps its size
    assert resolve(Preprocess(crop=8), (1, 3, 8, 8)) == Preprocess(crop=8, layout="NCHW")
    assert resolve(resolve(how, (1, 3, 8, 8)), (1, 3, 8, 8)) == resolve(how, (1, 3, 8, 8))
    for bad, shape, message in (
        (how, (1, 3, 8, 3), "layout"), (how, (1, 8), "4 axes"), (how, None, "4 axes"), (how, (1, 4, 8, 8), "layout"),
        (Preprocess(layout="NCHW"), (1, 1, 8, 8), "rgb has 3 channels"),
        (Preprocess(mean=(0.1, 0.2)), (1, 3, 8, 8), "mean holds 2"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            resolve(bad, shape)


def test_folders_of_classes_give_labels(tmp_path):
    for name, count in (("cat", 2), ("dog", 3), ("empty", 0)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture(tmp_path / name / f"{i}.{'jpg' if i else 'PNG'}", 16, 16)
    (tmp_path / "notes.txt").write_text("no image")
    data = open_data(tmp_path, {"x": (None, 3, 8, 8)}, Preprocess())
    assert data.count == 5
    assert data.extras["label"].tolist() == [0, 0, 1, 1, 1]
    assert [f["x"].shape for f in data] == [(1, 3, 8, 8)] * 5
    few = data.sample(3, seed=4)
    drawn = sorted(np.random.default_rng(4).choice(5, 3, replace=False))
    assert few.extras["label"].tolist() == [[0, 0, 1, 1, 1][i] for i in drawn]
    for got, i in zip(few, drawn, strict=True):
        np.testing.assert_array_equal(got["x"], list(data)[i]["x"])


def test_from_images_to_an_artifact(tmp_path):
    """The digits as pictures: the recipe that is written is complete, and repeats it; arrays give the same artifact."""
    digits = np.load(SAMPLES / "digits.npz")
    pixels = np.rint((digits["input"][:60, 0] - digits["input"].min()) * 10).astype(np.uint8)
    for i, (image, label) in enumerate(zip(pixels, digits["label"][:60], strict=True)):
        (tmp_path / "in" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / str(label) / f"{i:02}.png")
    how = Preprocess(channels="gray", scale=0.1, mean=(float(-digits["input"].min()),))
    model = SAMPLES / "digits.onnx"
    recipe = Recipe(preprocess=how, calibrator="minmax")
    made = edgeq.quantize(model, "x86_64", tmp_path / "in", tmp_path / "a", recipe=recipe, labels="label")
    assert made.report.metric.reference > 0.9
    written = recipes.load(tmp_path / "a" / "recipe.toml")
    assert (written.preprocess.layout, written.preprocess.resize) == ("NCHW", (8, 8))
    order = np.argsort(digits["label"][:60], kind="stable")
    arrays = {"input": np.concatenate([convert(pixels[i], written.preprocess) for i in order])}
    for name, data, asked in (
        ("b", tmp_path / "in", {"recipe": tmp_path / "a" / "recipe.toml"}),
        ("c", arrays, {"recipe": Recipe(calibrator="minmax")}),
        ("d", tmp_path / "in", {"recipe": recipe, "workers": 2}),
    ):
        again = edgeq.quantize(model, "x86_64", data, tmp_path / name, check=False, **asked)
        assert again.artifact.read_bytes() == made.artifact.read_bytes(), name


def test_what_can_not_be_read_is_named(tmp_path, monkeypatch):
    shapes = {"x": (1, 3, 8, 8)}
    picture(tmp_path / "a.png", 16, 16)
    with pytest.raises(RecipeError, match=r"\[preprocess\]"):
        open_data(tmp_path, shapes)
    with pytest.raises(CalibrationError, match="one input"):
        open_data(tmp_path, shapes | {"z": None}, Preprocess())
    with pytest.raises(CalibrationError, match=r"a\.png: 16×16 is smaller than the crop 20×20"):
        list(open_data(tmp_path, shapes, Preprocess(crop=20)))
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"no image", whole[:40], whole[:-30], b""):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(CalibrationError, match=r"b\.png: not a readable image"):
            list(open_data(tmp_path, shapes, Preprocess()))
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(CalibrationError, match=r"b\.png: .* convert it to 8 bits"):
        list(open_data(tmp_path, shapes, Preprocess()))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ToolError, match=r"pip install 'edgeq\[images\]'"):
        open_data(tmp_path, shapes, Preprocess())
