"""GGUF files: the `gguf` package reads what `write` writes and the reverse, and damage is one ModelError."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.formats.gguf import Source, read, write
from edgeq.numerics.gguf import KINDS, importance, quantize
from edgeq.types import Stats
from tests.require import require

METADATA = {
    "general.architecture": "test",
    "a.u32": 7,
    "a.negative": -3,
    "a.large": 2**40,
    "a.float": 0.5,
    "a.bool": True,
    "a.i16": np.int16(-5),
    "a.f64": np.float64(1e-300),
    "a.strings": ["", "é", "\u0120the"],
    "a.no strings": [],
    "a.floats": np.linspace(0, 1, 5, dtype=np.float32),
    "a.bools": np.array([True, False]),
    "a.bytes": np.arange(4, dtype=np.uint8),
}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"vector": (5,), "matrix": (6, 512), "cube": (2, 3, 256), "four": (1, 2, 3, 256)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def sources(kind: str = "Q4_K") -> list[Source]:
    return [
        Source(name, a.shape, kind if a.ndim > 1 else "F32", lambda a=a: a)  # type: ignore[misc]
        for name, a in arrays().items()
    ]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    write(path, METADATA, sources())
    return path


def test_reads_back_what_was_written(sample: Path) -> None:
    file = read(sample)
    assert list(file.metadata) == list(METADATA)
    for key, value in METADATA.items():
        np.testing.assert_array_equal(file.metadata[key], value)
    assert file.metadata["a.i16"].dtype == np.int16
    assert isinstance(file.metadata["a.bool"], bool | np.bool_)
    for name, a in arrays().items():
        t = file.tensors[name]
        assert t.shape == a.shape
        np.testing.assert_allclose(t.floats(), a, atol=0 if a.ndim == 1 else 0.35)
        assert not t.data.flags.writeable


@pytest.mark.parametrize("kind", list(KINDS))
def test_gguf_package_reads_every_kind(tmp_path: Path, kind: str) -> None:
    require("gguf", "pip install edgeq[gguf]")
    import gguf

    write(tmp_path / "x.gguf", METADATA, sources(kind))
    theirs = gguf.GGUFReader(tmp_path / "x.gguf")
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(fields) == list(METADATA)
    for key in ("general.architecture", "a.u32", "a.negative", "a.large", "a.strings", "a.bool"):
        assert fields[key] == METADATA[key]
    ours = read(tmp_path / "x.gguf")
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for t in theirs.tensors:
        mine = ours.tensors[t.name]
        assert tuple(int(d) for d in t.shape[::-1]) == mine.shape
        assert t.tensor_type.name == mine.kind
        want = gguf.quants.dequantize(t.data, t.tensor_type).reshape(mine.shape)
        np.testing.assert_array_equal(mine.floats(), want)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    require("gguf", "pip install edgeq[gguf]")
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("u8", 200)
    writer.add_array("list", [1, 2, 3])
    writer.add_token_list(["a", "b"])
    a = arrays()["matrix"]
    writer.add_tensor("half", a.astype(np.float16))
    writer.add_tensor(
        "q8", gguf.quants.quantize(a, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read(tmp_path / "x.gguf")
    assert file.metadata["u8"] == 200
    assert file.metadata["list"].tolist() == [1, 2, 3]
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    np.testing.assert_array_equal(file.tensors["half"].floats(), a.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(file.tensors["q8"].data, quantize(a, "Q8_0"))


def test_same_input_same_bytes_and_copies_are_exact(tmp_path: Path, sample: Path) -> None:
    write(tmp_path / "again.gguf", METADATA, sources())
    assert (tmp_path / "again.gguf").read_bytes() == sample.read_bytes()
    file = read(sample)
    copies = [Source(t.name, t.shape, t.kind, lambda t=t: t.data) for t in file.tensors.values()]  # type: ignore[misc]
    write(tmp_path / "copy.gguf", file.metadata, copies)
    assert (tmp_path / "copy.gguf").read_bytes() == sample.read_bytes()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ModelError, match="announced"):
        write(path, {}, [Source("w", (2, 32), "Q4_0", lambda: np.zeros((3, 32), np.float32))])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    with pytest.raises(ModelError, match="folder"):
        write(tmp_path / "no" / "x.gguf", {}, [])


def test_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def make(i: int) -> np.ndarray:
        alive.append(i)
        assert list(tmp_path.glob(".*.gguf")), "the file is being written while tensors are made"
        return np.full((1, 32), i, np.float32)

    write(tmp_path / "x.gguf", {}, [Source(str(i), (1, 32), "Q8_0", lambda i=i: make(i)) for i in range(3)])  # type: ignore[misc]
    assert alive == [0, 1, 2]


def test_importance_matrix_reaches_the_codes(tmp_path: Path) -> None:
    x = np.random.default_rng(4).standard_normal((100, 256)) * np.linspace(0.1, 3, 256)
    imatrix = importance(Stats(gram=x.T @ x, mean_abs=np.abs(x).mean(0), count=100))
    np.testing.assert_allclose(imatrix, (x**2).mean(0), rtol=1e-6)
    w = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    for name, matrix in (("with", imatrix), ("without", None)):
        write(tmp_path / name, {}, [Source("w", w.shape, "Q2_K", lambda: w, matrix)])
    errors = {name: x @ (read(tmp_path / name).tensors["w"].floats() - w).T for name in ("with", "without")}
    assert np.mean(errors["with"] ** 2) < 0.9 * np.mean(errors["without"] ** 2)


@pytest.mark.parametrize("value", [None, {}, np.zeros((2, 2)), [1, "a"], np.complex64(1), object()])
def test_metadata_that_gguf_cannot_hold(tmp_path: Path, value: object) -> None:
    with pytest.raises(ModelError, match="'k'"):
        write(tmp_path / "x.gguf", {"k": value}, [])


def damaged(tmp_path: Path, raw: bytes) -> None:
    """Reading may succeed or raise a ModelError; nothing else."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with contextlib.suppress(ModelError), np.errstate(all="ignore"):
        for t in read(path).tensors.values():
            t.floats()


