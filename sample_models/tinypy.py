"""Build `tinypy`, a byte-level language model of Python source: `python sample_models/tinypy.py OUT.onnx`.

A decoder of 8 layers, width 256, 4 heads, SwiGLU 768, RMSNorm, rotary positions, context 512, untied output:

    input  "tokens"  int64   [B, T], bytes 0..255, T up to 512
    output "logits"  float32 [B, T, 256], of the byte that follows

Opset 21. Each of the 57 linear weights is the right operand of one MatMul, stored [K, N] and named as it was trained
(`layers.0.wq.weight` … `out.weight`), so that weight-only formats with blocks along K apply directly; "tok.weight" is
the table of a Gather. The causal mask puts −1e4 in the scores. Needs numpy and onnx, no torch; same bytes on every run.
Sources: RMSNorm, Zhang & Sennrich 2019; rotary positions, Su et al. 2021; SwiGLU, Shazeer 2020.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).with_suffix("")
CONTEXT = 512


class Graph:
    """Collects nodes and initializers; `op` returns the name of the node's one output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def const(self, name: str, value: object, dtype: type | None = None) -> str:
        array = np.asarray(value, dtype, order="C")  # ascontiguousarray would give a number an axis
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out


def weights() -> dict[str, np.ndarray]:
    """The parameters by name, float32 (stored as float16); linear weights are [N, K], as y = x Wᵀ."""
    with np.load(FOLDER / "tinypy_fp16.npz", allow_pickle=False) as data:
        return {name: data[name].astype(np.float32) for name in data.files}


