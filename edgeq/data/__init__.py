"""Samples as people have them: arrays, `.npz`, folders of arrays or images, callables, loaders (docs/data.md).

data.npz           arrays named like the model's inputs, samples on axis 0; other arrays (labels) are extras
folder/            one sample a file: an .npz of inputs (as the model takes them), or an .npy for the only input
folder/            of images, or of a folder of images for each class; the recipe's [preprocess] makes samples
module:callable    called without arguments, yields samples
an iterable        of samples: {input name: array}, an array, or a tuple in the order of the model's inputs
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.data.arrays import Shapes, array_folder, from_arrays, read_npz
from edgeq.data.dataset import BLOCK, Dataset, Feeds, position
from edgeq.data.images import find_images, image_folder
from edgeq.data.python import from_callable, from_iterable, from_spec, load_object
from edgeq.errors import CalibrationError
from edgeq.recipe import Preprocess

__all__ = ["BLOCK", "Dataset", "Feeds", "load_object", "open_data", "position"]


def open_data(
    source: Any, inputs: Shapes, preprocess: Preprocess | None = None, optional: Sequence[str] = ()
) -> Dataset:
    """Whatever holds samples, as a Dataset. `inputs`: the model's input names and shapes (None where unknown).

    preprocess: for images. optional: inputs that a sample need not hold, such as a state that is fed back.
    Takes a Dataset, a path, `module:callable`, or an iterable of samples. Raises CalibrationError, RecipeError, and
    ToolError for images without pillow.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return _folder(path, inputs, preprocess, optional)
        if path.is_file():
            if path.suffix != ".npz":
                raise CalibrationError(f"{path}: expected an .npz file, a folder, or module:callable")
            return from_arrays(read_npz(path), inputs, str(path), str(path.absolute()))
        if ":" in str(source):
            return from_spec(str(source), inputs, optional)
        raise CalibrationError(f"{path}: no such file or folder; give an .npz, a folder of arrays, or module:callable")
    if isinstance(source, Mapping):
        return from_arrays({k: np.asarray(v) for k, v in source.items()}, inputs, "data")
    if callable(source):
        return from_callable(getattr(source, "__name__", "callable"), source, inputs, optional)
    if isinstance(source, Iterable):
        return from_iterable(source, inputs, optional)
    raise CalibrationError(f"can't read samples from a {type(source).__name__}: give a path, arrays or an iterable")


def _folder(path: Path, inputs: Shapes, preprocess: Preprocess | None, optional: Sequence[str]) -> Dataset:
    names = [name for name in inputs if name not in optional]
    arrays = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".npz"))
    if arrays:
        return array_folder(path, arrays, names)
    files, labels = find_images(path)
    if not files:
        raise CalibrationError(f"{path}: no .npy or .npz file in it, and no image")
    return image_folder(path, files, labels, inputs, names, preprocess)
