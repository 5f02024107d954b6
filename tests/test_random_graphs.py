"""Random valid graphs through preparation, every pass and every method: valid, same interface, and as close as told."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from onnx import numpy_helper

import edgeq
from edgeq import registry
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.passes.bias_correct import with_biases
from edgeq.passes.equalize import equalize
from tests.implied import Undecided, implied
from tests.random_graphs import conv, models

MANY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
EXACT = 1e-5


def rewrites():
    """Every pass that changes the form of a model alone."""
    found = {"equalize": equalize, "with_biases": with_biases}
    for name in registry.names("edgeq.passes"):
        module = __import__(f"edgeq.passes.{name}", fromlist=["rewrite"])
        if hasattr(module, "rewrite"):
            found[name] = module.rewrite
    return found


def read(proto):
    return ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))


def run(model, sample, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    """(interface, outputs) in onnxruntime; samples hold more than a model may still read."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level, options.intra_op_num_threads = level, 4, 1
    session = ort.InferenceSession(model, options)
    ends = [[(v.name, v.type, v.shape) for v in side] for side in (session.get_inputs(), session.get_outputs())]
    return ends, session.run(None, {name: sample[name] for name, _, _ in ends[0]})


def close(want, got, tolerance):
    for a, b in zip(want, got, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.abs(a - b).max(initial=0) <= tolerance * max(np.abs(a).max(initial=0), 1.0)


@MANY
@given(models())
def test_prepared_they_compute_the_same(given_):
    proto, sample = given_
    ends, want = run(proto.SerializeToString(), sample)
    model = prepare(read(proto))
    io.check(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    same_ends, got = run(once, sample)
    assert same_ends == ends
    close(want, got, EXACT)
    assert ir.to_proto(prepare(model)).SerializeToString(deterministic=True) == once


@pytest.mark.parametrize("name", rewrites())
@settings(MANY, max_examples=20)
@given(models())
def test_a_pass_changes_the_form_alone(name, given_):
    proto, sample = given_
    ends, want = run(proto.SerializeToString(), sample)
    model = prepare(read(proto))
    rewrites()[name](model)
    io.check(model)
    same_ends, got = run(ir.to_proto(model).SerializeToString(), sample)
    assert same_ends == ends
    close(want, got, 1e-4 if name == "equalize" else EXACT)


def static(proto, sample):
    """The artifact, its ranges being those of the sample."""
    with tempfile.TemporaryDirectory() as name:
        path, settings = Path(name) / "m.onnx", {"calibrator": "minmax", "elementwise": "all"}
        onnx.save(proto, path)
        return onnx.load(edgeq.quantize(path, "x86_64", [sample], f"{name}/out", check=False, **settings).artifact)


@MANY
@given(models())
def test_static_artifacts_are_as_close_as_their_scales_imply(given_):
    proto, sample = given_
    ends, want = run(proto.SerializeToString(), sample)
    artifact = static(proto, sample)
    same_ends, got = run(artifact.SerializeToString(), sample)
    assert same_ends == ends
    try:
        bounds = implied(artifact, sample)
    except Undecided:
        return
    for a, b, (value, radius) in zip(want, got, bounds, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        slack = 1e-4 * max(np.abs(a).max(initial=0), 1.0)
        assert (np.abs(a - value) <= radius + slack).all()
        assert (np.abs(a - b) <= 2 * radius + slack).all()  # kernels round with arithmetic of their own


@settings(MANY, max_examples=5)
@given(models(steps=(conv,), most=1))
def test_a_wrong_scale_is_more_than_they_imply(given_):
    proto, sample = given_
    want = run(proto.SerializeToString(), sample)[1][0]
    artifact = static(proto, sample)
    (scale,) = [t for t in artifact.graph.initializer if t.name.endswith("_scale") and list(t.dims) == [4]][:1]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.5), scale.name))
    ((value, radius),) = implied(artifact, sample)
    assert (np.abs(want - value) > radius + 1e-4).any()


@pytest.mark.parametrize("method", ["dynamic", "weight_only"])
@settings(MANY, max_examples=20)
@given(models())
def test_other_methods_run_with_the_same_interface(method, given_):
    proto, sample = given_
    ends, want = run(proto.SerializeToString(), sample)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(proto, folder / "m.onnx")
        made = edgeq.quantize(folder / "m.onnx", "x86_64", None, folder / "out", method=method, check=False)
        same_ends, got = run(str(made.artifact), sample)
    assert same_ends == ends
    touched = {node.decision for node in made.plan.nodes} & {"dynamic", "packed", "stored"}
    close(want, got, 0.5 if touched else EXACT)
