"""Targets are data: what a runtime can do, as rows of `targets/NAME.toml`.

A rule lists operators that are handled alike. `role` says how they take part in an integer island:

* `compute`: an anchor. It has a constant weight, and is quantized on its own account (Conv, Gemm, MatMul).
* `join`: quantized only when all its inputs are already integers and somebody reads its output as integers.
* `same`: moves codes without touching them, so input and output share scale and zero point. Otherwise like `join`.
* `table`: a Gather whose constant table is stored as integers and scaled after the look-up.
* `store`: computes in float, on weights that are stored as integers behind DequantizeLinear.
* `bridge`: has no integer kernel and runs in float between DequantizeLinear and QuantizeLinear, but does not end an
  island: what it makes of integers may be quantized again for its readers.
* `half`: computed in float16 or bfloat16, as its method says. `*` among its operators stands for all that have such a
  form.

The last rule that names an operator wins. A file may extend another one: it inherits what it does not say, and its
types and rules come after the inherited ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeq.errors import RecipeError, TargetError
from edgeq.files import read_toml
from edgeq.types import INT_RANGES, Granularity, PerBlock, PerChannel, PerTensor, QSpec

Method = Literal["static", "dynamic", "weight_only", "float16", "bfloat16", "float32"]


class TypeRow(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A named type. `per`: the granularity; the axis comes from the operator that uses it."""

    dtype: str
    symmetric: bool = False
    per: Literal["tensor", "channel", "block"] = "tensor"
    block_size: int = 0
    narrow: bool = False
    reduce_range: bool = False

    def spec(self, axis: int = 0, channel: bool = True) -> QSpec:
        """The QSpec for an operator whose channel (or block) axis is `axis`; per-tensor when `channel` is false."""
        granularity: Granularity = PerTensor()
        if channel and self.per == "channel":
            granularity = PerChannel(axis)
        elif channel and self.per == "block":
            granularity = PerBlock(axis, self.block_size)
        return QSpec(self.dtype, self.symmetric, granularity, self.narrow, self.reduce_range)

    def packed(self, bits: int | None, block: int | None) -> TypeRow:
        """The type with other bits and block: 0 is a scale a channel, None what the type has. 3 bits are half of 4."""
        size = self.block_size if block is None else block
        dtype = self.dtype.rstrip("0123456789") + str(4 if bits == 3 else bits or self.spec().bits)
        per: Literal["block", "channel", "tensor"] = "block" if size else "channel"
        if block is None and self.per == "tensor":
            per = "tensor"
        half = bits == 3 or (self.reduce_range and bits is None)
        return msgspec.structs.replace(self, dtype=dtype, per=per, block_size=size, reduce_range=half)


