"""PP-OCR's text orientation classifier on rendered lines, half of them turned by 180°: accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tasks import CALIBRATION, Feed, Task, package_file, seeded
from benchmarks.tasks import _text as text

NAME = "ocr_cls"
EVALUATION, BATCH = 2560, 16
SIZE = {"height": 48, "width": 192}


def task(cache: Path) -> Task:
    model = package_file(*text.RAPIDOCR, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    rng = seeded(NAME)
    lines = text.phrases(CALIBRATION + EVALUATION, rng, most=2, longest=16)
    labels = rng.integers(0, 2, len(lines))
    images = [text.line_image(line, rng) for line in lines]
    turned = [i.transpose(Image.Transpose.ROTATE_180) if label else i for i, label in zip(images, labels, strict=True)]
    inputs = np.concatenate([text.line_input(image, **SIZE) for image in turned])
    calib: list[Feed] = [{"x": x[None]} for x in inputs[:CALIBRATION]]
    feeds: list[Feed] = [{"x": inputs[i : i + BATCH]} for i in range(CALIBRATION, len(inputs), BATCH)]
    truth = labels[CALIBRATION:]

    def metric(outputs: list[Feed]) -> float:
        found = np.concatenate([next(iter(out.values())).argmax(-1) for out in outputs])
        return float(np.mean(found == truth))

    return Task(NAME, model, calib, feeds, metric, "accuracy")
