"""One model through every way of quantization, and what became of it."""

from __future__ import annotations

import re
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import edgeq
from benchmarks.others.cases import Case
from edgeq.errors import EdgeqError
from edgeq.numerics.metrics import sqnr_db

WAYS = (
    ("x86_64", "static"),
    ("x86_64", "dynamic"),
    ("x86_64", "weight_only"),
    ("arm64", "static"),
    ("arm64", "dynamic"),
    ("arm64", "weight_only"),
    ("nnapi", "static"),
)
LEAST_DB = {"static": 20.0, "dynamic": 20.0, "weight_only": 12.0}
EXACT = {np.dtype(np.float16): 2e-2, np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-4}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
EXPLAINED = {  # the loss of these is in their numbers, and in the report
    "test_attention_4d_softcap_neginf_mask_poison_expanded+frozen": "rows of 1000 that the mask hides share a scale "
    "with rows of 1, since here they are a constant weight",
    "basic_pitch/icassp_2022": "the logarithm of a spectrum follows filters that are weights: in 8 bits their noise is "
    "louder than the bins between the tones",
}
NEITHER = "onnxruntime doesn't run the float model either"
QUANTIZED, FLOAT, DECLINED, FAILED = "quantized", "float", "declined", "failed"


@dataclass(frozen=True)
class Row:
    """outcome: quantized, float (the plan says why, node by node), declined (one line) or failed. why: of the last two.

    db: the worst output's SQNR against the float model.
    """

    name: str
    source: str
    target: str
    method: str
    outcome: str
    why: str = ""
    integer: int = 0
    db: float | None = None


def attempt(case: Case, ways: tuple[tuple[str, str], ...] = WAYS) -> list[Row]:
    """Quantize, load, run and compare, in each way."""
    with tempfile.TemporaryDirectory(prefix="others-") as name:
        folder = Path(name)
        path = folder / "m.onnx"
        onnx.save(case.model, path)
        answers, own = _answers(path, case)
        return [_one(case, path, folder / f"{t}-{m}", t, m, answers, own) for t, m in ways]


def _answers(path: Path, case: Case) -> tuple[list[Any] | None, str]:
    """The float model's answers in onnxruntime, or why it has none."""
    try:
        return _run(path, case.feeds), ""
    except Exception as error:  # onnxruntime has no common base for its errors
        return None, str(error).splitlines()[0]


def _run(path: Path, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    answers: list[Any] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return answers


def _one(case: Case, path: Path, out: Path, target: str, method: str, answers: list[Any] | None, own: str) -> Row:
    def row(outcome: str, why: str = "", integer: int = 0, db: float | None = None) -> Row:
        return Row(case.name, case.source, target, method, outcome, why, integer, db)

    try:
        checked = (target, method) == WAYS[0]
        data = [case.feeds] if method == "static" else None
        result = edgeq.quantize(path, target, data, out, method=method, check=checked)  # type: ignore[arg-type]
    except EdgeqError as error:
        if "\n" in str(error) or not str(error).strip():
            return row(FAILED, f"not one line: {error!r}")
        return row(DECLINED, reason(str(error), own))
    except Exception as error:  # what this hunts
        at = traceback.extract_tb(error.__traceback__)[-1]
        return row(FAILED, f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {str(error)[:300]}")
    made = onnx.load(result.artifact)
    if problem := interface_problem(case.model, made):
        return row(FAILED, problem)
    integer = sum(n for decision, n in result.plan.counts().items() if decision not in ("float", "folded", "bridge"))
    try:
        got = _run(result.artifact, case.feeds)
    except Exception as error:  # onnxruntime has no common base for its errors
        if answers is None:
            return row(DECLINED, NEITHER)
        return row(FAILED, f"the artifact doesn't run: {str(error).splitlines()[0][:300]}")
    if answers is None and case.answers is None:
        return row(DECLINED, NEITHER)
    answers = case.answers if answers is None else answers
    db, problem = compare(flat(answers), flat(got), exact=integer == 0, random=is_random(case.model))
    if not problem and db is not None and integer and db < LEAST_DB[method]:
        if case.name in EXPLAINED:
            return row(QUANTIZED, EXPLAINED[case.name], integer, db)
        problem = f"{db:.1f} dB"
    return row(FAILED if problem else QUANTIZED if integer else FLOAT, problem, integer, db)


def reason(text: str, own: str) -> str:
    """The message without names and numbers, so that equal reasons count together."""
    if own and "onnxruntime" in text:
        return NEITHER
    text = re.sub(r"^\S*\.onnx: ", "", text)
    text = re.sub(r"'[^']*'|\[[^\]]*\]", "…", text)
    return re.sub(r"\b\d[\d.]*\b", "N", text)[:160]


def interface_problem(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Names and types of inputs and outputs, in order; constants among the inputs may go."""
    weights = {t.name for t in before.graph.initializer}
    required = [v for v in before.graph.input if v.name not in weights]
    left = [v for v in after.graph.input if v.name not in weights]
    for what, a, b in (("inputs", required, left), ("outputs", before.graph.output, after.graph.output)):
        if [(v.name, kind(v.type)) for v in a] != [(v.name, kind(v.type)) for v in b]:
            return f"{what} {[(v.name, kind(v.type)) for v in a]} became {[(v.name, kind(v.type)) for v in b]}"
    return ""


def kind(type_: onnx.TypeProto) -> str:
    """The element type and what holds it."""
    which = type_.WhichOneof("value") or ""
    inner = getattr(type_, which) if which else None
    if which in ("sequence_type", "optional_type"):
        return f"{which}({kind(inner.elem_type)})"
    return f"{which}({getattr(inner, 'elem_type', '')})"


def is_random(model: onnx.ModelProto) -> bool:
    """Whether two runs differ anyway."""
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    dropout = any(n.op_type == "Dropout" and len(n.input) > 2 for n in nodes)
    return dropout or any(n.op_type in RANDOM for n in nodes)


def flat(values: Any) -> list[np.ndarray | None]:
    """The tensors of an answer; a sequence's items follow each other."""
    if isinstance(values, list):
        return [item for value in values for item in flat(value)]
    return [None if values is None else np.asarray(values)]


def compare(
    want: list[np.ndarray | None], got: list[np.ndarray | None], exact: bool, random: bool
) -> tuple[float | None, str]:
    """The worst SQNR of the float outputs, and what is wrong besides."""
    if len(want) != len(got):
        return None, f"{len(want)} tensors became {len(got)}"
    worst: float | None = None
    for a, b in zip(want, got, strict=True):
        if a is None or b is None:
            if a is not b:
                return worst, "an empty optional changed"
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return worst, f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
        if random or not a.size:
            continue
        if a.dtype not in EXACT:
            if exact and not np.array_equal(a, b):
                return worst, f"{a.dtype} outputs differ"
            continue
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(a64)
        if not np.array_equal(finite, np.isfinite(b64)):
            return worst, "NaN or infinity came or went"
        a64, b64 = a64[finite], b64[finite]
        if not a64.size:
            continue
        if exact and np.abs(a64 - b64).max() > EXACT[a.dtype] * max(np.abs(a64).max(), 1e-3):
            return worst, f"float outputs differ by {np.abs(a64 - b64).max():.3g} of {np.abs(a64).max():.3g}"
        db = float(sqnr_db(a64, b64))
        worst = db if worst is None else min(worst, db)
    return (None if worst is None or np.isinf(worst) or np.isnan(worst) else worst), ""
