"""GGUF weights as com.microsoft MatMulNBits holds them, with blocks of 32 and nothing lost.

Q4_0  q * d - 8 d   4 bits, the operator's own zero point 8
Q4_1  q * d + m     4 bits, float zero point -m / d (exact up to float32 rounding)
Q8_0  q * d         8 bits, stored as q + 128 under the operator's own zero point 128
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.errors import RecipeError
from edgeq.formats.gguf import Gguf, Tensor
from edgeq.formats.gguf_llama import Llama, to_halves
from edgeq.numerics.gguf import KINDS, quantize

BLOCK = 32
BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


@dataclass
class Weights:
    """Fetches the tensors of a GGUF Llama, rotating in halves. requantize: for kinds beyond BITS, or "" for float32.

    Raises RecipeError when `requantize` is none of BITS.
    """

    file: Gguf
    llama: Llama
    requantize: str = ""
    _last: Tensor | None = None  # codes, scales and offsets are asked for one after another

    def __post_init__(self) -> None:
        if self.requantize and self.requantize not in BITS:
            raise RecipeError(
                f"requantize={self.requantize!r}: MatMulNBits holds {', '.join(BITS)} (or '' for float32)"
            )

    def kind(self, name: str) -> str:
        """The type that the tensor is given as: one of BITS, or "F32"."""
        t = self.file.tensors[name]
        if t.kind in BITS:
            return t.kind
        fits = len(t.shape) == 2 and t.shape[1] % BLOCK == 0
        return self.requantize if self.requantize and fits else "F32"

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.tensors[name].shape

    def floats(self, name: str) -> np.ndarray:
        """float32 [N, K], dequantized."""
        return self._halves(self.file.tensors[name]).floats()

    def codes(self, name: str) -> np.ndarray:
        """uint8 [N, K/32, 4 * bits]. GGUF puts elements j and j + 16 in one byte, MatMulNBits 2 j and 2 j + 1."""
        t = self._encoded(name)
        block = _blocks(t)
        if t.kind == "Q8_0":
            return np.ascontiguousarray(block["qs"]).view(np.uint8) ^ np.uint8(0x80)
        q = np.concatenate([block["qs"] & 15, block["qs"] >> 4], -1)
        return q[..., 0::2] | q[..., 1::2] << 4

    def scales(self, name: str) -> np.ndarray:
        """float32 [N, K/32]."""
        return _blocks(self._encoded(name))["d"].astype(np.float32)

    def offsets(self, name: str) -> np.ndarray:
        """float32 [N, K/32], of Q4_1 alone: what the code 8 stands for."""
        block = _blocks(self._encoded(name))
        return block["m"].astype(np.float32) + np.float32(8) * block["d"].astype(np.float32)

    def _encoded(self, name: str) -> Tensor:
        if self._last is None or self._last.name != name:
            t, kind = self._halves(self.file.tensors[name]), self.kind(name)
            self._last = t if t.kind == kind else Tensor(name, t.shape, kind, quantize(t.floats(), kind))
        return self._last

    def _halves(self, t: Tensor) -> Tensor:
        heads = {"attn_q.weight": self.llama.heads, "attn_k.weight": self.llama.kv_heads}.get(t.name.split(".", 2)[-1])
        return t if heads is None else Tensor(t.name, t.shape, t.kind, to_halves(t.data, heads))


def _blocks(t: Tensor) -> np.ndarray:
    return np.ascontiguousarray(t.data).reshape(-1).view(KINDS[t.kind].layout).reshape(t.shape[0], -1)
