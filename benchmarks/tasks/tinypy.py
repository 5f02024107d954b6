"""Our byte-level language model: minus its bits per byte over the first 100 windows of held-out text."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tasks import CALIBRATION, Feed, Task
from sample_models import tinypy

NAME = "tinypy"
EVALUATED, BATCH = range(100), 4
CALIBRATED = range(200, 200 + CALIBRATION)


def task(cache: Path) -> Task:
    calib, _ = tinypy.windows(CALIBRATED)
    tokens, target = tinypy.windows(EVALUATED)
    parts = [slice(i, i + BATCH) for i in range(0, len(tokens), BATCH)]

    def metric(outputs: list[Feed]) -> float:
        total = sum(tinypy.bits(out["logits"], target[part]) for out, part in zip(outputs, parts, strict=True))
        return -total / target.size

    feeds: list[Feed] = [{"tokens": tokens[part]} for part in parts]
    model = tinypy.build(cache / "tinypy.onnx")
    return Task(NAME, model, [{"tokens": window[None]} for window in calib], feeds, metric, "−bits per byte")
