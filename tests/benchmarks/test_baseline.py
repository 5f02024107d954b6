"""The peers' side of the accuracy table: it quantizes what it can, and reports in one line what it can't."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import baseline, tasks
from tests.require import kernels_like_a_targets


def conv(opset: int) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds() -> list[tasks.Feed]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]


def test_an_old_opset_is_upgraded_and_quantized_per_channel(tmp_path):
    kernels_like_a_targets()  # its activations are int8
    onnx.save(conv(12), tmp_path / "float.onnx")
    assert baseline.ort_static(tmp_path / "float.onnx", feeds(), tmp_path / "int8.onnx") is None
    made = onnx.load(tmp_path / "int8.onnx")
    assert any(t.data_type == TensorProto.INT8 and list(t.dims) == [4, 3, 3, 3] for t in made.graph.initializer)
    plain = baseline.run(tmp_path / "float.onnx", feeds(), threads=1)
    quantized = baseline.run(tmp_path / "int8.onnx", feeds(), threads=1)
    for a, b in zip(plain, quantized, strict=True):
        assert 0 < np.abs(a["y"] - b["y"]).max() < 0.1 * np.abs(a["y"]).max()


def test_a_failure_is_one_line_and_leaves_no_file(tmp_path):
    onnx.save(conv(17), tmp_path / "float.onnx")
    bad = [{"x": np.zeros((1, 5, 8, 8), np.float32)}]
    line = baseline.ort_static(tmp_path / "float.onnx", bad, tmp_path / "int8.onnx")
    assert line
    assert "\n" not in line
    assert ": " in line
    assert not (tmp_path / "int8.onnx").exists()


def test_evaluate_is_the_metric_of_all_outputs_in_order(tmp_path):
    onnx.save(conv(17), tmp_path / "float.onnx")
    given = feeds()

    def metric(outputs: list[tasks.Feed]) -> float:
        return float(sum(i * out["y"].sum() for i, out in enumerate(outputs)))

    task = tasks.Task("t", tmp_path / "float.onnx", given, given, metric, "sum")
    weight = numpy_helper.to_array(conv(17).graph.initializer[0])
    padded = [np.pad(f["x"][0], ((0, 0), (1, 1), (1, 1))) for f in given]
    windows = [np.lib.stride_tricks.sliding_window_view(p, (3, 3), (1, 2)) for p in padded]
    expected = sum(i * np.einsum("cyxhw,ochw->", w, weight) for i, w in enumerate(windows))
    assert np.isclose(baseline.evaluate(task.model, task), expected, rtol=1e-3, atol=1e-2)
