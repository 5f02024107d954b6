"""One small quantized graph for each operator: x → Q → DQ → operator → Q → DQ → y.

Where the runtime has an integer kernel for it, what is left is the first Q, that kernel and the last DQ. Many such
graphs stand side by side in one model, each with inputs and an output of its own, so that one session shows what
becomes of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, make_node
from edgeq.types import INT_RANGES

IMAGE = (1, 8, 8, 8)
MATRIX = (64, 64)
CONSTANTS: dict[str, np.ndarray] = {
    "axes": np.array([2, 3]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "shape": np.array([1, -1]),
    "starts": np.array([0, 0, 0, 0]),
    "ends": np.array([1, 4, 8, 8]),
    "axis": np.array([0]),
    "larger": np.array([2, 8, 8, 8]),
    "sizes": np.array([1, 1, 2, 2], np.float32),
    "mask": np.arange(512).reshape(IMAGE) % 2 == 0,
    "ones": np.ones(8, np.float32),
    "slope": np.full((8, 1, 1), 0.25, np.float32),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}

# operator, perhaps with a variant behind a colon → inputs, attributes. `ACTIVATIONS`, `WEIGHTS` and `BIASES` say what
# the single letters are, `CONSTANTS` the words; `_` is left out.
OPERATORS: dict[str, tuple[str, dict[str, object]]] = {
    "Conv": ("x w b", {}),
    "Conv:depthwise": ("x d b", {"group": 8}),
    "ConvTranspose": ("x w", {}),
    "Gemm": ("m g h", {}),
    "MatMul": ("m g", {}),
    "Add": ("x x", {}),
    "Sub": ("x x", {}),
    "Mul": ("x x", {}),
    "Div": ("x x", {}),
    "Max": ("x x", {}),
    "Min": ("x x", {}),
    "Where": ("mask x x", {}),
    "Concat": ("x x", {"axis": 1}),
    "Sigmoid": ("x", {}),
    "Softmax": ("x", {"axis": -1}),
    "LogSoftmax": ("x", {"axis": -1}),
    "LeakyRelu": ("x", {"alpha": 0.1}),
    "Relu": ("x", {}),
    "Clip": ("x zero six", {}),
    "PRelu": ("x slope", {}),
    "HardSwish": ("x", {}),
    "HardSigmoid": ("x", {}),
    "Tanh": ("x", {}),
    "Gelu": ("x", {}),
    "Elu": ("x", {}),
    "Softplus": ("x", {}),
    "Mish": ("x", {}),
    "Erf": ("x", {}),
    "Exp": ("x", {}),
    "Sqrt": ("x", {}),
    "LayerNormalization": ("x ones ones", {"axis": -1}),
    "InstanceNormalization": ("x ones ones", {}),
    "ReduceMean": ("x axes", {}),
    "AveragePool": ("x", {"kernel_shape": [2, 2]}),
    "GlobalAveragePool": ("x", {}),
    "MaxPool": ("x", {"kernel_shape": [2, 2]}),
    "GlobalMaxPool": ("x", {}),
    "Transpose": ("x", {"perm": [0, 2, 3, 1]}),
    "Reshape": ("x shape", {}),
    "Flatten": ("x", {}),
    "Squeeze": ("x axis", {}),
    "Unsqueeze": ("x axis", {}),
    "Split": ("x", {"axis": 1, "num_outputs": 2}),
    "Slice": ("x starts ends", {}),
    "Pad": ("x pads", {}),
    "DepthToSpace": ("x", {"blocksize": 2}),
    "SpaceToDepth": ("x", {"blocksize": 2}),
    "Resize:nearest": ("x _ sizes", {"mode": "nearest"}),
    "Resize:linear": ("x _ sizes", {"mode": "linear"}),
    "Gather": ("x axis", {}),
    "Expand": ("x larger", {}),
    "LSTM": ("l i i", {"hidden_size": 64}),
}
ACTIVATIONS = {"x": IMAGE, "m": MATRIX, "l": (4, 1, 64)}
WEIGHTS = {"w": (8, 8, 3, 3), "d": (8, 1, 3, 3), "g": MATRIX, "i": (1, 256, 64)}
BIASES = {"b": 8, "h": 64}
CHANNEL_AXIS = {"ConvTranspose": 1, "Gemm": 1, "MatMul": 1}  # of the weights above; 0 for other operators


@dataclass(frozen=True)
class Specimen:
    """name: of `OPERATORS`. act, weight: integer dtypes, or nothing for the float operator itself; per: of the weight.

    behind: an activation, or nothing. ends: `codes` when the output is quantized, `float` when it is not. same: output
    parameters are the input's. bias: int32 or float. fixed: (scale, zero point) of the output.
    """

    name: str
    act: str = ""
    weight: str = ""
    per: str = ""
    behind: str = ""
    ends: str = "codes"
    same: bool = False
    bias: str = "int32"
    fixed: tuple[float, int] | None = None

    @property
    def op(self) -> str:
        return self.name.partition(":")[0]

    def __str__(self) -> str:
        behind = f" + {self.behind}" if self.behind else ""
        weight = f" × {self.weight} per {self.per}" if self.weight else ""
        out = f" → {self.act if self.ends == 'codes' else 'float'}" + " of the same scale" * self.same
        return f"{self.name}{behind}, {self.act or 'float'}{weight}{out}"


def model_of(specimens: Sequence[Specimen], opset: int) -> ir.Model:
    """One model; specimen i has the float32 inputs `x{i}_0` …, and the output `y{i}`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="specimens")
    model = ir.Model(graph, ir_version=10)
    for index, specimen in enumerate(specimens):
        _Writer(graph, Names(model), specimen, index).write()
    return model


