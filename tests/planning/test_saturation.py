"""Layers said to saturate, and those said not to, run on the kernels of a CPU without VNNI (emulated, or this one)."""

import json
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest

import edgeq
from edgeq import target as targets
from edgeq.graph import io
from edgeq.pipeline import plan_file
from edgeq.planning import saturation
from edgeq.recipe import Recipe
from edgeq.runners import avx2, cpu
from edgeq.verifying.verification import verify_files
from tests.graph.written import CONV, draw, save, text
from tests.require import SATURATES, require
from tests.runners import tiny

DIGITS = "sample_models/digits.onnx"
CALIB = "sample_models/digits_calib.npz"


@pytest.fixture
def emulated():
    require("avx2", "apt install qemu-user", lambda: avx2.missing() is None)


def planted(folder, weights, group=1):
    """A quantized Conv of these codes that sees nothing but the code 255."""
    channels = weights.shape[1] * group
    body = f"""
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, ws, wz)
    a = Conv<group={group}>(d, w) e = QuantizeLinear(a, t, m) y = DequantizeLinear(e, t, m)
    """
    inits = {"s": np.float32(1), "z": np.uint8(0), "t": np.float32(512), "m": np.uint8(128)}
    inits |= {"wq": weights, "ws": np.float32(1), "wz": np.int8(0)}
    return save(folder, text(body, f"float[1,{channels},6,6] x"), inits), np.full((1, channels, 6, 6), 255, np.float32)


def marked(shape, *pairs):
    """Codes that are 127 at two places for each output channel, 0 elsewhere; a place: (channel, row, column)."""
    weights = np.zeros(shape, np.int8)
    for channel, places in enumerate(pairs):
        for place in places:
            weights[(channel, *place)] = 127
    return weights


CASES = [
    # neighbours are the channels of one kernel position, two by two
    (marked((8, 8, 3, 3), [(0, 0, 0), (1, 0, 0)], [(1, 0, 0), (2, 0, 0)], [(0, 0, 0), (0, 0, 1)],
            [(6, 2, 2), (7, 2, 2)]), 1, {0, 3}),
    # with 3 channels the pairs shift from position to position
    (marked((8, 3, 3, 3), [(0, 0, 0), (1, 0, 0)], [(2, 0, 0), (0, 0, 1)], [(0, 0, 1), (1, 0, 1)],
            [(1, 0, 1), (2, 0, 1)]), 1, {0, 1, 3}),
    (marked((4, 4, 1, 1), [(0, 0, 0), (1, 0, 0)], [(1, 0, 0), (2, 0, 0)], [(2, 0, 0), (3, 0, 0)]), 2, {0, 2}),
    (marked((8, 1, 3, 3), *[[(0, 0, 0), (0, 0, 1)]] * 8), 8, set()),  # depthwise
]  # fmt: skip


@pytest.mark.parametrize(("weights", "group", "channels"), CASES)
def test_the_channels_that_are_named_are_those_that_saturate(tmp_path, emulated, weights, group, channels):
    path, x = planted(tmp_path, weights, group)
    want = tiny.here(path, {"x": x})
    got = avx2.open_session(path).run({"x": x})["y"]
    assert {int(c) for c in np.flatnonzero((want != got).any(axis=(0, 2, 3)))} == channels
    lines = saturation.written(io.load(path))
    assert [line.split(" have ")[0] for line in lines] == (
        [f"node Conv_3: {len(channels)} of {len(weights)} output channels"] if channels else []
    )


ON_CODES = (
    "a = QLinearConv(q, s, z, c, ws, wz, t, m)",
    "b = ConvInteger(q, c, z)",
    "d = QLinearMatMul(r, s, z, v, ws, wz, t, m)",
    "e = MatMulInteger(r, v, z)",
    "f = com.microsoft.QGemm<transB=1>(r, s, z, v, ws, wz, bias, t, m)",
)


@pytest.mark.parametrize("most", [127, 64])
def test_operators_on_codes_saturate_as_is_said(tmp_path, emulated, most):
    inits = {"s": np.float32(1), "z": np.uint8(0), "ws": np.float32(1), "wz": np.int8(0)}
    inits |= {"t": np.float32(512), "m": np.uint8(0), "bias": np.zeros(4, np.int32)}
    inits |= {"c": np.full((4, 4, 1, 1), most, np.int8), "v": np.full((4, 4), most, np.int8)}
    body = f"q = QuantizeLinear(x, s, z) r = QuantizeLinear(w, s, z) {' '.join(ON_CODES)}"
    ends = ("float[1,4,6,6] x, float[3,4] w", "uint8[] a, int32[] b, uint8[] d, int32[] e, uint8[] f")
    path = save(tmp_path, text(body, *ends).replace('"local"', '"com.microsoft"'), inits)
    said = {
        line.split()[1].rstrip(":") for line in saturation.written(io.load(path)) if "4 of 4 output channels" in line
    }
    fed = {"x": np.full((1, 4, 6, 6), 255, np.float32), "w": np.full((3, 4), 255, np.float32)}
    want, got = cpu.open_session(path).run(fed), avx2.open_session(path).run(fed)
    operators = [node.name for node in io.load(path).graph][2:]
    lost = {name for name, key in zip(operators, "abdef", strict=True) if (want[key] != got[key]).any()}
    assert lost == said == ({name for name in operators if "ConvInteger" not in name} if most == 127 else set())


