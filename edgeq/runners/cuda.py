"""onnxruntime's CUDA execution provider, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edgeq.errors import ToolError
from edgeq.runners.jobs import JobSession, local
from edgeq.runners.session import COMMON, options

TITLE = "onnxruntime CUDA"
TIMED = True
PROVIDER = "CUDAExecutionProvider"


def missing() -> str | None:
    """None when the provider is built in, else one line; whether a GPU answers shows when a session runs."""
    import onnxruntime

    if PROVIDER in onnxruntime.get_available_providers():
        return None
    return f"this onnxruntime has no {PROVIDER}: `pip uninstall onnxruntime`, then `pip install onnxruntime-gpu`"


def version() -> str:
    """The installed onnxruntime's version. Raises ToolError when it has no CUDA."""
    import onnxruntime

    if line := missing():
        raise ToolError(line)
    return str(onnxruntime.__version__)


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: optimization, threads, timeout; device, the GPU as CUDA numbers it; tf32=True for TensorFloat-32;

    proof=True adds to the session's `report` ops and placement: how many nodes ran on the GPU, and how many did not.
    Raises RecipeError, ToolError (in `run`, too, when the provider is there and its GPU or libraries are not).
    """
    defaults = {**COMMON, "device": "0", "tf32": False, "proof": False}
    chosen = options("cuda", given, defaults)
    if line := missing():
        raise ToolError(line)
    launch = local([sys.executable], "cuda", chosen["timeout"])
    gpu = {"device_id": str(chosen["device"]), "use_tf32": str(int(chosen["tf32"]))}
    settings = {"providers": [(PROVIDER, gpu), ("CPUExecutionProvider", {})], "config": {}, "plugin": ""}
    return JobSession(model, "cuda", launch, chosen, settings=settings, needs=PROVIDER, proof=chosen["proof"])
