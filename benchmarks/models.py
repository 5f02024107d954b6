"""Models for the speed benchmarks: full-size architectures with random weights, and one real model.

`mobilenetv2`, `resnet50` and `encoder` are built here with numpy and `onnx.helper`, since speed does not depend on
what the weights have learnt. They look as exporters leave them: BatchNorm folded into the convolutions, ReLU6 as
Clip(0, 6), GELU as its five primitive ops, the batch dimension symbolic. Convolutions start from He et al. 2015
(std = sqrt(2 / fan_in)), each residual branch ends with a gain below 1, and biases are small, so that activations
keep a scale near 1 at every depth. `ppocr_rec` is PP-OCRv4's text recogniser from the rapidocr-onnxruntime wheel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


@dataclass
class Net:
    """A graph under construction: every method appends nodes and returns the name of the value they produce."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def const(self, value: np.ndarray | float, name: str = "c") -> str:
        name = f"{name}_{len(self.weights)}"
        value = np.asarray(value, np.float32) if isinstance(value, float) else value
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        return (self.rng.standard_normal(shape) * std).astype(np.float32)

    def conv(self, x: str, cin: int, cout: int, k: int = 1, stride: int = 1, group: int = 1, gain: float = 2.0) -> str:
        w = self.normal((cout, cin // group, k, k), (gain / (cin // group * k * k)) ** 0.5)
        b = self.normal((cout,), 0.1)
        same = k // 2
        return self.op(
            "Conv", x, self.const(w, "w"), self.const(b, "b"),
            kernel_shape=[k, k], strides=[stride, stride], pads=[same] * 4, group=group, dilations=[1, 1],
        )  # fmt: skip

    def linear(self, x: str, cin: int, cout: int, gain: float = 1.0) -> str:
        y = self.op("MatMul", x, self.const(self.normal((cin, cout), (gain / cin) ** 0.5), "w"))
        return self.op("Add", self.const(self.normal((cout,), 0.02), "b"), y)

    def classifier(self, x: str, features: int, classes: int) -> str:
        x = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        w = self.normal((classes, features), features**-0.5)
        return self.op("Gemm", x, self.const(w, "w"), self.const(self.normal((classes,), 0.02), "b"), transB=1)

    def model(self, name: str, output: str, in_shape: list[int | str], out_shape: list[int | str]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "output"
        for node in self.nodes:
            node.input[:] = ["output" if i == output else i for i in node.input]
        graph = helper.make_graph(
            self.nodes, name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, in_shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, out_shape)],
            self.weights,
        )  # fmt: skip
        model = helper.make_model(
            graph,
            producer_name="edgeq-benchmarks",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def mobilenetv2(seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2, width 1.0, 224² (Sandler et al. 2018, table 2): 3.5 M weights."""
    net = Net(np.random.default_rng(seed))
    low, high = net.const(0.0), net.const(6.0)

    def relu6(x: str) -> str:
        return net.op("Clip", x, low, high)

    x, cin = relu6(net.conv("input", 3, 32, 3, 2)), 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, cout, repeats, first_stride in stages:
        for i in range(repeats):
            stride, wide = (first_stride if i == 0 else 1), cin * expand
            y = relu6(net.conv(x, cin, wide)) if expand > 1 else x
            y = relu6(net.conv(y, wide, wide, 3, stride, group=wide))
            residual = stride == 1 and cin == cout
            y = net.conv(y, wide, cout, gain=0.25 if residual else 1.0)
            x, cin = (net.op("Add", x, y) if residual else y), cout
    x = relu6(net.conv(x, cin, 1280))
    return net.model("mobilenetv2", net.classifier(x, 1280, 1000), ["N", 3, 224, 224], ["N", 1000])


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """ResNet-50 v1.5, 224² (He et al. 2015, the stride in the 3×3 convolution): 25.6 M weights."""
    net = Net(np.random.default_rng(seed))
    x, cin = net.op("Relu", net.conv("input", 3, 64, 7, 2)), 64
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for width, repeats, first_stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            y = net.op("Relu", net.conv(x, cin, width))
            y = net.op("Relu", net.conv(y, width, width, 3, stride))
            y = net.conv(y, width, 4 * width, gain=0.25)
            short = net.conv(x, cin, 4 * width, 1, stride, gain=1.0) if i == 0 else x
            x, cin = net.op("Relu", net.op("Add", y, short)), 4 * width
    return net.model("resnet50", net.classifier(x, 2048, 1000), ["N", 3, 224, 224], ["N", 1000])


def encoder(seed: int = 0, layers: int = 4, width: int = 768, heads: int = 12, tokens: int = 128) -> onnx.ModelProto:
    """A BERT-like post-norm transformer encoder (Vaswani et al. 2017) on hidden states: 28 M weights."""
    net = Net(np.random.default_rng(seed))
    split = net.const(np.array([0, tokens, heads, width // heads]), "shape")
    merge = net.const(np.array([0, tokens, width]), "shape")
    scale, root2, one, half = (net.const(v) for v in ((width / heads) ** 0.5, 2**0.5, 1.0, 0.5))

    def per_head(x: str, perm: list[int], gain: float) -> str:
        return net.op("Transpose", net.op("Reshape", net.linear(x, width, width, gain), split), perm=perm)

    def norm(x: str) -> str:
        gamma = net.const(1 + net.normal((width,), 0.1), "gamma")
        return net.op("LayerNormalization", x, gamma, net.const(net.normal((width,), 0.1), "beta"), epsilon=1e-5)

    def gelu(x: str) -> str:
        erf = net.op("Add", net.op("Erf", net.op("Div", x, root2)), one)
        return net.op("Mul", net.op("Mul", x, erf), half)

    x = "input"
    for _ in range(layers):
        q, k, v = (per_head(x, p, g) for p, g in (([0, 2, 1, 3], 2.0), ([0, 2, 3, 1], 2.0), ([0, 2, 1, 3], 1.0)))
        scores = net.op("Softmax", net.op("Div", net.op("MatMul", q, k), scale), axis=-1)
        mixed = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
        x = norm(net.op("Add", net.linear(net.op("Reshape", mixed, merge), width, width), x))
        y = net.linear(gelu(net.linear(x, width, 4 * width)), 4 * width, width, gain=2.0)
        x = norm(net.op("Add", y, x))
    return net.model("encoder", x, ["N", tokens, width], ["N", tokens, width])


def ppocr_rec() -> onnx.ModelProto:
    """PP-OCRv4's recogniser as the wheel rapidocr-onnxruntime carries it (found, not imported)."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("ppocr_rec needs its wheel: pip install rapidocr-onnxruntime --no-deps")
    return onnx.load(Path(spec.origin).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx")


BUILDERS = {"mobilenetv2": mobilenetv2, "resnet50": resnet50, "encoder": encoder, "ppocr_rec": ppocr_rec}
FEED_SHAPES = {
    "mobilenetv2": (1, 3, 224, 224),
    "resnet50": (1, 3, 224, 224),
    "encoder": (1, 128, 768),
    "ppocr_rec": (1, 3, 48, 320),
}


def build(name: str, cache: Path) -> Path:
    """The path of `cache/name.onnx`, written first if it is missing."""
    path = cache / f"{name}.onnx"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        onnx.save(BUILDERS[name](), part)
        part.rename(path)
    return path


def feeds(name: str, n: int, seed: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """`n` feeds of batch 1. Images are smooth random fields in about [-2, 2], hidden states are unit normal."""
    rng = np.random.default_rng(seed)
    shape = FEED_SHAPES[name]
    key = "x" if name == "ppocr_rec" else "input"
    for _ in range(n):
        x = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 4:
            coarse = rng.standard_normal((*shape[:2], shape[2] // 16, shape[3] // 16)).astype(np.float32)
            x = 0.3 * x + np.kron(coarse, np.ones((16, 16), np.float32))
            # rec expects pixels scaled to [-1, 1]; the classifiers expect ImageNet-like standard scores
            x = np.tanh(x) if name == "ppocr_rec" else np.clip(x, -2.2, 2.6)
        yield {key: x.astype(np.float32)}