def rotary(theta: float, head: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position · theta^(−2i/head), [CONTEXT, head], both halves of a head alike, in float32."""
    frequency = np.float32(theta) ** (-np.arange(0, head, 2, dtype=np.float32) / np.float32(head))
    angle = np.outer(np.arange(CONTEXT, dtype=np.float32), frequency)
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle), np.sin(angle)


def _rms_norm(g: Graph, x: str, name: str, weight: np.ndarray) -> str:
    """x / sqrt(mean(x²) + eps) · weight, the mean over the last axis."""
    square = g.op("Mul", x, x, out=f"{name}.square")
    mean = g.op("ReduceMean", square, "last_axis", out=f"{name}.mean", keepdims=1)
    root = g.op("Sqrt", g.op("Add", mean, "norm_eps", out=f"{name}.mean_eps"), out=f"{name}.rms")
    normal = g.op("Div", x, root, out=f"{name}.normal")
    return g.op("Mul", normal, g.const(f"{name}.weight", weight), out=f"{name}.out")


def _linear(g: Graph, x: str, name: str, weight: np.ndarray) -> str:
    return g.op("MatMul", x, g.const(f"{name}.weight", weight.T), out=f"{name}.out")


def _rotate(g: Graph, x: str, name: str) -> str:
    """x·cos + [−x₂, x₁]·sin, where x₁ and x₂ are the halves of the head."""
    g.nodes.append(
        helper.make_node("Split", [x, "halves"], [f"{name}.x1", f"{name}.x2"], name=f"{name}.split", axis=-1)
    )
    turned = g.op("Concat", g.op("Neg", f"{name}.x2", out=f"{name}.neg"), f"{name}.x1", out=f"{name}.turned", axis=-1)
    straight = g.op("Mul", x, "cos", out=f"{name}.straight")
    return g.op("Add", straight, g.op("Mul", turned, "sin", out=f"{name}.cross"), out=f"{name}.rotated")


def _attention(g: Graph, x: str, name: str, w: dict[str, np.ndarray], scale: float) -> str:
    heads = {}
    for part in ("wq", "wk", "wv"):
        flat = _linear(g, x, f"{name}.{part}", w[f"{name}.{part}.weight"])
        split = g.op("Reshape", flat, "to_heads", out=f"{name}.{part}.heads")
        heads[part] = g.op("Transpose", split, out=f"{name}.{part}.bhtd", perm=[0, 2, 1, 3])
    query, key = _rotate(g, heads["wq"], f"{name}.q"), _rotate(g, heads["wk"], f"{name}.k")
    query = g.op("Mul", query, g.const(f"{name}.scale", scale, np.float32), out=f"{name}.q.scaled")
    scores = g.op("MatMul", query, g.op("Transpose", key, out=f"{name}.k.t", perm=[0, 1, 3, 2]), out=f"{name}.scores")
    shares = g.op(
        "Softmax", g.op("Where", "causal", scores, "masked", out=f"{name}.causal"), out=f"{name}.shares", axis=-1
    )
    mixed = g.op("MatMul", shares, heads["wv"], out=f"{name}.mixed")
    joined = g.op("Transpose", mixed, out=f"{name}.mixed.bthd", perm=[0, 2, 1, 3])
    joined = g.op("Reshape", joined, "from_heads", out=f"{name}.joined")
    return _linear(g, joined, f"{name}.wo", w[f"{name}.wo.weight"])


def _feed_forward(g: Graph, x: str, name: str, w: dict[str, np.ndarray]) -> str:
    """W₂ (silu(W₁ x) · W₃ x)."""
    gate = _linear(g, x, f"{name}.w1", w[f"{name}.w1.weight"])
    silu = g.op("Mul", gate, g.op("Sigmoid", gate, out=f"{name}.sigmoid"), out=f"{name}.silu")
    up = g.op("Mul", silu, _linear(g, x, f"{name}.w3", w[f"{name}.w3.weight"]), out=f"{name}.gated")
    return _linear(g, up, f"{name}.w2", w[f"{name}.w2.weight"])


def _positions(g: Graph, theta: float, head: int) -> None:
    """The T first rows of the rotary tables, "cos" and "sin", and "causal" [T, T], true where key ≤ query."""
    for name, table in zip(("cos", "sin"), rotary(theta, head), strict=True):
        g.const(f"{name}_table", table)
        g.op("Slice", f"{name}_table", "zero", "time", "first_axis", out=name)
    scalar = g.op("Squeeze", "time", out="time_scalar")
    steps = g.op("Range", g.const("start", 0, np.int64), scalar, g.const("step", 1, np.int64), out="steps")
    column = g.op("Unsqueeze", steps, "column_axis", out="query_position")
    g.op("LessOrEqual", steps, column, out="causal")


def model() -> onnx.ModelProto:
    """The model as a ModelProto, checked."""
    config = json.loads((FOLDER / "tinypy.json").read_text())
    dim, head = config["dim"], config["dim"] // config["heads"]
    w, g = weights(), Graph()
    for name, value in (("zero", [0]), ("first_axis", [0]), ("last_axis", [-1]), ("column_axis", [1])):
        g.const(name, value, np.int64)
    g.const("halves", [head // 2, head // 2], np.int64)
    g.const("to_heads", [0, 0, config["heads"], head], np.int64)
    g.const("from_heads", [0, 0, dim], np.int64)
    g.const("norm_eps", config["norm_eps"], np.float32)
    g.const("masked", -1e4, np.float32)
    g.op("Shape", "tokens", out="time", start=1, end=2)
    _positions(g, config["rope_theta"], head)
    x = g.op("Gather", g.const("tok.weight", w["tok.weight"]), "tokens", out="tok.out")
    for i in range(config["layers"]):
        name = f"layers.{i}"
        h = _rms_norm(g, x, f"{name}.attn_norm", w[f"{name}.attn_norm.weight"])
        x = g.op("Add", x, _attention(g, h, name, w, head**-0.5), out=f"{name}.after_attention")
        h = _rms_norm(g, x, f"{name}.ffn_norm", w[f"{name}.ffn_norm.weight"])
        x = g.op("Add", x, _feed_forward(g, h, name, w), out=f"{name}.after_ffn")
    h = _rms_norm(g, x, "norm", w["norm.weight"])
    g.op("MatMul", h, g.const("out.weight", w["out.weight"].T), out="logits")
    graph = helper.make_graph(
        g.nodes,
        "tinypy",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "T", config["vocab"]])],
        g.initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="edgeq")
    onnx.checker.check_model(made, full_check=True)
    return made


def build(path: str | Path) -> Path:
    """Write the float32 model (28 MB) to `path`, whose folder must exist, and return the path."""
    path = Path(path)
    part = path.with_name(f".{os.getpid()}.{path.name}")  # another process may be reading the file
    onnx.save(model(), part)
    return part.replace(path)


def windows(indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, next bytes), int64 [len(indices), 512] each: window i of the 604 in eval.bin starts at 512·i."""
    text = np.frombuffer((FOLDER / "eval.bin").read_bytes(), np.uint8).astype(np.int64)
    at = CONTEXT * np.asarray(list(indices), np.int64)[:, None] + np.arange(CONTEXT)
    return text[at], text[at + 1]


def log2_probabilities(logits: np.ndarray) -> np.ndarray:
    """log2 of the softmax over the last axis, in float64."""
    below = np.asarray(logits, np.float64) - logits.max(-1, keepdims=True)
    return np.asarray((below - np.log(np.exp(below).sum(-1, keepdims=True))) / np.log(2))


def bits(logits: np.ndarray, target: np.ndarray) -> float:
    """Sum of −log2 p(target) over all places; logits [..., 256], target int64 [...]."""
    return -float(np.take_along_axis(log2_probabilities(logits), target[..., None], -1).sum())


def bits_per_byte(
    run: Callable[[np.ndarray], np.ndarray], indices: Iterable[int] = range(100), batch: int = 4
) -> float:
    """Mean of −log2 p(next byte) over the windows; run: tokens int64 [B, T] → logits [B, T, 256]."""
    tokens, target = windows(indices)
    parts = [slice(i, i + batch) for i in range(0, len(tokens), batch)]
    return sum(bits(run(tokens[part]), target[part]) for part in parts) / target.size


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else "tinypy.onnx"))
