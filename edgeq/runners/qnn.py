"""Qualcomm's HTP (Hexagon) through onnxruntime-qnn: on x86-64 Linux its simulator, in an environment of its own.

Nothing falls back to the CPU: a model of which one node can't be placed is refused, as on the device.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeq.errors import ToolError
from edgeq.runners import process
from edgeq.runners.jobs import JobSession, local
from edgeq.runners.session import COMMON, options

TITLE = "Qualcomm HTP (QNN), simulated"
TIMED = False
PROVIDER = "QNNExecutionProvider"
PIN = "2.7.0"


def root() -> Path:
    return process.cache("qnn")


def missing() -> str | None:
    """None when the runtime can be used, else one line that says how to install it."""
    here = (root() / "stamp.json").exists()
    return None if here else "QNN runtime not installed: run `edgeq doctor --install qnn` (510 MB)"


def version() -> str:
    """The installed onnxruntime-qnn's version. Raises ToolError when it is not installed."""
    if line := missing():
        raise ToolError(line)
    return str(json.loads((root() / "stamp.json").read_text())["onnxruntime-qnn"])


def install(progress: Callable[[str], None]) -> None:
    """Makes the environment in the user's cache; nothing is done when this version is there already."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ToolError("the HTP simulator of onnxruntime-qnn runs on x86-64 Linux only")
    if not missing() and version() == PIN:
        progress(f"onnxruntime-qnn {PIN} already installed in {root()}")
        return
    with process.built_once(root()) as folder:
        progress(f"fetching onnxruntime-qnn {PIN} (510 MB)")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--target", str(folder / "site")]
        process.run([*pip, f"onnxruntime-qnn=={PIN}", "numpy"], what="pip install", timeout=1800)
        (folder / "stamp.json").write_text(json.dumps({"onnxruntime-qnn": PIN}))
    progress(f"onnxruntime-qnn {PIN} in {root()}")


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: optimization, threads, timeout; proof=True adds to the session's `report` placement.

    soc: Qualcomm's number of the chip to simulate: "43" is SM8550, "57" SM8650; the library's own choice, "0", is a
    chip with so little memory that models of a few megabytes don't fit. Raises RecipeError, ToolError.
    """
    chosen = options("qnn", given, {**COMMON, "soc": "43", "proof": False})
    if line := missing():
        raise ToolError(line)
    site = root() / "site"
    env = {"PYTHONPATH": str(site), "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    launch = local([sys.executable, "-S", "-s"], "qnn", chosen["timeout"], env)
    htp = {"backend_path": str(site / "onnxruntime_qnn" / "libQnnHtp.so"), "soc_model": chosen["soc"]}
    settings = {
        "providers": [(PROVIDER, htp)],
        "config": {"session.disable_cpu_ep_fallback": "1"},
        "plugin": "onnxruntime_qnn",
    }
    return JobSession(model, "qnn", launch, chosen, settings=settings, needs=PROVIDER, proof=chosen["proof"])
