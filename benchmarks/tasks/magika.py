"""Magika on files of known type: accuracy of its first label.

Sources are files of the Python installation and of edgeq's own dependencies, known by their suffix, taken in an order
fixed by a hash of their path; containers, images, tables and the like are made from them by the standard library and
Pillow. Each type names the labels that are right for it (C headers are C or C++ to anyone).
"""

from __future__ import annotations

import bz2
import csv
import difflib
import gzip
import io
import json
import lzma
import marshal
import pickle
import pydoc
import sqlite3
import sysconfig
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from time import gmtime
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from benchmarks.tasks import CALIBRATION, Feed, Task, package_file, package_path, seeded

NAME = "magika"
PACKAGE = "magika", "magika==1.0.3"
EACH, BATCH = 28, 8  # files of each type at most; evaluated together
SIZE, BLOCK, PADDING = 1024, 4096, 256
PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "google", "rich", "typer", "msgspec", "ml_dtypes")
_DATE = "Tue, 24 Nov 2026 10:00:00 +0000"
# suffix → labels that are right
SUFFIXES = {".py": ("python",), ".h": ("c", "cpp"), ".cc": ("cpp",), ".proto": ("proto",), ".so": ("elf",)}
SUFFIXES |= {".pyi": ("python",), ".f90": ("fortran",), ".onnx": ("onnx",)}


def features(content: bytes) -> np.ndarray:
    """int32 [2048]: 1024 bytes of each end, stripped of white space within 4096 bytes, padded with 256."""
    head, tail = content[:BLOCK].lstrip()[:SIZE], content[-BLOCK:].rstrip()[-SIZE:]
    out = np.full(2 * SIZE, PADDING, np.int32)
    out[: len(head)] = np.frombuffer(head, np.uint8)
    out[2 * SIZE - len(tail) :] = np.frombuffer(tail, np.uint8)
    return out


def _sources() -> dict[str, list[bytes]]:
    """Contents by suffix, up to EACH of 600 bytes to 4 MB, without duplicates."""
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("include"))]
    roots += [package_path(p, p) for p in PACKAGES]
    found: dict[str, list[tuple[int, Path]]] = {suffix: [] for suffix in SUFFIXES}
    for root in roots:
        for path in root.rglob("*"):
            inside = path.relative_to(root.parent).as_posix()
            if path.suffix in found and "site-packages" not in inside and path.is_file():
                found[path.suffix].append((zlib.crc32(inside.encode()), path))
    kept: dict[str, list[bytes]] = {}
    for suffix, paths in found.items():
        contents: dict[bytes, None] = {}
        for _, path in sorted(paths):
            if len(contents) < EACH and 600 <= path.stat().st_size <= 4_000_000:
                contents[path.read_bytes()] = None
        kept[suffix] = list(contents)
    return kept


def _picture(content: bytes, kind: str) -> bytes:
    """The bytes of a text, blown up, as a picture of the given format."""
    side = 16 + len(content) % 48
    pixels = np.resize(np.frombuffer(content, np.uint8), (side, side + 7, 3))
    out = io.BytesIO()
    dates = {"creationDate": gmtime(0), "modDate": gmtime(0)} if kind == "PDF" else {}
    Image.fromarray(np.repeat(np.repeat(pixels, 3, 0), 3, 1)).save(out, kind, **dates)
    return out.getvalue()


def _rows(content: bytes) -> list[list[str]]:
    lines = [line.split() for line in content.decode("utf-8", "replace").splitlines() if len(line.split()) >= 4]
    return [[str(i), f"{len(''.join(line)) / 7:.3f}", *line[:3]] for i, line in enumerate(lines[:60])]


def _csv(content: bytes, delimiter: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["id", "value", "first", "second", "third"], *_rows(content)])
    return out.getvalue().encode()


def _records(content: bytes) -> list[dict[str, object]]:
    return [{"id": int(i), "value": float(v), "words": words, "ok": len(words) > 2} for i, v, *words in _rows(content)]


def _xml(content: bytes) -> bytes:
    root = ElementTree.Element("records", version="1.0")
    for record in _records(content):
        entry = ElementTree.SubElement(root, "record", id=str(record["id"]))
        ElementTree.SubElement(entry, "value").text = str(record["value"])
        ElementTree.SubElement(entry, "words").text = " ".join(map(str, record["words"]))  # type: ignore[call-overload]
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def _svg(content: bytes) -> bytes:
    shapes = [
        f'  <rect x="{a}" y="{b}" width="{c % 90 + 1}" height="{d % 60 + 1}" fill="#{a:02x}{b:02x}{c:02x}"/>'
        for a, b, c, d in zip(*[iter(content[:240])] * 4, strict=False)
    ]
    return "\n".join(['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 320">', *shapes, "</svg>"]).encode()


def _html(content: bytes) -> bytes:
    title, *lines = content.decode("utf-8", "replace").splitlines()[:120]
    body = "\n".join(f"<p>{pydoc.html.escape(line.strip())}</p>" for line in lines if len(line.strip()) > 8)
    head = f"<head>\n<title>{pydoc.html.escape(title)}</title>\n<style>p {{ margin: 0 }}</style>\n</head>"
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'.encode()


