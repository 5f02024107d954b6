import numpy as np
import pytest

from benchmarks import large, nbits, weights
from benchmarks.measure import session
from edgeq.numerics import affine
from edgeq.types import PerBlock, QSpec
from edgeq.weights import rtn
from sample_models import tinypy


def test_calibration_is_not_what_is_reported():
    windows = weights.training_windows(6)
    assert windows.shape == (6, tinypy.CONTEXT)
    held_out = (tinypy.FOLDER / "eval.bin").read_bytes()
    for window in windows:
        assert bytes(window.astype(np.uint8))[100:300] not in held_out


def test_rows_and_commands(tmp_path):
    rows = list(weights.wanted("*"))
    assert len({(r.format, r.method) for r in rows}) == len(rows)
    assert {r.method for r in rows} >= {"gptq", "gptq --at-once", "ort hqq", "ort k_quant", "ort gptq"}
    for row in rows:
        line, artifact = weights.command(row, tmp_path / "m", tmp_path / "c", tmp_path)
        assert artifact.is_relative_to(tmp_path)
        assert all(isinstance(word, str) for word in line)
    assert [r.format for r in weights.wanted("3.? bpw / gptq")] == ["3.5 bpw", "3.0 bpw"]
    some = list(weights.wanted("* / gptq,* / ort *"))
    assert {r.format for r in some} == set(weights.OURS)
    assert {r.method for r in some} == {"gptq", *(f"ort {m}" for m in weights.PEERS)}


def test_verdicts():
    row = weights.Row
    found = [
        row("int4 block 32", "rtn", 1.25, size=9), row("int4 block 32", "gptq", 1.2, size=9),
        row("int4 block 32", "ort hqq", 1.22, size=9), row("int4 block 32", "ort rtn", failed="why"),
        row("3.0 bpw", "gptq", 1.26, size=8), row("int2 block 32", "ort hqq", 4.0, size=5),
        row("int4 per channel", "gptq", 1.3, size=7), row("int4 per channel", "ort default", 1.2, size=7),
    ]  # fmt: skip
    assert list(weights.verdicts(found)) == [
        "int4 block 32: gptq 1.2000, ort hqq 1.2200 (behind), goal 1.204 (met)",
        "int4 per channel: gptq 1.3000, ort default 1.2000 (AHEAD), goal 1.215 (MISSED)",
        "3.0 bpw: gptq 1.2600, goal 1.25 (MISSED), as small and no worse: int4 per channel / ort default",
    ]


def test_a_run_goes_on(tmp_path, monkeypatch, capsys):
    done = []

    def measure(row, *_):
        done.append((row.format, row.method))
        if len(done) == 2:
            raise KeyboardInterrupt
        row.bits, row.error, row.loss, row.divergence, row.size, row.seconds, row.peak = 1.2, 0.1, 0.0, 0.0, 9, 1.0, 9
        return row

    monkeypatch.setattr(weights, "measure", measure)
    monkeypatch.setattr(weights, "predictions", lambda _, indices, __: np.zeros((len(indices), 512, 256), np.float32))
    monkeypatch.setattr(weights, "training_windows", lambda _: np.zeros((1, 4), np.int64))
    asked = ["--rows", "int4 * / rtn,int3 * / rtn", "--json", str(tmp_path / "rows.json")]
    with pytest.raises(KeyboardInterrupt):
        weights.main(asked)
    assert weights.main(asked) == 0
    assert len(done) == 7  # six rows, and the one that was cut off again
    assert len(set(done)) == 6
    assert weights.main([*asked, "--windows", "3"]) == 0  # other settings
    assert len(done) == 13
    assert "int3 block 128" in capsys.readouterr().out


def test_what_is_as_small_as_a_mix_and_no_worse():
    rows = [weights.Row("int3 block 32", "a", 1.3, size=9), weights.Row("int4 block 32", "b", 1.2, size=20)]
    assert weights.beaten(weights.Row("3.0 bpw", "gptq", 1.29, size=10), rows) == []
    assert weights.beaten(weights.Row("3.0 bpw", "gptq", 1.3, size=10), rows) == ["int3 block 32 / a"]
    assert weights.beaten(weights.Row("3.0 bpw", "gptq", 1.2, size=20), rows) == ["int4 block 32 / b"]


def test_bits_and_divergence_of_a_prediction():
    """Of even odds among 256 bytes: eight bits, and as far from a sure thing as that says."""
    even = np.full((2, tinypy.CONTEXT, 256), -8, np.float32)
    np.testing.assert_allclose(weights.bits(even, range(2)), 8)
    sure = np.full_like(even, -100)
    sure[..., 0] = 0
    assert abs(weights.divergence(sure, even) - 8) < 1e-6
    assert weights.divergence(even, even) == 0


def test_cells_of_any_row():
    assert weights.cells(weights.Row("f", "m", failed="why"))[2] == "failed"
    full = weights.cells(weights.Row("f", "m", 1.25, 0.01, 0.05, 0.02, 1234567, 3.4, 10**8))
    assert full == ["f", "m", "1.2500", "0.0100", "+0.0500", "0.0200", "1,234,567", "3", "100"]
    assert len(weights.cells(weights.Row("f", "m"))) == len(weights.HEADINGS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_are_of_the_same_product(tmp_path, bits):
    found = nbits.models(64, tmp_path)
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    q = rtn.quantize(w, QSpec(f"int{bits}", granularity=PerBlock(0, 32)))
    exact = x @ affine.dequantize(q.data, q.params)
    for level in nbits.LEVELS:
        made = session(found[f"{bits} bits, level {level}"], 1).run(None, {"x": x})[0]
        assert np.abs(made - exact).max() < (0.5 if level == 4 else 1e-3)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_large_model_is_a_model(tmp_path, monkeypatch, sparse):
    monkeypatch.setattr(large, "WIDE", 64)
    monkeypatch.setattr(large, "NARROW", 32)
    monkeypatch.setattr(large, "BYTES", 4 * 64 * 32)
    monkeypatch.setattr(large, "CHUNK", 1 << 12)
    path = large.build(tmp_path, 3e-5, sparse)
    y = session(path, 1).run(None, {"x": np.ones((2, 32), np.float32)})[0]
    assert y.shape == (2, 32)
    assert y.any() != sparse
    assert large.plain(tmp_path / "large.data", tmp_path / "copy", 0.5) >= 0
