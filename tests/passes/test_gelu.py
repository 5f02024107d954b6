"""Spelled-out Gelus become the operator, with the same values; look-alikes stay."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from edgeq.passes.gelu import rewrite

CONSTANTS = {"root": np.float32(2**0.5), "inverse": np.float32(0.5**0.5), "one": np.float32(1), "half": np.float32(0.5),
             "two": np.float32(2), "three": np.float32(3)}  # fmt: skip
FORMS = {
    "(x gate) / 2": "a = Div(x, root) e = Erf(a) g = Add(e, one) p = Mul(x, g) y = Mul(p, half)",
    "2 (x gate)": "a = Mul(inverse, x) e = Erf(a) g = Add(one, e) p = Mul(g, x) y = Div(p, two)",
    "(x / 2) gate": "a = Div(x, root) e = Erf(a) g = Add(e, one) h = Mul(x, half) y = Mul(h, g)",
    "x (gate / 2)": "a = Div(x, root) e = Erf(a) g = Add(e, one) h = Mul(half, g) y = Mul(x, h)",
}
OTHERS = {
    "factor": "a = Div(x, two) e = Erf(a) g = Add(e, one) p = Mul(x, g) y = Mul(p, half)",
    "offset": "a = Div(x, root) e = Erf(a) g = Add(e, three) p = Mul(x, g) y = Mul(p, half)",
    "read elsewhere": "a = Div(x, root) e = Erf(a) g = Add(e, one) p = Mul(x, g) q = Mul(p, half) y = Add(q, e)",
}


def written(body, opset=21):
    head = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[4,5] x) => (float[4,5] y)'
    model = parser.parse_model(f"{head} {{ {body} }}")
    used = [k for k in CONSTANTS if any(k in n.input for n in model.graph.node)]
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(CONSTANTS[k]), k) for k in used)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_every_order_of_the_factors(form):
    model = written(FORMS[form])
    made = ir.serde.serialize_model(rewrite(ir.serde.deserialize_model(model)))
    assert [n.op_type for n in made.graph.node] == ["Gelu"]
    x = {"x": np.random.default_rng(0).normal(0, 2, (4, 5)).astype(np.float32)}
    want, got = (ort.InferenceSession(m.SerializeToString()).run(None, x)[0] for m in (model, made))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_no_gelu_stays(form):
    model = written(OTHERS[form])
    made = ir.serde.serialize_model(rewrite(ir.serde.deserialize_model(model)))
    assert [n.op_type for n in made.graph.node] == [n.op_type for n in model.graph.node]


def test_older_operator_sets_have_none():
    model = written(next(iter(FORMS.values())), opset=17)
    assert len(list(rewrite(ir.serde.deserialize_model(model)).graph)) == 5