MACHINE = """
import json, pathlib, sys, numpy as np, msgspec
from edgeq import target as targets
from edgeq.runners import avx2, cpu
from edgeq.runners.places import of_target
path, x = pathlib.Path(sys.argv[1]), {"x": np.load(sys.argv[2])}
own = msgspec.structs.replace(targets.load("x86_64-avx2"), runner="cpu")
exact = cpu.open_session(path).run(x)["y"]
found = [runs(path).run(x)["y"] for runs in (avx2.open_session, of_target(own).open)]
lost = [np.flatnonzero((exact != y).any((0, 2, 3))).tolist() for y in found]
print(json.dumps([cpu.saturates(), avx2.HERE, avx2.TIMED, *lost]))
"""


def test_a_machine_without_vnni_is_its_own_target(tmp_path, emulated):
    """In a process of its own, since these tests' is made to have exact sums."""
    weights, _, channels = CASES[0]
    path, x = planted(tmp_path, weights)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", MACHINE, path, tmp_path / "x.npy"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert printed == [SATURATES, SATURATES, SATURATES, sorted(channels), sorted(channels) if SATURATES else []]


def test_the_target_keeps_the_digits_exact_where_another_target_loses_them(tmp_path, emulated):
    few = {"input": np.load("sample_models/digits.npz")["input"][:32]}
    mine = edgeq.quantize(DIGITS, "x86_64-avx2", CALIB, tmp_path / "mine", eval_data=few)
    assert mine.report.runtime.name == avx2.TITLE
    assert mine.report.warnings == ()
    codes = [onnx.numpy_helper.to_array(i) for i in onnx.load(mine.artifact).graph.initializer if i.data_type == 3]
    assert {(int(c.min()) >= -64, int(c.max()) <= 63) for c in codes if c.ndim > 1} == {(True, True)}
    native = verify_files(DIGITS, mine.artifact, "x86_64", few)
    assert native.outputs[0] == mine.report.outputs[0]  # the same bits with VNNI and without
    other = edgeq.quantize(DIGITS, "x86_64", CALIB, tmp_path / "other", eval_data=few)
    found = verify_files(DIGITS, other.artifact, "x86_64-avx2", few)
    assert len([line for line in found.warnings if "can saturate" in line]) > 10
    assert found.outputs[0].sqnr_db < other.report.outputs[0].sqnr_db - 5
    assert mine.report.outputs[0].sqnr_db > found.outputs[0].sqnr_db + 5


def test_a_plan_for_whole_bytes_warns_of_each_layer(tmp_path):
    target = targets.load("x86_64-avx2")
    wide = msgspec.structs.replace(target, types=targets.load("x86_64").types)
    weight = np.zeros((6, 4, 3, 3), np.float32)
    weight[:, 0] = 1
    weight[0, 1] = 1
    body = "a = Conv(x, w) r = Relu(a) m = GlobalAveragePool(r) f = Flatten(m) y = MatMul(f, v)"
    path = save(tmp_path, text(body), {"w": weight, "v": np.eye(6, dtype=np.float32)})
    assert plan_file(path, target, Recipe()).warnings == ()
    (line,) = plan_file(path, wide, Recipe()).warnings
    assert line.startswith("node Conv_0: 1 of 6 output channels have weights that can saturate")
    assert plan_file(path, "x86_64", Recipe()).warnings == ()  # which has VNNI
    assert plan_file(path, wide, Recipe(method="dynamic")).warnings == ()  # ConvInteger adds exactly


def test_the_command_line_prints_them(tmp_path):
    path = save(tmp_path, text("y = Conv(x, w)"), {"w": np.abs(CONV["w"]) + 1})
    base = targets.folder()
    for name in ("generic", "x86_64-avx2"):
        (tmp_path / f"{name}.toml").write_text((base / f"{name}.toml").read_text())
    types = '[types]\ns8c = {dtype = "int8", symmetric = true, per = "channel"}\n'
    wide = tmp_path / "wide.toml"
    wide.write_text(f'name = "wide"\ntitle = "wide"\nrunner = "cpu"\nextends = "x86_64-avx2"\n{types}')
    command = [sys.executable, "-m", "edgeq"]
    shown = subprocess.run([*command, "plan", path, "-t", wide], capture_output=True, text=True, check=True).stdout
    assert "node Conv_0: 4 of 4 output channels have weights that can saturate" in " ".join(shown.split())
    np.savez(tmp_path / "d.npz", x=draw(3, 4, 8, 8))
    out = ["-o", tmp_path / "out", "--calib", tmp_path / "d.npz", "--no-verify", "--json"]
    report = subprocess.run([*command, "quantize", path, "-t", wide, *out], capture_output=True, text=True, check=True)
    assert "can saturate" in report.stdout
