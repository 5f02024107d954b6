"""Random valid graphs: branches, diamonds, shared weights, subgraphs, odd names, empty and scalar tensors."""

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper as h
from onnx import numpy_helper

FLOAT, INT64 = 1, 7
IMAGE, ROWS = (1, 4, 6, 6), (2, 8)
ODD = ["x/y:0", "ünï·cøde", "a b", "x_q", "x_scale", "x_QuantizeLinear", "0", "y_dq", "w_zero_point", "%s{}", "n" * 120]


class Builder:
    """Nodes, constants and the values to go on from, by shape."""

    def __init__(self, draw):
        self.draw, self.nodes, self.inits, self.count = draw, [], {}, 0
        self.rng = np.random.default_rng(draw(st.integers(0, 999)))
        self.odd = list(draw(st.permutations(ODD)))
        self.shapes = {"image": IMAGE, "rows": ROWS}

    def name(self):
        self.count += 1
        return self.odd.pop() if self.odd and self.draw(st.booleans()) else f"v{self.count}"

    def pick(self, shape):
        return self.draw(st.sampled_from([k for k, s in self.shapes.items() if s == shape]))

    def weight(self, *shape):
        """A constant of that shape, sometimes one that another node has too."""
        same = [k for k, a in self.inits.items() if a.shape == shape]
        if same and self.draw(st.booleans()):
            return self.draw(st.sampled_from(same))
        name = f"c_{self.name()}"
        spread = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        self.inits[name] = (self.rng.normal(size=shape) * spread).astype(np.float32)
        return name

    def fixed(self, array):
        name = f"k_{self.name()}"
        self.inits[name] = np.asarray(array)
        return name

    def add(self, op, inputs, shape, **attributes):
        out = self.name()
        label = self.draw(st.sampled_from(["", out]))
        self.nodes.append(h.make_node(op, inputs, [out], label, **attributes))
        self.shapes[out] = shape
        return out


def conv(b):
    b.add("Conv", [b.pick(IMAGE), b.weight(4, 4, 3, 3), b.weight(4)], IMAGE, pads=[1, 1, 1, 1])


def depthwise(b):
    b.add("Conv", [b.pick(IMAGE), b.weight(4, 1, 3, 3)], IMAGE, pads=[1, 1, 1, 1], group=4)


def normalized(b):
    var = b.fixed(b.rng.uniform(0.5, 2, 4).astype(np.float32))
    b.add("BatchNormalization", [b.pick(IMAGE), b.weight(4), b.weight(4), b.weight(4), var], IMAGE)


def activation(b):
    shape = b.draw(st.sampled_from([IMAGE, ROWS]))
    op = b.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Identity", "Neg", "Abs"]))
    b.add(op, [b.pick(shape)], shape)


def clip(b):
    low, high = b.fixed(np.float32(b.draw(st.sampled_from([0, -1])))), b.fixed(np.float32(1.5))
    b.add("Clip", [b.pick(IMAGE), low, high], IMAGE)


def join(b):
    shape = b.draw(st.sampled_from([IMAGE, ROWS]))
    b.add(b.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), [b.pick(shape), b.pick(shape)], shape)


def diamond(b):
    source = b.pick(IMAGE)
    left = b.add("Conv", [source, b.weight(4, 4, 3, 3), b.weight(4)], IMAGE, pads=[1, 1, 1, 1])
    right = b.add("Relu", [b.add("Conv", [source, b.weight(4, 4, 1, 1)], IMAGE)], IMAGE)
    b.add("Add", [left, right], IMAGE)


def concatenated(b):
    parts = [b.pick(IMAGE), b.pick(IMAGE)]
    if b.draw(st.booleans()):
        parts.append(b.fixed(np.zeros((1, 0, 6, 6), np.float32)))
    both = b.add("Concat", parts, (1, 8, 6, 6), axis=1)
    b.add("Conv", [both, b.weight(4, 8, 1, 1)], IMAGE)


def pooled(b):
    op = b.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    b.add(op, [b.pick(IMAGE)], IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def flattened(b):
    flat = b.add("Reshape", [b.pick(IMAGE), b.fixed(np.array([2, -1]))], (2, 72))
    b.add("Gemm", [flat, b.weight(72, 8), b.weight(8)], ROWS)


def linear(b):
    b.add("MatMul", [b.pick(ROWS), b.weight(8, 8)], ROWS)


def gemm(b):
    inputs = [b.pick(ROWS), b.weight(8, 8), b.weight(8)][: b.draw(st.sampled_from([2, 3]))]
    b.add("Gemm", inputs, ROWS, transB=b.draw(st.sampled_from([0, 1])), alpha=b.draw(st.sampled_from([1.0, 0.5])))


def scalar(b):
    mean = b.add("ReduceMean", [b.pick(IMAGE)], (), keepdims=0)
    b.add("Mul", [b.pick(IMAGE), mean], IMAGE)


def transposed(b):
    there = b.add("Transpose", [b.pick(IMAGE)], (1, 6, 6, 4), perm=[0, 2, 3, 1])
    b.add("Transpose", [b.add("Relu", [there], (1, 6, 6, 4))], IMAGE, perm=[0, 3, 1, 2])


def empty(b):
    ends = [b.fixed(np.array([0])) for _ in range(2)]
    b.add("Slice", [b.pick(ROWS), *ends], (0, 8))


def branch(b):
    """Both ways read a value of the graph around them and a weight of it."""
    source, weight = b.pick(IMAGE), b.weight(4, 4, 3, 3)

    def body(op):
        inner, out = f"in_{b.name()}", f"out_{b.name()}"
        nodes = [h.make_node("Conv", [source, weight], [inner], pads=[1, 1, 1, 1]), h.make_node(op, [inner], [out])]
        return h.make_graph(nodes, op, [], [h.make_tensor_value_info(out, FLOAT, IMAGE)])

    mean = b.add("ReduceMean", [source], (), keepdims=0)
    choice = b.add("Greater", [mean, b.fixed(np.float32(0))], None)
    b.add("If", [choice], IMAGE, then_branch=body("Relu"), else_branch=body("Tanh"))


STEPS = (conv, depthwise, normalized, activation, clip, join, diamond, concatenated, pooled, flattened, linear, gemm,
         scalar, transposed, empty, branch)  # fmt: skip


@st.composite
def models(draw, steps=STEPS, most=9):
    """(model, sample): an image and rows go in, one to three values come out, inner ones among them."""
    b = Builder(draw)
    for step in draw(st.lists(st.sampled_from(steps), min_size=min(3, most), max_size=most)):
        step(b)
    made = [k for k, s in b.shapes.items() if s is not None and k not in ("image", "rows")]
    others = draw(st.lists(st.sampled_from(made), max_size=2))
    outputs = list(dict.fromkeys([made[-1], *others]))
    graph = h.make_graph(
        b.nodes,
        "random",
        [h.make_tensor_value_info(k, FLOAT, s) for k, s in (("image", IMAGE), ("rows", ROWS))],
        [h.make_tensor_value_info(k, FLOAT, b.shapes[k]) for k in outputs],
        [numpy_helper.from_array(a, k) for k, a in b.inits.items()],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    sample = {k: b.rng.normal(size=s).astype(np.float32) for k, s in (("image", IMAGE), ("rows", ROWS))}
    return model, sample
