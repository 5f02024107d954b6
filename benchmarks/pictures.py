"""The two sets of pictures of `benchmarks.training`, each drawn or read at run time and kept as one .npz file.

digits   scikit-learn's, 8×8: 1,097 to train with, 100 that choose an epoch, 600 of evaluation
glyphs   45 letters and digits in the typefaces of five font packages, 16×16, turned, sheared, shifted, blurred and
         noisy: 8,192, 1,024 and 5,000. Of forms that look alike (O and 0, I and 1, S and s) there is one.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 64
VALIDATION = {"digits": 100, "glyphs": 1024}
CLASSES = {"digits": 10, "glyphs": 45}
GLYPHS = string.digits[2:] + string.ascii_uppercase + "abdefghnqrt"
SIZE, FINER = 16, 3  # pixels a side, and how many times as many it is drawn with
TRAINING, EVALUATION = 8192 + VALIDATION["glyphs"], 5000


def write(name: str, folder: Path) -> None:
    """Make the set `name` as a file in `folder`, the same at each call."""
    if name == "digits":
        from sample_models.digits import split

        training, held = split()
        made = (training["input"], training["label"], held["input"], held["label"])
    else:
        made = (*glyphs(TRAINING, 0), *glyphs(EVALUATION, 1))
    part = folder / f"{name}.{os.getpid()}.npz"
    np.savez(part, **dict(zip(("x", "y", "held_x", "held_y"), made, strict=True)))
    part.rename(folder / f"{name}.npz")  # two tasks of one set may draw it at once


def glyphs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, 1, 16, 16] in [0, 1] and int64 [count]. Raises ToolError without the font packages."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    from benchmarks.tasks import _text

    rng = np.random.default_rng(seed)
    side = SIZE * FINER
    fonts = [ImageFont.truetype(path, round(0.8 * side)) for path in _text.fonts()]
    labels = rng.permutation(np.arange(count) % len(GLYPHS))
    pictures = np.empty((count, 1, SIZE, SIZE), np.float32)
    for index, label in enumerate(labels):
        image = Image.new("L", (side, side))
        font = fonts[int(rng.integers(len(fonts)))]
        ImageDraw.Draw(image).text((side / 2, side / 2), GLYPHS[label], fill=255, font=font, anchor="mm")
        turn, shear = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)
        wide, high = rng.uniform(0.75, 1.2, 2)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[wide, shear], [0, high]]
        shift = side / 2 - matrix @ (side / 2 + rng.uniform(-0.1, 0.1, 2) * side)
        where = (*matrix[0], shift[0], *matrix[1], shift[1])
        image = image.transform((side, side), Image.Transform.AFFINE, where, Image.Resampling.BILINEAR)
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6))).resize((SIZE, SIZE), Image.Resampling.BOX)
        ink, paper = rng.uniform(0.5, 1), rng.uniform(0, 0.25)
        drawn = paper + (ink - paper) * np.asarray(image, np.float32) / 255
        pictures[index, 0] = drawn + rng.normal(0, rng.uniform(0.02, 0.08), drawn.shape)
    return pictures.clip(0, 1), labels.astype(np.int64)


@lru_cache
def read(path: Path) -> tuple[Any, ...]:
    """Training pictures and labels, evaluation pictures and labels, as torch tensors."""
    import torch

    with np.load(path) as held:
        return tuple(torch.from_numpy(held[key]) for key in ("x", "y", "held_x", "held_y"))


def batches(path: Path, device: str = "cpu", seed: int = 0) -> Callable[[], Iterator[tuple[Any, Any]]]:
    """For `fit`: each call is a pass over the training pictures, moved and turned a little; the same for all rows."""
    import torch

    from sample_models.digits import augment

    pictures, labels = read(path)[:2]
    count, order = len(pictures) - VALIDATION[path.stem], np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)

    def once() -> Iterator[tuple[Any, Any]]:
        shuffled = torch.from_numpy(order.permutation(count))
        for index in shuffled[: count // BATCH * BATCH].view(-1, BATCH):
            yield augment(pictures[index], generator).to(device), labels[index].to(device)

    return once


def score(path: Path, device: str = "cpu") -> Callable[[Any], float]:
    """For `fit`: accuracy over the pictures that choose an epoch; of equal ones the one with the least loss is best."""
    import torch

    pictures, labels = (part[-VALIDATION[path.stem] :].to(device) for part in read(path)[:2])

    def of(module: Any) -> float:
        logits = torch.cat([module(part) for part in pictures.split(256)])  # which the processor's cache holds
        right = (logits.argmax(1) == labels).float().mean()
        return float(right - 1e-3 * torch.nn.functional.cross_entropy(logits, labels))

    return of
