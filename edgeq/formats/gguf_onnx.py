"""A GGUF Llama as an ONNX decoder: `to_onnx`.

Q4_0, Q4_1 and Q8_0 keep their codes and scales in com.microsoft MatMulNBits (see `gguf_nbits`); other types become
float32 MatMuls, or are requantized to one of the three. The embedding is gathered from the same codes. The graph is
plain ONNX otherwise (opset 21): RMSNorm, rotary positions, grouped-query attention, SwiGLU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import RecipeError
from edgeq.formats.gguf import Gguf
from edgeq.formats.gguf_llama import llama_of
from edgeq.formats.gguf_nbits import BITS, BLOCK, Weights
from edgeq.graph.edit import MS_DOMAIN

OPSET = 21
FLOAT, INT, BYTE = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8
MASKED = np.float32(-3e38)  # finite, so that a row of nothing else gives no NaN


@dataclass
class _Build:
    """Appends nodes to a graph. Weights are read when the model is saved, one at a time."""

    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)

    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """One node; returns its output, or the sequence of them when there are several."""
        name = f"{kind}_{len(self.nodes)}"
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}_{i}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def const(self, array: np.ndarray | list[int] | np.generic, name: str = "") -> ir.Value:
        """A small initializer; equal ones are shared."""
        value = np.asarray(array)
        key = name or f"const_{value.dtype}_{value.ndim}_{'_'.join(map(str, value.reshape(-1)))}"
        return self.initializers.get(key) or self._add(key, ir.tensor(value, name=key), value.shape)

    def lazy(self, name: str, make: Callable[[], np.ndarray], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        """An initializer whose array is made when it is asked for."""
        known = self.initializers.get(name)
        made = partial(_tensor, make, name)
        return known or self._add(name, ir.LazyTensor(made, dtype=dtype, shape=ir.Shape(shape), name=name), shape)

    def _add(self, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers[name] = value
        return value


def _tensor(make: Callable[[], np.ndarray], name: str) -> ir.TensorProtocol:
    return ir.tensor(make(), name=name)


@dataclass
class _Decoder:
    """The parts of a Llama, each a few nodes."""

    weights: Weights
    level: int
    b: _Build = field(default_factory=_Build)
    sums: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def packed(self, name: str) -> tuple[ir.Value, ir.Value, int]:
        """(codes [N, K/32, bytes], scales [N, K/32], bits)."""
        w, bits = self.weights, BITS[self.weights.kind(name)]
        n, k = w.shape(name)
        codes = self.b.lazy(f"{name}.codes", partial(w.codes, name), BYTE, (n, k // BLOCK, 4 * bits))
        return codes, self.b.lazy(f"{name}.scales", partial(w.scales, name), FLOAT, (n, k // BLOCK)), bits

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """x [..., K] times the transposed weights [N, K]."""
        op, w, kind = self.b.op, self.weights, self.weights.kind(name)
        n, k = w.shape(name)
        if kind not in BITS:
            dense = self.b.lazy(name, lambda: np.ascontiguousarray(w.floats(name).T), FLOAT, (k, n))
            return op("MatMul", x, dense)
        codes, scale, bits = self.packed(name)
        sizes = {"K": k, "N": n, "bits": bits, "block_size": BLOCK, "accuracy_level": self.level}
        out = _typed(op("MatMulNBits", x, codes, scale, domain=MS_DOMAIN, **sizes), ["batch", "sequence", n])
        if kind != "Q4_1":
            return out
        offsets = self.b.lazy(
            f"{name}.offsets", lambda: np.ascontiguousarray(w.offsets(name).T), FLOAT, (k // BLOCK, n)
        )
        return op("Add", out, op("MatMul", self.block_sums(x), offsets))

    def block_sums(self, x: ir.Value) -> ir.Value:
        """[B, T, K] -> [B, T, K/32]; made once for the matrices that share an input."""
        if x not in self.sums:
            runs = self.b.op("Reshape", x, self.b.const([0, 0, -1, BLOCK]))
            self.sums[x] = self.b.op("ReduceSum", runs, self.b.const([-1]), keepdims=0)
        return self.sums[x]

    def embedding(self, ids: ir.Value, name: str) -> ir.Value:
        """Rows of the table: gathered as codes and scales, then (q - zero) * scale + offset."""
        op, const, w, kind = self.b.op, self.b.const, self.weights, self.weights.kind(name)
        if kind not in BITS:
            table = self.b.lazy(f"{name}.rows", partial(w.floats, name), FLOAT, w.shape(name))
            return op("Gather", table, ids, axis=0)
        codes, scale, bits = self.packed(name)
        q = op("Gather", codes, ids, axis=0)
        if bits == 4:
            low = op("BitwiseAnd", q, const(np.uint8(15)))
            high = op("BitShift", q, const(np.uint8(4)), direction="RIGHT")
            pair = [op("Unsqueeze", half, const([-1])) for half in (low, high)]
            q = op("Reshape", op("Concat", *pair, axis=-1), const([0, 0, 0, -1]))
        centred = op("Sub", op("Cast", q, to=int(FLOAT)), const(np.float32(2 ** (bits - 1))))
        rows = op("Mul", centred, op("Unsqueeze", op("Gather", scale, ids, axis=0), const([-1])))
        if kind == "Q4_1":
            n, k = w.shape(name)
            offsets = self.b.lazy(f"{name}.offset_rows", partial(w.offsets, name), FLOAT, (n, k // BLOCK))
            rows = op("Add", rows, op("Unsqueeze", op("Gather", offsets, ids, axis=0), const([-1])))
        return op("Reshape", rows, const([0, 0, -1]))

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """RMSNorm: x / sqrt(mean(x**2) + eps) * weight."""
        op, llama = self.b.op, self.weights.llama
        mean = op("ReduceMean", op("Mul", x, x), self.b.const([-1]), keepdims=1)
        root = op("Sqrt", op("Add", mean, self.b.const(np.float32(llama.norm_eps))))
        weight = self.b.lazy(name, lambda: self.weights.floats(name).reshape(-1), FLOAT, (llama.dim,))
        return op("Mul", op("Div", x, root), weight)

    def angles(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """cos and sin of position * theta**(-2 i / d), [T, d/2]."""
        llama, tensors = self.weights.llama, self.weights.file.tensors
        exponent = np.arange(0, llama.head_dim, 2, dtype=np.float64) / llama.head_dim
        frequency = llama.rope_theta**-exponent / llama.rope_scale
        if "rope_freqs.weight" in tensors:
            frequency = frequency / tensors["rope_freqs.weight"].floats().reshape(-1)
        column = self.b.op("Unsqueeze", self.b.op("Cast", positions, to=int(FLOAT)), self.b.const([1]))
        angle = self.b.op("Mul", column, self.b.const(frequency.astype(np.float32), "rope_frequencies"))
        return self.b.op("Cos", angle), self.b.op("Sin", angle)

    def heads(self, x: ir.Value, count: int) -> ir.Value:
        """[B, T, count * d] -> [B, count, T, d]."""
        split = self.b.op("Reshape", x, self.b.const([0, 0, count, self.weights.llama.head_dim]))
        return self.b.op("Transpose", split, perm=[0, 2, 1, 3])

    def rotate(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        op = self.b.op
        left, right = op("Split", x, outputs=2, axis=-1, num_outputs=2)
        turned = op("Sub", op("Mul", left, cos), op("Mul", right, sin))
        return op("Concat", turned, op("Add", op("Mul", right, cos), op("Mul", left, sin)), axis=-1)

    def attention(
        self, x: ir.Value, layer: str, turn: tuple[ir.Value, ir.Value], bias: ir.Value, past: list[ir.Value]
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(output, keys, values). Query heads of a group are stacked along time, so keys are not repeated for them."""
        op, const, llama = self.b.op, self.b.const, self.weights.llama
        q = self.rotate(self.heads(self.linear(x, f"{layer}.attn_q.weight"), llama.heads), *turn)
        k = self.rotate(self.heads(self.linear(x, f"{layer}.attn_k.weight"), llama.kv_heads), *turn)
        v = self.heads(self.linear(x, f"{layer}.attn_v.weight"), llama.kv_heads)
        if past:
            k, v = op("Concat", past[0], k, axis=2), op("Concat", past[1], v, axis=2)
        grouped = op(
            "Reshape",
            op("Mul", q, const(np.float32(llama.head_dim**-0.5))),
            const([0, llama.kv_heads, -1, llama.head_dim]),
        )
        scores = op("MatMul", grouped, op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = op("Add", op("Reshape", scores, const([0, llama.heads, -1, 0])), bias)
        shares = op("Reshape", op("Softmax", scores, axis=-1), const([0, llama.kv_heads, -1, 0]))
        mixed = op("Reshape", op("MatMul", shares, v), const([0, llama.heads, -1, llama.head_dim]))
        joined = op("Reshape", op("Transpose", mixed, perm=[0, 2, 1, 3]), const([0, 0, -1]))
        return self.linear(joined, f"{layer}.attn_output.weight"), k, v

    def feed_forward(self, x: ir.Value, layer: str) -> ir.Value:
        """SwiGLU: down(silu(gate(x)) * up(x))."""
        gate = self.linear(x, f"{layer}.ffn_gate.weight")
        gated = self.b.op("Mul", gate, self.b.op("Sigmoid", gate))
        return self.linear(
            self.b.op("Mul", gated, self.linear(x, f"{layer}.ffn_up.weight")), f"{layer}.ffn_down.weight"
        )

    def length(self, x: ir.Value, axis: int) -> ir.Value:
        return self.b.op("Squeeze", self.b.op("Shape", x, start=axis, end=axis + 1), self.b.const([0]))

    def model(self, cache: bool) -> ir.Model:
        op, const, llama = self.b.op, self.b.const, self.weights.llama
        ids = _input("input_ids", INT, ["batch", "sequence"])
        state = ["batch", llama.kv_heads, "past", llama.head_dim]
        names = [[f"past_key_values.{i}.{part}" for part in ("key", "value")] for i in range(llama.layers)]
        past = [[_input(name, FLOAT, state) for name in pair if cache] for pair in names]
        start = self.length(past[0][0], 2) if cache else const(np.int64(0))
        end = op("Add", start, self.length(ids, 1))
        positions = op("Range", start, end, const(np.int64(1)))
        seen = op("Range", const(np.int64(0)), end, const(np.int64(1)))
        ahead = op("Less", op("Unsqueeze", positions, const([1])), op("Unsqueeze", seen, const([0])))
        bias = op("Where", ahead, const(MASKED), const(np.float32(0)))
        turn = self.angles(positions)
        x = self.embedding(ids, "token_embd.weight")
        present: list[ir.Value] = []
        for i in range(llama.layers):
            layer = f"blk.{i}"
            mixed, *kv = self.attention(self.norm(x, f"{layer}.attn_norm.weight"), layer, turn, bias, past[i])
            x = op("Add", x, mixed)
            x = op("Add", x, self.feed_forward(self.norm(x, f"{layer}.ffn_norm.weight"), layer))
            for value, name in zip(kv, ("key", "value"), strict=True):
                value.name = f"present.{i}.{name}"
                present.append(_typed(value, ["batch", llama.kv_heads, "total", llama.head_dim]))
        head = "output.weight" if "output.weight" in self.weights.file.tensors else "token_embd.weight"
        logits = self.linear(self.norm(x, "output_norm.weight"), head)
        logits.name = "logits"
        graph = ir.Graph(
            [ids, *(value for pair in past for value in pair)],
            [_typed(logits, ["batch", "sequence", llama.vocab]), *(present if cache else [])],
            nodes=self.b.nodes,
            initializers=list(self.b.initializers.values()),
            opset_imports={"": OPSET, MS_DOMAIN: 1},
            name="llama",
        )
        return ir.Model(graph, ir_version=10, producer_name="edgeq")


def _input(name: str, dtype: ir.DataType, shape: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _typed(value: ir.Value, shape: list[Any]) -> ir.Value:
    value.type, value.shape = ir.TensorType(FLOAT), ir.Shape(shape)
    return value


def to_onnx(file: Gguf, cache: bool = False, accuracy_level: int = 4, requantize: str = "") -> ir.Model:
    """The ONNX decoder of a GGUF Llama: input_ids int64 [batch, sequence] -> logits float32 [batch, sequence, vocab].

    cache: adds the inputs past_key_values.N.key and .value [batch, kv heads, past, head size] and the outputs
    present.N.key and .value that continue them; positions go on from the length of the past.
    accuracy_level: MatMulNBits' own. 4 lets the kernel quantize activations to int8, as llama.cpp does; 0 keeps them in
    float32, which is several times slower, and for 8-bit weights a hundred times.
    requantize: Q4_0, Q4_1 or Q8_0 for the matrices that come in another type, instead of float32.
    Raises ModelError for a model that is not a plain Llama, RecipeError for an option that is not valid.
    """
    if accuracy_level not in range(5):
        raise RecipeError(f"accuracy_level={accuracy_level!r}: 0 to 4 are defined, of which 0 and 4 matter on a CPU")
    return _Decoder(Weights(file, llama_of(file), requantize), accuracy_level).model(cache)
