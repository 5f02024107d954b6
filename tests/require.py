"""`require("litert", "pip install edgeq[litert]")`: skip where a runtime is missing, fail where it must be there.

The environment variable EDGEQ_REQUIRE lists, separated by commas, what must be present (`all` for everything);
CI sets it, so that a runtime which silently went missing cannot turn its tests into skips.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from edgeq.runners.cpu import saturates

SATURATES = saturates()


def required(name: str) -> bool:
    listed = {n.strip() for n in os.environ.get("EDGEQ_REQUIRE", "").split(",")}
    return name in listed or "all" in listed


def require(name: str, install: str, present: Callable[[], bool] | None = None) -> None:
    """Skip (or fail) the calling test or module unless `present()`; by default, unless `name` can be imported."""
    if present() if present else find_spec(name) is not None:
        return
    if required(name):
        pytest.fail(f"{name} must be here (EDGEQ_REQUIRE) and is not: {install}", pytrace=False)
    pytest.skip(f"{name} is not installed: {install}", allow_module_level=True)


def kernels_like_a_targets() -> None:
    """Skip the calling test on a machine without VNNI: where it runs what is not this process's, sums saturate."""
    if SATURATES:
        pytest.skip("this machine's own kernels saturate: run it on a processor with VNNI, or an Arm one")
