"""What every package carries: the artifact, metadata, golden vectors, labels, a model card, licences and checksums.

metadata.json   what the model takes and gives, how it was quantized, its checksum, its labels
golden.json     samples with the verified runtime's answers; `tolerance` is the most that a device may be off
MODEL_CARD.md   made from report.json
SHA256SUMS      of every other file, in the form of sha256sum(1)
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.errors import EdgeqError, RecipeError, TargetError, VerifyError
from edgeq.graph import io
from edgeq.report.printable import UNPRINTABLE
from edgeq.report.schema import Report, load
from edgeq.report.tables import db, mb
from edgeq.verifying import golden
from edgeq.verifying.golden import Golden

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
VERSION = re.compile(r"\d+\.\d+\.\d+")
SUMS = "SHA256SUMS"
UNSTATED = "The licence of the model was not stated when it was packed; ask whoever trained it.\n"
RELATIVE = 1e-3  # of an output's largest golden magnitude: more than rounding of the float tail, less than a step


@dataclass(frozen=True)
class Contents:
    """name: lower case, digits and hyphens. artifact: the file to ship. labels: of the classes, or none.
    licence: the text of the model's own.
    """

    name: str
    version: str
    report: Report
    artifact: Path
    golden: Golden
    labels: tuple[str, ...] = ()
    licence: str = ""

    def one_onnx_file(self, platform: str, target: str) -> None:
        """Raises TargetError for an artifact that is no single .onnx file; target: one that gives such."""
        if self.artifact.suffix != ".onnx" or len(io.files(self.artifact)) > 1:
            raise TargetError(
                platform, f"{self.artifact.name} is not one .onnx file", f"quantize for `{target}`, under 2 GB"
            )

    @property
    def camel(self) -> str:
        """The name as a type's name: keyword-spotter → KeywordSpotter."""
        return "".join(part.capitalize() for part in self.name.split("-"))


def gather(
    folder: Path, name: str = "", version: str = "1.0.0", labels: Path | None = None, licence: Path | None = None
) -> Contents:
    """What lies in a folder that edgeq quantize wrote.

    Raises EdgeqError for a folder without report or golden vectors, VerifyError when the artifact is not the report's,
    RecipeError for a name or version that package managers would refuse.
    """
    report = load(folder)
    artifact = folder / report.artifact.file
    if not artifact.is_file() or io.sha256(_whole(artifact)) != report.artifact.sha256:
        raise VerifyError(f"{artifact}: is missing or not the artifact that report.json describes; quantize again")
    if not (folder / golden.NAME).is_file():
        raise EdgeqError(f"{folder}: has no golden vectors; quantize with verification, on samples under 4 MB")
    name = name or re.sub(r"[^a-z0-9]+", "-", Path(report.model.file).stem.lower()).strip("-")
    if not NAME.fullmatch(name):
        raise RecipeError(f"package name {name!r}: give --name, lower-case letters, digits and hyphens after a letter")
    if not VERSION.fullmatch(version):
        raise RecipeError(f"package version {version!r}: give three numbers, such as 1.0.0")
    named = tuple(_text(labels, "a class name a line").splitlines()) if labels else ()
    terms = _text(licence, "the model's licence") if licence else ""
    return Contents(name, version, report, artifact, golden.load(folder / golden.NAME), named, terms)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RecipeError(f"{path}: can't be read; give a UTF-8 text file with {what}") from None


def _whole(artifact: Path) -> list[Path]:
    return io.files(artifact) if artifact.suffix == ".onnx" else [artifact]


