"""onnxruntime's CPU provider, which has no kernel of bfloat16: what is to be that is rounded behind each operator.

For targets whose own runtime has such kernels and isn't here; everything else runs as on `edgeq.runners.cpu`.
"""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any

from edgeq.graph.io import load, save
from edgeq.graph.rounded import rounded
from edgeq.runners import cpu

TITLE = cpu.TITLE
TIMED = False
STREAMS = cpu.STREAMS
missing, version = cpu.missing, cpu.version


def open_session(model: Path, **given: Any) -> cpu.CpuSession:
    """Options, and what is raised, as of `edgeq.runners.cpu`."""
    made = load(Path(model))
    if not rounded(made):
        return cpu.open_session(model, **given)
    work = tempfile.TemporaryDirectory(prefix="edgeq-")
    path = Path(work.name) / Path(model).name
    save(made, path)
    session = cpu.open_session(path, **given)
    weakref.finalize(session, work.cleanup)  # it reads the file again for taps
    return session
