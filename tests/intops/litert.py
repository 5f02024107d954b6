"""One TFLite operator in LiteRT's reference kernels: the independent implementation that edgeq.intops is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeq.formats.tflite_file import TfModel, TfOp, TfTensor, build
from edgeq.intops.quant import Quant
from tests.require import require

require("ai_edge_litert", "pip install edgeq[litert]")

from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: E402


def activation(name: str, shape: Sequence[int], quant: Quant) -> TfTensor:
    return TfTensor(
        name, tuple(shape), quant.dtype, None, np.float32([quant.scale]), np.array([quant.zero_point], np.int64)
    )


def constant(name: str, data: np.ndarray, scale: Any = None, zero_point: Any = None, axis: int = 0) -> TfTensor:
    scales = None if scale is None else np.atleast_1d(np.float32(scale))
    return TfTensor(name, data.shape, data.dtype.name, data, scales, zero_point, axis)


def run(model: TfModel, feeds: Mapping[str, np.ndarray], reference: bool = True) -> list[np.ndarray]:
    """The outputs of a model, in order. reference: BUILTIN_REF; otherwise the optimized kernels, no delegate."""
    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=build(model), experimental_op_resolver_type=kind, num_threads=1)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], feeds[detail["name"]])
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def run_op(
    code: str,
    inputs: Sequence[TfTensor | None],
    feeds: Mapping[str, np.ndarray],
    out: TfTensor,
    options: Mapping[str, Any] | None = None,
    reference: bool = True,
) -> np.ndarray:
    """One operator's result. inputs: activations (without data, fed) and constants; None for an absent operand."""
    tensors = (*(t for t in inputs if t is not None), out)
    op = TfOp(code, tuple(t.name if t else "" for t in inputs), (out.name,), options or {})
    return run(TfModel(tensors, (op,), tuple(feeds), (out.name,)), feeds, reference)[0]


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Bit for bit equal, of one shape and type."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    wrong = got != want
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ: {got[wrong][:8]} against {want[wrong][:8]}"
