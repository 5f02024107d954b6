"""LiteRT, the runtime of `.tflite` files, in a process of its own (a damaged file can end the interpreter)."""

from __future__ import annotations

import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from edgeq.errors import ModelError, ToolError
from edgeq.runners.jobs import JobSession, local
from edgeq.runners.session import COMMON, options

TITLE = "LiteRT (TensorFlow Lite)"
TIMED = True
# default: the runtime's own choice, XNNPACK where it can; builtin: its other fast kernels; reference: plain loops
KERNELS = {"default": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}


def missing() -> str | None:
    """None when the runtime can be used, else one line that says how to install it."""
    found = util.find_spec("ai_edge_litert")
    return None if found else "LiteRT is not installed: run `pip install edgeq[litert]`"


def version() -> str:
    """The installed ai-edge-litert's version. Raises ToolError when it is not installed."""
    if line := missing():
        raise ToolError(line)
    return metadata.version("ai-edge-litert")


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: threads, timeout (optimization is ignored); kernels, one of `KERNELS`; python, another interpreter.

    `python` may be that of an environment with tflite-runtime, which can't live beside NumPy 2. Inputs, outputs and
    taps are tensor names. Raises RecipeError, ModelError, ToolError.
    """
    defaults = {**COMMON, "kernels": "default", "python": sys.executable}
    chosen = options("litert", given, defaults, {"kernels": tuple(KERNELS)})
    if line := missing():
        raise ToolError(line)
    launch = local([chosen["python"]], "litert", chosen["timeout"])
    settings = {"resolver": KERNELS[chosen["kernels"]]}
    return JobSession(model, "litert", launch, chosen, engine="litert", settings=settings, names=signature(model))


def signature(model: Path) -> tuple[list[str], list[str]]:
    """The names of the input and output tensors of a `.tflite` file's first subgraph. Raises ModelError."""
    from ai_edge_litert import schema_py_generated as schema  # large; and only here when LiteRT is installed

    try:
        data = model.read_bytes()
        if not schema.Model.ModelBufferHasIdentifier(data, 0):
            raise ModelError(f"{model}: not a .tflite file (its identifier TFL3 is missing)")
        graph = schema.Model.GetRootAs(data, 0).Subgraphs(0)
        inputs = [graph.Tensors(graph.Inputs(i)).Name().decode() for i in range(graph.InputsLength())]
        outputs = [graph.Tensors(graph.Outputs(i)).Name().decode() for i in range(graph.OutputsLength())]
    except ModelError:
        raise
    except Exception as error:  # a damaged flatbuffer ends in struct, index, type or decoding errors
        raise ModelError(f"{model}: not a readable .tflite file: {error}") from error
    return inputs, outputs
