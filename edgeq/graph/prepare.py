"""Bring any ONNX model into the one form that the planner reads.

Afterwards: no functions, no Constant nodes, no initializers hidden among the inputs, float32 arithmetic, an opset of
at least the target's, shapes inferred, BatchNormalization and constant affine steps folded into their linear layer,
every value and node named uniquely over all subgraphs. The interface (names, types, order of inputs and outputs)
is unchanged, the outputs agree within float32 rounding, and a second run changes nothing.
"""

from __future__ import annotations

import logging
from copy import copy
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules
from onnxscript.version_converter import convert_version

from edgeq.errors import ModelError
from edgeq.graph.canonical import canonicalize
from edgeq.graph.edit import Names, all_graphs, constant, drop_unused_initializers, make_node, rank, values_of
from edgeq.graph.float16 import widen
from edgeq.graph.fuse import LINEAR, fold_affine
from edgeq.graph.infer import infer
from edgeq.graph.io import one_line

MIN_OPSET, MAX_OPSET = 17, 27

# Each replaces a pattern of several nodes by the one operator that runtimes have a kernel for, or by nothing.
FUSIONS = [
    *rules.fuse_hardswish_rules(),
    rules.fuse_pad_into_conv_rule,
    rules.transpose_transpose_rule,
    rules.no_op_transpose_rule,
    rules.no_op_cast_rule,
    rules.dropout_inference_rule,
    rules.mul_by_1_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.successive_relu_rule,
    rules.successive_clip_rule,
]


