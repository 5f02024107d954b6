"""What is trained is what is exported: the graph in torch, its training, and the integers of the artifact."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq import target as targets
from edgeq.errors import CalibrationError, ModelError, RecipeError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.numerics.affine import quantize
from edgeq.recipe import Override, Recipe
from edgeq.types import QSpec
from tests.require import require

require("torch", "pip install edgeq[torch]")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from edgeq.train.fake import FakeQuantize  # noqa: E402
from edgeq.train.fit import Fit, fit  # noqa: E402
from edgeq.train.graph import TorchGraph  # noqa: E402
from edgeq.train.qat import convert, prepare_qat, with_bits  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
RECIPE = Recipe(target="generic")


@pytest.fixture(scope="module")
def data():
    with np.load(SAMPLES / "digits.npz") as held:
        return torch.from_numpy(held["input"]), torch.from_numpy(held["label"])


@pytest.fixture(scope="module")
def calibration():
    with np.load(SAMPLES / "digits_calib.npz") as held:
        pictures, labels = torch.from_numpy(held["input"]), torch.from_numpy(held["label"])
    return [(pictures[i : i + 32], labels[i : i + 32]) for i in range(0, 128, 32)]


def digits(calibration, bits=None, recipe=RECIPE):
    aim = with_bits(targets.load("generic"), *bits) if bits else None
    return prepare_qat(SAMPLES / "digits.onnx", recipe, batches=[x for x, _ in calibration], target=aim)


def run(model, feeds):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def codes_of(model):
    """Name of the quantized weight → codes."""
    return {t.name: numpy_helper.to_array(t) for t in ir.serde.serialize_model(model).graph.initializer}


@pytest.mark.parametrize("bits", [None, (4, 4), (3, 3)])
def test_the_artifact_has_the_integers_that_were_trained(data, calibration, bits):
    pictures, labels = data
    qat = digits(calibration, bits)
    rate = 1e-3 if bits else 1e-4  # Adam's first steps are that long whatever the gradient, more than 8 bits need
    fit(qat, lambda: calibration, lambda _: 0.0, Fit(epochs=1, lr=rate))
    made = convert(qat)
    stored = codes_of(made)
    for weight in qat.plan.weights:
        params = qat.quantizer(weight.value).params()
        wanted = quantize(qat.constant(weight.value).detach().numpy(), params)
        found = next(
            a
            for n, a in stored.items()
            if n.startswith(weight.value) and a.shape == wanted.shape and "int" in str(a.dtype)
        )
        np.testing.assert_array_equal(found.astype(np.int32), wanted.astype(np.int32))
    with torch.no_grad():
        inside = qat.eval()(pictures).numpy()
    (outside,) = run(ir.serde.serialize_model(made), {"input": pictures.numpy()})
    step = 1.1 * np.ptp(inside) / (2 ** (bits[1] if bits else 8) - 1)  # the logits need not fill their type
    assert np.quantile(np.abs(inside - outside), 0.995) <= step  # a sum that lies on the edge may fall to either code
    assert np.median(np.abs(inside - outside)) < step / 1000
    assert (inside.argmax(1) == outside.argmax(1)).mean() > (
        0.98 if bits == (3, 3) else 0.995
    )  # coarse codes move logits far
    assert (outside.argmax(1) == labels.numpy()).mean() > (0.9 if bits == (3, 3) else 0.95)


def test_two_bits_are_learned(data, calibration):
    """From chance to most of the digits within a few passes over 128 pictures; the ends keep their 8 bits."""
    pictures, labels = data
    model = prepare(io.load(SAMPLES / "digits.onnx"), 21)
    io.to_memory(model)
    linear = [n.name for n in model.graph if n.op_type in ("Conv", "Gemm")]
    ends = tuple(Override(nodes=(n,), act_type="u8_8", weight_type="s8c_8") for n in (linear[0], linear[-1]))
    qat = digits(calibration, (2, 4), Recipe(target="generic", rule=ends))

    def accuracy(module):
        with torch.no_grad():
            return float((module(pictures).argmax(1) == labels).float().mean())

    before = accuracy(qat.eval())
    found = fit(qat, lambda: calibration, accuracy, Fit(epochs=12, lr=2e-3), teacher=TorchGraph(model))
    assert found.scores[found.best] > max(before + 0.1, 0.8)
    assert accuracy(qat) == found.scores[found.best]


def test_the_graph_in_torch_answers_as_onnxruntime(data):
    pictures, _ = data
    model = prepare(io.load(SAMPLES / "digits.onnx"), 21)
    graph = TorchGraph(model).eval()
    with torch.no_grad():
        found = graph(pictures[:50]).numpy()
    (wanted,) = run(onnx.load(SAMPLES / "digits.onnx"), {"input": pictures[:50].numpy()})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        return self.head(nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2).flatten(1))


def test_a_torch_module_is_trained_by_a_loop_of_ones_own(data, calibration):
    torch.manual_seed(0)
    pictures, labels = data
    qat = prepare_qat(Small(), RECIPE, (pictures[:2],), [x for x, _ in calibration])
    assert {n.decision for n in qat.plan.nodes} <= {"integer", "folded"}
    optimizer = torch.optim.SGD(qat.parameters(), 0.1, momentum=0.9)
    qat.train()
    for _ in range(15):
        for inputs, wanted in calibration:
            optimizer.zero_grad()
            nn.functional.cross_entropy(qat(inputs), wanted).backward()
            optimizer.step()
    (logits,) = run(ir.serde.serialize_model(convert(qat.eval())), {"x": pictures.numpy()})
    assert (logits.argmax(1) == labels.numpy()).mean() > 0.8


def test_a_run_goes_on_where_it_was_cut_off(calibration, tmp_path):
    def score(module):
        return -float(sum(nn.functional.cross_entropy(module(x), y) for x, y in calibration))

    class Cut(Exception):
        pass

    def cut(step, done, total):
        if done == 2:
            raise Cut

    settings = Fit(epochs=3, lr=1e-3)
    whole = digits(calibration)
    wanted = fit(whole, lambda: calibration, score, settings)
    with pytest.raises(Cut):
        fit(digits(calibration), lambda: calibration, score, settings, checkpoint=tmp_path / "c.pt", progress=cut)
    resumed = digits(calibration)
    found = fit(resumed, lambda: calibration, score, settings, checkpoint=tmp_path / "c.pt")
    assert found == wanted
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(RecipeError, match="other settings"):
        fit(resumed, lambda: calibration, score, Fit(epochs=4), checkpoint=tmp_path / "c.pt")


def two_layers():
    """y = relu(x W) V as ONNX; `h` is the hidden value."""
    rng = np.random.default_rng(0)
    held = {"W": rng.normal(0, 0.5, (4, 8)).astype(np.float32), "V": rng.normal(0, 0.5, (8, 3)).astype(np.float32)}
    nodes = [("MatMul", ["x", "W"], "m"), ("Relu", ["m"], "h"), ("MatMul", ["h", "V"], "y")]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [out]) for op, inputs, out in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 3])],
        [numpy_helper.from_array(a, n) for n, a in held.items()],
    )
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_features_are_distilled_by_name():
    """The gradient of W is that of the relative distance, derived here; training brings the hidden values together."""
    x, labels = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(16, dtype=torch.long)
    teacher, student = TorchGraph(two_layers()), TorchGraph(two_layers())
    with torch.no_grad():
        student.constant("W").add_(0.3)
    w = student.constant("W").detach().clone().requires_grad_()
    wanted = torch.relu(x @ teacher.constant("W")).detach()

    def apart(weight):
        return (torch.relu(x @ weight) - wanted).square().sum() / wanted.square().sum()

    apart(w).backward()
    grads = []
    student.constant("W").register_hook(grads.append)
    settings = Fit(epochs=1, lr=0.0, alpha=0.0, beta=2.0)
    zero = lambda y, labels: 0 * y.sum()  # noqa: E731
    fit(student, lambda: [(x, labels)], lambda _: 0.0, settings, loss=zero, teacher=teacher, features=["h"])
    torch.testing.assert_close(grads[0], 2 * w.grad)
    before = apart(student.constant("W")).item()
    fit(
        student, lambda: [(x, labels)] * 40, lambda m: -apart(m.constant("W")).item(),
        Fit(epochs=4, lr=2e-2, alpha=0.0), loss=zero, teacher=teacher, features=["h"],
    )  # fmt: skip
    assert apart(student.constant("W")).item() < before / 20
    assert student.kept == teacher.kept == {}
    with pytest.raises(RecipeError, match="feature 'nothing': not a value of both"):
        fit(student, lambda: [(x, labels)], lambda _: 0.0, teacher=teacher, features=["nothing"])
    with pytest.raises(RecipeError, match="must both be a TorchGraph"):
        fit(nn.Linear(4, 3), lambda: [(x, labels)], lambda _: 0.0, teacher=teacher, features=["h"])


@pytest.mark.parametrize("size", [1e-3, 0.3])
def test_steps_learn_in_proportion_to_their_size(size):
    """Adam's first move is its rate, whatever the gradient: a step's is `scale_lr` of it, up to a half power of two."""
    quantizer = FakeQuantize(QSpec("uint4", False), ())
    with torch.no_grad():
        quantizer.scale.fill_(size)
        quantizer.zero_point.fill_(3.0)
    module = nn.Sequential(quantizer, nn.Linear(2, 2))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    batch = (torch.tensor([[-30.7, 1.3], [3.3, 4.4]]) * size, torch.tensor([0, 1]))
    fit(module, lambda: [batch], lambda _: 0.0, Fit(epochs=1, lr=0.02, scale_lr=0.01))
    moved = {name: (p.detach() - before[name]).abs().numpy() for name, p in module.named_parameters()}
    assert 0.01 / 1.42 <= moved["0.scale"] / size <= 0.01 * 1.42
    np.testing.assert_allclose(moved["0.zero_point"], 0.01, rtol=1e-2)
    np.testing.assert_allclose(moved["1.weight"], 0.02, rtol=1e-2)


def test_patience_ends_it(calibration):
    done = fit(digits(calibration), lambda: calibration[:1], lambda _: 0.0, Fit(epochs=9, patience=2))
    assert (len(done.scores), done.best) == (3, 0)
    with pytest.raises(RecipeError, match="nothing to train for"):
        fit(nn.Linear(1, 1), list, lambda _: 0.0, loss=None)


def test_what_can_not_be_trained_is_named():
    node = helper.make_node("NonZero", ["x"], ["y"], name="odd")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
    )
    with pytest.raises(ModelError, match=r"'odd' \(NonZero\)"):
        TorchGraph(ir.serde.deserialize_model(helper.make_model(graph)))
    with pytest.raises(CalibrationError, match="a few batches"):
        prepare_qat(SAMPLES / "digits.onnx", RECIPE)


def test_weights_of_three_bits_lie_in_four(calibration):
    qat = digits(calibration, (3, 4))
    made = codes_of(convert(qat))
    found = [a.astype(int) for a in made.values() if str(a.dtype) == "int4" and a.ndim > 1]
    assert len(found) > 10
    assert {int(a.min()) for a in found} | {int(a.max()) for a in found} <= set(range(-4, 4))
    assert min(a.min() for a in found) == -4
    with pytest.raises(RecipeError, match="activations of 5"):
        with_bits(targets.load("generic"), 3, 5)


def test_activations_of_three_bits_lie_in_eight_and_are_clipped(data, calibration):
    made = ir.serde.serialize_model(convert(digits(calibration, (3, 3))))
    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    clipped = [n.output[0] for n in made.graph.node if n.op_type == "Clip" and makers[n.input[0]] == "QuantizeLinear"]
    assert len(clipped) == sum(node.op_type == "QuantizeLinear" for node in made.graph.node) > 10
    made.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in clipped)
    assert {int(codes.max()) for codes in run(made, {"input": data[0].numpy()})[1:]} == {7}
