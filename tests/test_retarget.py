"""Models of other tools: their scales and codes arrive, uint8 or int8, and the outputs stay what they were."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from benchmarks import peers
from edgeq.errors import ModelError, TargetError
from edgeq.graph import io
from edgeq.graph.prepare import plain, prepare
from edgeq.numerics.affine import quantize
from edgeq.passes.qoperator import to_qdq
from edgeq.retarget import moved, retarget
from edgeq.types import PerChannel, PerTensor, QParams, QSpec
from tests.require import kernels_like_a_targets, require

SAMPLES = Path(__file__).resolve().parents[1] / "sample_models"


class Reader(CalibrationDataReader):
    def __init__(self):
        with np.load(SAMPLES / "digits_calib.npz") as held:
            self.batches = iter([{"input": held["input"][i : i + 32]} for i in range(0, 128, 32)])

    def get_next(self):
        return next(self.batches, None)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    io.save(prepare(io.load(SAMPLES / "digits.onnx"), 21), path)
    return path


@pytest.fixture(scope="module")
def pictures():
    with np.load(SAMPLES / "digits.npz") as held:
        return held["input"], held["label"]


def run(path, pictures):
    return ort.InferenceSession(path).run(None, {"input": pictures})[0]


def codes(path):
    """The codes of all stored weights of more than one dimension, as bytes."""
    arrays = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return sorted(a.tobytes() for a in arrays if a.dtype == np.int8 and a.ndim > 1)


def scales(path):
    model = onnx.load(path)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {float(held[n.input[1]]) for n in model.graph.node if n.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8])
def test_onnxruntimes_scales_and_codes_arrive(floats, pictures, tmp_path, activation):
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    quantize_static(
        floats, theirs, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=activation,
        weight_type=QuantType.QInt8, extra_options={"WeightSymmetric": True},
    )  # fmt: skip
    found = retarget(theirs, "generic", ours)
    assert found.kept > 60
    assert found.plan.counts()["integer"] > 20
    assert codes(ours) == codes(theirs)
    sixth = {np.float32(s) for s in scales(theirs)}
    extra = {s for s in scales(ours) if np.float32(s) not in sixth}
    assert len(extra) <= 1  # the gate of a HardSwish, 1/255
    a, b = run(theirs, pictures[0]), run(ours, pictures[0])
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.98
    assert (b.argmax(1) == pictures[1]).mean() > 0.97


@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8])
def test_operators_on_codes_are_read_back(floats, pictures, tmp_path, activation):
    if activation == QuantType.QInt8:
        kernels_like_a_targets()
    theirs, pairs, ours = (tmp_path / f"{name}.onnx" for name in ("theirs", "pairs", "ours"))
    quantize_static(
        floats, theirs, Reader(), quant_format=QuantFormat.QOperator, per_channel=True, activation_type=activation,
        weight_type=QuantType.QInt8, extra_options={"WeightSymmetric": True},
    )  # fmt: skip
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QGemm"} <= {n.op_type for n in onnx.load(theirs).graph.node}
    io.save(to_qdq(plain(io.load(theirs))), pairs)
    apart = np.abs(run(pairs, pictures[0]) - run(theirs, pictures[0]))
    step = np.unique(np.abs(np.diff(np.unique(run(theirs, pictures[0]))))).min()  # of the logits' codes
    assert apart.max() <= (2.1 * step if activation == QuantType.QInt8 else 0)  # Q-DQ of int8 is made uint8 on x86
    assert (apart > 0).mean() < 0.01
    found = retarget(theirs, "generic", ours)
    assert found.kept > 80
    assert found.plan.counts()["integer"] > 40
    assert codes(ours) == codes(theirs)
    a, b = run(theirs, pictures[0]), run(ours, pictures[0])
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.99
    assert (b.argmax(1) == pictures[1]).mean() > 0.97


def test_scales_that_were_found_at_run_time_are_measured(floats, pictures, tmp_path):
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    quantize_dynamic(floats, theirs)
    found = retarget(theirs, "generic", ours, calib=SAMPLES / "digits_calib.npz")
    assert found.measured > 40
    assert not found.lost
    a, b = run(theirs, pictures[0]), run(ours, pictures[0])
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.99


def test_a_stored_matrix_may_be_transposed_when_it_is_read(tmp_path):
    """As exporters write a linear layer of tensors with more than two axes."""
    rng = np.random.default_rng(0)
    held = {"w": rng.integers(-127, 128, (6, 8)).astype(np.int8), "ws": rng.uniform(0.001, 0.01, 6).astype(np.float32),
            "s": np.float32(0.03), "z": np.uint8(128), "ys": np.float32(0.06), "yz": np.uint8(120)}  # fmt: skip
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "ws"], ["wf"], axis=0),
        onnx.helper.make_node("Transpose", ["wf"], ["wt"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["x", "wt"], ["m"]),
        onnx.helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["mq"]),
        onnx.helper.make_node("DequantizeLinear", ["mq", "ys", "yz"], ["y"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 5, k]) for n, k in (("input", 8), ("y", 6))
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(a), n) for n, a in held.items()]
    )
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), theirs)
    found = retarget(theirs, "generic", ours)
    assert (found.kept, found.lost) == (2, {})
    assert codes(ours) == [np.ascontiguousarray(held["w"].T).tobytes()]
    x = rng.normal(0, 1, (2, 5, 8)).astype(np.float32)
    assert np.abs(run(theirs, x) - run(ours, x)).max() <= 0.0301


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0"])
def test_aimets_encodings_are_read(floats, pictures, tmp_path, version):
    model, beside = prepare(io.load(floats), 21), tmp_path / "m.encodings"
    names = [v.name for n in model.graph for v in n.outputs] + ["input"]
    reach = dict(zip(names, ranges(floats, names), strict=True))
    rows = {n: (max(hi - lo, 1e-3) / 255, round(lo / (max(hi - lo, 1e-3) / 255))) for n, (lo, hi) in reach.items()}
    if version == "1.0.0":
        told = [
            {"name": n, "dtype": "INT", "bw": 8, "is_sym": False, "enc_type": "PER_TENSOR", "scale": [s], "offset": [o]}
            for n, (s, o) in rows.items()
        ]
        beside.write_text(json.dumps({"version": version, "activation_encodings": told, "param_encodings": []}))
    else:
        old = {n: [{"bitwidth": 8, "is_symmetric": "False", "scale": s, "offset": o}] for n, (s, o) in rows.items()}
        beside.write_text(json.dumps({"version": version, "activation_encodings": old, "param_encodings": {}}))
    found = retarget(floats, "generic", tmp_path / "ours.onnx", encodings=beside)
    assert found.plan.counts()["integer"] > 20
    assert {np.float32(s) for s in scales(tmp_path / "ours.onnx")} & {np.float32(s) for s, _ in rows.values()}
    assert (run(tmp_path / "ours.onnx", pictures[0]).argmax(1) == pictures[1]).mean() > 0.97


def test_missing_scales_are_measured_or_their_nodes_stay_float(floats, pictures, tmp_path):
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    quantize_static(
        floats, theirs, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"],
        extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["Conv"]},
    )  # fmt: skip
    few = retarget(theirs, "generic", ours)
    assert few.measured == 0
    assert any("no scale of it" in why or "says no scale" in why for why in few.lost.values())
    more = retarget(theirs, "generic", ours, calib=SAMPLES / "digits_calib.npz")
    assert more.measured > 0
    assert more.plan.counts()["integer"] > few.plan.counts().get("integer", 0) + 10
    assert (run(ours, pictures[0]).argmax(1) == pictures[1]).mean() > 0.97


def ranges(path, names):
    """Extrema of values that onnxruntime is made to give, 0 among them."""
    model = onnx.load(path)
    known = {o.name for o in model.graph.output} | {i.name for i in model.graph.input}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    batch = Reader().get_next()
    session = ort.InferenceSession(model.SerializeToString())
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, batch), strict=True)) | batch
    return [(min(float(found[n].min()), 0.0), max(float(found[n].max()), 0.0)) for n in names]


def test_what_has_no_scales_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no Q-DQ pairs"):
        retarget(SAMPLES / "digits.onnx", "generic", tmp_path / "o.onnx")
    with pytest.raises(TargetError, match="tflite"):
        retarget(SAMPLES / "digits.onnx", "litert", tmp_path / "o.onnx")
    (tmp_path / "e").write_text("{}")
    with pytest.raises(ModelError, match=r"no \.encodings file"):
        retarget(SAMPLES / "digits.onnx", "generic", tmp_path / "o.onnx", encodings=tmp_path / "e")


def test_codes_of_as_many_bits_move_exactly():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    theirs = QParams(np.float32(0.03), np.int32(100), QSpec("uint8", False))
    ours = moved(theirs, QSpec("int8", False), x.shape)
    np.testing.assert_array_equal(quantize(x, theirs).astype(int) - 128, quantize(x, ours))
    each = moved(
        QParams(np.float32(0.03), np.int32(0), QSpec("int8")), QSpec("int8", granularity=PerChannel(0)), x.shape
    )
    assert each.scale.shape == (4,)
    assert moved(theirs, QSpec("int8", True, PerTensor()), x.shape) is None
    assert moved(theirs, QSpec("uint4", False), x.shape) is None


def test_quarks_scales_and_codes_arrive(floats, pictures, tmp_path):
    ready = peers.cache() / "venvs" / "quark" / "ready.txt"
    require("quark", "python -c 'from benchmarks import peers; peers.ensure(\"quark\")'", ready.exists)
    feeds, theirs, ours = tmp_path / "feeds.npz", tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    with np.load(SAMPLES / "digits_calib.npz") as held:
        np.savez(feeds, input=held["input"])
    assert not peers.run("quark", floats, feeds, theirs).error
    found = retarget(theirs, "generic", ours, calib=SAMPLES / "digits_calib.npz")
    assert found.kept > 60
    assert found.plan.counts()["integer"] > 40
    assert codes(ours) == codes(theirs)
    a, b = run(theirs, pictures[0]), run(ours, pictures[0])
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.98
    assert (b.argmax(1) == pictures[1]).mean() > 0.97
