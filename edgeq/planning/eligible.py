"""May a node be quantized at all? Which rule applies to it, and what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from edgeq.errors import RecipeError
from edgeq.graph.edit import is_constant, rank
from edgeq.graph.float16 import half_slots
from edgeq.numerics import floats
from edgeq.planning.plan import RECURRENT, WEIGHT_INDEX, WeightPlan, weight_axis
from edgeq.recipe import Recipe
from edgeq.target import Method, Rule, Target, TypeRow
from edgeq.weights import algorithm, checked

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
ALREADY = "is quantized already"
STORES = {  # role → what becomes of a node that computes in float on what is stored as integers
    "table": "rows are looked up as codes and scaled",
    "store": "float, on weights stored as integers (dequantized in each run; once with session.disable_quant_qdq=1)",
}
HALF_LEAST = {"float16": 2.0**-24, "bfloat16": 2.0**-126}
"""The least number of either; a GPU may take what is less, subnormal, for 0 in bfloat16."""
SMALL_TABLE = 4096  # elements; below it the codes save less than the extra nodes cost


@dataclass(frozen=True)
class Context:
    """What placement decides by. excluded: node name → reason, nodes that must stay float."""

    target: Target
    recipe: Recipe
    excluded: Mapping[str, str]

    def rule(self, node: ir.Node) -> tuple[Rule | None, str]:
        """The rule for a node, or None and the reason why there is none to use."""
        name, op = node.name or "", node.op_type
        if name in self.excluded:
            return None, self.excluded[name]
        if quantized(node):
            return None, ALREADY
        if node.domain not in ("", "ai.onnx"):
            return None, f"operator of domain {node.domain}"
        if self.recipe.override(name, op).float:
            return None, "the recipe keeps it float"
        if self.recipe.method == "float32":
            return None, "float32 is what was asked for"
        method = self.recipe.method_of(name, op)
        rule = self.target.find(op, method)
        if rule is None:
            why = self.target.refusal(op) or f"{self.target.name} has no {method} kernel for {op}"
            return None, why
        for attribute, wanted in rule.only.items():
            if (found := attribute_of(node, attribute)) != wanted:
                return None, f"its {attribute} is {found}, and {self.target.name} has it for {wanted} alone"
        return rule, ""

    def weights(self, node: ir.Node, rule: Rule) -> list[WeightPlan]:
        override = self.recipe.override(node.name or "", node.op_type)
        row = self.target.types[override.weight_type or rule.weight]
        name = override.weight or self.recipe.weight
        bits = override.bits if override.bits is not None or node.op_type == "Gather" else self.recipe.bits
        block = self.recipe.block if override.block is None else override.block
        encoder = encoder_of(name)
        if encoder is not None:
            shared = block if rule.role == "packed" or row.per == "tensor" else 0
            row = coded_row(row, encoder, self.recipe, bits, shared, node)
        elif rule.role == "packed":
            if bits not in (None, 2, 3, 4, 8):
                raise RecipeError(f"{name} has integers of 2, 3, 4 or 8 bits, not {bits}: or choose --weight kmeans")
            row = row.packed(bits, block)
        matrix = rule.role == "packed" and node.op_type != "Gather" and rank(node.inputs[1]) == 2
        extra = (
            self.recipe.outliers if override.outliers is None else override.outliers,
            self.recipe.low_rank if override.low_rank is None else override.low_rank,
        )
        indices = (1, 2) if node.op_type in RECURRENT else (WEIGHT_INDEX[node.op_type],)
        return [
            WeightPlan(
                node.name or "",
                i,
                value.name or "",
                row.spec(weight_axis(node, row.per), channel=(rank(value) or 0) <= (rule.channel_rank or 99)),
                name,
                *(extra if matrix else (0.0, 0)),
                checked(name, self.recipe.weight_settings) if name == self.recipe.weight else (),
            )
            for i in indices
            if (value := node.inputs[i]) is not None
        ]


def encoder_of(name: str) -> ModuleType | None:
    """The module of a weight algorithm whose codes are no integers, None for all others."""
    found = algorithm(name)
    return found if hasattr(found, "encode") else None


def coded_row(
    row: TypeRow, encoder: ModuleType, recipe: Recipe, bits: int | None, block: int | None, node: ir.Node
) -> TypeRow:
    """The type of codes that index levels: the bits that were asked for, else 4, and the most there are for a table."""
    name = encoder.__name__.rsplit(".", 1)[-1]
    if recipe.method != "weight_only":
        raise RecipeError(f"{name} codes are no integers: choose --method weight_only, or one of the other --weight")
    usual = encoder.BITS[-1] if node.op_type == "Gather" else 4
    bits = bits or (usual if usual in encoder.BITS else encoder.BITS[-1])
    if bits not in encoder.BITS:
        raise RecipeError(f"{name} has codes of {', '.join(map(str, encoder.BITS))} bits, not {bits}")
    packed = row.packed(bits, encoder.BLOCK if block is None and row.per != "tensor" else block)
    return msgspec.structs.replace(packed, dtype=f"uint{bits}", symmetric=False, narrow=False, reduce_range=False)


def attribute_of(node: ir.Node, name: str) -> object:
    """An attribute's value as text or number, the operator's default when it is not given."""
    if name in node.attributes:
        return node.attributes[name].value
    default = onnx.defs.get_schema(node.op_type).attributes[name].default_value
    return ir.serde.deserialize_attribute(default).value if default.name else None


def quantized(node: ir.Node) -> bool:
    """Did somebody quantize it: is it a Q or DQ, a kernel that takes codes, or one whose weight is stored as codes?"""
    op, index = node.op_type, WEIGHT_INDEX.get(node.op_type, len(node.inputs))
    weight = node.inputs[index] if index < len(node.inputs) else None
    source = weight.producer() if weight is not None else None
    if source is not None and source.op_type == "DequantizeLinear" and is_constant(source.inputs[0]):
        return True
    return "quantize" in op.lower() or "Integer" in op or op.startswith("QLinear") or op in ("QGemm", "MatMulNBits")


def weight_problem(node: ir.Node, rule: Rule) -> str:
    """Why the weight of a `compute` or `store` node can't be quantized, or nothing."""
    data, weight = node.inputs[0], node.inputs[WEIGHT_INDEX[node.op_type]]
    if data is None or weight is None:
        return "an input is missing"
    if data.dtype != ir.DataType.FLOAT:
        return f"its input is {data.dtype.name.lower() if data.dtype else 'of unknown type'}, not float32"
    if not is_constant(weight) or (node.op_type in RECURRENT and not is_constant(node.inputs[2])):
        return "its weight is not constant"
    if weight.const_value is None or weight.const_value.size == 0:
        return "its weight is empty"
    if rule.max_rank and (rank(data) or 0) > rule.max_rank:
        return f"its input has rank {rank(data)}, over the kernel's {rule.max_rank}"
    if (rank(data) or rule.min_rank) < rule.min_rank:
        return f"its input has rank {rank(data)}, under the kernel's {rule.min_rank}"
    if node.op_type == "Conv" and not rule.depthwise and node.attributes.get_int("group", 1) > 1:
        return "depthwise and grouped convolutions are never made dynamic"
    if node.op_type == "MatMul" and len(weight.const_value.shape) < 2:
        return "its weight is a vector"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        return "its input is transposed"
    if rule.role == "store":
        return "" if weight.const_value.size >= SMALL_TABLE else "its weights are small"
    if node.op_type == "LSTM" and node.attributes.get_int("layout", 0) == 1:
        return "batch-first layout has no integer kernel"
    return ""


