"""Hostile arrays, archives of them, and statistics: a line, exit code 2, and bounds of time and memory."""

import json
import struct
import zipfile
from io import BytesIO

import numpy as np
import pytest

from tests.attacks.models import DEEP
from tests.command import samples


def header(text):
    text = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def bomb(path):
    """2 GiB of zeros in 2 MB."""
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("x.npy", "w", force_zip64=True) as stream:
        stream.write(header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 26}, 8), }}"))
        for _ in range(128):
            stream.write(bytes(1 << 24))


def overlapping(path):
    """One entry's bytes under a thousand names."""
    content = BytesIO()
    head = header("{'descr': '<f4', 'fortran_order': False, 'shape': (65536, 8), }")
    zipped(content, [("x.npy", head + bytes(1 << 21))])
    data = content.getvalue()
    start = data.index(b"PK\x01\x02")
    entry, end = data[start : data.index(b"PK\x05\x06")], bytearray(data[data.index(b"PK\x05\x06") :])
    many = b"".join(entry.replace(b"x.npy", b"%05d" % i) for i in range(1000))
    end[8:16] = struct.pack("<HHI", 1000, 1000, len(many))
    path.write_bytes(data[:start] + many + bytes(end))


def claiming(shape, descr="'<f4'", body=b"abcd"):
    content = header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}") + body
    return lambda path: zipped(path, [("x.npy", content)])


ARRAYS = {
    "bomb": bomb,
    "overlapping": overlapping,
    "terabytes": claiming("(1099511627776, 8)"),
    "beyond 64 bits": claiming(f"({10**30}, 8)"),
    "below": claiming("(-4, -8)"),
    "zeros": claiming("(0, 99999999999999999999)"),
    "objects": claiming("(1, 8)", "'|O'"),
    "void": claiming("(1, 8)", "'|V99999999999'"),
    "fields": claiming("(1,)", "[('a', '<f4'), ('b', 'O')]"),
    "deep header": lambda path: zipped(path, [("x.npy", header("{'descr': " + "(" * 90))]),
    "code": claiming("(__import__('os').system('touch x'),)"),
    "lzma": lambda path: zipped(path, [("x.npy", b"\x93NUMPY")], zipfile.ZIP_LZMA),
    "no arrays": lambda path: zipped(path, [("../../../x", b"text"), ("x.npy", b"")]),
    "text": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "truncated": lambda path: path.write_bytes(samples(path).read_bytes()[:-40]),
    "words": lambda path: np.savez(path, x=np.array([["a"] * 8])),
    "infinite": lambda path: np.savez(path, x=np.full((2, 8), np.inf, "f")),
    "times": lambda path: np.savez(path, x=np.zeros((2, 8), "M8[s]")),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(sandbox, made, tmp_path, kind):
    path = tmp_path / "d.npz"
    ARRAYS[kind](path)
    before = sorted(tmp_path.rglob("*"))
    sandbox.refuses("quantize", made / "m.onnx", "--calib", path, "-o", tmp_path / "out")
    sandbox.refuses("verify", made / "m.onnx", made / "out" / "model.onnx", "--data", path, codes=(0, 1, 2))
    sandbox.refuses("read", "golden", path)
    sandbox.refuses("read", "stats", path)
    sandbox.refuses("quantize", made / "m.onnx", "--stats", path, "-o", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def about(**changes):
    """Statistics with another `about`."""

    def wrong(path, good):
        with np.load(good) as archive:
            arrays = dict(archive)
        held = json.loads(arrays["about"].tobytes()) | changes
        arrays["about"] = np.frombuffer(json.dumps(held).encode(), np.uint8)
        np.savez(path, **arrays)

    return wrong


def arrays_changed(change):
    def wrong(path, good):
        with np.load(good) as archive:
            arrays = dict(archive)
        np.savez(path, **{k: change(v) if k != "about" else v for k, v in arrays.items()})

    return wrong


STATISTICS = {
    "values of numbers": about(values=[1, 2]),
    "no values": about(values=[]),
    "samples below": about(samples=-1),
    "settings": about(settings=[1]),
    "format": about(format="1"),
    "not a number": arrays_changed(lambda a: np.full_like(a, np.nan) if a.dtype.kind == "f" else a),
    "below": arrays_changed(lambda a: -a if a.dtype.kind in "if" else a),
    "huge": arrays_changed(lambda a: np.full_like(a, np.finfo(a.dtype).max) if a.dtype.kind == "f" else a),
    "scalars": arrays_changed(lambda a: a.reshape(-1)[:1].reshape(()) if a.size else a),
    "of words": arrays_changed(lambda a: np.array("a")),
    "deep": lambda path, good: np.savez(path, about=np.frombuffer(b"[" * DEEP, np.uint8)),
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_statistics(sandbox, made, tmp_path, kind):
    path = tmp_path / "s.npz"
    STATISTICS[kind](path, made / "s.npz")
    sandbox.refuses("quantize", made / "m.onnx", "--stats", path, "--eval", made / "d.npz", "-o", tmp_path / "out",
                    codes=(0, 2))  # fmt: skip
