"""llama.cpp's named mixes: which type each tensor of a model gets under "Q4_K_M" and the like.

A mix is a base type and exceptions by the tensor's role; the first condition that holds decides. Conditions see i, the
tensor's layer, out of n layers, as llama.cpp counts them. The output matrix, and the embedding that stands in for it,
get Q6_K; vectors and norms stay float32; a row that is not whole blocks falls back to a type of smaller blocks.
Source: src/llama-quant.cpp of llama.cpp (models without experts, not Falcon); sizes agree with its published table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgeq.errors import RecipeError
from edgeq.numerics.gguf import KINDS


@dataclass(frozen=True)
class Layer:
    """What a condition may look at. gqa: query heads to each key head. imatrix: an importance matrix is used."""

    i: int
    n: int
    gqa: int
    imatrix: bool


Condition = Callable[[Layer], bool]


def _always(at: Layer) -> bool:
    return True


def _more_bits(at: Layer) -> bool:
    """The first and last eighth, and every third layer between."""
    return at.i < at.n // 8 or at.i >= 7 * at.n // 8 or (at.i - at.n // 8) % 3 == 2


def _first(part: int) -> Condition:
    return lambda at: at.i < at.n // part


def _before(count: int) -> Condition:
    return lambda at: at.i < count


def _gqa4(at: Layer) -> bool:
    return at.gqa >= 4


def _eighth_blind(at: Layer) -> bool:
    return at.i < at.n // 8 and not at.imatrix


def _eighth_informed(at: Layer) -> bool:
    return at.i < at.n // 8 and at.imatrix


Rules = Mapping[str, tuple[tuple[Condition, str], ...]]


@dataclass(frozen=True)
class Mix:
    """number: the file type in `general.file_type`. rules: role -> (condition, type) pairs."""

    number: int
    base: str
    rules: Rules = field(default_factory=dict)


_IQ4: Rules = {"attn_v": ((_gqa4, "Q5_K"),), "ffn_down": ((_eighth_blind, "Q5_K"),)}
_TERNARY: Rules = {"token_embd": ((_always, "Q4_K"),)}

MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32"),
    "F16": Mix(1, "F16"),
    "BF16": Mix(32, "BF16"),
    "Q4_0": Mix(2, "Q4_0", {"ffn_down": ((_eighth_informed, "Q4_1"),)}),
    "Q4_1": Mix(3, "Q4_1"),
    "Q5_0": Mix(8, "Q5_0", {"ffn_down": ((_eighth_informed, "Q5_1"),)}),
    "Q5_1": Mix(9, "Q5_1"),
    "Q8_0": Mix(7, "Q8_0"),
    "Q2_K": Mix(
        10,
        "Q2_K",
        {
            "attn_v": ((_gqa4, "Q4_K"), (_always, "Q3_K")),
            "ffn_down": ((_always, "Q3_K"),),
            "attn_output": ((_always, "Q3_K"),),
        },
    ),
    "Q2_K_S": Mix(21, "Q2_K", {"attn_v": ((_gqa4, "Q4_K"),), "ffn_down": ((_first(8), "Q4_K"),)}),
    "Q3_K_S": Mix(11, "Q3_K"),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        {
            "attn_v": ((_before(2), "Q5_K"), (_always, "Q4_K")),
            "ffn_down": ((_first(16), "Q5_K"), (_always, "Q4_K")),
            "attn_output": ((_always, "Q4_K"),),
        },
    ),
    "Q3_K_L": Mix(13, "Q3_K", dict.fromkeys(("attn_v", "ffn_down", "attn_output"), ((_always, "Q5_K"),))),
    "Q4_K_S": Mix(14, "Q4_K", {"attn_v": ((_before(4), "Q5_K"),), "ffn_down": ((_first(8), "Q5_K"),)}),
    "Q4_K_M": Mix(15, "Q4_K", dict.fromkeys(("attn_v", "ffn_down"), ((_more_bits, "Q6_K"),))),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_K_M": Mix(17, "Q5_K", dict.fromkeys(("attn_v", "ffn_down"), ((_more_bits, "Q6_K"),))),
    "Q6_K": Mix(18, "Q6_K"),
    "IQ4_NL": Mix(25, "IQ4_NL", _IQ4),
    "IQ4_XS": Mix(30, "IQ4_XS", _IQ4),
    "TQ1_0": Mix(36, "TQ1_0", _TERNARY),
    "TQ2_0": Mix(37, "TQ2_0", _TERNARY),
}

FALLBACK = {
    "IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q4_K": "Q5_0",
    "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip


def mix_of(name: str) -> Mix:
    """The mix of that name. Raises RecipeError that lists the valid ones."""
    if name not in MIXES:
        raise RecipeError(f"no GGUF mix {name!r}: choose one of {', '.join(MIXES)}")
    return MIXES[name]


def assign(mix: str, shapes: Mapping[str, tuple[int, ...]], gqa: int = 1, imatrix: bool = False) -> dict[str, str]:
    """The type of every tensor, by GGUF name ("blk.3.attn_v.weight") and numpy shape (rows, K)."""
    chosen = mix_of(mix)
    layers = 1 + max([int(m[1]) for name in shapes if (m := re.match(r"blk\.(\d+)\.", name))], default=-1)
    tied = "output.weight" not in shapes
    return {name: _type(chosen, name, shape, layers, tied, gqa, imatrix) for name, shape in shapes.items()}


def _type(mix: Mix, name: str, shape: tuple[int, ...], layers: int, tied: bool, gqa: int, imatrix: bool) -> str:
    if len(shape) < 2 or not name.endswith("weight") or "_norm.weight" in name:
        return "F32"
    if KINDS[mix.base].size == 1:
        return mix.base
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    role, layer = (match[2], int(match[1] or 0)) if match else ("", 0)
    kind = mix.base
    if role == "output" or (role == "token_embd" and tied):
        whole = shape[-1] % KINDS[kind].size == 0
        kind = "Q6_K" if whole and kind != "Q8_0" else "Q8_0"
    else:
        at = Layer(layer, layers, gqa, imatrix)
        kind = next((k for holds, k in mix.rules.get(role, ()) if holds(at)), kind)
        if role == "attn_v" and layers == 80 and gqa > 1 and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"  # the 70B Llamas, whose attn_v is an eighth of attn_q
    if shape[-1] % KINDS[kind].size:
        kind = FALLBACK.get(kind, "F16")
    return kind if shape[-1] % KINDS[kind].size == 0 else "F16"
