"""Hostile ONNX files: refused in one line or taken rightly, within 2 s and 500 MB, and nothing outside the output."""

import numpy as np
import pytest

from tests.attacks import models
from tests.command import matmul, samples

ALL = dict(models.all_models())
REFUSED = {make.__name__ for make in models.REFUSED} | {name for name in ALL if name.startswith("external")}
GROWING = {"doubles_itself"}  # the runtime computes what such a model says, terabytes or not


def tree(folder):
    return sorted(p for p in folder.rglob("*"))


@pytest.mark.parametrize("name", ALL)
def test_a_hostile_model(sandbox, tmp_path, name):
    inside = tmp_path / "in"
    inside.mkdir()
    path = ALL[name](inside)
    data = samples(inside / "d.npz")
    before = tree(tmp_path)
    codes = (2,) if name in REFUSED else (0, 2)
    sandbox.refuses("inspect", path, codes=codes)
    sandbox.refuses("plan", path, codes=codes)
    assert tree(tmp_path) == before
    packed = ("--no-verify", "--method", "weight_only", "-o", tmp_path / "w")
    quantized = sandbox.refuses("quantize", path, *packed, codes=codes)
    if name not in GROWING:
        sandbox.refuses("quantize", path, "--calib", data, "-o", tmp_path / "s", codes=codes)
        sandbox.refuses("verify", path, path, "--data", data, codes=codes)
    left = [p for p in tree(tmp_path) if p not in before and not p.is_relative_to(tmp_path / "s")]
    if quantized.code:
        assert left == []
    assert all(p.is_relative_to(tmp_path / "w") for p in left)


def test_the_last_of_doubled_constants_counts_as_in_onnxruntime(run, tmp_path):
    path, data = models.doubled_constant(tmp_path), samples(tmp_path / "d.npz")
    code, _, err = run("quantize", path, "--calib", data, "-o", tmp_path / "out", "-q", "--min-sqnr", "30")
    assert (code, err) == (0, "")


def test_nodes_out_of_order_are_put_in_order(run, tmp_path):
    path, data = models.unsorted(tmp_path), samples(tmp_path / "d.npz")
    code, _, err = run("quantize", path, "--calib", data, "-o", tmp_path / "out", "-q", "--min-sqnr", "30")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("seed", range(12))
def test_damaged_models(sandbox, tmp_path, seed):
    """Truncated anywhere, or with bits flipped: an answer or a refusal, never a crash."""
    content = bytearray(matmul(tmp_path / "m.onnx").read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        content = content[: rng.integers(1, len(content))]
    else:
        for at in rng.integers(0, len(content), 1 + seed):
            content[at] ^= 1 << int(rng.integers(8))
    path, data = tmp_path / "bad.onnx", samples(tmp_path / "d.npz")
    path.write_bytes(content)
    sandbox.refuses("inspect", path, codes=(0, 2))
    sandbox.refuses("quantize", path, "--calib", data, "-o", tmp_path / "out", codes=(0, 2))