def prepare(model: ir.Model, opset: int = MIN_OPSET) -> ir.Model:
    """Prepare in place and return the model. `opset`: the least version wanted. Raises ModelError."""
    if "" not in model.opset_imports and all(node.domain for graph in all_graphs(model) for node in graph):
        model.opset_imports[""] = opset  # only operators of other domains: there is nothing to upgrade
    version = model.opset_imports.get("", 1)
    if version > MAX_OPSET:
        raise ModelError(f"opset {version} is newer than edgeq knows (up to {MAX_OPSET}); export with a lower opset")
    outputs = [value.name or "" for value in model.graph.outputs]
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _initializers_out_of_inputs(model)
    if version < opset:
        _upgrade(model, opset)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    widen(model)
    _true_identities(model)
    common.IdentityEliminationPass()(model)
    _restore_outputs(model, outputs)
    infer(model)
    _fold(model)
    _name(model)
    RewritePass([_own(rule) for rule in FUSIONS])(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _restore_outputs(model, outputs)
    _name(model)
    canonicalize(model)
    while fold_affine(model):
        pass
    common.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(model)
    infer(model)
    _name(model)
    common.TopologicalSortPass()(model)
    return model


def _own(rule: Any) -> Any:
    """A rule with a matcher of its own, since that holds on to the graph, weights and all, that it last looked at.

    The matchers of onnxscript's rules may hold one of torch's exporter, which can't be copied as a whole.
    """
    made = copy(rule)
    made._matcher = copy(rule._matcher)
    return made


def plain(model: ir.Model) -> ir.Model:
    """Only calls inlined, constants folded and made initializers, in place: of a quantized model too."""
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    outputs = [value.name or "" for value in model.graph.outputs]
    _true_identities(model)
    common.IdentityEliminationPass()(model)
    _restore_outputs(model, outputs)
    _fold(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _name(model)
    return model


def _initializers_out_of_inputs(model: ir.Model) -> None:
    """Initializers listed as inputs are weights in IR version 3, and default values since version 4.

    Later models often list their weights too, out of habit. The ones that feed a linear layer's weight are taken
    out, since a weight that can change at run time can't be quantized; other defaults stay optional inputs.
    """
    weights = {
        node.inputs[index]
        for graph in all_graphs(model)
        for node in graph
        if node.op_type in LINEAR or node.op_type in ("LSTM", "GRU", "RNN")
        for index in ((1, 2) if node.op_type not in ("LSTM", "GRU", "RNN") else (1, 2, 3))
        if index < len(node.inputs)
    }
    old = (model.ir_version or 0) < 4
    graph = model.graph
    kept = [v for v in graph.inputs if not (v.const_value is not None and (old or v in weights))]
    if len(kept) != len(graph.inputs):
        taken = [v for v in graph.inputs if v not in kept]
        graph.inputs[:] = kept
        for value in taken:
            if value.name not in graph.initializers:
                graph.initializers[value.name or ""] = value
    model.ir_version = max(model.ir_version or 0, 10)


def _upgrade(model: ir.Model, opset: int) -> None:
    if model.opset_imports.get("", 1) < 9 and any(n.op_type == "Scan" for graph in all_graphs(model) for n in graph):
        raise ModelError(
            "Scan has a batch axis before opset 9, which later ones have not; export with opset 9 or newer"
        )
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it announces every use of the fallback
    try:
        # Without the fallback the converter only stamps the version on nodes it has no adapter for.
        convert_version(model, opset, fallback=True)
    except Exception as error:  # the C++ converter raises RuntimeError, its adapters anything
        raise ModelError(f"opset can't be upgraded to {opset} ({one_line(error)}); export with a newer opset") from None
    finally:
        logger.setLevel(level)
    if model.opset_imports.get("") != opset:
        raise ModelError(f"opset {model.opset_imports.get('')} can't be upgraded to {opset}; export with a newer opset")


def _true_identities(model: ir.Model) -> None:
    """An Identity's output has its input's shape, whatever an exporter wrote down."""
    for graph in all_graphs(model):
        for node in graph:
            if node.op_type != "Identity" or node.inputs[0] is None:
                continue
            ranks = rank(node.inputs[0]), rank(node.outputs[0])
            if None not in ranks and ranks[0] != ranks[1]:
                node.outputs[0].shape = node.inputs[0].shape


def _restore_outputs(model: ir.Model, wanted: list[str]) -> None:
    """Give every output its own value, and the model's own outputs their names, after Identity elimination.

    That merges outputs that are equal, and lets a body give a value of the graph around it, which ONNX forbids.
    Runtimes compute nonsense when the body of a loop names one value twice.
    """
    names = Names(model)
    inputs = {value.name for value in model.graph.inputs}
    for graph in all_graphs(model):
        main = graph is model.graph
        for index, value in enumerate(list(graph.outputs)):
            if main and (wanted[index] in inputs or wanted[index] in wanted[:index]):
                continue
            producer = value.producer()
            here = value.name in graph.initializers if producer is None else producer.graph is graph
            if value in graph.outputs[:index] or not here:
                copy = make_node("Identity", [value], names.new(f"{value.name}_copy"), value.dtype, value.shape)
                graph.append(copy)
                graph.outputs[index] = copy.outputs[0]
    for value, name in zip(model.graph.outputs, wanted, strict=True):
        value.name = name


def _fold(model: ir.Model) -> None:
    """Evaluate what is constant. Casts of weights always, other results up to a megabyte."""

    def wanted(node: ir.Node) -> bool | None:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return False
        if node.op_type in ("Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity"):
            return True if constant(node.inputs[0]) is not None else None
        return None

    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        fold_constants_ir(
            model, onnx_shape_inference=False, input_size_limit=1 << 20, output_size_limit=1 << 20, should_fold=wanted
        )
    except RuntimeError:  # raised where it misreads a valid node, as SplitToSequence of a size that is an input
        pass  # what it has folded until then stays
    finally:
        logger.setLevel(level)


def _name(model: ir.Model) -> None:
    """Unique names over all graphs: the plan and the report speak of values and nodes by name."""
    common.NameFixPass()(model)
    values: set[str] = set()
    nodes: set[str] = set()
    names = Names(model)
    for graph in all_graphs(model):
        for value in values_of(graph):
            if value.name in values and graph is not model.graph:
                value.name = names.new(value.name or "value")
            values.add(value.name or "")
        for node in graph:
            if not node.name or node.name in nodes:
                node.name = names.new(node.name or f"{node.op_type}_{node.outputs[0].name}")
            nodes.add(node.name)
