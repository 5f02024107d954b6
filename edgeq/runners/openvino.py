"""OpenVINO's CPU plugin, held to float32 arithmetic where it is not asked for integers by Q/DQ nodes."""

from __future__ import annotations

import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from edgeq.errors import ToolError
from edgeq.runners.jobs import JobSession, local
from edgeq.runners.session import COMMON, options

TITLE = "OpenVINO"
TIMED = True


def missing() -> str | None:
    """None when the runtime can be used, else one line that says how to install it."""
    return None if util.find_spec("openvino") else "OpenVINO is not installed: run `pip install openvino`"


def version() -> str:
    """The installed openvino's version. Raises ToolError when it is not installed."""
    if line := missing():
        raise ToolError(line)
    return metadata.version("openvino")


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: threads, timeout (optimization is ignored: it has no such levels). Raises RecipeError, ToolError."""
    chosen = options("openvino", given, COMMON)
    if line := missing():
        raise ToolError(line)
    launch = local([sys.executable], "openvino", chosen["timeout"])
    # Left to itself it takes bfloat16 on CPUs that have it, and is then no reference for anything.
    settings = {"device": "CPU", "config": {"INFERENCE_PRECISION_HINT": "f32"}}
    return JobSession(model, "openvino", launch, chosen, engine="openvino", settings=settings)
