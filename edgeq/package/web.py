"""An npm package: an ES module over onnxruntime-web, with types, a self-test and a demo page."""

from __future__ import annotations

from pathlib import Path

from edgeq.package.contents import Contents, template, write_common, write_json

NOTES: tuple[str, ...] = ()
RUNTIME = ">=1.17.0"


def build(contents: Contents, output: Path) -> None:
    """Write the package into the folder `output`. Raises TargetError for an artifact that is no single .onnx file."""
    contents.one_onnx_file("web", "web")
    write_common(contents, output, contents.artifact, "onnxruntime-web")
    manifest = {
        "name": contents.name,
        "version": contents.version,
        "description": f"{contents.report.model.file}, quantized and verified by edgeq",
        "type": "module",
        "main": "./index.js",
        "types": "./index.d.ts",
        "exports": {".": {"types": "./index.d.ts", "default": "./index.js"}, "./*": "./*"},
        "files": ["*.js", "*.d.ts", "*.json", "*.onnx", "MODEL_CARD.md", "LICENSE", "SHA256SUMS*", "demo"],
        "sideEffects": False,
        "peerDependencies": {"onnxruntime-web": RUNTIME},
        "license": "SEE LICENSE IN LICENSE",
    }
    write_json(output / "package.json", manifest)
    (output / "demo").mkdir(exist_ok=True)
    for name in ("index.js", "index.d.ts", "demo/index.html", "demo/demo.js"):
        (output / name).write_text(template(f"web/{Path(name).name}"), encoding="utf-8")
    (output / "README.md").write_text(template("web/README.md", name=contents.name), encoding="utf-8")
