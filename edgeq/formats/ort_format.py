"""onnxruntime's own format: loads without protobuf, can be memory-mapped, and suits a reduced build of the runtime."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeq.errors import ToolError
from edgeq.graph import io

CONFIG = "required_operators.config"
TIMEOUT = 600


def convert(model: Path, folder: Path, platform: str = "arm") -> Path:
    """Write `STEM.ort` and `required_operators.config` of an .onnx file into `folder`; gives the .ort file.

    Only the fixed style is written: `*.with_runtime_opt.ort` answers other bits, 15 times slower, unless the app sets
    a session option that nobody knows of. platform: `arm` or `amd64`. Raises ToolError when onnxruntime declines.
    """
    with tempfile.TemporaryDirectory(prefix="edgeq-ort-") as work:
        shutil.copy(model, Path(work) / model.name)
        io.copy_weights(model, Path(work))
        command = [
            *_fixed_addresses(),
            sys.executable,
            "-m",
            "onnxruntime.tools.convert_onnx_models_to_ort",
            work,
            "--output_dir",
        ]
        command += [f"{work}/out", "--enable_type_reduction", "--optimization_style", "Fixed"]
        done = subprocess.run(
            [*command, "--target_platform", platform], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        made = Path(work) / "out" / f"{model.stem}.ort"
        if done.returncode or not made.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ToolError(f"{model}: onnxruntime can't write it in ORT format ({io.one_line(ToolError(last))})")
        config = (made.parent / "required_operators_and_types.config").read_text()
        kept = [line for line in config.splitlines() if not line.startswith("#")]  # comments hold the work folder
        (folder / CONFIG).write_text("\n".join(kept) + "\n")
        return Path(shutil.move(made, folder / made.name))


def _fixed_addresses() -> list[str]:
    """onnxruntime writes hash tables in the order of addresses; without their randomization the bytes are the same.

    Some containers forbid that; the file is then as good, but not the same twice.
    """
    tool = shutil.which("setarch")
    if tool is None or subprocess.run([tool, "-R", "true"], capture_output=True, check=False).returncode:
        return []
    return [tool, "-R"]
