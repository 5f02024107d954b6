"""Samples from arrays, files, folders and callables; and what is refused before it can do harm."""

import contextlib
import io
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.data import open_data
from edgeq.data.arrays import read_npz
from edgeq.errors import CalibrationError

SHAPES = {"x": (None, 3)}
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def walked(data):
    return [{k: v.tolist() for k, v in feeds.items()} for feeds in data]


def header(shape, descr="<f4"):
    """A .npy file that claims `shape` and holds 16 bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})
    return stream.getvalue() + bytes(16)


def test_every_source_gives_the_same_samples_each_time(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=ROWS, label=np.arange(4))
    for kind in ("npy", "npz"):
        (tmp_path / kind).mkdir()
        for i, row in enumerate(ROWS):
            np.save(tmp_path / kind / f"{i}.npy", row[None]) if kind == "npy" else np.savez(
                tmp_path / kind / f"{i}.npz", x=row[None]
            )
    (tmp_path / "given.py").write_text(
        "import numpy as np\n"
        "def rows():\n"
        "    for i in range(4):\n"
        "        yield {'x': (np.arange(3, dtype=np.float32) + 3 * i)[None]}\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    wanted = [{"x": [row.tolist()]} for row in ROWS]
    for source in (
        tmp_path / "d.npz", tmp_path / "npy", tmp_path / "npz", "given:rows", {"x": ROWS},
        [{"x": row[None]} for row in ROWS], lambda: ({"x": row[None]} for row in ROWS),
        ({"x": row[None]} for row in ROWS),
    ):  # fmt: skip
        data = open_data(source, SHAPES)
        assert walked(data) == walked(data) == wanted, source
        assert walked(data.take(2)) == wanted[:2]
        assert walked(data.take(0)) == wanted
    assert open_data(tmp_path / "d.npz", SHAPES).extras["label"].tolist() == [0, 1, 2, 3]


@given(st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_axis_0_of_arrays_counts_samples(count, width, batched):
    array = np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)
    data = open_data({"x": array}, {"x": (1, width) if batched else (width,)})
    assert data.count == count
    rows = [f["x"] for f in data]
    assert {r.shape for r in rows} == {(1, width) if batched else (width,)}
    assert np.array_equal(np.stack(rows).reshape(array.shape), array)


def test_a_fixed_batch_is_one_sample():
    array = np.arange(24.0).reshape(2, 4, 3)
    assert [f["x"].shape for f in open_data({"x": array}, {"x": (4, 3)})] == [(4, 3), (4, 3)]
    with pytest.raises(CalibrationError, match="batch is fixed at 4"):
        list(open_data({"x": array[0]}, {"x": (4, 3)}))


ARRAYS = [
    ROWS, np.asfortranarray(ROWS), np.float64(2.5), np.zeros((0, 3), np.int8), np.array(["a", "bcd"]),
    np.arange(6, dtype=">i2").reshape(1, 2, 3), np.array([True, False]), np.ones(2, np.complex64),
]  # fmt: skip
REFUSED = {
    "claims.npz": ("x.npy", header((10**12,)), "claims shape"),
    "negative.npz": ("x.npy", header((-5, 2)), "not a readable"),
    "objects.npz": ("x.npy", header((1,), "|O"), "pickles are not read"),
    "noise.npz": ("x.npy", b"\x93NUMPY\x01\x00\xff\xff garbage", "not a readable"),
    "other.npz": ("readme.txt", b"hello", "not a readable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_archives_are_refused(tmp_path, name):
    member, content, message = REFUSED[name]
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr(member, content)
    with pytest.raises(CalibrationError, match=message) as caught:
        open_data(tmp_path / name, SHAPES)
    assert name in str(caught.value)
    if member == "x.npy":
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "0.npy").write_bytes(content)
        with pytest.raises(CalibrationError, match=r"0\.npy"):
            list(open_data(tmp_path / "f", SHAPES))
    (tmp_path / "g").mkdir()
    (tmp_path / name).rename(tmp_path / "g" / name)
    with pytest.raises(CalibrationError, match=message):
        list(open_data(tmp_path / "g", SHAPES))


@pytest.mark.parametrize("array", ARRAYS, ids=[f"{a.dtype}{a.shape}" for a in ARRAYS])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, array, write):
    """By way of the checksum, as a whole archive is, and straight from the file, as one sample is."""
    path = tmp_path / "0.npz"
    write(path, before=np.arange(7), x=array)
    with np.load(path) as wanted:
        for sums in (True, False):
            found = read_npz(path, sums=sums)
            assert list(found) == wanted.files
            for key, value in found.items():
                assert (value.dtype, value.strides) == (wanted[key].dtype, wanted[key].strides)
                np.testing.assert_array_equal(value, wanted[key])


def test_members_elsewhere_than_the_directory_says_are_refused(tmp_path):
    """Offset and size of the directory's one entry, made to point outside."""
    np.savez(tmp_path / "0.npz", x=ROWS)
    content = (tmp_path / "0.npz").read_bytes()
    entry = content.index(b"PK\1\2")
    for at, value, message in ((42, 5, "isn't where"), (20, 10**5, "truncated"), (24, 10**5, "truncated")):
        size = value.to_bytes(4, "little")
        broken = content[: entry + at] + size + content[entry + at + 4 :]
        if at != 42:  # both sizes of an uncompressed member
            broken = broken[: entry + 20] + size + size + broken[entry + 28 :]
        (tmp_path / "0.npz").write_bytes(broken)
        with pytest.raises(CalibrationError, match=message):
            read_npz(tmp_path / "0.npz", sums=False)


