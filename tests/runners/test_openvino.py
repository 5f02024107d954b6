from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import RecipeError, ToolError
from edgeq.runners import openvino
from tests.require import kernels_like_a_targets, require
from tests.runners import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    require("openvino", "pip install openvino")
    return tiny.qdq_conv(tmp_path / "tiny.onnx")


def test_at_most_one_step_from_this_machine(model: Path) -> None:
    kernels_like_a_targets()
    session = openvino.open_session(model)
    feeds = tiny.samples(4)
    for given, got in zip(feeds, session.run_many(feeds), strict=True):
        steps = np.rint(np.abs(got["y"] - tiny.here(model, given)) / 0.05)
        assert steps.max() <= 1
        assert (steps != 0).mean() < 0.01
    assert session.report["version"].startswith(openvino.version().rsplit(".", 1)[0])


def test_values_inside_the_graph_can_be_read(model: Path) -> None:
    given = tiny.samples(1)[0]
    got = openvino.open_session(model).run(given, taps=["yq"])
    assert got["yq"].dtype == np.uint8
    np.testing.assert_allclose(got["yq"] * np.float32(0.05), got["y"], rtol=1e-6)


def test_a_model_it_cannot_read_is_one_line(model: Path) -> None:
    with pytest.raises(ToolError, match=r"^openvino: ") as raised:
        openvino.open_session(model).run({"x": np.zeros((1, 3, 5, 5), np.float32)})
    assert "\n" not in str(raised.value)
    with pytest.raises(RecipeError, match="no option 'device'"):
        openvino.open_session(model, device="GPU")


def test_time_limit(model: Path) -> None:
    with pytest.raises(ToolError, match=r"openvino: stopped after 0\.05 s"):
        openvino.open_session(model, timeout=0.05).run(tiny.samples(1)[0])
