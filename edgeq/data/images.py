"""Folders of images, made into a model's input as the recipe's `[preprocess]` says. Needs pillow (extra `images`).

    folder/*.png               the images, in the order of their names
    folder/CLASS/*.png         with the classes' names, in order, giving `label`: 0, 1, …

x = (pixel · scale - mean) / std, channel by channel, after `resize` and then a centered `crop`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeq.data.arrays import Shape, Shapes
from edgeq.data.dataset import Dataset, Feeds
from edgeq.errors import CalibrationError, RecipeError, ToolError
from edgeq.recipe import Preprocess

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def find_images(folder: Path) -> tuple[list[Path], np.ndarray | None]:
    """The images in a folder, or in its subfolders with the index of each one's subfolder (int64)."""
    files = _images_in(folder)
    if files:
        return files, None
    classes = [(child, _images_in(child)) for child in sorted(folder.iterdir()) if child.is_dir()]
    classes = [(child, found) for child, found in classes if found]
    labels = [index for index, (_, found) in enumerate(classes) for _ in found]
    return [file for _, found in classes for file in found], np.array(labels, np.int64)


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def image_folder(
    path: Path, files: list[Path], labels: np.ndarray | None, inputs: Shapes, names: list[str], how: Preprocess | None
) -> Dataset:
    """names: the inputs that a sample must hold. Raises CalibrationError, RecipeError, ToolError without pillow."""
    if how is None:
        raise RecipeError(
            f"{path} holds images: say in the recipe what the model wants, "
            "such as [preprocess] with resize = 256, crop = 224, mean = [0.5], std = [0.5]"
        )
    if len(names) != 1:
        raise CalibrationError(f"{path}: images feed one input, and the model has {', '.join(names)}; give an .npz")
    (name,) = names
    resolved = resolve(how, inputs[name])
    open_image()

    def get(index: int) -> Feeds:
        return {name: read_image(files[index], resolved)}

    extras = {} if labels is None else {"label": labels}
    return Dataset.indexed(str(path), get, len(files), extras, str(path.absolute()))


def resolve(how: Preprocess, shape: Shape) -> Preprocess:
    """With what was left open taken from the input's shape: `layout`, and a `resize` to its height and width.

    Raises RecipeError when the layout can't be told, or the channels don't fit.
    """
    if shape is None or len(shape) != 4:
        raise RecipeError(f"images make an input of 4 axes; this model's has the shape {shape}")
    channels = 1 if how.channels == "gray" else 3
    layout = how.layout
    if layout is None:
        fits = [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] == channels]
        if len(fits) != 1:
            raise RecipeError(f"preprocess: the shape {shape} doesn't tell the layout; set layout and channels")
        layout = fits[0]  # type: ignore[assignment]
    depth, size = (shape[1], shape[2:]) if layout == "NCHW" else (shape[3], shape[1:3])
    if depth not in (None, channels):
        raise RecipeError(f"preprocess: {how.channels} has {channels} channels, and the model's input has {depth}")
    for field in ("mean", "std"):
        if len(getattr(how, field)) not in (1, channels):
            raise RecipeError(f"preprocess: {field} holds {len(getattr(how, field))} numbers for {channels} channels")
    resize = how.resize
    if resize is None and how.crop is None and None not in size:
        resize = (size[0], size[1])  # type: ignore[assignment]
    return msgspec.structs.replace(how, layout=layout, resize=resize)


def read_image(file: Path, how: Preprocess) -> np.ndarray:
    """One image as (1, C, H, W) or (1, H, W, C). Raises CalibrationError for what is no image, or too small to crop."""
    image = open_image()
    try:
        with image.open(file) as opened:
            if opened.mode[0] in "IF":  # pillow would cut them off at 255
                raise ValueError(f"its pixels are of mode {opened.mode}; convert it to 8 bits")
            picture = opened.convert("L" if how.channels == "gray" else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError, image.DecompressionBombError) as error:
        raise CalibrationError(f"{file}: not a readable image ({error})") from None
    width, height = picture.size
    if how.resize is not None:
        height, width = _resized(how.resize, height, width)
        picture = picture.resize((width, height), image.Resampling[how.resample.upper()])
    if how.crop is not None:
        rows, columns = how.crop if isinstance(how.crop, tuple) else (how.crop, how.crop)
        if rows > height or columns > width:
            raise CalibrationError(f"{file}: {height}×{width} is smaller than the crop {rows}×{columns}; set resize")
        top, left = (height - rows) // 2, (width - columns) // 2
        picture = picture.crop((left, top, left + columns, top + rows))
    return convert(np.asarray(picture), how)


def convert(pixels: np.ndarray, how: Preprocess) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) in RGB, to the model's input with a batch axis."""
    x = pixels.reshape(*pixels.shape[:2], -1)
    if how.channels == "bgr":
        x = x[:, :, ::-1]
    if how.dtype == "float32":
        x = (x * np.float32(how.scale) - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    if how.layout == "NCHW":
        x = x.transpose(2, 0, 1)
    return np.ascontiguousarray(x[None])


def _resized(resize: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """An int is the shorter side, and the longer one keeps the ratio, rounded down."""
    if isinstance(resize, tuple):
        return resize
    short = min(height, width)
    return resize * height // short, resize * width // short


def open_image() -> Any:
    """Pillow's Image module. Raises ToolError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise ToolError("reading images needs pillow: pip install 'edgeq[images]'") from None
    return Image
