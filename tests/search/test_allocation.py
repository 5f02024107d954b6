"""Formats for each layer: the measured cost is what the model's outputs lose, and the choice spends it well."""

import msgspec
import numpy as np
import onnx
import pytest

import edgeq
from edgeq import recipe
from edgeq import target as targets
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.numerics import codebook
from edgeq.numerics.metrics import sqnr_db
from edgeq.runners import cpu
from edgeq.search import allocation
from tests.graph.written import draw, save, text

BODY = "a = MatMul (x, w1)  b = MatMul (a, w2)  c = MatMul (b, w3)  d = MatMul (x, w4)  y = Add (c, d)"


def model(folder):
    """Four layers of 128 by 128; what the last one does is a hundredth of what the others do."""
    inits = {f"w{i}": draw(128, 128, seed=i) / 11 for i in range(1, 5)}
    inits["w4"] /= 100
    return save(folder, text(BODY, "float[N,128] x"), inits)


def samples(count=16):
    return [{"x": draw(8, 128, seed=i)} for i in range(count)]


def outputs(path):
    session = cpu.open_session(path)
    return np.concatenate([session.run(f)["y"] for f in samples(40)[20:]])


def quantize(path, folder, **options):
    options = {"method": "weight_only", "weight": "gptq", "check": False} | options
    return edgeq.quantize(path, "generic", samples(), folder, **options)


def bits_of(rules):
    return {r.nodes[0]: r.bits + 16 / (r.block or 128) for r in rules}


@pytest.mark.parametrize("bpw", [2.5, 3.2, 4.2])
def test_a_mix_beats_the_uniform_format_of_its_size(tmp_path, bpw):
    path = model(tmp_path)
    bits, block = {2.5: (2, 32), 3.2: (3, 128), 4.2: (4, 128)}[bpw]
    uniform = quantize(path, tmp_path / "u", bits=bits, block=block)
    mixed = quantize(path, tmp_path / "m", bpw=bpw)
    made = recipe.load(tmp_path / "m" / "recipe.toml")
    found = bits_of(made.rule)
    assert len(found) == 4
    assert np.mean(list(found.values())) <= bpw
    assert min(found, key=found.get) == "MatMul_3"  # the layer that matters least has the fewest bits
    wanted = outputs(path)
    assert sqnr_db(wanted, outputs(mixed.artifact)) > sqnr_db(wanted, outputs(uniform.artifact))
    assert mixed.artifact.stat().st_size < uniform.artifact.stat().st_size * 1.03 + 1000  # a function
    again = edgeq.quantize(path, "generic", samples(), tmp_path / "r", recipe=made, check=False)
    assert again.artifact.read_bytes() == mixed.artifact.read_bytes()


def test_the_algorithm_is_chosen_too(tmp_path):
    """A weight whose numbers are NF4's own levels is best served by them, where a kernel takes them."""
    inits = {f"w{i}": draw(128, 128, seed=i) / 11 for i in range(1, 5)}
    codes = np.random.default_rng(0).integers(0, 16, (128, 128))
    codes[::32] = 15  # every block reaches its end
    inits["w2"] = codebook.NF4[codes] / 4
    path = save(tmp_path, text(BODY, "float[N,128] x"), inits)
    mixed = quantize(path, tmp_path / "m", bpw=4.3, weight=None)
    found = {r.nodes[0]: (r.weight, r.bits) for r in recipe.load(tmp_path / "m" / "recipe.toml").rule}
    assert found.pop("MatMul_1") == ("nf4", 4)
    assert "gptq" in {weight for weight, _ in found.values()}
    kinds = [n.op_type for n in onnx.load(mixed.artifact).graph.node]
    assert "MatMulBnb4" in kinds
    assert "MatMulNBits" in kinds


def test_only_codes_with_a_kernel_are_tried_unasked(tmp_path):
    path = model(tmp_path)
    aim, asked = targets.load("generic"), recipe.Recipe(method="weight_only")
    prepared = prepare(io.load(path), aim.opset)

    def tried(target, **changes):
        could = allocation.formats(prepared, target, msgspec.structs.replace(asked, **changes))
        assert len(could) == 4
        return {(w.algorithm, w.spec.bits) for layer in could.values() for w in layer}

    usual = {("rtn", 2), ("rtn", 4), ("rtn", 8), ("gptq", 2), ("gptq", 4), ("gptq", 8)}
    assert tried(aim) == usual | {("nf4", 4), ("fp4", 4)}
    assert tried(msgspec.structs.replace(aim, kernels={})) == usual
    assert tried(aim, weight="gptq") == {(name, bits) for name, bits in usual if name == "gptq"}
    assert tried(aim, weight="iq4_nl") == {("iq4_nl", 4), ("gptq", 2), ("gptq", 4), ("gptq", 8)}
    pinned = (recipe.Override(nodes=("MatMul_0",), bits=2, block=32),)
    could = allocation.formats(prepared, aim, msgspec.structs.replace(asked, rule=pinned))
    assert {(w.algorithm, w.spec.bits) for w in could["MatMul_0"]} == {("rtn", 2), ("gptq", 2)}


def test_bytes_are_kept_to(tmp_path):
    path = model(tmp_path)
    for limit in (24_000, 34_000):
        size = quantize(path, tmp_path / "out", max_bytes=limit).artifact.stat().st_size
        assert 0.9 * limit < size <= limit


def test_what_it_needs_is_said(tmp_path):
    path = model(tmp_path)
    with pytest.raises(CalibrationError, match="give --calib"):
        edgeq.quantize(path, "generic", None, tmp_path / "out", method="weight_only", bpw=3.0)
    for options, why in (({"bpw": 1.0}, "raise it"), ({"bpw": 3.0, "max_bytes": 9}, "one of the two")):
        with pytest.raises(RecipeError, match=why):
            quantize(path, tmp_path / "out", **options)
    with pytest.raises(RecipeError, match="--method weight_only"):
        edgeq.quantize(path, "generic", samples(), tmp_path / "out", bpw=3.0)
