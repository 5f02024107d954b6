"""Models of the Llama family as GGUF: their numbers, their tensors' names, and `write_llama`.

llama.cpp rotates neighbouring pairs (2 i, 2 i + 1) of a head where Hugging Face's layout, and edgeq's ONNX, rotate
element i with i + d/2. So the rows of attn_q and attn_k are stored in pair order: `to_pairs`, and `to_halves` back.
Source: the GGUF specification's llama section; convert_hf_to_gguf.py of llama.cpp describes the same permutation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeq.errors import ModelError
from edgeq.formats.gguf import Gguf, Source, Value, write
from edgeq.formats.gguf_mix import assign, mix_of

ROLES = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")

_LAYER = {
    "attention_norm": "attn_norm", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down",
    "w3": "ffn_up", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OUTER = {
    "tok": "token_embd", "embed_tokens": "token_embd", "norm": "output_norm", "out": "output", "lm_head": "output",
}  # fmt: skip


@dataclass(frozen=True)
class Llama:
    """head_dim * heads need not be dim. rope_scale: positions are divided by it (linear scaling)."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    rope_scale: float = 1.0

    def shapes(self, tied: bool) -> dict[str, tuple[int, ...]]:
        """Every tensor's GGUF name and numpy shape, in file order."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        of_role = {
            "attn_norm": (self.dim,), "ffn_norm": (self.dim,), "attn_q": (q, self.dim), "attn_k": (kv, self.dim),
            "attn_v": (kv, self.dim), "attn_output": (self.dim, q), "ffn_gate": (self.ffn, self.dim),
            "ffn_up": (self.ffn, self.dim), "ffn_down": (self.dim, self.ffn),
        }  # fmt: skip
        table: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab, self.dim)}
        for i in range(self.layers):
            table |= {f"blk.{i}.{role}.weight": of_role[role] for role in ROLES}
        table["output_norm.weight"] = (self.dim,)
        return table if tied else table | {"output.weight": (self.vocab, self.dim)}


def gguf_name(name: str) -> str:
    """The GGUF name of a weight named as in Hugging Face's or the original Llama checkpoints, or as in tinypy.

    Raises ModelError for a name that has no place in a Llama.
    """
    bare = re.sub(r"^model\.", "", name)
    layer = re.fullmatch(r"layers\.(\d+)\.(?:attention\.|feed_forward\.)?(.+)\.weight", bare)
    if layer and _LAYER.get(layer[2], layer[2]) in ROLES:
        return f"blk.{layer[1]}.{_LAYER.get(layer[2], layer[2])}.weight"
    outer = re.fullmatch(r"(.+)\.weight", bare)
    if outer and outer[1] in _OUTER:
        return f"{_OUTER[outer[1]]}.weight"
    raise ModelError(f"weight {name!r} has no place in a Llama: only that family is written as GGUF")


def to_pairs(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (i, i + d/2) to neighbours (2 i, 2 i + 1). Any array whose axis 0 is the rows."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_halves(w: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `to_pairs`; it works on encoded rows too, since a row is whole blocks."""
    return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def byte_tokenizer() -> dict[str, Value]:
    """A vocabulary whose token b is the byte b, as a byte-pair tokenizer without merges.

    Byte-level BPE writes bytes as printable characters: those of Latin-1 that print are themselves, the others follow
    from U+0100 (GPT-2's table). The byte 0 begins and ends a text, and is not added by itself.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    text = {b: chr(b) for b in own} | {b: chr(0x100 + i) for i, b in enumerate(others)}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [text[b] for b in range(256)],
        "tokenizer.ggml.token_type": np.ones(256, np.int32),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }


def write_llama(
    path: str | os.PathLike[str],
    llama: Llama,
    weights: Mapping[str, np.ndarray],
    tokenizer: Mapping[str, Value],
    mix: str = "Q4_K_M",
    imatrix: Mapping[str, np.ndarray] | None = None,
    name: str = "model",
) -> dict[str, str]:
    """Write a Llama as GGUF and return the type that each tensor got.

    weights: by any name that `gguf_name` knows, [out, in], with attn_q and attn_k rotating in halves; without an output
    matrix the embedding stands in. imatrix: by the same names, the mean square of each input column, float [K].
    Raises ModelError when a weight is missing, unknown or of another shape; RecipeError for an unknown mix.
    """
    named = {gguf_name(key): value for key, value in weights.items()}
    importance = {gguf_name(key): value for key, value in (imatrix or {}).items()}
    shapes = llama.shapes(tied="output.weight" not in named)
    if missing := [key for key in shapes if key not in named]:
        raise ModelError(f"{name}: {len(missing)} weights are missing, the first is {missing[0]!r}")
    if extra := [key for key in named if key not in shapes]:
        raise ModelError(f"{name}: {extra[0]!r} is beyond the {llama.layers} layers that were announced")
    kinds = assign(mix, shapes, llama.heads // llama.kv_heads, bool(importance))

    def source(key: str) -> Source:
        def fetch() -> np.ndarray:
            w = np.asarray(named[key])
            if key.endswith(("attn_q.weight", "attn_k.weight")):
                w = to_pairs(w, llama.heads if key.endswith("attn_q.weight") else llama.kv_heads)
            return w

        if np.shape(named[key]) != shapes[key]:
            raise ModelError(f"{name}: {key!r} has shape {np.shape(named[key])}, and {shapes[key]} was expected")
        return Source(key, shapes[key], kinds[key], fetch, importance.get(key))

    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": mix_of(mix).number,
        "general.quantization_version": 2,
        "llama.block_count": llama.layers,
        "llama.context_length": llama.context,
        "llama.embedding_length": llama.dim,
        "llama.feed_forward_length": llama.ffn,
        "llama.attention.head_count": llama.heads,
        "llama.attention.head_count_kv": llama.kv_heads,
        "llama.attention.key_length": llama.head_dim,
        "llama.attention.value_length": llama.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(llama.norm_eps),
        "llama.rope.dimension_count": llama.head_dim,
        "llama.rope.freq_base": float(llama.rope_theta),
        "llama.vocab_size": llama.vocab,
    }
    if llama.rope_scale != 1:
        metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(llama.rope_scale)}
    write(path, metadata | dict(tokenizer), [source(key) for key in shapes])
    return kinds


def llama_of(file: Gguf) -> Llama:
    """The numbers of a GGUF Llama. Raises ModelError for another architecture, or a feature that edgeq lacks."""
    get = file.metadata.get
    if get("general.architecture") != "llama":
        raise ModelError(f"architecture {get('general.architecture')!r}: edgeq reads GGUF models of 'llama' only")

    def number(key: str, default: Any = None) -> Any:
        value = get(f"llama.{key}", default)
        if not isinstance(value, int | float | np.integer | np.floating) or not 0 < value < 2**31:
            raise ModelError(f"metadata 'llama.{key}' is {value!r}, and must be a positive number")
        return value

    dim, heads = int(number("embedding_length")), int(number("attention.head_count"))
    head_dim = int(number("attention.key_length", max(1, dim // heads)))
    scaling = get("llama.rope.scaling.type", "none")
    unsupported = {
        "experts": get("llama.expert_count", 0),
        f"rope scaling {scaling!r}": scaling not in ("none", "linear"),
        "values of another width than keys": int(number("attention.value_length", head_dim)) != head_dim,
        "rotation of a part of the head": int(number("rope.dimension_count", head_dim)) != head_dim,
    }
    if feature := next((key for key, present in unsupported.items() if present), None):
        raise ModelError(f"this Llama uses {feature}, which edgeq does not read; convert a model without it")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or head_dim % 2 or heads % int(number("attention.head_count_kv", heads)):
        raise ModelError(f"not a whole Llama: no token_embd.weight, or heads {heads} x {head_dim} do not divide")
    llama = Llama(
        layers=int(number("block_count")),
        dim=dim,
        heads=heads,
        kv_heads=int(number("attention.head_count_kv", heads)),
        head_dim=head_dim,
        ffn=int(number("feed_forward_length")),
        vocab=embedding.shape[0],
        context=int(number("context_length")),
        rope_theta=float(number("rope.freq_base", 10000.0)),
        norm_eps=float(number("attention.layer_norm_rms_epsilon")),
        rope_scale=float(number("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0,
    )
    if llama.layers > len(file.tensors):
        raise ModelError(f"{llama.layers} layers are announced, and there are only {len(file.tensors)} tensors")
    expected = llama.shapes(tied="output.weight" not in file.tensors)
    for key, shape in expected.items():
        if key not in file.tensors or file.tensors[key].shape != shape:
            found = file.tensors[key].shape if key in file.tensors else "absent"
            raise ModelError(f"tensor {key!r} should be {shape} and is {found}; convert the model again")
    if extra := sorted(file.tensors.keys() - expected.keys() - {"rope_freqs.weight"}):
        raise ModelError(f"tensor {extra[0]!r} has no place in a plain Llama, so edgeq would compute something else")
    return llama
