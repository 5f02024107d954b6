"""An integer-only artifact gives the same bits on every machine: here, without VNNI, on Arm cores, in WebAssembly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeq
from edgeq.registry import load
from edgeq.runners import cpu
from tests.graph.written import draw, save, text
from tests.require import require

# Every operator that is more than a move of codes: convolutions, gates, pools, a resize, and a block of attention.
BODY = """
c = Conv <pads=[1,1,1,1]> (x, w1, b1) r = Relu(c) d = Conv <group=16, pads=[1,1,1,1], strides=[2,2]> (r, w2, b2)
h = HardSwish(d) g = GlobalAveragePool(h) e = Conv(g, w3) s = HardSigmoid(e) m = Mul(h, s) n = Conv(m, w4) a = Add(m, n)
p = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (a) l = LeakyRelu <alpha=0.25> (p)
u = Resize <mode="linear"> (l, , , size) k = Conv <strides=[2,2]> (u, w5) o = Concat <axis=1> (k, a)
t = Reshape(o, tokens) f = Transpose <perm=[0,2,1]> (t) y0 = LayerNormalization(f, gamma, beta) q = MatMul(y0, wq)
i = Transpose <perm=[0,2,1]> (q) z = MatMul(q, i) v = Softmax(z) j = MatMul(v, q) y1 = Tanh(j) y2 = Gelu(q)
y3 = Sub(y1, y2) y4 = Max(y3, q) y5 = ReduceMean <keepdims=0> (y4, axes) y = Gemm <transB=1> (y5, w6, b6)
"""
PLACES = {
    "avx2": ("avx2", {}), "a53": ("arm64", {"cpu": "a53"}), "a76": ("arm64", {"cpu": "a76"}),
    "i8mm": ("arm64", {"cpu": "i8mm"}), "wasm": ("web", {}),
}  # fmt: skip
INSTALL = {"avx2": "apt install qemu-user"}


@pytest.fixture(scope="module", params=["double", "single"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    shapes = {
        "w1": (16, 8, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "b2": (16,), "w3": (16, 16, 1, 1), "w4": (16, 16, 1, 1),
        "w5": (16, 16, 1, 1), "wq": (32, 32), "w6": (10, 32), "b6": (10,), "gamma": (32,), "beta": (32,),
    }  # fmt: skip
    inits = {k: draw(*s) / np.sqrt(np.prod(s[1:])).astype(np.float32) for k, s in shapes.items()}
    inits |= {"size": np.array([1, 16, 12, 12]), "tokens": np.array([1, 32, 36]), "axes": np.array([1])}
    model = save(folder, text(BODY.replace("\n", " "), "float[1,8,12,12] x", "float[1,10] y", opset=21, ir=10), inits)
    data = [{"x": draw(1, 8, 12, 12, seed=i)} for i in range(8)]
    made = edgeq.quantize(model, "x86_64", data, folder / "out", integer_only=True, rounding=request.param, check=False)
    return made.artifact


@pytest.mark.parametrize("place", PLACES)
def test_the_bits_are_the_same(artifact: Path, place: str) -> None:
    runner, options = PLACES[place]
    there = load("edgeq.runners", runner)
    require(runner, INSTALL.get(runner, f"edgeq doctor --install {runner}"), lambda: there.missing() is None)
    feeds = [{"x": draw(1, 8, 12, 12, seed=50 + i) * 3} for i in range(3)]
    session = there.open_session(artifact, **options)
    here = cpu.open_session(artifact, threads=1)
    for feed, got in zip(feeds, session.run_many(feeds), strict=True):
        want = here.run(feed)["y"]
        assert len(np.unique(want)) > 4
        np.testing.assert_array_equal(got["y"], want)
    session.close()
