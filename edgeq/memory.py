"""Memory that is free goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """To be called between long steps: so that what the last one needed is not added to what the next one does.

    Graphs are cycles, which wait for the collector, and glibc keeps what is freed between blocks that live. After a
    session of onnxruntime that is more than a model's weights. With other C libraries only the first is done.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
