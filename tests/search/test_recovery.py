"""The recipe's passes on whole models: what collapses without them comes back, and statistics are of what is read."""

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from threadpoolctl import threadpool_limits

import edgeq
from edgeq import target
from edgeq.data import Dataset
from edgeq.errors import CalibrationError, RecipeError
from edgeq.numerics.metrics import sqnr_db
from edgeq.planning.plan import Plan, WeightPlan
from edgeq.recipe import Recipe
from edgeq.search import recovery
from edgeq.types import PerChannel, QSpec
from tests.graph.written import draw, samples, save, text

BODY = """a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) d = Conv<group=16, pads=[1,1,1,1]>(r, w2) q = Relu(d)
c = Conv(q, w3) s = Relu(c) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, w4, b4)"""


def unequal():
    """Channels a thousand times apart, which the next layer makes up for."""
    far = 10.0 ** np.random.default_rng(4).uniform(-1.5, 1.5, (2, 16, 1, 1, 1)).astype(np.float32)
    return {
        "w1": draw(16, 4, 3, 3) / 6 * far[0], "b1": draw(16) * far[0].reshape(-1) / 4,
        "w2": draw(16, 1, 3, 3, seed=1) / 3 * far[1] / far[0],
        "w3": draw(8, 16, 1, 1, seed=2) / 4 / far[1].reshape(1, 16, 1, 1),
        "w4": draw(5, 8), "b4": draw(5),
    }  # fmt: skip


def per_tensor():
    aim = target.load("generic")
    return msgspec.structs.replace(aim, types=aim.types | {"s8c": aim.types["s8t"]})


def answers(path, feeds):
    session = ort.InferenceSession(str(path))
    return np.concatenate([session.run(["y"], feed)[0] for feed in feeds])


@pytest.mark.parametrize("kind", ["per tensor", "per channel"])
def test_unequal_channels_are_recovered(tmp_path, kind):
    path = save(tmp_path, text(BODY), unequal())
    aim = per_tensor() if kind == "per tensor" else target.load("generic")
    left, held_out = samples(4, 4, 8, 8, count=16), samples(5, 4, 8, 8)
    found = {}
    for passes in ((), ("equalize",), ("equalize", "bias_correct")):
        made = edgeq.quantize(path, aim, left, tmp_path / "out", recipe=Recipe(passes=passes), check=False)
        found[passes] = sqnr_db(answers(path, held_out), answers(made.artifact, held_out))
    assert found[()] < 12 if kind == "per tensor" else found[()] < 35
    assert found["equalize",] > max(found[()] + 3, 24)
    assert found["equalize", "bias_correct"] > found["equalize",] - 1


def test_outlying_features_are_smoothed(tmp_path):
    body = "h = LayerNormalization(x, g, b) m = MatMul(h, w1) r = Relu(m) y = MatMul(r, w2)"
    gain = np.ones(64, np.float32)
    gain[[5, 40]] = 80
    inits = {"g": gain, "b": draw(64) / 9, "w1": draw(64, 64) / gain[:, None], "w2": draw(64, 16, seed=1)}
    path = save(tmp_path, text(body, "float[N,7,64] x"), inits)
    left, held_out = samples(2, 7, 64, count=16), samples(3, 7, 64)
    found = {}
    for passes in ((), ("smooth",)):
        chosen = Recipe(passes=passes, outlier_sqnr=0.0)
        made = edgeq.quantize(path, "generic", left, tmp_path / "out", recipe=chosen, check=False)
        found[passes] = sqnr_db(answers(path, held_out), answers(made.artifact, held_out))
    assert found["smooth",] > found[()] + 6


def test_bias_correction_takes_the_mean_error_out(tmp_path):
    rng = np.random.default_rng(0)
    inits = {"w1": np.abs(draw(8, 4, 3, 3)), "w2": np.abs(draw(6, 8, 1, 1)), "b2": draw(6)}
    inits["w1"][:, 0] *= 40  # leaves the others few codes
    path = save(tmp_path, text("a = Conv(x, w1) r = Relu(a) y = Conv(r, w2, b2)"), inits)
    left = [{"x": rng.uniform(0.5, 1.5, (2, 4, 8, 8)).astype(np.float32)} for _ in range(24)]
    off = {}
    for passes in ((), ("bias_correct",)):
        made = edgeq.quantize(path, per_tensor(), left, tmp_path / "out", recipe=Recipe(passes=passes), check=False)
        off[passes] = np.abs((answers(made.artifact, left) - answers(path, left)).mean((0, 2, 3))).max()
        assert made.report.calibration.get("corrected") == (2 if passes else None)
    assert off["bias_correct",] < off[()] / 3


@pytest.mark.parametrize("many", [1, 40])
def test_a_batch_counts_as_its_rows(tmp_path, many):
    """The mean of the first 16 rows, however they come."""
    inits = {"w1": np.abs(draw(8, 4, 3, 3)), "w2": np.abs(draw(6, 8, 1, 1))}
    path = save(tmp_path, text("a = Conv(x, w1) r = Relu(a) y = Conv(r, w2)"), inits)
    rows = np.random.default_rng(0).uniform(0.5, 1.5, (40, 4, 8, 8)).astype(np.float32)
    given = [{"x": rows[i : i + many]} for i in range(0, 40, many)]
    made = edgeq.quantize(path, per_tensor(), given, tmp_path / "out", recipe=Recipe(samples=0), check=False)
    head = rows[: max(many, 16)]
    off = answers(made.artifact, [{"x": head}]) - answers(path, [{"x": head}])
    bare = edgeq.quantize(path, per_tensor(), given, tmp_path / "o", recipe=Recipe(samples=0, passes=()), check=False)
    before = answers(bare.artifact, [{"x": head}]) - answers(path, [{"x": head}])
    assert np.abs(off.mean((0, 2, 3))).max() < np.abs(before.mean((0, 2, 3))).max() / 2


