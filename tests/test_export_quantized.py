"""Modules that torch has quantized: their scales and codes arrive in ONNX, and from there on a target."""

import copy
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from edgeq.errors import ModelError
from edgeq.export import export
from edgeq.retarget import retarget
from tests.require import require

require("torch", "pip install 'edgeq[torch]'")
import torch  # noqa: E402
import torch.ao.quantization as ao  # noqa: E402
from torch import nn  # noqa: E402
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx  # noqa: E402

PICTURES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Convolutions with BatchNorm, a residual sum, a pool and a head; the stubs are what eager mode asks for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = ao.QuantStub(), ao.DeQuantStub()
        self.conv, self.norm, self.act = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.again, self.sum = nn.Conv2d(8, 8, 3, padding=1), torch.ao.nn.quantized.FloatFunctional()
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        x = self.act(self.norm(self.conv(self.into(x))))
        x = nn.functional.max_pool2d(self.sum.add(x, self.again(x)), 2)
        return self.out(self.head(torch.flatten(x, 1)))


def eager():
    module = Network().eval()
    module.qconfig = ao.get_default_qconfig("x86")
    module = ao.fuse_modules(module, [["conv", "norm", "act"]])
    ao.prepare(module, inplace=True)
    module(PICTURES)
    return ao.convert(module)


def fx():
    prepared = prepare_fx(Network().eval(), ao.get_default_qconfig_mapping("x86"), (PICTURES,))
    prepared(PICTURES)
    return convert_fx(prepared)


def pt2e():
    require("torchao", "pip install --no-deps torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    traced = torch.export.export(Network().eval(), (PICTURES,)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(traced, quantizer)
    prepared(PICTURES)
    return convert_pt2e(prepared)


def decomposed():
    """What PT2E gives, written by hand: a graph of `torch.export` with quantize and dequantize in it."""
    import torch.ao.quantization.fx._decomposed

    q, dq = (getattr(torch.ops.quantized_decomposed, f"{n}_per_tensor") for n in ("quantize", "dequantize"))

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.register_buffer("codes", torch.randint(-127, 128, (8, 1, 3, 3), dtype=torch.int8))
            self.register_buffer("steps", torch.rand(8) * 0.005 + 0.001)
            self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))

        def forward(self, x):
            channels = torch.ops.quantized_decomposed.dequantize_per_channel
            weight = channels(self.codes, self.steps, self.zeros, 0, -128, 127, torch.int8)
            for step, zero in ((0.03, 128), (0.05, 120)):
                x = dq(q(x, step, zero, 0, 255, torch.uint8), step, zero, 0, 255, torch.uint8)
                x = nn.functional.conv2d(x, weight, padding=1) if step == 0.03 else x
            return x

    return torch.export.export(Pairs(), (PICTURES,)).module()


def run(path, x):
    session = ort.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def held(path):
    """Codes of the stored weights (sorted bytes), and the scales of activations."""
    model = onnx.load(path)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    arrays |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"
    }
    named = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Identity"}
    arrays |= {out: arrays[name] for name, out in named.items() if name in arrays}
    codes = sorted(a.tobytes() for a in arrays.values() if a.dtype == np.int8 and a.ndim > 1)
    return codes, {np.float32(arrays[n.input[1]]) for n in model.graph.node if n.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("made", [eager, fx, pt2e, decomposed])
def test_static_scales_and_codes_arrive(made, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = made()
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    export(
        module,
        {"x": PICTURES} if made is fx else (PICTURES,),
        theirs,
        dynamic={"x": [0]} if made in (eager, fx) else {},
    )
    with torch.no_grad():
        wanted = module(PICTURES).numpy()
    step = 0.05 if made is decomposed else float(getattr(getattr(module, "head", None), "scale", np.ptp(wanted) / 255))
    assert np.abs(run(theirs, PICTURES) - wanted).max() <= 1.01 * step
    np.savez(tmp_path / "calib.npz", x=(PICTURES if made in (eager, fx) else PICTURES[None]).numpy())
    found = retarget(theirs, "generic", ours, calib=tmp_path / "calib.npz")
    assert (found.lost, found.measured) == (
        {},
        1 if made is pt2e else 0,
    )  # x86's PT2E has no codes between Conv and Add
    assert found.plan.counts().get("float", 0) == 0
    codes, scales = held(theirs)
    assert held(ours)[0] == codes
    assert len(codes) == (1 if made is decomposed else 3)
    assert len(held(ours)[1] - scales) == found.measured
    assert np.abs(run(ours, PICTURES) - wanted).max() <= 2.01 * step


def layers():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


ROWS = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))


def test_weights_of_dynamic_layers_arrive(tmp_path):
    module = ao.quantize_dynamic(layers(), {nn.Linear})
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    export(module, (ROWS,), theirs, dynamic={"input": [0]})
    wanted = module(ROWS).numpy()
    assert np.abs(run(theirs, ROWS) - wanted).max() < 0.04 * np.abs(wanted).max()
    np.savez(tmp_path / "calib.npz", input=ROWS.numpy())
    found = retarget(theirs, "generic", ours, calib=tmp_path / "calib.npz")
    assert (found.lost, found.kept, found.measured) == ({}, 2, 2)
    assert held(ours)[0] == sorted(
        np.ascontiguousarray(module[i].weight().int_repr().numpy().T).tobytes() for i in (0, 2)
    )
    assert np.abs(run(ours, ROWS) - wanted).max() < 0.04 * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_torchaos_layers_arrive_as_packed_weights(bits, tmp_path):
    require("torchao", "pip install --no-deps torchao")
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    module = copy.deepcopy(layers())
    quantize_(module, IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), PerGroup(32)))
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    export(module, (ROWS,), theirs, opset=21, dynamic={"input": [0]})
    found = retarget(theirs, "generic", ours, method="weight_only")
    assert (found.lost, found.kept) == ({}, 2)
    model = onnx.load(ours)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    packed = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    for node, layer in zip(packed, (module[0], module[2]), strict=True):
        codes = arrays[node.input[1]].astype(int)
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1)
        rows = codes.reshape(layer.out_features, -1)
        np.testing.assert_array_equal(rows[:, : layer.in_features] - 2 ** (bits - 1), layer.weight.qdata.numpy())
    wanted = module(ROWS).detach().numpy()
    assert np.abs(run(ours, ROWS) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_layout_that_is_not_known_is_named(tmp_path):
    module = layers()
    module[0].weight.qdata, module[0].weight.scale = torch.zeros(32, 32, dtype=torch.uint8), torch.ones(32, 1)
    with pytest.raises(ModelError, match=r"is stored as torch\.uint8 of a layout unknown"):
        export(module, (ROWS,), tmp_path / "m.onnx")
