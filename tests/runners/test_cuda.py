import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import RecipeError, ToolError
from edgeq.runners import cuda
from edgeq.runners.jobs import JobSession, local
from edgeq.runners.session import COMMON
from tests.require import require
from tests.runners import tiny


def test_without_the_provider_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "pip install onnxruntime-gpu" in str(cuda.missing())
    with pytest.raises(ToolError, match="has no CUDAExecutionProvider"):
        cuda.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"))
    with pytest.raises(RecipeError, match="tf32='yes' must be of type bool"):
        cuda.open_session(tmp_path, tf32="yes")


def test_a_silent_fall_back_to_the_cpu_is_an_error(tmp_path: Path) -> None:
    launch = local([sys.executable], "cuda", 60)
    session = JobSession(tiny.qdq_conv(tmp_path / "tiny.onnx"), "cuda", launch, COMMON, needs=cuda.PROVIDER)
    with pytest.raises(ToolError, match="cuda: CUDAExecutionProvider could not be started"):
        session.run(tiny.samples(1)[0])


def test_on_a_gpu(tmp_path: Path) -> None:
    require("cuda", "pip install onnxruntime-gpu", lambda: cuda.missing() is None)
    model = tiny.qdq_conv(tmp_path / "tiny.onnx")
    session = cuda.open_session(model, proof=True)
    given = tiny.samples(1)[0]
    steps = np.rint(np.abs(session.run(given)["y"] - tiny.here(model, given)) / 0.05)
    assert steps.max() <= 1
    assert session.report["placement"][cuda.PROVIDER] > 0
