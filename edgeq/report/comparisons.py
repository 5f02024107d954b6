"""Tables of one artifact at several places, and of several models at one."""

from __future__ import annotations

from typing import Any

from edgeq.report.schema import Bench, PlaceRow, Verification
from edgeq.report.tables import db, mb, plain, table


def matrix_table(found: Verification) -> list[Any]:
    """A line for each output at each place, and the worst of them."""
    rows = [(row.target if i == 0 else "", *_cells(row, i)) for row in found.matrix for i in range(len(row.outputs))]
    columns = ["target", "runtime", "output", "SQNR", "apart", "steps", "bits", "latency"]
    columns += [found.metric.name] if found.metric else []
    title = f"{found.samples} samples; apart, steps and bits: from {found.matrix[0].target}"
    shown: list[Any] = [table(title, columns, rows, right=(3, 4, 5, 7, 8))]
    every = [(output, row) for row in found.matrix for output in row.outputs if output.sqnr_db is not None]
    if every:
        output, row = min(every, key=lambda pair: pair[0].sqnr_db or 0.0)
        shown.append(plain(f"worst: {output.name} on {row.target}, {db(output.sqnr_db)}"))
    for row in found.matrix:
        if row.kernels:
            counted = ", ".join(f"{count} {op}" for op, count in row.kernels.items())
            shown.append(plain(f"{row.target} runs {counted}"))
    return shown


def _cells(row: PlaceRow, index: int) -> tuple[str, ...]:
    output, runtime = row.outputs[index], row.runtime
    name = f"{runtime.name} {runtime.version}" + (" (stands in)" if row.stand_in else "")
    time = "" if runtime.latency_ms is None or row.stand_in else f"{runtime.latency_ms:.2f} ms"
    steps = "-" if output.steps is None else str(output.steps)
    bits = "same" if output.identical else "differ"
    metric = f"{row.metric.quantized:.4f}" if row.metric else ""
    if index:
        name = time = metric = ""
    found = (name, output.name, db(output.sqnr_db), f"{output.apart:.3g}", steps, bits, time)
    return (*found, metric) if row.metric else found


def bench_table(found: Bench) -> list[Any]:
    """A line for each model and thread count."""
    rows = [
        (r.model, r.threads, mb(r.bytes), *(f"{t:.3f}" for t in (r.latency_ms, r.low_ms, r.high_ms)), f"{r.ratio:.2f}×")
        for r in found.rows
    ]
    fed = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in found.inputs.items())
    where = f"{found.runtime.name} {found.runtime.version}, {found.place} ({found.machine})"
    columns = ("model", "threads", "size", "median ms", "quarter", "three quarters", "speed-up")
    return [table(f"{where}; {found.rounds} rounds, {fed}", columns, rows, right=(1, 2, 3, 4, 5, 6))]
