"""A Swift package: the model as a resource, an actor over onnxruntime's Swift API, and XCTest's self-test."""

from __future__ import annotations

from pathlib import Path

from edgeq.package.contents import Contents, template, write_common

NOTES = ("the Swift package was not compiled here: that takes Xcode",)


def build(contents: Contents, output: Path) -> None:
    """Write the package into the folder `output`. Raises TargetError for an artifact that is no single .onnx file."""
    contents.one_onnx_file("apple", "arm64")
    sources, tests = output / "Sources" / contents.camel, output / "Tests" / f"{contents.camel}Tests"
    write_common(contents, sources / "Resources", contents.artifact, "onnxruntime-objc")
    tests.mkdir(parents=True)
    values = {"name": contents.name, "class": contents.camel}
    places = {
        "Package.swift": output / "Package.swift",
        "Model.swift": sources / f"{contents.camel}.swift",
        "Golden.swift": sources / "Golden.swift",
        "SelfTest.swift": tests / "SelfTest.swift",
    }
    for name, place in places.items():
        place.write_text(template(f"apple/{name}", **values), encoding="utf-8")
