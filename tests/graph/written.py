"""Models written in ONNX's own notation, and the whole pipeline run on them."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

import edgeq
from edgeq.numerics.metrics import sqnr_db


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def samples(*shape, count=8):
    return [{"x": draw(*shape, seed=i)} for i in range(count)]


def save(folder, text, inits, **options):
    """The model that a text in ONNX's own notation says, with these initializers."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), k) for k, a in inits.items())
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    path = folder / "m.onnx"
    onnx.save(model, path, **options)
    return path


def text(body, inputs="float[N,4,8,8] x", outputs="float[] y", opset=17, ir=8):
    head = f'<ir_version: {ir}, opset_import: ["" : {opset}, "local" : 1]>'
    return f"{head} agraph ({inputs}) => ({outputs}) {{ {body} }}"


def interface(session):
    return [[(v.name, v.type) for v in ends] for ends in (session.get_inputs(), session.get_outputs())]


def quantize(folder, path, feeds, *, method="static", least=25.0, check=None):
    """Quantize; the artifact loads, has the same interface, and gives close to the float model's outputs."""
    result = edgeq.quantize(path, "x86_64", feeds, folder / "out", method=method)
    left, right = ort.InferenceSession(str(path)), ort.InferenceSession(str(result.artifact))
    assert interface(left) == interface(right)
    for feed in (check or feeds)[:3]:
        for want, got in zip(left.run(None, feed), right.run(None, feed), strict=True):
            assert want.dtype == got.dtype
            assert want.shape == got.shape
            assert sqnr_db(want, got) > least
    return result


def integer(result):
    """Names of the nodes that run on codes."""
    return {n.name for n in result.plan.nodes if n.decision in ("integer", "dynamic")}


CONV = {"w": draw(4, 4, 3, 3), "b": draw(4)}


def masked(folder):
    """A model of ids below 61 and their mask, whose padding, id 0, is far greater than words."""
    body = "e = Gather(table, input_ids) a = MatMul(e, w) m = Cast<to=1>(attention_mask) u = Unsqueeze(m, last)"
    inits = {"table": draw(61, 16) * np.linspace(9, 1, 61, dtype=np.float32)[:, None], "w": draw(16, 16)}
    inputs = "int64[N,T] input_ids, int64[N,T] attention_mask"
    return save(folder, text(f"{body} y = Mul(a, u)", inputs), inits | {"last": np.array([2])})
