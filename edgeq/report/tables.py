"""Tables for the terminal. Names come from models, so every cell is plain text without control characters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from edgeq.planning.coverage import Coverage
from edgeq.planning.plan import FLOAT, Plan
from edgeq.report.printable import UNPRINTABLE
from edgeq.report.schema import OutputDrift, Report, Tuning, Verification


def plain(value: Any) -> Text:
    """A cell that no markup or escape sequence of a hostile name can reach out of."""
    return Text(UNPRINTABLE.sub("�", str(value)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> Table:
    heading = plain(title)
    heading.stylize("bold")
    made = Table(title=heading if title else None, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*[plain(cell) for cell in row])
    return made


def db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def mb(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def result_table(report: Report, folder: Path) -> list[Any]:
    """Size, accuracy, SQNR, integer coverage, and where the artifact lies."""
    before, after = report.model.bytes, report.artifact.bytes
    rows = [("size", f"{mb(before)} → {mb(after)} ({after / max(before, 1):.2f}×)")]
    if report.metric:
        metric = report.metric
        rows.append((metric.name, f"{metric.reference:.4f} → {metric.quantized:.4f} (drop {metric.drop:+.4f})"))
    rows += [(f"SQNR of {o.name}", f"{db(o.sqnr_db)}, cosine {o.cosine:.5f}") for o in report.outputs[:4]]
    nodes = report.nodes
    kind, count = ("nodes in half precision", nodes.half) if nodes.half else ("integer nodes", nodes.integer)
    rows.append((kind, f"{count} of {nodes.total}; {len(nodes.float)} run in float, see report.json"))
    if report.runtime:
        rows.append(("verified on", f"{report.runtime.name} {report.runtime.version}"))
    if report.compiled:
        c = report.compiled
        share = f"{c['npu_operators']} of {c['npu_operators'] + c['cpu_operators']} operators"
        costs = f"{c['sram_kib']:.1f} KiB SRAM, {c['cycles']:,} cycles"
        rows.append((f"{c['compiler']}, {c['accelerator']}", f"{share} on the NPU, {costs}"))
    rows.append(("artifact", str(folder / report.artifact.file)))
    return [table(f"{report.model.file} for {report.target}", ("", ""), rows), *_warnings(report.warnings)]


def _warnings(warnings: Sequence[str]) -> list[Any]:
    return [Text("warning: ", style="yellow") + plain(line) for line in warnings]


def verify_table(found: Verification) -> list[Any]:
    """Every output's drift, the metric, the optimization levels, and the warnings."""
    rows = [(o.name, db(o.sqnr_db), f"{o.cosine:.6f}", f"{o.max_abs:.4g}", _lost(o)) for o in found.outputs]
    shown: list[Any] = [
        table(f"{found.samples} samples on {found.runtime.name} {found.runtime.version}",
              ("output", "SQNR", "cosine", "max |Δ|", "lost slices"), rows, right=(1, 2, 3))
    ]  # fmt: skip
    if found.metric:
        m = found.metric
        shown.append(plain(f"{m.name}: float {m.reference:.4f}, quantized {m.quantized:.4f}, drop {m.drop:+.4f}"))
    if found.levels:
        shown.append(plain("optimization levels: " + ", ".join(f"{k} {db(v)}" for k, v in found.levels.items())))
    return shown + _warnings(found.warnings)


def _lost(output: OutputDrift) -> str:
    return ", ".join(f"axis {s.axis}[{s.index}]" for s in output.lost_slices[:6]) or "none"


def failure_table(found: Verification) -> list[Any]:
    """The worst layers, worst first."""
    worst = sorted(found.layers, key=lambda row: 1e9 if row.sqnr_db is None else row.sqnr_db)[:10]
    rows = [(row.name, row.op, db(row.sqnr_db)) for row in worst]
    return [table("worst layers", ("node", "op", "SQNR"), rows, right=(2,))] if rows else []


def tuning_table(found: Tuning) -> list[Any]:
    """What was tried, what it gave, and what it took."""
    rows = []
    for t in found.trials:
        time = "found" if not t.seconds and not t.problem else f"{t.seconds:.1f} s"
        if t.problem:
            rows.append((t.step, t.problem, "", "", "", "", "", time, ""))
            continue
        figures = (
            f"{t.value:.4f}",
            f"{t.drop:+.4f}",
            f"{t.sqnr_db:.1f} dB",
            mb(t.bytes),
            f"{t.integer:.0%}",
            f"{t.energy:.3g} mJ",
            time,
        )
        mark = "taken" if t.digest == found.best else "better" if t.kept else ""
        rows.append((t.step, *figures, mark))
    name = next((t.metric for t in found.trials if t.metric), "metric")
    columns = ("step", name, "drop", "worst SQNR", "size", "integer MACs", "energy", "time", "")
    return [table("", columns, rows, right=(1, 2, 3, 4, 5, 6, 7)), plain(found.sentence)]


def sensitivity_table(report: Report) -> list[Any]:
    """The nodes whose rounding does most."""
    rows = [(s.name, s.op, db(-10 * math.log10(s.error) if s.error else None)) for s in report.sensitivity[:10]]
    return [table("alone, these cost most", ("node", "op", "SQNR"), rows, right=(2,))] if rows else []


def plan_table(made: Plan) -> list[Any]:
    """A line a node, and the totals."""
    specs = {w.node: w.spec for w in made.weights}
    rows = [
        (n.name, n.op, n.decision, n.reason or (f"weights {specs[n.name].dtype}" if n.name in specs else ""))
        for n in made.nodes
    ]
    counts = ", ".join(f"{count} {decision}" for decision, count in sorted(made.counts().items()))
    reasons = Counter(n.reason for n in made.nodes if n.decision == FLOAT)
    top = [(count, reason) for reason, count in reasons.most_common(8)]
    return [
        table(f"plan for {made.target}, {made.method}", ("node", "op", "gets", "why"), rows),
        table("why nodes stay float", ("nodes", "reason"), top, right=(0,)),
        plain(f"{len(made.nodes)} nodes: {counts}; {len(made.observed())} values to calibrate"),
        *_warnings(made.warnings),
    ]


def coverage_table(found: Sequence[Coverage], reasons: int = 3) -> list[Any]:
    """A line a target: nodes of each kind, the integer share of multiply-accumulates, pieces, and the top reasons."""
    rows: list[tuple[Any, ...]] = []
    for row in found:
        if row.problem:
            rows.append((row.target, row.method, "", "", "", "all", "", "", row.problem))
            continue
        why = "; ".join(f"{count}× {reason}" for count, reason in row.reasons[:reasons])
        counts = (row.nodes["integer"], f"{row.share('integer'):.0%}", row.nodes["float"], row.nodes["refused"])
        rows.append((row.target, row.method, *counts, row.islands, row.crossings, why))
    columns = ("target", "method", "integer", "of MACs", "float", "refused", "islands", "crossings", "why not integer")
    return [table("", columns, rows, right=(2, 3, 4, 5, 6, 7))]


def listing(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Rows of equal keys as one table."""
    if not rows:
        return [plain("none")]
    return [table("", tuple(rows[0]), [tuple(row.values()) for row in rows])]