@given(st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_no_damaged_byte_escapes(tmp_path_factory, at, value, packed):
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, x=ROWS)
    content = bytearray(stream.getvalue())
    content[at % len(content)] = value
    path = tmp_path_factory.mktemp("d") / "d.npz"
    for given_bytes in (content, content[:at]):
        path.write_bytes(given_bytes)
        with contextlib.suppress(CalibrationError):  # nothing else may be raised; or the damage did no harm
            assert all(f["x"].shape == (1, 3) for f in open_data(path, SHAPES))
        with contextlib.suppress(CalibrationError):
            assert all(
                "x" not in f or f["x"].ndim < 99 for f in open_data(path.parent, SHAPES)
            )  # by its name in the file


def test_what_is_asked_wrongly_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    np.save(tmp_path / "two" / "0.npy", ROWS)
    (tmp_path / "d.csv").write_text("1,2")
    (tmp_path / "faulty.py").write_text(
        "number = 3\ndef lists(): yield [1, 2]\ndef late():\n    yield {'x': [[1, 2, 3]]}\n    raise OSError('gone')\n"
    )
    (tmp_path / "unparsed.py").write_text("def (:")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for source, message in (
        (tmp_path / "none.npz", "no such file"), (tmp_path / "empty", "no .npy or .npz"), (tmp_path / "d.csv", ".npz"),
        ("faulty:number", "is a int"), ("faulty:lists", "sample 0 is a list"),
        ("faulty:late", "sample 1: OSError: gone"),
        ("unparsed:x", "SyntaxError"), ("faulty:none", "none"), ({"z": ROWS}, "holds z, but the model's inputs are x"),
        ({"x": ROWS[0, 0]}, "at least one"), (7, "from a int"), ([3], "sample 0 is a int"),
    ):  # fmt: skip
        with pytest.raises(CalibrationError) as caught:
            list(open_data(source, SHAPES))
        assert message in str(caught.value)
    with pytest.raises(CalibrationError, match="equally many"):
        open_data({"a": ROWS, "b": ROWS[:2]}, {"a": None, "b": None})
    with pytest.raises(CalibrationError, match=r"must be an \.npz"):
        list(open_data(tmp_path / "two", {"a": None, "b": None}))
