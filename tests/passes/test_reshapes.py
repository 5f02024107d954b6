"""Flatten, Squeeze and Unsqueeze between codes become Reshape, with the same bits, and NNAPI takes the whole model."""

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from edgeq import target
from edgeq.graph import io
from edgeq.graph.infer import infer
from edgeq.nnapi.partition import partition
from tests.graph.written import draw, samples, save, text

INITS = {
    "w": draw(4, 4, 3, 3), "b": draw(4), "u": draw(5, 144), "z": draw(5, 4), "v": draw(4, 4, 8, 8), "t": draw(5),
    "last": np.array([2, 3]),
}  # fmt: skip
BODIES = {
    "Flatten": "c = Conv (x, w, b) f = Flatten (c) y = Gemm <transB = 1> (f, u, t)",
    "Squeeze": "c = Conv (x, v, b) f = Squeeze (c, last) y = Gemm <transB = 1> (f, z, t)",
}


def made(folder, body, without=()):
    """NNAPI's artifact; without the passes named in `without`."""
    path = save(folder, text(body, "float[1,4,8,8] x", "float[1,5] y"), INITS)
    aim = target.load("nnapi")
    kept = tuple(name for name in aim.passes_after if name not in without)
    aim = msgspec.structs.replace(aim, passes_after=kept)
    return edgeq.quantize(path, aim, samples(1, 4, 8, 8), folder / f"out{len(without)}", check=False).artifact


def nodes(path):
    return [n.op_type for n in io.load(path).graph if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]


@pytest.mark.parametrize("op", ["Flatten", "Squeeze"])
def test_moves_of_codes_are_reshapes_and_stay_on_nnapi(tmp_path, op):
    found, before = made(tmp_path, BODIES[op]), made(tmp_path, BODIES[op], ["reshapes"])
    assert nodes(found) == ["Conv", "Reshape", "Gemm"]
    assert nodes(before) == ["Conv", op, "Gemm"]
    taken = []
    for path in (found, before):
        model = io.load(path)
        infer(model)
        taken.append(partition(model.graph, 29))
    assert [len(t.partitions) for t in taken] == [1, 2]
    assert taken[0].cpu == ()
    assert [f.op for f in taken[1].cpu] == [op]
    feed = {"x": draw(1, 4, 8, 8, seed=99)}
    answers = [ort.InferenceSession(path).run(None, feed)[0] for path in (found, before)]
    np.testing.assert_array_equal(*answers)


def test_behind_what_runs_in_float_they_stay(tmp_path):
    """GlobalAveragePool of codes is none of the provider's; in float both are."""
    body = "c = Conv (x, w, b) g = GlobalAveragePool (c) f = Flatten (g) y = Gemm <transB = 1> (f, z, t)"
    assert nodes(made(tmp_path, body)) == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]
