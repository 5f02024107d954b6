"""Outlying channels: which are split is held against trying every number of them, and what it gives against float."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import edgeq
from edgeq.numerics.metrics import sqnr_db
from edgeq.passes.split_outliers import split
from edgeq.planning.outliers import outlying
from edgeq.planning.plan import SplitPlan
from edgeq.recipe import Recipe
from tests.graph.written import draw, save, text

FEATURES = 768


def span(lo, hi, k):
    """The width of what is left when the k farthest channels are split, and in how many parts they must be."""
    order = sorted(range(len(lo)), key=lambda c: -max(-lo[c], hi[c]))
    low, high = min(0, *lo[order[k:]]), max(0, *hi[order[k:]])
    parts = [max(hi[c] / high if hi[c] > 0 else 0, lo[c] / low if lo[c] < 0 else 0) for c in order[:k]]
    return high - low, sum(max(1, np.ceil(n - 1e-6)) for n in parts)


@given(hnp.arrays(float, 64, elements=st.floats(0.5, 2)), st.lists(st.floats(3, 30), min_size=1, max_size=3))
def test_the_split_is_the_best_that_fits(width, far):
    lo, hi = -width, width.copy()
    hi[: len(far)] *= far
    columns = 12
    widths = [w for w, parts in (span(lo, hi, k) for k in range(1, columns + 1)) if parts <= columns]
    found = outlying(lo, hi, columns)
    gain = 20 * np.log10((hi.max() - lo.min()) / min(widths, default=np.inf)) if widths else 0
    if found is None:
        assert gain < 3.0 + 1e-6
        return
    channels, kept = found
    assert gain > 3.0 - 1e-6
    assert kept.hi - kept.lo == pytest.approx(min(widths))
    others = np.setdiff1d(np.arange(len(lo)), channels)
    assert (kept.lo, kept.hi) == (lo[others].min(), hi[others].max())


def test_nothing_stands_out_nothing_is_split():
    rng = np.random.default_rng(0)
    far = rng.uniform(1, 2, FEATURES)
    assert outlying(-far, far, FEATURES // 32) is None
    assert outlying(np.zeros(FEATURES), np.zeros(FEATURES), FEATURES // 32) is None
    assert outlying(np.zeros(8), np.arange(8.0), 0) is None


def features(index):
    """Tokens of which three channels reach much further than the others, on one side, the other, and both."""
    x = draw(24, FEATURES, seed=index)
    x[:, 5] = np.abs(x[:, 5]) * 6
    x[:, 9] = -np.abs(x[:, 9]) * 8
    x[::7, 100] *= 6
    return {"x": x[None]}


def test_the_parts_of_a_channel_sum_up_to_its_code():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,3] x) => (float[N,2] y)
        <float s = {0.5}, uint8 z = {100}, int8[3,2] w = {1, 2, 3, 4, 5, 6}, float t = {1}> {
            q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)  b = DequantizeLinear(w, t)  y = MatMul(a, b)
        }""")
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    list(model.graph)[-1].name = "layer"
    split(model, [SplitPlan("x", (2,), (4,), ("layer",))])
    x = np.zeros((2001, 3), np.float32)
    x[:, 2] = np.random.default_rng(0).uniform(-190, 300, 2001)  # the codes reach from -50 to 77.5
    got = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, np.floor(x[:, 2:] / 0.5 + 0.5) * 0.5 * np.array([[5, 6]], np.float32))


LAYERS = {
    "MatMul": "y = MatMul(x, w)",
    "bias": "p = MatMul(x, w) y = Add(p, b)",
    "Gemm": "r = Reshape(x, rows) y = Gemm<transB = 1>(r, wt, b)",
    "siblings": "p = MatMul(x, w) q = MatMul(x, v) y = Add(p, q)",
}


@pytest.mark.parametrize("body", LAYERS.values(), ids=LAYERS)
def test_a_layer_keeps_its_accuracy_and_its_kernel(tmp_path, body):
    w = draw(FEATURES, 48)
    inits = {"w": w, "wt": w.T.copy(), "v": draw(FEATURES, 48, seed=1), "b": draw(48), "rows": np.array([-1, FEATURES])}
    out = "float[T,48] y" if "Gemm" in body else "float[1,T,48] y"
    path = save(tmp_path, text(body, f"float[1,T,{FEATURES}] x", out), {k: v for k, v in inits.items() if k in body})
    feeds = [features(i) for i in range(12)]
    want = ort.InferenceSession(str(path)).run(None, features(99))[0]
    left = {}
    for least in (-np.inf, 36.0):
        made = edgeq.quantize(path, "x86_64", feeds, tmp_path / str(least), recipe=Recipe(outlier_sqnr=least))
        left[least] = sqnr_db(want, ort.InferenceSession(str(made.artifact)).run(None, features(99))[0])
    assert set(made.plan.splits[0].channels) >= {5, 9, 100}
    assert left[36.0] > left[-np.inf] + 6
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(made.artifact), options)
    kernels = [n.op_type for n in edgeq.load(options.optimized_model_filepath).graph]
    assert not {"MatMul", "Gemm"} & set(kernels)


def test_a_target_whose_rules_do_not_allow_it_gets_no_split(tmp_path):
    path = save(
        tmp_path, text("y = MatMul(x, w)", f"float[1,24,{FEATURES}] x", "float[1,24,48] y"), {"w": draw(FEATURES, 48)}
    )
    feeds = [features(i) for i in range(4)]
    assert edgeq.quantize(path, "x86_64", feeds, tmp_path / "a", check=False).plan.splits
    assert not edgeq.quantize(path, "openvino", feeds, tmp_path / "b", check=False).plan.splits