def test_every_truncation_is_refused(tmp_path: Path, sample: Path) -> None:
    raw = sample.read_bytes()
    path = tmp_path / "short.gguf"
    for end in [*range(0, 900, 7), len(raw) - 33, len(raw) // 2]:
        path.write_bytes(raw[:end])
        with pytest.raises(ModelError):
            read(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1100), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
def test_random_damage_is_one_model_error(tmp_path: Path, sample: Path, edits: list[tuple[int, bytes]]) -> None:
    raw = bytearray(sample.read_bytes())
    for at, replacement in edits:
        raw[at : at + len(replacement)] = replacement
    damaged(tmp_path, bytes(raw))


def header(tensors: int, pairs: int, body: bytes = b"") -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, pairs) + body


def text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = 2**63 - 1
ATTACKS = {
    "not GGUF": b"ONNX" + bytes(40),
    "big-endian": struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
    "version 1": struct.pack("<4sIQQ", b"GGUF", 1, 0, 0),
    "countless pairs": header(0, HUGE),
    "countless tensors": header(HUGE, 0, bytes(100)),
    "endless key": header(0, 1, struct.pack("<Q", HUGE) + bytes(50)),
    "endless string": header(0, 1, text(b"k") + struct.pack("<IQ", 8, HUGE) + bytes(50)),
    "endless array": header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, HUGE // 2) + bytes(50)),
    "endless strings": header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, HUGE // 2) + bytes(50)),
    "array of arrays": header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(50)),
    "unknown value type": header(0, 1, text(b"k") + struct.pack("<I", 99) + bytes(50)),
    "key twice": header(0, 2, 2 * (text(b"k") + struct.pack("<II", 4, 1))),
    "alignment 0": header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "alignment 48": header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 48)),
    "alignment text": header(0, 1, text(b"general.alignment") + struct.pack("<I", 8) + text(b"32") + bytes(9)),
    "no dimensions": header(1, 0, tensor(b"t", (), 0, 0) + bytes(64)),
    "empty tensor of many rows": header(1, 0, tensor(b"t", (0, 2**60), 0, 0) + bytes(64)),
    "nine dimensions": header(1, 0, tensor(b"t", (1,) * 9, 0, 0) + bytes(64)),
    "dimensions that overflow": header(1, 0, tensor(b"t", (2**32, 2**32, 2**32), 0, 0) + bytes(64)),
    "past the end": header(1, 0, tensor(b"t", (64,), 0, 0) + bytes(64)),
    "offset past the end": header(1, 0, tensor(b"t", (1,), 0, 2**40) + bytes(64)),
    "offset that overflows": header(1, 0, tensor(b"t", (1,), 0, 2**64 - 32) + bytes(64)),
    "offset not aligned": header(1, 0, tensor(b"t", (1,), 0, 4) + bytes(64)),
    "broken block": header(1, 0, tensor(b"t", (33,), 2, 0) + bytes(64)),
    "unknown type": header(1, 0, tensor(b"t", (32,), 77, 0) + bytes(64)),
    "tensor twice": header(2, 0, 2 * tensor(b"t", (1,), 0, 0) + bytes(64)),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_hostile_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(ATTACKS[name])
    with pytest.raises(ModelError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        read("nowhere.gguf")
