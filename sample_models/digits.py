"""Train and export `digits`: a small MobileNetV3-like classifier of scikit-learn's 8×8 digits.

    python sample_models/digits.py [FOLDER]          (needs torch and scikit-learn; about a minute on one core)

writes `digits.onnx`, `digits.npz` (evaluation) and `digits_calib.npz` (calibration) into FOLDER, by default beside
this script. The network has what makes such models hard to quantize: depthwise convolutions, squeeze-and-excite,
hard-swish, residual additions and a concatenation of two branches (Howard et al., "Searching for MobileNetV3", 2019).
BatchNorm stays unfused in the file, as a training framework leaves it, so that folding it is left to the quantizer.

    input  "input"   float32 [N, 1, 8, 8], pixels in [0, 1], multiples of 1/16
    output "logits"  float32 [N, 10]
    the .npz files   "input" as above and "label" int64 [N]; they share no sample, and evaluation was not trained on
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
EVALUATION, CALIBRATION = 600, 128
EPOCHS, BATCH = 80, 64


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class SqueezeExcite(nn.Module):
    """x · hard_sigmoid(W₂ relu(W₁ mean(x))), the mean over height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * functional.hardsigmoid(self.expand(functional.relu(self.reduce(pooled))))


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, squeeze-and-excite, project 1×1; the input is added when the shapes agree."""

    def __init__(self, c_in: int, c_mid: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.expand = conv_bn(c_in, c_mid, 1)
        self.depthwise = conv_bn(c_mid, c_mid, kernel, stride, groups=c_mid)
        self.excite = SqueezeExcite(c_mid)
        self.project = conv_bn(c_mid, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = functional.hardswish(self.expand(x))
        y = self.excite(functional.hardswish(self.depthwise(y)))
        y = self.project(y)
        return x + y if self.residual else y


class Digits(nn.Module):
    """[N, 1, 8, 8] → [N, 10] in about 70,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16, 3)
        self.early = nn.Sequential(InvertedResidual(16, 32, 16), InvertedResidual(16, 64, 32, stride=2))
        self.fine, self.wide = InvertedResidual(32, 96, 32), InvertedResidual(32, 96, 32, kernel=5)
        self.late = nn.Sequential(InvertedResidual(64, 128, 64), conv_bn(64, 128, 1))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(functional.hardswish(self.stem(x)))
        x = torch.cat([self.fine(x), self.wide(x)], dim=1)
        x = functional.hardswish(self.late(x))
        return self.head(functional.dropout(x.mean((2, 3)), 0.2, self.training))


def split() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(training, evaluation) samples, shuffled; calibration is the head of training."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    # Two writers' scans can coincide; a duplicate must not sit on both sides of the split.
    unique = np.sort(np.unique(pixels.reshape(len(pixels), -1), axis=0, return_index=True)[1])
    order = np.random.default_rng(SEED).permutation(unique)
    held, rest = order[:EVALUATION], order[EVALUATION:]
    return tuple({"input": pixels[i], "label": labels[i].astype(np.int64)} for i in (rest, held))  # type: ignore[return-value]


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random affine map of each sample: ±8° of rotation, ±8 % of scale, ±0.6 pixels of shift."""
    n = len(x)
    reach = torch.tensor([[0.14], [0.08], [0.15], [0.15]])
    angle, scale, dx, dy = (torch.rand(4, n, generator=generator) * 2 - 1) * reach
    cos, sin = torch.cos(angle) * (1 + scale), torch.sin(angle) * (1 + scale)
    matrix = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def train(data: dict[str, np.ndarray], network: nn.Module | None = None) -> nn.Module:
    """A trained `Digits`, or another network of such pictures."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.from_numpy(data["input"]), torch.from_numpy(data["label"])
    model, batches = (network or Digits()).train(), len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, EPOCHS * batches)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x), generator=generator)[: batches * BATCH].view(batches, BATCH):
            loss = functional.cross_entropy(model(augment(x[index], generator)), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the ONNX file with BatchNorm nodes as they are: torch's own optimizer, which would fold them, is off."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        optimize=False,
        opset_version=18,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    assert program is not None
    fold_constants(program.model)  # the zero biases that the exporter writes as Shape and Expand
    remove_unused_nodes(program.model)
    proto = program.model_proto
    graph = proto.graph
    for part in [proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]:
        del part.metadata_props[:]  # stack traces of the machine that exported
        part.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main(folder: Path) -> None:
    training, evaluation = split()
    model = train(training)
    with torch.no_grad():
        logits = model(torch.from_numpy(evaluation["input"])).numpy()
    export(model, folder / "digits.onnx")
    for name, data in (("digits", evaluation), ("digits_calib", {k: v[:CALIBRATION] for k, v in training.items()})):
        np.savez_compressed(folder / f"{name}.npz", input=data["input"], label=data["label"])
    print(f"digits: accuracy {(logits.argmax(1) == evaluation['label']).mean():.4f} on {EVALUATION} held-out samples")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