def metadata(contents: Contents, file: Path, provider: str) -> dict[str, Any]:
    """metadata.json for the model file that is shipped. provider: what runs it on the device."""
    feeds, outputs = contents.golden.samples[0]
    report = contents.report
    return {
        "schema_version": 1,
        "name": contents.name,
        "version": contents.version,
        "model": {"file": file.name, "sha256": io.sha256([file]), "bytes": file.stat().st_size},
        "provider": provider,
        "target": report.target,
        "inputs": [_interface(n, a) for n, a in feeds.items()],
        "outputs": [_interface(n, a) for n, a in outputs.items()],
        "labels": list(contents.labels),
        "quantization": [
            {"name": r.name, "dtype": r.dtype, "scale": r.scale, "zero_point": r.zero_point} for r in report.ranges
        ],
        "source_sha256": report.model.sha256,
        "versions": report.versions,
    }


def _interface(name: str, array: np.ndarray) -> dict[str, Any]:
    return {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}


def vectors(held: Golden) -> dict[str, Any]:
    """golden.json: arrays in base64 of little-endian bytes. tolerance: 0 for integers."""
    reach: dict[str, float] = {}
    for _, outputs in held.samples:
        for name, array in outputs.items():
            largest = float(np.abs(array, dtype=np.float64).max(initial=0.0)) if array.dtype.kind == "f" else 0.0
            reach[name] = max(reach.get(name, 0.0), largest)
    return {
        "schema_version": 1,
        "tolerance": {name: RELATIVE * largest for name, largest in reach.items()},
        "samples": [
            {"inputs": {k: _encoded(v) for k, v in feeds.items()}, "outputs": {k: _encoded(v) for k, v in got.items()}}
            for feeds, got in held.samples
        ],
    }


def _encoded(array: np.ndarray) -> dict[str, Any]:
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": base64.b64encode(data).decode()}


def card(contents: Contents) -> str:
    """The model card, in Markdown: what the model is, what it lost, and where that was measured."""
    report = contents.report
    lines = [f"# {contents.name} {contents.version}", ""]
    lines.append(f"`{report.model.file}` quantized by edgeq {report.versions['edgeq']} for {report.target}.")
    rows = [("size", f"{mb(report.model.bytes)} → {mb(report.artifact.bytes)}")]
    if report.metric:
        rows.append((report.metric.name, f"{report.metric.reference:.4f} → {report.metric.quantized:.4f}"))
    rows += [(f"SQNR of {o.name}", db(o.sqnr_db)) for o in report.outputs]
    rows.append(("integer nodes", f"{report.nodes.integer} of {report.nodes.total}"))
    if report.runtime:
        rows.append(("verified on", f"{report.runtime.name} {report.runtime.version}"))
    rows.append(("calibrated on", f"{report.calibration.get('samples', 0)} samples"))
    rows.append(("sha256 of the float model", report.model.sha256))
    lines += ["", "| | float → quantized |", "|---|---|", *[f"| {_cell(a)} | {_cell(b)} |" for a, b in rows]]
    if report.warnings:
        lines += ["", "## Warnings", "", *[f"* {_cell(w)}" for w in report.warnings]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", UNPRINTABLE.sub("�", text))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_common(contents: Contents, folder: Path, model: Path, provider: str) -> dict[str, Any]:
    """Model, metadata, golden vectors, card and licence into a folder that is there; gives the metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.parent != folder:
        shutil.copy(model, folder / model.name)
    about = metadata(contents, model, provider)
    write_json(folder / "metadata.json", about)
    write_json(folder / "golden.json", vectors(contents.golden))
    (folder / "MODEL_CARD.md").write_text(card(contents), encoding="utf-8")
    (folder / "LICENSE").write_text(contents.licence or UNSTATED, encoding="utf-8")
    return about


def template(file: str, /, **values: str) -> str:
    """A file of `templates/` with each `{{name}}` replaced. Values are checked names, numbers, or JSON literals."""
    text = importlib.resources.files("edgeq.package").joinpath("templates", file).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


def write_sums(folder: Path) -> None:
    """SHA256SUMS over all files below the folder, in the order of their paths."""
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}" for p in _files(folder)
    ]
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def _files(folder: Path) -> Sequence[Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in (SUMS, f"{SUMS}.sig"))
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())
