from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeq import pipeline
from edgeq.errors import ToolError
from edgeq.runners import qnn
from edgeq.verifying.verification import verify_files
from tests.require import require
from tests.runners import tiny
from tests.runners.test_same_bits import BUILDERS


def test_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    assert qnn.missing() == "QNN runtime not installed: run `edgeq doctor --install qnn` (510 MB)"
    with pytest.raises(ToolError, match="edgeq doctor --install qnn"):
        qnn.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ToolError, match="x86-64 Linux only"):
        qnn.install(lambda line: None)


def present() -> None:
    require("qnn", "edgeq doctor --install qnn", lambda: qnn.missing() is None)


def test_the_whole_graph_runs_on_the_simulator(tmp_path: Path) -> None:
    present()
    model = tiny.qdq_conv(tmp_path / "tiny.onnx")
    session = qnn.open_session(model, proof=True)
    feeds = tiny.samples(2)
    for given, got in zip(feeds, session.run_many(feeds), strict=True):
        steps = np.rint(np.abs(got["y"] - tiny.here(model, given)) / 0.05)
        assert steps.max() <= 1
        assert (steps != 0).mean() < 0.1
    assert session.report["placement"] == {qnn.PROVIDER: 1}  # one compiled graph


@pytest.mark.parametrize("name", BUILDERS)
def test_whole_models_run_on_the_simulator(name: str, tmp_path: Path) -> None:
    """The target's artifact as one compiled graph; as good an answer as onnxruntime's CPU makes of it."""
    present()
    model = tmp_path / "float.onnx"
    array = BUILDERS[name](model)
    entry = onnx.load(model).graph.input[0].name
    shapes = ((entry, array[:1].shape),)
    artifact = pipeline.quantize(model, "qnn", {entry: array}, tmp_path / "out", shapes=shapes, check=False).artifact
    feeds = [{entry: array[i : i + 1]} for i in range(4)]
    here, there = verify_files(model, artifact, "x86_64,qnn", feeds, strict=True).matrix
    assert there.stand_in is None
    (ours,), (theirs,) = here.outputs, there.outputs
    assert (theirs.sqnr_db or 0) > (ours.sqnr_db or 0) - 3
    session = qnn.open_session(artifact, proof=True)
    session.run(feeds[0])
    assert session.report["placement"] == {qnn.PROVIDER: 1}


def test_a_node_that_it_lacks_is_refused_and_not_run_elsewhere(tmp_path: Path) -> None:
    present()
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [4])
    y = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [4])
    graph = helper.make_graph([helper.make_node("Atanh", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "atanh.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(ToolError, match=r"^qnn: .*CPU"):
        qnn.open_session(path).run({"x": np.zeros(4)})
