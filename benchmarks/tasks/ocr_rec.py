"""PP-OCRv4 text recognition on rendered lines: the share of lines read exactly (spaces apart)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from benchmarks.tasks import CALIBRATION, Feed, Task, package_file, seeded
from benchmarks.tasks import _text as text

NAME = "ocr_rec"
EVALUATION = 640


def characters(model: Path) -> list[str]:
    """The classes of the output: the blank of CTC, the list in the model's metadata, and the space."""
    metadata = {p.key: p.value for p in onnx.load(model, load_external_data=False).metadata_props}
    return ["", *metadata["character"].split("\n"), " "]


def greedy(probabilities: np.ndarray, classes: list[str]) -> str:
    """CTC's best path: [T, classes] → repeated symbols merged, then blanks (index 0) dropped (Graves et al., 2006)."""
    best = probabilities.argmax(-1)
    kept = np.r_[True, best[1:] != best[:-1]] & (best != 0)
    return "".join(classes[i] for i in best[kept])


def task(cache: Path) -> Task:
    model = package_file(*text.RAPIDOCR, "models/ch_PP-OCRv4_rec_infer.onnx")
    classes, rng = characters(model), seeded(NAME)
    lines = text.phrases(CALIBRATION + EVALUATION, rng)
    feeds: list[Feed] = [{"x": text.line_input(text.line_image(line, rng))} for line in lines]
    truth = [line.replace(" ", "") for line in lines[CALIBRATION:]]

    def metric(outputs: list[Feed]) -> float:
        read = [greedy(p, classes).replace(" ", "") for out in outputs for p in next(iter(out.values()))]
        return float(np.mean([r == t for r, t in zip(read, truth, strict=True)]))

    return Task(NAME, model, feeds[:CALIBRATION], feeds[CALIBRATION:], metric, "exact match")
