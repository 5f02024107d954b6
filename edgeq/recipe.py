"""A recipe says what was asked for, in TOML. Fully resolved, it is written beside the artifact and repeats it."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgeq.errors import RecipeError
from edgeq.files import read_toml
from edgeq.target import Method

Bits = Literal[2, 3, 4, 5, 6, 7, 8]
Block = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
Share = Annotated[float, msgspec.Meta(ge=0, le=0.5)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=1 << 12)]


class Override(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Exceptions for the nodes that match both `nodes` (shell patterns over names) and `ops`; the last match wins.

    method: of nodes in a static recipe, another one that the target has, which gives them float inputs and outputs.
    """

    nodes: tuple[str, ...] = ("*",)
    ops: tuple[str, ...] = ()
    float: bool | None = None
    method: Method | None = None
    calibrator: str | None = None
    weight: str | None = None
    bits: Bits | None = None
    block: Block | None = None
    outliers: Share | None = None
    low_rank: Rank | None = None
    act_type: str | None = None
    weight_type: str | None = None

    def matches(self, name: str, op: str) -> bool:
        return (not self.ops or op in self.ops) and any(fnmatch.fnmatchcase(name, p) for p in self.nodes)


class Preprocess(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How an image becomes the model's input: x = (pixel · scale - mean) / std, with pixels of 0 to 255.

    resize: the length of the shorter side, or [height, width]; left out together with crop, the input's own. crop:
    the centered square, or [height, width]. layout: left out, as the input's shape has it. mean, std: one number, or
    one a channel in the order of `channels`. resample: a filter of pillow. dtype uint8 gives the pixels themselves.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["NCHW", "NHWC"] | None = None
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    dtype: Literal["float32", "uint8"] = "float32"

    def __post_init__(self) -> None:
        sizes = [n for size in (self.resize, self.crop) if size for n in (size if isinstance(size, tuple) else [size])]
        if min(sizes, default=1) < 1 or 0 in (self.resize, self.crop):
            raise ValueError("resize and crop are lengths of at least 1 pixel")
        if not self.std or not self.mean or min(self.std) <= 0:
            raise ValueError("mean and std hold a number or one a channel, and std is above 0")


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Everything that decides the artifact, besides the model and the data.

    calibrator: a file of `edgeq/calibrate`. weight: a file of `edgeq/weights`. samples: how many of the data's
    samples calibrate, 0 for all; drawn with `seed` where the data has more, but the first ones of a stream.
    elementwise: whether Add, Mul and the like join integer islands; `auto` lets in those whose rounding costs less
    than `elementwise_sqnr` dB would. outlier_sqnr: linear layers' inputs whose rounding would leave fewer dB have their
    outlying channels split (those without any keep about 40). attention: quantize MatMuls of two activations. state:
    pairs [output, input] that are fed back from sample to sample. preprocess: makes images into the model's input.
    shapes: pairs [input, shape] that fix free dimensions. padding: masks, inputs that are 0 at positions which are
    left out of calibration (see `edgeq/data/padding.py`); unless given, `attention_mask` where there is one.
    integer_only: no float tensor between the ends, everything is quantized; integer_io: nor at the ends; rounding: of
    requantization then, as gemmlowp and TFLite's reference (double) or once (single).
    weight_settings: of `weight`, for the layers that have it: what its function in `edgeq/weights` takes by name.
    bits, block: of packed weights, in place of the target's own (tables take bits from rules alone); a block of 0 is a
    scale a channel; integers have 2, 3 (4 outside MatMul and Gemm), 4 or 8 bits, codebooks any from 2 to 8. outliers,
    low_rank: of packed matrices, the share of features that are kept real, and the rank of what makes up for their
    rounding. sequential: packed weights are solved on what the quantized layers before them make of the data.
    passes: repair of static quantization (see `edgeq/search/recovery.py`): equalize and smooth before rounding,
    bias_correct behind it, where there is data and no state; smooth also goes before weight_only.
    """

    schema_version: Literal[1] = 1
    target: str = "x86_64"
    method: Method = "static"
    calibrator: str = "mse"
    weight: str = "rtn"
    bits: Bits | None = None
    block: Block | None = None
    weight_settings: dict[str, bool | int | float] = {}
    outliers: Share = 0.0
    low_rank: Rank = 0
    sequential: bool = True
    passes: tuple[Literal["equalize", "smooth", "bias_correct"], ...] = ("bias_correct",)
    samples: Annotated[int, msgspec.Meta(ge=0)] = 128
    seed: int = 0
    elementwise: Literal["auto", "all", "none"] = "auto"
    elementwise_sqnr: float = 30.0
    outlier_sqnr: float = 36.0
    attention: bool = False
    state: tuple[tuple[str, str], ...] = ()
    preprocess: Preprocess | None = None
    shapes: tuple[tuple[str, tuple[Annotated[int, msgspec.Meta(ge=1)], ...]], ...] = ()
    padding: tuple[str, ...] | None = None
    integer_only: bool = False
    integer_io: bool = False
    rounding: Literal["double", "single"] = "double"
    rule: tuple[Override, ...] = ()

    def override(self, name: str, op: str) -> Override:
        """The overrides of a node, merged; later ones win field by field."""
        merged = Override()
        for row in self.rule:
            if row.matches(name, op):
                changes = {f: getattr(row, f) for f in Override.__struct_fields__ if getattr(row, f) is not None}
                merged = msgspec.structs.replace(merged, **changes)
        return merged

    def method_of(self, name: str, op: str) -> Method:
        """The method that a node has: its rule's, else the recipe's."""
        return self.override(name, op).method or self.method


def load(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe. Raises RecipeError that names the field and what it may be."""
    try:
        return msgspec.convert(read_toml(Path(path)), type=Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from None


def changed(recipe: Recipe) -> dict[str, Any]:
    """The fields that differ from the defaults, as plain data."""
    usual = msgspec.to_builtins(Recipe())
    return {k: v for k, v in msgspec.to_builtins(recipe).items() if v != usual[k]}


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, every field written out, in the order of the class."""
    fields = msgspec.to_builtins(recipe)
    tables = [("[[rule]]", row) for row in fields.pop("rule")]
    own = {key: fields.pop(key) for key in list(fields) if isinstance(fields[key], dict)}
    tables += [(f"[{key}]", table) for key, table in own.items() if table]
    lines = _lines(fields)
    for head, row in tables:
        lines += ["", head, *_lines(row)]
    return "\n".join(lines) + "\n"


def _lines(fields: dict[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in fields.items() if value is not None]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)  # TOML has inf and nan, JSON has not
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
