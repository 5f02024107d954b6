"""onnxruntime's CPU provider, which has few kernels of bfloat16: what is to be that is rounded behind each operator.

For float models that came in it, and artifacts whose own runtime isn't here; all others run as on `edgeq.runners.cpu`.
"""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any

from edgeq.errors import ModelError
from edgeq.graph.io import load, save
from edgeq.graph.rounded import rounded
from edgeq.runners import cpu

TITLE = cpu.TITLE
TIMED = False
STREAMS = cpu.STREAMS
missing, version = cpu.missing, cpu.version


def open_session(model: Path, **given: Any) -> cpu.CpuSession:
    """Options, and what is raised, as of `edgeq.runners.cpu`: optimization, threads, timeout and its own."""
    try:
        return cpu.open_session(model, **given)
    except ModelError:
        made = load(Path(model))
        if not rounded(made):
            raise
    work = tempfile.TemporaryDirectory(prefix="edgeq-")
    path = Path(work.name) / Path(model).name
    save(made, path)
    session = cpu.open_session(path, **given)
    weakref.finalize(session, work.cleanup)  # it reads the file again for taps
    return session
