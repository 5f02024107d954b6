"""Arm's Vela compiler: what of an int8 .tflite file an Ethos-U runs itself, and what that takes."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeq.errors import ToolError
from edgeq.graph.io import one_line

TIMEOUT = 900
INSTALL = "Vela is not installed, so the NPU's share is unknown: pip install ethos-u-vela"


def compile(artifact: Path, options: dict[str, str]) -> dict[str, Any]:
    """Write `STEM_vela.tflite` beside the artifact, and give figures of it.

    options: `accelerator`, such as ethos-u55-128.
    npu_operators, cpu_operators: counts. sram_kib: the tensor arena. cycles: of one inference, estimated. Raises
    ToolError when Vela is missing or declines the file.
    """
    tool = shutil.which("vela", path=str(Path(sys.executable).parent)) or shutil.which("vela")
    if tool is None:
        raise ToolError(INSTALL)
    accelerator = options.get("accelerator", "ethos-u55-128")
    with tempfile.TemporaryDirectory(prefix="edgeq-vela-") as work:
        command = [tool, str(artifact), "--output-dir", work, "--accelerator-config", accelerator]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        tables = list(Path(work).glob("*_summary_*.csv"))
        if done.returncode or not tables:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
            raise ToolError(f"{artifact.name}: Vela can't compile it ({one_line(ToolError(last[-1]))})")
        row = next(csv.DictReader(tables[0].read_text().splitlines()))
        compiled = Path(work) / f"{artifact.stem}_vela.tflite"
        shutil.move(compiled, artifact.with_name(compiled.name))
    return {
        "compiler": "Vela",
        "accelerator": accelerator,
        "npu_operators": _count(done.stdout, "NPU operators"),
        "cpu_operators": _count(done.stdout, "CPU operators"),
        "sram_kib": float(row["sram_memory_used"]),
        "cycles": int(float(row["cycles_total"])),
        "macs": int(float(row["nn_macs"])),
    }


def _count(text: str, what: str) -> int:
    """From a line such as `NPU operators = 59 (96.7%)`."""
    found = next((line for line in text.splitlines() if line.strip().startswith(what)), "= 0")
    return int(found.split("=")[1].split()[0])
