"""Our digits classifier on its held-out samples: accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import sample_models
from benchmarks.tasks import CALIBRATION, Feed, Task, top1

NAME = "digits"
FOLDER = Path(sample_models.__file__).parent


def task(cache: Path) -> Task:
    with np.load(FOLDER / "digits_calib.npz") as calib, np.load(FOLDER / "digits.npz") as held_out:
        samples: list[Feed] = [{"input": x[None]} for x in calib["input"][:CALIBRATION]]
        images, labels = held_out["input"], held_out["label"]
    feeds: list[Feed] = [{"input": part} for part in np.array_split(images, 20)]

    def metric(outputs: list[Feed]) -> float:
        return float(np.mean(top1(outputs, "logits") == labels))

    return Task(NAME, FOLDER / "digits.onnx", samples, feeds, metric, "accuracy")
