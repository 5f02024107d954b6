"""The report as one HTML file that needs no network: made from `report.json`, and from the artifact beside it.

There is no script in it, every name is escaped by the template engine, and a content security policy forbids the page
to load or run anything. Two reports make a page that compares them.
"""

from __future__ import annotations

import importlib.resources
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.errors import ToolError
from edgeq.report.drawing import HEIGHT, WIDTH, Bars, Line, Map, bars, curve, decibel_axis, lay_out
from edgeq.report.inspect import inspect_file
from edgeq.report.printable import UNPRINTABLE
from edgeq.report.schema import Report, Sensitivity, load
from edgeq.report.tables import db, mb

MOST_DRAWN, MOST_RANGES, MOST_TENSORS = 1500, 24, 12  # a page is for looking; the JSON has the rest


@dataclass(frozen=True)
class Side:
    """One report, and what is drawn of it."""

    label: str
    report: Report
    drawn: Map | None
    reasons: list[tuple[str, int, list[str]]]
    layers: Line | None
    ranges: list[tuple[Any, Bars]]
    ledger: list[dict[str, Any]]
    harm: list[dict[str, Any]]


def page(folders: Sequence[Path]) -> str:
    """The HTML of one output folder's report, or of two side by side. Raises EdgeqError for a folder without one."""
    reports = [load(folder) for folder in folders]
    curves = [[row.sqnr_db for row in r.verification.layers] if r.verification else [] for r in reports]
    low, high, marks = decibel_axis(curves)
    labels = [f"{r.model.file} for {r.target}" for r in reports]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({folder.name})" for label, folder in zip(labels, folders, strict=True)]
    sides = [
        _side(label, folder, report, low, high) for label, folder, report in zip(labels, folders, reports, strict=True)
    ]
    return _template().render(
        sides=sides, marks=marks, box=(WIDTH, HEIGHT), compared=_compared(sides) if len(sides) > 1 else []
    )


def _side(label: str, folder: Path, report: Report, low: float, high: float) -> Side:
    layers = [(row.name, row.sqnr_db) for row in report.verification.layers] if report.verification else []
    reasons: dict[str, list[str]] = {}
    for node in report.nodes.float:
        reasons.setdefault(node.reason or "no reason", []).append(f"{node.name} ({node.op})")
    artifact = folder / report.artifact.file
    held = inspect_file(artifact) if artifact.suffix == ".onnx" and artifact.is_file() else {"tensors": []}
    clipped_first = sorted(report.ranges, key=lambda r: -r.clipped)[:MOST_RANGES]
    return Side(
        label,
        report,
        lay_out(report.graph) if 0 < len(report.graph) <= MOST_DRAWN else None,
        [(why, len(names), names) for why, names in sorted(reasons.items(), key=lambda kv: -len(kv[1]))],
        curve(layers, low, high) if layers else None,
        [(r, bars(r.counts, (r.lo, r.hi), (r.low, r.high))) for r in clipped_first],
        _ledger(held["tensors"]),
        _harm(report.sensitivity),
    )


def _harm(rows: Sequence[Sensitivity]) -> list[dict[str, Any]]:
    """The nodes whose rounding alone does most. share: of the sum over all nodes."""
    total = sum(row.error for row in rows) or 1.0
    return [
        {"name": r.name, "op": r.op, "sqnr": -10 * math.log10(r.error) if r.error else None, "share": r.error / total}
        for r in rows[:MOST_RANGES]
    ]


def _ledger(tensors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    total = sum(t["bytes"] for t in tensors) or 1
    rows = [{**t, "share": t["bytes"] / total} for t in tensors[:MOST_TENSORS]]
    rest = sum(t["bytes"] for t in tensors[MOST_TENSORS:])
    if rest:
        name = f"{len(tensors) - MOST_TENSORS} more tensors"
        rows.append({"name": name, "dtype": "", "shape": [], "bytes": rest, "share": rest / total})
    return rows


def facts(report: Report) -> list[tuple[str, str, str]]:
    """(name, value, note): the figures that matter, for the tiles and the comparison."""
    size = report.artifact.bytes / max(report.model.bytes, 1)
    found = [("Size", f"{size:.2f}×", f"{mb(report.model.bytes)} → {mb(report.artifact.bytes)}")]
    if report.metric:
        m = report.metric
        found.append((m.name, f"{m.quantized:.4f}", f"float {m.reference:.4f}, drop {m.drop:+.4f}"))
    if report.outputs:
        worst = min(report.outputs, key=lambda o: float("inf") if o.sqnr_db is None else o.sqnr_db)
        found.append(("Worst SQNR", db(worst.sqnr_db), f"output {worst.name}, cosine {worst.cosine:.5f}"))
    share = report.nodes.integer / max(report.nodes.total, 1)
    found.append(("Integer nodes", f"{share:.0%}", f"{report.nodes.integer} of {report.nodes.total}"))
    r = report.runtime
    if r is not None and r.latency_ms is not None and r.float_latency_ms is not None:
        found.append(
            ("Speed", f"{r.float_latency_ms / r.latency_ms:.2f}×", f"{r.float_latency_ms:.2f} → {r.latency_ms:.2f} ms")
        )
    if report.compiled:
        c = report.compiled
        total = c["npu_operators"] + c["cpu_operators"]
        note = f"{c['accelerator']}, {c['sram_kib']:.1f} KiB SRAM, {c['cycles']:,} cycles"
        found.append(("On the NPU", f"{c['npu_operators']} of {total}", note))
    return found


def _compared(sides: Sequence[Side]) -> list[tuple[str, list[str], bool]]:
    """(what, a value for each side, whether they differ): the facts, every output, the recipe and the versions."""
    columns: list[dict[str, str]] = []
    for side in sides:
        report = side.report
        column = {name: f"{value} ({note})" for name, value, note in facts(report)}
        column |= {f"SQNR of {o.name}": db(o.sqnr_db) for o in report.outputs}
        column |= {f"recipe: {k}": str(v) for k, v in report.recipe.items()}
        column |= {f"version: {k}": v for k, v in report.versions.items()}
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, [column.get(name, "none") for column in columns]) for name in names]
    kept = [(n, vs, len(set(vs)) > 1) for n, vs in rows if len(set(vs)) > 1 or not n.startswith(("recipe", "version"))]
    return kept


def decisions(report: Report) -> list[tuple[str, int]]:
    counted = Counter(node.decision for node in report.graph)
    order = ("integer", "folded", "dynamic", "stored", "bridge", "float")
    return [(name, counted[name]) for name in order if counted[name]]


def _template() -> Any:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ModuleNotFoundError:
        raise ToolError("the HTML report needs jinja2: pip install 'edgeq[report]'") from None

    def read(name: str) -> str:
        return importlib.resources.files("edgeq.report").joinpath("templates", name).read_text()

    made = Environment(loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters |= {"db": db, "mb": mb, "plain": lambda text: UNPRINTABLE.sub("�", str(text))}
    made.globals |= {"facts": facts, "decisions": decisions}
    made.finalize = lambda value: UNPRINTABLE.sub("�", value) if type(value) is str else value
    return made.get_template("report.html.j2")