@pytest.mark.parametrize("asked", [{"method": "dynamic"}, {"method": "weight_only"}, {"state": (("h", "s"),)}])
def test_by_default_biases_are_corrected_where_that_is_possible(tmp_path, asked):
    body = "m = MatMul(x, w) h = Add(m, s) y = Relu(h)"
    path = save(tmp_path, text(body, "float[N,32] x, float[N,8] s", "float[N,8] y, float[N,8] h"), {"w": draw(32, 8)})
    feeds = [{"x": draw(1, 32, seed=i), "s": draw(1, 8)} for i in range(4)]
    made = edgeq.quantize(path, "x86_64", feeds, tmp_path / "out", recipe=Recipe(**asked), check=False)
    assert "corrected" not in made.report.calibration


@pytest.mark.parametrize(
    "attributes", ["", "strides=[2,1], pads=[1,0,2,1]", "dilations=[2,2], pads=[2,2,2,2]", "kernel_shape=[3,3]"]
)
def test_windows_are_what_the_kernel_meets(tmp_path, attributes):
    weight = draw(5, 4, 3, 3)
    path = save(tmp_path, text(f"y = Conv<{attributes}>(x, w)" if attributes else "y = Conv(x, w)"), {"w": weight})
    x = draw(2, 4, 8, 8)
    node = next(iter(ir.load(path).graph))
    got = recovery.windows(x, node) @ weight.reshape(5, -1).T
    want = np.moveaxis(answers(path, [{"x": x}]), 1, -1).reshape(-1, 5)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_statistics_of_a_convolution(tmp_path):
    weight = draw(5, 4, 3, 3)
    path = save(tmp_path, text("y = Conv(x, w)"), {"w": weight})
    spec = QSpec("int8", granularity=PerChannel(0))
    plan = Plan("generic", "static", (), weights=(WeightPlan("Conv_0", 1, "w", spec, "adaround"),))
    feeds = samples(1, 4, 8, 8, count=3)
    found = recovery.layer_stats(ir.load(path), path, plan, Dataset("d", lambda: iter(feeds), 3), Recipe())
    energy = float((answers(path, feeds).astype(np.float64) ** 2).sum())
    flat = weight.reshape(5, -1).astype(np.float64)
    assert np.einsum("ok,kl,ol->", flat, found["Conv_0"].gram, flat) == pytest.approx(energy, rel=1e-5)


@pytest.mark.parametrize("weight", ["adaround", "gptq"])
def test_learned_rounding_of_static_int8(tmp_path, weight):
    """Few codes a weight and inputs that hang together: rounding for the output beats rounding for the weight."""
    mix = draw(32, 32, seed=3) @ np.diag(np.linspace(2, 0.02, 32).astype(np.float32))
    path = save(tmp_path, text("y = MatMul(x, w)", "float[N,32] x"), {"w": draw(32, 8) * np.exp(draw(32, 1))})
    left = [{"x": draw(8, 32, seed=i) @ mix.T} for i in range(24)]
    found = {}
    aim = target.load("generic")
    row = msgspec.structs.replace(aim.types["s8c"], dtype="int4")
    aim = msgspec.structs.replace(aim, types=aim.types | {"s8c": row})
    for name in ("mse", weight):
        made = edgeq.quantize(
            path, aim, left, tmp_path / "out", recipe=Recipe(weight=name, outlier_sqnr=0.0), check=False
        )
        found[name] = sqnr_db(answers(path, left), answers(made.artifact, left))
    assert found[weight] > found["mse"] + 1


def test_refusals(tmp_path):
    path = save(tmp_path, text("y = Conv(x, w, b)"), {"w": draw(4, 4, 3, 3), "b": draw(4)})
    with pytest.raises(CalibrationError, match="passes need data"):
        edgeq.quantize(path, "generic", None, tmp_path / "o", recipe=Recipe(passes=("equalize",)), data_free=True)
    with pytest.raises(RecipeError, match="passes repair static"):
        edgeq.quantize(path, "generic", None, tmp_path / "o", recipe=Recipe(method="dynamic", passes=("smooth",)))


def test_statistics_are_those_of_one_thread_however_many_products_may_have(tmp_path):
    wide = 352
    path = save(tmp_path, text("y = MatMul(x, w)", "float[N,352] x"), {"w": draw(wide, 8)})
    data = Dataset("rows", lambda: iter(samples(1024, wide, count=3)))
    with threadpool_limits(2, user_api="blas"):  # which gives other last bits than one, on two processors
        axes, wanted = {"x": 1}, {"x": [("first", None), ("second", None)]}
        seen, found = recovery.observed(path, data, axes, wanted)
    everything = np.stack([feeds["x"] for feeds in data])
    np.testing.assert_array_equal(seen["x"], [everything.min((0, 1)), everything.max((0, 1))])
    with threadpool_limits(1, user_api="blas"):
        gram = sum((x.T @ x for x in everything), np.zeros((wide, wide)))
    for key in ("first", "second"):
        np.testing.assert_array_equal(found[key].gram, gram)
