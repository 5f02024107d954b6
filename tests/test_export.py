"""Export from torch, held against torch's own forward pass on inputs that the exporter never saw."""

import sys

import numpy as np
import onnxruntime as ort
import pytest

from edgeq.data import load_object
from edgeq.errors import CalibrationError, EdgeqError, ModelError, RecipeError
from edgeq.export import export, export_factory
from tests.require import require

require("torch", "pip install 'edgeq[torch]'")
import torch  # noqa: E402


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.norm, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)

    def forward(self, image):
        features = torch.relu(self.norm(self.conv(image)))
        return self.head(features.mean((2, 3))), features


class Spectrum(torch.nn.Module):
    def forward(self, matrix):
        return torch.linalg.eigvals(matrix).real


def test_a_dynamic_batch_gives_what_torch_gives(tmp_path):
    module = Small()
    worst = export(module, [torch.randn(2, 1, 8, 8)], tmp_path / "m.onnx", dynamic={"image": [0]})
    assert worst < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7):
        image = torch.randn(batch, 1, 8, 8)
        got = session.run(None, {"image": image.numpy()})
        for mine, theirs in zip(got, module.eval()(image), strict=True):
            np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_an_operator_without_onnx_form_is_one_line(tmp_path, capfd):
    with pytest.raises(ModelError, match="Spectrum can't be exported") as caught:
        export(Spectrum(), [torch.randn(3, 3)], tmp_path / "m.onnx")
    assert "linalg_eig" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


class Brain(torch.nn.Module):
    """A linear layer in bfloat16, between floats or not."""

    def __init__(self, ends):
        super().__init__()
        self.inner, self.ends = torch.nn.Linear(8, 4).bfloat16(), ends

    def forward(self, x):
        return self.inner(x.bfloat16()).float() if self.ends else self.inner(x)


def test_bfloat16_is_exported_between_floats(tmp_path):
    assert export(Brain(True), (torch.randn(2, 8),), tmp_path / "m.onnx") < 1e-2  # one rounding of 8 bits
    with pytest.raises(ModelError, match=r"^Brain takes or gives bfloat16.*x\.bfloat16\(\) and y\.float\(\)"):
        export(Brain(False), (torch.randn(2, 8).bfloat16(),), tmp_path / "n.onnx")


def test_what_is_asked_wrongly_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no input 'picture' to make dynamic: the module has image"):
        export(Small(), [torch.randn(1, 1, 8, 8)], tmp_path / "m.onnx", dynamic={"picture": [0]})
    with pytest.raises(ModelError, match="Small can't run on its example"):
        export(Small(), [torch.randn(1, 5, 8, 8)], tmp_path / "m.onnx")
    with pytest.raises(EdgeqError, match="can't be written"):
        export(Small(), [torch.randn(1, 1, 8, 8)], tmp_path)
    with pytest.raises(EdgeqError, match="can't be written"):
        export(Small(), [torch.randn(1, 1, 8, 8)], tmp_path / "new" / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_factories(tmp_path, monkeypatch):
    (tmp_path / "made_here.py").write_text(
        "import torch\n"
        "def good(): return torch.nn.Linear(3, 2), [torch.ones(1, 3)]\n"
        "def alone(): return torch.nn.Linear(3, 2)\n"
        "def broken(): return 1 / 0\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert export_factory("made_here:good", tmp_path / "m.onnx", 18, ["input:0"]) < 1e-5
    assert ort.InferenceSession(tmp_path / "m.onnx").run(None, {"input": np.ones((5, 3), np.float32)})[0].shape == (
        5,
        2,
    )
    for spec, dynamic, message in (
        ("made_here:alone", [], "must return"),
        ("made_here:broken", [], "ZeroDivisionError"),
        ("made_here:good", ["input"], "INPUT:AXIS"),
    ):
        with pytest.raises(RecipeError, match=message):
            export_factory(spec, tmp_path / "n.onnx", 18, dynamic)
    with pytest.raises(CalibrationError, match="made_here:absent"):
        load_object("made_here:absent")
