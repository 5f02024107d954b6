"""What one node's rounding does, against the same node quantized alone by the whole pipeline."""

import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from edgeq.recipe import Override, Recipe
from tests.graph.written import draw, samples, save, text

BODY = """a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv(r, w2, b2) s = Relu(c)
e = Conv(s, w3) t = Add(e, s) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, w4)"""


def model(folder):
    inits = {
        "w1": draw(8, 4, 3, 3) / 6, "b1": draw(8), "w2": draw(8, 8, 1, 1, seed=1) / 3, "b2": draw(8, seed=2),
        "w3": draw(8, 8, 1, 1, seed=3) / 3, "w4": draw(5, 8),
    }  # fmt: skip
    inits["w2"][0] *= 50  # the relu behind it has a range that leaves all others few codes
    return save(folder, text(BODY), inits)


def change(path, artifact, feeds):
    """Mean squared change over variance, a sample at a time, in plain onnxruntime."""
    left, right = (ort.InferenceSession(str(p)) for p in (path, artifact))
    pairs = [(left.run(None, f)[0].astype(float), right.run(None, f)[0].astype(float)) for f in feeds]
    return np.mean([((a - b) ** 2).mean() / a.var() for a, b in pairs])


def test_each_node_as_if_it_were_quantized_alone(tmp_path):
    path, feeds = model(tmp_path), samples(3, 4, 8, 8, count=4)
    found = edgeq.quantize(path, "generic", feeds, tmp_path / "all", rank=True).report.sensitivity
    assert [s.error for s in found] == sorted((s.error for s in found), reverse=True)
    anchors = {s.name: s for s in found if s.op in ("Conv", "Gemm")}
    assert set(anchors) == {"Conv_0", "Conv_2", "Conv_4", "Gemm_8"}
    assert anchors["Conv_0"].macs == 8 * 8 * 8 * 4 * 9  # free batch counted as 1
    for name, row in anchors.items():
        rules = (Override(float=True), Override(nodes=(name, "Relu_*"), float=False))
        alone = edgeq.quantize(
            path, "generic", feeds, tmp_path / "one", recipe=Recipe(rule=rules, passes=()), check=False
        )
        assert {n.name for n in alone.plan.nodes if n.decision == "integer"} == {name}
        assert row.error == pytest.approx(change(path, alone.artifact, feeds), rel=0.3)


def test_it_is_only_measured_when_asked_for(tmp_path):
    made = edgeq.quantize(model(tmp_path), "generic", samples(3, 4, 8, 8), tmp_path / "o")
    assert made.report.sensitivity == ()


def test_split_channels_are_left_as_they_are(tmp_path):
    far = np.ones(256, np.float32)
    far[7] = 7
    path = save(tmp_path, text("y = MatMul(x, w)", "float[N,256] x"), {"w": draw(256, 16)})
    feeds = [{"x": draw(32, 256, seed=i) * far} for i in range(6)]
    made = edgeq.quantize(path, "generic", feeds, tmp_path / "o", recipe=Recipe(outlier_sqnr=60.0), rank=True)
    assert made.plan.splits
    (row,) = made.report.sensitivity
    assert row.error == pytest.approx(change(path, made.artifact, feeds[:4]), rel=0.4)


@pytest.mark.parametrize("end", ["y = Softmax(l)", "f = Flatten(l) s = Softmax(f) y = Identity(s)"])
def test_errors_are_those_before_a_softmax(tmp_path, end):
    """Far apart logits leave the Softmax at 0 and 1, where no error shows until a class flips."""
    inits = {"w": draw(16, 8) * 40}
    (tmp_path / "soft").mkdir()
    soft = save(tmp_path / "soft", text(f"l = MatMul(x, w) {end}", "float[N,16] x"), inits)
    plain = save(tmp_path, text("l = MatMul(x, w) y = Identity(l)", "float[N,16] x"), inits)
    feeds = samples(8, 16, count=4)
    rows = [
        edgeq.quantize(path, "generic", feeds, tmp_path / f"o{i}", rank=True, check=False).report.sensitivity
        for i, path in enumerate((soft, plain))
    ]
    assert [s.error for s in rows[0]] == pytest.approx([s.error for s in rows[1]], rel=1e-6)
    assert rows[0][0].error > 0
