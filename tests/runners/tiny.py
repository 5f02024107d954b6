"""A small u8s8 QDQ model: Conv with per-channel weights and Relu; and its answer on this machine."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def qdq_conv(path: Path, external: bool = False) -> Path:
    """x (1,3,12,12) → QLinearConv-able pattern → y (1,16,12,12), all float32 outside."""
    rng = np.random.default_rng(5)
    weights = rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8)
    tensors = {
        "xs": np.float32(0.03), "xz": np.uint8(117), "ys": np.float32(0.05), "yz": np.uint8(0),
        "w": weights, "ws": rng.uniform(0.002, 0.01, 16).astype(np.float32), "wz": np.zeros(16, np.int8),
        "b": rng.normal(0, 1, 16).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 12, 12])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    (path.parent / "weights").mkdir(exist_ok=True)
    onnx.save(model, path, save_as_external_data=external, location="weights/tiny.bin", size_threshold=0)
    return path


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(0, 1.5, (1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


def here(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The answer of plain onnxruntime in this process."""
    return np.asarray(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], feeds)[0])