def table_problem(node: ir.Node) -> str:
    """Why the table that a Gather reads can't be stored as integers, or nothing."""
    table = node.inputs[0]
    if not is_constant(table) or table is None or table.const_value is None or table.dtype != ir.DataType.FLOAT:
        return "moves data"
    if len(table.const_value.shape) != 2 or node.attributes.get_int("axis", 0) != 0:
        return "not a table of rows"
    return "" if table.const_value.size >= SMALL_TABLE else "a small table"


def half_problem(node: ir.Node, model: ir.Model, method: Method) -> str:
    """Why a node can't be computed in float16, or bfloat16, or nothing."""
    if node.graph is not model.graph:
        return "in the body of a branch or loop"
    least, most = HALF_LEAST[method], floats.greatest(method)
    inputs, outputs = half_slots(node, model.opset_imports[""], ir.DataType[method.upper()])
    if not outputs:
        return f"ONNX has no {method} form of it for float32 values"
    for index in inputs:
        value = node.inputs[index]
        if value is None or not is_constant(value) or value.const_value is None or not value.const_value.size:
            continue
        array = value.const_value.numpy()
        greatest = float(np.abs(array).max())
        if np.isfinite(array).all() and greatest > most:
            return f"its constant {value.name} reaches {greatest:.3g}, {method} {most:.5g}"
        if 0 < greatest < least:
            return f"its constant {value.name} of {greatest:.3g} vanishes in {method}"
    return ""


def join_problem(node: ir.Node, rule: Rule, recipe: Recipe, carries: set[ir.Value]) -> str:
    """Why a `join`, `same` or `bridge` node can't take part in an island, or nothing."""
    if rule.role == "join" and recipe.elementwise == "none":
        return "the recipe's `elementwise` is none"
    varying = [v for v in node.inputs if v is not None and v.dtype in FLOATS and not is_constant(v)]
    if not varying:
        return "computes on constants or integers"
    if any(v.dtype != ir.DataType.FLOAT for v in varying):
        return "its input is not float32"
    if not rule.constant and any(is_constant(v) for v in node.inputs):
        return "one operand is constant"
    if rule.max_rank and any((rank(v) or 0) > rule.max_rank for v in varying):
        return f"its input has over {rule.max_rank} dimensions"
    for value in varying:
        if value not in carries:
            producer = value.producer()
            source = f"node {producer.name}" if producer is not None else f"input {value.name}"
            return f"would need a float → integer step: {source} gives float"
    return ""
