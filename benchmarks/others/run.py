"""Run the models in processes with a time limit, and print a table.

python -m benchmarks.others [--source node --source light …] [--every 12] [--only NAME] [--out rows.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.others import cases as stored
from benchmarks.others import made
from benchmarks.others.attempt import DECLINED, FAILED, FLOAT, QUANTIZED, WAYS, Row, attempt
from benchmarks.others.cases import Case

SOURCES = {**stored.SOURCES, "torch": made.torch_models, "scikit-learn": made.sklearn_models,
           "tf2onnx": made.tensorflow_models}  # fmt: skip
TOGETHER, LIMIT = 20, 900.0  # models in one process, and its seconds
CONTEXT = multiprocessing.get_context("forkserver")


def work(cases: list[Case], result: Path) -> None:
    """In a process of its own: the rows of each case as a line of JSON, as soon as they are there."""
    with open(result, "a") as stream:
        for case in cases:
            stream.write(json.dumps([asdict(row) for row in attempt(case)]) + "\n")
            stream.flush()


def limited(cases: list[Case], limit: float = LIMIT) -> list[Row]:
    """The rows of some cases. One that kills its process, or takes too long, gets a row that says so."""
    rows: list[Row] = []
    while cases:
        with tempfile.TemporaryDirectory(prefix="others-") as folder:
            result = Path(folder) / "rows.json"
            process = CONTEXT.Process(target=work, args=(cases, result))
            process.start()
            process.join(limit)
            why = f"over {limit:.0f} s" if process.is_alive() else f"died with exit code {process.exitcode}"
            process.kill()
            process.join()
            done = [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []
        rows += [Row(**row) for case in done for row in case]
        if len(done) < len(cases):
            failed = cases[len(done)]
            rows.append(Row(failed.name, failed.source, "", "", FAILED, why))
            done.append(failed)
        cases = cases[len(done) :]
    return rows


def run(cases: list[Case], jobs: int) -> list[Row]:
    """The rows of all cases, in order."""
    CONTEXT.set_forkserver_preload(["benchmarks.others.run", "edgeq.pipeline"])
    parts = [cases[i : i + TOGETHER] for i in range(0, len(cases), TOGETHER)]
    with ThreadPoolExecutor(jobs) as pool:
        return [row for rows in pool.map(limited, parts) for row in rows]


def table(rows: list[Row]) -> str:
    """Models by source: each outcome counts a way of a model."""
    lines = ["| models of | models | runs | quantized | float | declined | failed |", "|---|---|---|---|---|---|---|"]
    for source in dict.fromkeys(row.source for row in rows):
        mine = [row for row in rows if row.source == source]
        count = Counter(row.outcome for row in mine)
        names = len({row.name for row in mine})
        lines.append(
            f"| {source} | {names} | {len(mine)} | {count[QUANTIZED]} | {count[FLOAT]} | {count[DECLINED]} "
            f"| {count[FAILED]} |"
        )
    return "\n".join(lines)


def reasons(rows: list[Row]) -> str:
    """Why models were declined: how many, and one of them."""
    counted: dict[str, set[str]] = {}
    for row in rows:
        if row.outcome == DECLINED:
            counted.setdefault(row.why, set()).add(row.name)
    ordered = sorted(counted.items(), key=lambda item: (-len(item[1]), item[0]))
    head = ["| declined because | models | such as |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {why.replace('|', '/')} | {len(n)} | {min(n)} |" for why, n in ordered)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", action="append", choices=list(SOURCES), help="by default all")
    parser.add_argument("--every", type=int, default=1, help="each n-th model")
    parser.add_argument("--only", help="models whose name holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="a JSON file of all rows")
    given = parser.parse_args()
    cases = [case for name in given.source or SOURCES for case in SOURCES[name]()]
    cases = [case for case in cases if given.only is None or given.only in case.name][:: given.every]
    rows = run(cases, given.jobs)
    if given.out is not None:
        given.out.write_text(json.dumps([asdict(row) for row in rows]))
    print(table(rows), reasons(rows), f"{len(WAYS)} ways: {', '.join(f'{t} {m}' for t, m in WAYS)}", sep="\n\n")
    for row in rows:
        if row.outcome == FAILED:
            print(f"FAILED {row.name} {row.target} {row.method}: {row.why}")
