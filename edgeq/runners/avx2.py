"""onnxruntime as it runs on an x86-64 CPU without VNNI: this machine's own, under qemu's emulation of a Haswell.

onnxruntime picks its kernels by CPUID, so they are those of AVX2, saturating sums of u8·s8 products included.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeq.errors import ToolError
from edgeq.runners import cpu, jobs, process
from edgeq.runners.jobs import CHILD, JobSession
from edgeq.runners.session import COMMON, Feeds, options

TITLE = "onnxruntime CPU with AVX2, emulated"
TIMED = False  # an emulator's seconds say nothing about a machine's
CPU = "Haswell-noTSX"
QEMU = "qemu-x86_64"


def missing() -> str | None:
    """None when the runtime can be used, else one line that says how to get it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "a CPU without VNNI is emulated on x86-64 Linux only"
    return None if shutil.which(QEMU) else f"the emulation needs {QEMU}: run `apt install qemu-user`"


def version() -> str:
    """Of the onnxruntime that is emulated, this environment's own. Raises ToolError when it can't be emulated."""
    if line := missing():
        raise ToolError(line)
    return cpu.version()


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: optimization, threads, timeout; proof=True adds to the session's `report` ops. Raises ToolError."""
    chosen = options("avx2", given, {**COMMON, "proof": False})
    if line := missing():
        raise ToolError(line)

    def launch(folder: Path) -> None:
        argv = [QEMU, "-cpu", CPU, sys.executable, CHILD.name, "."]
        process.run(argv, what="avx2", timeout=chosen["timeout"], cwd=folder)

    return JobSession(model, "avx2", launch, chosen, proof=chosen["proof"])


def optimized(model: Path, feeds: Feeds, **given: Any) -> ir.Model:
    """The graph that this runtime really runs, after every optimization. Raises what `open_session` and `run` raise."""
    return jobs.optimized(open_session(model, proof=True, **given), feeds)
