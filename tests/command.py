"""A model and data for the command line, and what a refusal must look like."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def matmul(path, external=False, location="w.bin", name="mm"):
    """x (n,8) → y (n,4) with one constant weight."""
    weights = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name=name)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    if location != "w.bin":
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def samples(path, **arrays):
    arrays = arrays or {"x": np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)}
    np.savez(path, **arrays)
    return path


def refused(result, *parts):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    for part in parts:
        assert part in err, err