def _zip(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(zipfile.ZipInfo(f"part{i}/text{len(content) % 97}.txt"), content[i::3])
    return out.getvalue()


def _tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(f"folder/text{len(content) % 97}.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _wav(content: bytes) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        tone = np.sin(np.cumsum(np.frombuffer(content[:4000], np.uint8)) / 300) * 12000
        sound.writeframes(tone.astype("<i2").tobytes())
    return out.getvalue()


def _sqlite(content: bytes) -> bytes:
    with sqlite3.connect(":memory:") as base:
        base.execute("create table words (id integer primary key, value real, a text, b text, c text)")
        base.executemany("insert into words values (?, ?, ?, ?, ?)", _rows(content))
        base.commit()
        return base.serialize()


def _npy(content: bytes) -> bytes:
    out = io.BytesIO()
    np.save(out, np.frombuffer(content, np.uint8).astype(np.float32))
    return out.getvalue()


def _diff(content: bytes) -> bytes:
    old = content.decode("utf-8", "replace").splitlines(keepends=True)
    new = [line.replace("self", "this") if i % 9 == 0 else line for i, line in enumerate(old) if i % 23]
    return "".join(difflib.unified_diff(old, new, "a/module.py", "b/module.py")).encode()


def _email(content: bytes) -> bytes:
    message, rows = EmailMessage(), _rows(content)
    number = zlib.crc32(content)
    message["Received"] = f"from mail.example.net by mx.example.org with ESMTPS id {number:08X}; {_DATE}"
    message["Message-ID"], message["Date"] = f"<{number}@mail.example.net>", _DATE
    message["From"], message["To"] = "Ada <ada@example.net>", f"reader{number % 100}@example.org"
    message["Subject"] = " ".join(rows[0][2:])
    message.set_content("Hello,\n\n" + "\n".join(" ".join(row[2:]) for row in rows[:40]) + "\n\nRegards, Ada\n")
    return message.as_bytes()


def _pyc(content: bytes) -> bytes:
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(compile(content, "module.py", "exec"))


def _ini(content: bytes) -> bytes:
    lines = [f"[section{i}]\n{a} = {v}\npath = /{b}/{c}\n" for i, v, a, b, c in _rows(content)[:12]]
    return "\n".join("".join(ch for ch in line if ch.isalnum() or ch in "[]=/. \n_") for line in lines).encode()


MADE: dict[str, tuple[tuple[str, ...], Callable[[bytes], bytes]]] = {
    "png": (("png",), lambda c: _picture(c, "PNG")),
    "jpeg": (("jpeg",), lambda c: _picture(c, "JPEG")),
    "gif": (("gif",), lambda c: _picture(c, "GIF")),
    "bmp": (("bmp",), lambda c: _picture(c, "BMP")),
    "tiff": (("tiff",), lambda c: _picture(c, "TIFF")),
    "webp": (("webp",), lambda c: _picture(c, "WEBP")),
    "pdf": (("pdf",), lambda c: _picture(c, "PDF")),
    "csv": (("csv",), lambda c: _csv(c, ",")),
    "tsv": (("tsv",), lambda c: _csv(c, "\t")),
    "json": (("json",), lambda c: json.dumps(_records(c), indent=2).encode()),
    "jsonl": (("jsonl",), lambda c: "\n".join(map(json.dumps, _records(c))).encode()),
    "xml": (("xml",), _xml),
    "svg": (("svg",), _svg),
    "html": (("html",), _html),
    "zip": (("zip",), _zip),
    "tar": (("tar",), _tar),
    "gzip": (("gzip",), lambda c: gzip.compress(c, mtime=0)),
    "bzip": (("bzip",), bz2.compress),
    "xz": (("xz",), lzma.compress),
    "wav": (("wav",), _wav),
    "sqlite": (("sqlite",), _sqlite),
    "npy": (("npy",), _npy),
    "pickle": (("pickle",), lambda c: pickle.dumps(_records(c))),
    "diff": (("diff",), _diff),
    "eml": (("eml",), _email),
    "ini": (("ini",), _ini),
    "pyc": (("pythonbytecode",), _pyc),
}


def samples() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """(type, content, right labels) of every file."""
    sources = _sources()
    for suffix, right in SUFFIXES.items():
        for content in sources[suffix]:
            yield suffix, content, right
    for kind, (right, make) in MADE.items():
        for content in sources[".py"]:
            if len(_rows(content)) >= 8:
                yield kind, make(content), right


def task(cache: Path) -> Task:
    model = package_file(*PACKAGE, "models/*/model.onnx")
    classes = json.loads((model.parent / "config.min.json").read_text())["target_labels_space"]
    known = {features(content).tobytes(): right for _, content, right in samples()}
    order = seeded(NAME).permutation(len(known))
    inputs = np.frombuffer(b"".join(known), np.int32).reshape(len(known), 2 * SIZE)[order]
    truth = [list(known.values())[i] for i in order[CALIBRATION:]]
    calib: list[Feed] = [{"bytes": x[None]} for x in inputs[:CALIBRATION]]
    feeds: list[Feed] = [{"bytes": inputs[i : i + BATCH]} for i in range(CALIBRATION, len(inputs), BATCH)]

    def metric(outputs: list[Feed]) -> float:
        found = np.concatenate([out["target_label"].argmax(-1) for out in outputs])
        return float(np.mean([classes[i] in right for i, right in zip(found, truth, strict=True)]))

    return Task(NAME, model, calib, feeds, metric, "accuracy")
