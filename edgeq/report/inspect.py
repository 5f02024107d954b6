"""What a model file holds: operators, opset, inputs and outputs, and a ledger of where its bytes are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgeq.graph import io
from edgeq.graph.edit import all_graphs
from edgeq.graph.infer import infer
from edgeq.nnapi.partition import Partitioning, partition
from edgeq.passes.integer_ends import floats
from edgeq.report.tables import mb, plain, table

LEDGER = 20


def inspect_file(path: Path) -> dict[str, Any]:
    """Everything as plain data. Weights are not read."""
    model = io.load(path)
    ops: Counter[str] = Counter()
    tensors: list[tuple[str, str, list[int], int]] = []
    for graph in all_graphs(model):
        ops.update(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in graph)
        for value in graph.initializers.values():
            held = value.const_value
            if held is not None:
                tensors.append((value.name or "", held.dtype.name.lower(), list(held.shape.numpy()), held.nbytes))
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    held = attribute.value
                    tensors.append(
                        (node.outputs[0].name or "", held.dtype.name.lower(), [int(d) for d in held.shape], held.nbytes)
                    )
    by_type: Counter[str] = Counter()
    for _, dtype, _, size in tensors:
        by_type[dtype] += size
    tensors.sort(key=lambda row: (-row[3], row[0]))
    return {
        "file": str(path),
        "bytes": sum(f.stat().st_size for f in io.files(path)),
        "ir_version": model.ir_version,
        "opset": dict(model.opset_imports),
        "nodes": sum(ops.values()),
        "ops": dict(sorted(ops.items())),
        "inputs": [_value(v) for v in model.graph.inputs],
        "outputs": [_value(v) for v in model.graph.outputs],
        "weight_bytes": sum(row[3] for row in tensors),
        "weight_bytes_by_type": dict(by_type.most_common()),
        "tensors": [{"name": n, "dtype": t, "shape": s, "bytes": b} for n, t, s, b in tensors],
    }


def float_tensors(path: Path) -> list[dict[str, str]]:
    """The float tensors of a model, its ends aside (see `edgeq.passes.integer_ends.floats`): name and producer."""
    model = io.load(path)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    return [{"name": name, "producer": made} for name, made, allowed in floats(model) if not allowed]


def float_table(path: Path, left: list[dict[str, str]]) -> list[Any]:
    found = f"{len(left)} float tensors" if left else "no float tensor"
    rows = [(row["name"], row["producer"]) for row in left]
    listed = [table("float tensors", ("tensor", "made by"), rows)] if rows else []
    return [plain(f"{path}: {found} between its ends"), *listed]


def on_nnapi(path: Path, level: int) -> Partitioning:
    """What onnxruntime's NNAPI provider would take of the model at an Android API level."""
    model = io.load(path)
    infer(model)
    return partition(model.graph, level)


def nnapi_tables(path: Path, found: Partitioning) -> list[Any]:
    pieces = [
        (i, len(p.nodes), p.nodes[0], p.nodes[-1], len(p.inputs), len(p.outputs), p.bytes)
        for i, p in enumerate(found.partitions)
    ]
    rest = [(f.node, f.op, f.reason) for f in found.cpu]
    headings = ("", "nodes", "first", "last", "inputs", "outputs", "bytes copied")
    taken = found.nodes - len(found.cpu)
    return [
        plain(
            f"{path} on NNAPI, API {found.api_level}: {taken} of {found.nodes} nodes in {len(pieces)} partitions, "
            f"{found.bytes} bytes copied over their borders each time"
        ),
        *([table("partitions", headings, pieces, right=(0, 1, 4, 5, 6))] if pieces else []),
        *([table("on the CPU", ("node", "op", "why"), rest)] if rest else []),
    ]


def _value(value: ir.Value) -> dict[str, Any]:
    shape = None if value.shape is None else [d if isinstance(d, int) else str(d.value or "?") for d in value.shape]
    return {"name": value.name, "dtype": value.dtype.name.lower() if value.dtype else "unknown", "shape": shape}


def inspect_tables(found: dict[str, Any]) -> list[Any]:
    opset = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found["opset"].items())
    ends = [("input", v["name"], v["dtype"], v["shape"]) for v in found["inputs"]]
    ends += [("output", v["name"], v["dtype"], v["shape"]) for v in found["outputs"]]
    total = max(found["weight_bytes"], 1)
    largest = found["tensors"][:LEDGER]
    rest = found["weight_bytes"] - sum(t["bytes"] for t in largest)
    ledger = [(t["name"], t["dtype"], t["shape"], mb(t["bytes"]), f"{t['bytes'] / total:.1%}") for t in largest]
    if rest:
        ledger.append((f"{len(found['tensors']) - LEDGER} more", "", "", mb(rest), f"{rest / total:.1%}"))
    return [
        plain(
            f"{found['file']}: {mb(found['bytes'])}, opset {opset}, IR {found['ir_version']}, {found['nodes']} nodes"
        ),
        table("interface", ("", "name", "type", "shape (names vary at run time)"), ends),
        table("operators", ("op", "nodes"), sorted(found["ops"].items(), key=lambda kv: -kv[1]), right=(1,)),
        table("size ledger", ("tensor", "type", "shape", "bytes", "share"), ledger, right=(3, 4)),
    ]