def feeds_of(model: ir.Model) -> dict[str, np.ndarray]:
    """Deterministic numbers for every input."""
    rng = np.random.default_rng(0)
    return {v.name or "": rng.normal(size=v.shape.numpy()).astype(np.float32) for v in model.graph.inputs if v.shape}


class _Writer:
    def __init__(self, graph: ir.Graph, names: Names, specimen: Specimen, index: int) -> None:
        self.graph, self.names, self.it, self.index = graph, names, specimen, index

    def write(self) -> None:
        inputs, attributes = OPERATORS[self.it.name]
        read = [self._operand(token) for token in inputs.split()]
        values = self._node(self.it.op, read, attributes, outputs=2 if self.it.op == "Split" else 1)
        if self.it.behind:
            bounds = [self._constant("zero"), self._constant("six")] if self.it.behind == "Clip" else []
            values = self._node(self.it.behind, [*values, *bounds])
        if self.it.ends == "codes":
            values = [self._pair(value, *self._output_parameters()) for value in values]
        for number, value in enumerate(values):
            value.name = f"y{self.index}" + f"_{number}" * (number > 0)
            self.graph.outputs.append(value)

    def _operand(self, token: str) -> ir.Value | None:
        match token:
            case "_":
                return None
            case _ if token in ACTIVATIONS:
                return self._activation(ACTIVATIONS[token])
            case _ if token in WEIGHTS:
                return self._weight(WEIGHTS[token])
            case _ if token in BIASES:
                return self._bias(BIASES[token])
        return self._constant(token)

    def _activation(self, shape: tuple[int, ...]) -> ir.Value:
        count = sum((v.name or "").startswith(f"x{self.index}_") for v in self.graph.inputs)
        kind = ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=f"x{self.index}_{count}", type=kind, shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        if not self.it.act:
            return value
        return self._pair(value, 0.05, self._middle())

    def _middle(self) -> int:
        low, high = INT_RANGES[self.it.act]
        return (low + high + 1) // 2

    def _weight(self, shape: tuple[int, ...]) -> ir.Value:
        rng = np.random.default_rng(self.index)
        if not self.it.weight:
            return self._add(rng.normal(size=shape).astype(np.float32))
        low, high = INT_RANGES[self.it.weight]
        codes = rng.integers(low + 1, high, shape).astype(self.it.weight)
        many, axis = self.it.per == "channel", CHANNEL_AXIS.get(self.it.op, 0)
        scale = np.full(shape[axis], 0.002, np.float32) if many else np.float32(0.002)
        zero = np.full(scale.shape, (low + high + 1) // 2, self.it.weight)
        read = [self._add(codes), self._add(scale), self._add(zero)]
        return self._node("DequantizeLinear", read, {"axis": axis} if many else {})[0]

    def _bias(self, size: int) -> ir.Value:
        if self.it.bias == "float" or not self.it.weight:
            return self._add(np.linspace(-1, 1, size, dtype=np.float32))
        scale = np.full(size, 1e-4, np.float32) if self.it.per == "channel" else np.float32(1e-4)
        read = [self._add(np.arange(size, dtype=np.int32)), self._add(scale)]
        return self._node("DequantizeLinear", read, {"axis": 0} if scale.ndim else {})[0]

    def _output_parameters(self) -> tuple[float, int]:
        if self.it.fixed:
            return self.it.fixed
        if self.it.behind:  # the lowest code is 0, the highest 6
            low, high = INT_RANGES[self.it.act]
            return 6 / (high - low), low
        return 0.05 if self.it.same else 0.02, self._middle()

    def _pair(self, value: ir.Value, scale: float, zero: int) -> ir.Value:
        read = [self._add(np.float32(scale)), self._add(np.asarray(zero, self.it.act))]
        codes = self._node("QuantizeLinear", [value, *read], dtype=ir.DataType[self.it.act.upper()])
        return self._node("DequantizeLinear", [*codes, *read])[0]

    def _constant(self, name: str) -> ir.Value:
        return self._add(CONSTANTS[name])

    def _add(self, array: np.ndarray | np.generic) -> ir.Value:
        return add_initializer(self.graph, self.names.new(f"c{self.index}"), np.asarray(array))

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, object] | dict[str, int] | None = None,
        outputs: int = 1,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> list[ir.Value]:
        node = make_node(op, inputs, self.names.new(f"n{self.index}"), dtype, None, dict(attributes or {}))
        if outputs > 1:
            node.resize_outputs(outputs)
            for value in node.outputs[1:]:
                value.name, value.type = self.names.new(f"n{self.index}"), ir.TensorType(dtype)
        self.graph.append(node)
        return list(node.outputs)
