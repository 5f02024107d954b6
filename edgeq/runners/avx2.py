"""onnxruntime as it runs on an x86-64 CPU without VNNI: this machine, if it is one, or else emulated by qemu (Haswell).

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
from edgeq.runners.session import COMMON, Feeds, Session, options

HERE = cpu.saturates()
"""Whether this machine is one."""
TITLE = "onnxruntime CPU with AVX2" if HERE else "onnxruntime CPU with AVX2, emulated"
TIMED = HERE  # an emulator's seconds say nothing about a machine's
STREAMS = HERE
CPU = "Haswell-noTSX"
QEMU = "qemu-x86_64"


def missing() -> str | None:
    """None when the runtime can be used, else one line that says how to get it."""
    if HERE:
        return None
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "a CPU without VNNI is emulated on x86-64 Linux only"
    return None if shutil.which(QEMU) else f"the emulation needs {QEMU}: run `apt install qemu-user`"


def version() -> str:
    """Of this environment's onnxruntime, which is what runs. Raises ToolError when it can't be emulated."""
    if line := missing():
        raise ToolError(line)
    return cpu.version()


def open_session(model: Path, **given: Any) -> Session:
    """Options: optimization, threads, timeout, and on a machine without VNNI those of `cpu`. Raises ToolError."""
    return cpu.open_session(model, **given | {"exact": False}) if HERE else _emulated(model, **given)


def _emulated(model: Path, **given: Any) -> JobSession:
    chosen = options("avx2", given, {**COMMON, "proof": False})
    if line := missing():
        raise ToolError(line)

    def launch(folder: Path) -> None:
        argv = [QEMU, "-cpu", CPU, sys.executable, CHILD.name, "."]
        process.run(argv, what="avx2", timeout=chosen["timeout"], cwd=folder)

    return JobSession(model, "avx2", launch, chosen, proof=chosen["proof"])


def optimized(model: Path, feeds: Feeds, **given: Any) -> ir.Model:
    """The graph that this runtime really runs, after every optimization. Raises what `open_session` and `run` raise."""
    if HERE:
        return cpu.optimized(model, feeds, **given | {"exact": False})
    return jobs.optimized(_emulated(model, proof=True, **given), feeds)