class FixedOutput(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Scale and zero point that the runtime demands of an output; of outputs of type `dtype` only, when it is said."""

    scale: float
    zero_point: int
    dtype: str = ""


class Rule(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How the target runs some operators. See the module's docstring for `role`.

    act, weight: names in `[types]`. bias: stored as int32 with scale act·weight, or left in float.
    output_q: `required` when the kernel is integer only if its output is quantized too (then every reader of the
    output gets the rounded value). folds: activations behind the operator that vanish into the output's range; fuses:
    those that the kernel applies itself, so that the range needn't end at 0. min_rank, max_rank: of the activation; 0
    for any. channel_rank: per-channel scales only for weights of up to so many dimensions, 0 for any. constant: may one
    operand be a constant, for `join`. data: how many leading inputs are activations, 0 for all that are float. split:
    outlying channels of its input may be split (see `edgeq/planning/outliers.py`). only: the values that attributes
    must have.
    """

    ops: tuple[str, ...]
    role: Literal["compute", "join", "same", "bridge", "table", "store", "packed", "half"] = "compute"
    method: Method = "static"
    act: str = ""
    weight: str = ""
    bias: Literal["int32", "float"] = "int32"
    output: FixedOutput | None = None
    output_q: Literal["required", "optional"] = "optional"
    folds: tuple[str, ...] = ()
    fuses: tuple[str, ...] = ()
    only: dict[str, str | int] = {}
    min_rank: int = 0
    max_rank: int = 0
    depthwise: bool = True
    channel_rank: int = 0
    constant: bool = True
    data: int = 0
    split: bool = False


class Refusal(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Operators that stay in float on this target, with the reason that the plan prints."""

    ops: tuple[str, ...]
    reason: str


class Target(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One runtime on one kind of machine.

    runner: the module of `edgeq/runners` that executes its artifacts, empty when only a device does; stand_in: the
    runner that verifies where that one is not installed. format: `edgeq/formats/FORMAT_artifact.py` writes them.
    rewrites: method → the pass that writes its plan, empty for none, where that is not the usual one. compiler: a
    module of `edgeq/formats` with `compile(artifact, options)`, whose figures the report shows.
    refuse_method: method → why this target is never given it. static_shapes: every input has a fixed shape.
    dedicated_pairs: each reader gets a Q-DQ pair of its own.
    cpu_kernels: it is onnxruntime's CPU provider, so placement can be read in the graph that this one optimizes.
    whole: nothing may stay float; every input and output is quantized.
    saturates: u8·s8 products are summed in pairs of 16 bits, which large weights overflow (see
    `edgeq/planning/saturation.py`).
    accuracy_level: of MatMulNBits: 4 multiplies by the input rounded to int8 in blocks, 0 by the input as it is.
    kernels: weight algorithm whose codes are no integers → the operator that takes them (see
    `edgeq/planning/forms.py`).
    passes_before, passes_after: modules of `edgeq/passes` with `rewrite(model)`, run on the prepared model and on the
    quantized one, for the runtime's own sake.
    """

    name: str
    title: str
    runner: str
    extends: str = ""
    stand_in: str = "cpu"
    format: str = "onnx"
    opset: int = 17
    runner_options: dict[str, str] = {}
    session_config: dict[str, str] = {}
    rewrites: dict[Method, str] = {}
    compiler: str = ""
    compiler_options: dict[str, str] = {}
    refuse_method: dict[Method, str] = {}
    static_shapes: bool = False
    cpu_kernels: bool = True
    whole: bool = False
    saturates: bool = False
    dedicated_pairs: bool = False
    accuracy_level: int = 0
    kernels: dict[str, str] = {}
    passes_before: tuple[str, ...] = ()
    passes_after: tuple[str, ...] = ()
    types: dict[str, TypeRow] = {}
    rule: tuple[Rule, ...] = ()
    refuse: tuple[Refusal, ...] = ()

    def find(self, op: str, method: Method) -> Rule | None:
        found = None
        for rule in self.rule:
            named = op in rule.ops or ("*" in rule.ops and self.refusal(op) is None)
            if named and rule.method == method:
                found = rule
        return found

    def refusal(self, op: str) -> str | None:
        return next((row.reason for row in reversed(self.refuse) if op in row.ops), None)


def folder() -> Path:
    """Where target files live: EDGEQ_TARGETS, else the installed package's copy, else the checkout's `targets/`."""
    if "EDGEQ_TARGETS" in os.environ:
        return Path(os.environ["EDGEQ_TARGETS"])
    here = Path(__file__).resolve().parent
    installed = here / "_targets"
    return installed if installed.is_dir() else here.parent / "targets"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str) -> Target:
    """The target of that name, or of that `.toml` path. Raises RecipeError, listing the names there are."""
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"no target {name!r}: choose one of {', '.join(names())}")
    try:
        target = msgspec.convert(_read(path), type=Target)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from None
    _check(path, target)
    return target


def integers(target: Target) -> Target:
    """The target with the types and rules of `integer.toml`: what the integer-only pass computes, run where it runs.

    Raises TargetError for a target whose files are not ONNX.
    """
    if target.format != "onnx":
        raise TargetError(target.name, f"its {target.format} files are integers already", "leave out --integer-only")
    own = {field: getattr(target, field) for field in ("name", "title", "runner", "stand_in", "runner_options")}
    return msgspec.structs.replace(load("integer"), **own, session_config=target.session_config)


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """The file's table with what it extends folded in."""
    table = read_toml(path)
    base_name = table.get("extends", "")
    if not base_name:
        return table
    base_path = path.parent / f"{base_name}.toml"
    if depth > 4 or not os.path.isfile(base_path):  # False, too, for a name that the system refuses to look up
        raise msgspec.ValidationError(f"extends {str(base_name)[:100]!r}, which is not a target beside it")
    base = _read(base_path, depth + 1)
    for part in (base, table):
        if not isinstance(part.get("types", {}), dict):
            raise msgspec.ValidationError("Expected `object` - at `$.types`")
        if not all(isinstance(part.get(rows, []), list) for rows in ("rule", "refuse")):
            raise msgspec.ValidationError("Expected `array` - at `$.rule` and `$.refuse`")
    merged = {**base, **table, "types": {**base.get("types", {}), **table.get("types", {})}}
    for rows in ("rule", "refuse"):
        merged[rows] = [*base.get(rows, []), *table.get(rows, [])]
    return merged


def _check(path: Path, target: Target) -> None:
    for name, row in target.types.items():
        if row.dtype not in INT_RANGES:
            raise RecipeError(f"{path}: type {name!r} has unknown dtype {row.dtype!r}; one of {', '.join(INT_RANGES)}")
        if row.per == "block" and row.block_size < 1:
            raise RecipeError(f"{path}: type {name!r} is per block and needs a block_size of at least 1")
    for rule in target.rule:
        for used in filter(None, (rule.act if rule.act != "same" else "", rule.weight)):
            if used not in target.types:
                raise RecipeError(f"{path}: rule for {', '.join(rule.ops)} names type {used!r}, not in [types]")
