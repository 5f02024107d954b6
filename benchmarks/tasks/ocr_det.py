"""PP-OCRv4 text detection on rendered pages: F1 of the boxes found against the boxes drawn, at an overlap of 0.5.

Boxes come from the probability map as in DB (Liao et al., "Real-time Scene Text Detection with Differentiable
Binarization", 2020): threshold 0.3, connected regions, mean probability at least 0.5, and each box widened on every
side by area · 1.6 / perimeter, since the model is trained on shrunken text. Pages are upright, so boxes are rectangles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from benchmarks.tasks import CALIBRATION, Feed, Task, package_file, seeded
from benchmarks.tasks import _text as text

NAME = "ocr_det"
EVALUATION = 60
SIDE = 480
Box = tuple[float, float, float, float]  # left, top, right, bottom


def page(rng: np.random.Generator) -> tuple[Image.Image, list[Box]]:
    """A page of lines at random places that do not touch, with ruled lines and patches as distraction."""
    paper = rng.integers(170, 256, 3)
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in paper))
    draw, boxes = ImageDraw.Draw(image), []
    for _ in range(int(rng.integers(0, 5))):
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 40, 20), (SIDE, SIDE, 240, 160)))
        draw.rectangle((x, y, x + w, y + h), fill=tuple(int(v) for v in paper - rng.integers(0, 40, 3)))
    top = int(rng.integers(6, 30))
    while top < SIDE - 48:
        size = int(rng.integers(12, 36))
        font = text.fonts()[int(rng.integers(len(text.fonts())))]
        drawn = ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)
        line = text.phrase(rng)
        left = int(rng.integers(6, SIDE // 3))
        bounds = draw.textbbox((left, top), line, font=drawn)
        if bounds[2] < SIDE - 6:
            draw.text((left, top), line, font=drawn, fill=tuple(int(v) for v in rng.integers(0, 110, 3)))
            margin = 1 + size / 12  # text is annotated with some room around the ink
            boxes.append((bounds[0] - margin, bounds[1] - margin, bounds[2] + margin, bounds[3] + margin))
            if rng.random() < 0.1:
                draw.line((left, bounds[3] + 6, SIDE - left, bounds[3] + 6), fill=(90, 90, 90))
        top += int(size * rng.uniform(1.6, 2.6))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.0))))
    noise = rng.normal(0, float(rng.uniform(0, 12)), (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)), boxes


def boxes_of(probability: np.ndarray) -> list[Box]:
    """Probability map [H, W] → boxes."""
    regions, count = ndimage.label(probability > 0.3, structure=np.ones((3, 3)))
    means = ndimage.mean(probability, regions, np.arange(1, count + 1))
    found = []
    for (rows, columns), mean in zip(ndimage.find_objects(regions), np.atleast_1d(means), strict=True):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if mean >= 0.5 and min(height, width) >= 3:
            grow = height * width * 1.6 / (2 * (height + width))
            found.append((columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow))
    return found


def matches(found: list[Box], drawn: list[Box], overlap: float = 0.5) -> int:
    """Drawn boxes that some found box meets with intersection over union ≥ `overlap`; drawn boxes don't touch."""
    if not found or not drawn:
        return 0
    a, b = np.array(found)[:, None], np.array(drawn)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    common = sides.prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b))
    return int((common / (area_a + area_b - common) >= overlap).any(0).sum())


def task(cache: Path) -> Task:
    model = package_file(*text.RAPIDOCR, "models/ch_PP-OCRv4_det_infer.onnx")
    rng = seeded(NAME)
    pages = [page(rng) for _ in range(CALIBRATION + EVALUATION)]
    feeds: list[Feed] = [{"x": text.normalized(image)[None]} for image, _ in pages]
    drawn = [boxes for _, boxes in pages[CALIBRATION:]]

    def metric(outputs: list[Feed]) -> float:
        found = [boxes_of(m[0]) for out in outputs for m in next(iter(out.values()))]
        right = sum(matches(f, d) for f, d in zip(found, drawn, strict=True))
        return 2 * right / max(1, sum(map(len, found)) + sum(map(len, drawn)))

    return Task(NAME, model, feeds[:CALIBRATION], feeds[CALIBRATION:], metric, "box F1")
