"""LiteRT, the runtime of `.tflite` files, in a process of its own (a damaged file can end the interpreter)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.errors import ModelError, ToolError
from edgeq.formats.tflite_convert import LAYOUT_KEY
from edgeq.formats.tflite_file import TfModel
from edgeq.formats.tflite_read import read
from edgeq.runners.jobs import JobSession, local
from edgeq.runners.session import COMMON, Feeds, Outputs, Session, options

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


def open_session(model: Path, **given: Any) -> Session:
    """Options: threads, timeout (optimization is ignored); kernels, one of `KERNELS`; python, another interpreter.

    `python` may be that of an environment with tflite-runtime, which can't live beside NumPy 2. Inputs and outputs are
    those of the file's signature, images as NCHW where edgeq wrote them so, or else tensor names; taps are tensor
    names. Raises RecipeError, ModelError, ToolError.
    """
    defaults = {**COMMON, "kernels": "default", "python": sys.executable}
    chosen = options("litert", given, defaults, {"kernels": tuple(KERNELS)})
    if line := missing():
        raise ToolError(line)
    launch = local([chosen["python"]], "litert", chosen["timeout"])
    settings = {"resolver": KERNELS[chosen["kernels"]]}
    found = _read(model)
    names = (list(found.inputs), list(found.outputs))
    opened = JobSession(model, "litert", launch, chosen, engine="litert", settings=settings, names=names)
    return Signed(opened, found) if found.signatures else opened


def _read(model: Path) -> TfModel:
    try:
        return read(model.read_bytes())
    except (OSError, ModelError) as error:
        raise ModelError(f"{model}: not a readable .tflite file ({error})") from None


class Signed:
    """A session by the names of a file's first signature; images go in and come out as NCHW, as the model had them."""

    def __init__(self, opened: JobSession, model: TfModel) -> None:
        self._opened, signature = opened, model.signatures[0]
        self._inputs, self._outputs = signature.inputs, signature.outputs
        layout = json.loads(model.metadata.get(LAYOUT_KEY, b"{}"))
        self._images = {name for name, kind in layout.items() if kind == "NHWC"}
        self._dtypes = {t.name: t.dtype for t in model.tensors}
        self.outputs = tuple(self._outputs)

    @property
    def report(self) -> dict[str, Any]:
        return self._opened.report

    @property
    def latency_ms(self) -> float | None:
        return self._opened.latency_ms

    def run(self, feeds: Feeds, taps: Sequence[str] = ()) -> Outputs:
        return next(self.run_many([feeds], taps))

    def run_many(self, batches: Iterable[Feeds], taps: Sequence[str] = ()) -> Iterator[Outputs]:
        for found in self._opened.run_many(map(self._given, batches), taps):
            named = {name: found[tensor] for name, tensor in self._outputs.items()}
            turned = {n: a.transpose(0, 3, 1, 2) if n in self._images else a for n, a in named.items()}
            yield {**turned, **{tap: found[tap] for tap in taps}}

    def _given(self, feeds: Feeds) -> Feeds:
        """By tensor name, of the tensor's type: TFLite has int32 where ONNX has int64."""
        given = {}
        for name, tensor in self._inputs.items():
            if name not in feeds:
                raise ModelError(f"{self._opened.model}: no array was given for the input {name!r}")
            array = feeds[name].transpose(0, 2, 3, 1) if name in self._images else feeds[name]
            given[tensor] = array.astype(self._dtypes[tensor]) if array.dtype == np.int64 else array
        return given

    def close(self) -> None:
        self._opened.close()
