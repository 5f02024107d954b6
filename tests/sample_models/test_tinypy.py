"""tinypy's ONNX against a decoder written again in numpy (rotary positions as complex numbers, heads by einsum)."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest

from sample_models import tinypy


def reference(tokens: np.ndarray) -> np.ndarray:
    w = tinypy.weights()
    config = json.loads((tinypy.FOLDER / "tinypy.json").read_text())
    heads, time, half = config["heads"], tokens.shape[1], config["dim"] // config["heads"] // 2
    turn = np.exp(1j * np.outer(np.arange(time), config["rope_theta"] ** (-np.arange(half) / half)))

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["norm_eps"]) * w[name]

    def turned(x):
        z = (x[..., :half] + 1j * x[..., half:]) * turn[None, :, None]
        return np.concatenate([z.real, z.imag], -1)

    x = w["tok.weight"].astype(np.float64)[tokens]
    for i in range(config["layers"]):
        h = norm(x, f"layers.{i}.attn_norm.weight")
        q, k, v = (
            (h @ w[f"layers.{i}.{p}.weight"].T).reshape(*tokens.shape, heads, 2 * half) for p in ("wq", "wk", "wv")
        )
        scores = np.einsum("bqhd,bkhd->bhqk", turned(q), turned(k)) / np.sqrt(2 * half)
        scores = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(time)
        scores /= scores.sum(-1, keepdims=True)
        x = x + np.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape) @ w[f"layers.{i}.wo.weight"].T
        h = norm(x, f"layers.{i}.ffn_norm.weight")
        a = h @ w[f"layers.{i}.w1.weight"].T
        x = x + (a / (1 + np.exp(-a)) * (h @ w[f"layers.{i}.w3.weight"].T)) @ w[f"layers.{i}.w2.weight"].T
    return norm(x, "norm.weight") @ w["out.weight"].T


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tinypy.build(tmp_path_factory.mktemp("tinypy") / "tinypy.onnx")


@pytest.fixture(scope="module")
def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda tokens: session.run(["logits"], {"tokens": tokens})[0]


def test_logits_match_the_reference(run):
    tokens, _ = tinypy.windows([3, 400])
    tokens = tokens[:, :200]  # a batch and a time that the file does not name
    np.testing.assert_allclose(run(tokens), reference(tokens), atol=2e-3, rtol=1e-3)


def test_bits_per_byte_match_the_reference(run):
    found = tinypy.bits_per_byte(run, range(4))
    assert found == pytest.approx(tinypy.bits_per_byte(reference, range(4)), abs=1e-4)
    assert 0.8 < found < 1.6


def test_first_hundred_windows(run):
    assert tinypy.bits_per_byte(run) == pytest.approx(1.1986, abs=2e-4)


def test_uniform_logits_cost_eight_bits():
    assert tinypy.bits_per_byte(lambda t: np.zeros((*t.shape, 256), np.float32), [0]) == pytest.approx(8)


def test_linear_weights_are_plain_matmul_operands(path):
    model = onnx.load(path)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    used = [n.input[1] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in shapes]
    assert len(used) == len(set(used)) == 57
    assert sum(np.prod(shapes[name]) for name in used) == 6_881_280
    assert shapes["layers.0.w1.weight"] == (256, 768), "[K, N]"
    assert model.opset_import[0].version == 21


def test_build_is_deterministic(path, tmp_path):
    again = tinypy.build(tmp_path / "again.onnx")
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()
