"""NNCF's accuracy control as a peer: as `nncf_quantize`, and layers go back to float until the drop is small enough.

The environment says how it is judged: MAX_DROP, absolute; EVAL, a folder of samples; JUDGE, a command that is given a
folder of their outputs and prints the metric. Layers are ranked by outputs, NNCF's default for a metric of all samples.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import save_folder
from benchmarks.peers import nncf_quantize
from benchmarks.peers.peer import Feeds, at_least_opset, main


def judged(model: Any, samples: Iterable[dict[str, np.ndarray]]) -> tuple[float, list[list[np.ndarray]]]:
    """The metric, and the outputs of each sample."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    outputs = [session.run(names, feed) for feed in samples]
    with tempfile.TemporaryDirectory() as folder:
        save_folder((dict(zip(names, found, strict=True)) for found in outputs), Path(folder))
        said = subprocess.run([*shlex.split(os.environ["JUDGE"]), folder], capture_output=True, text=True, check=True)
    return float(said.stdout.split()[-1]), outputs


def quantize(model: Path, feeds: Feeds, out: Path, calibrator: str) -> None:
    import nncf
    import onnx

    folder = Path(os.environ["EVAL"])
    found = nncf.quantize_with_accuracy_control(
        at_least_opset(onnx.load(model), 13),
        nncf.Dataset(feeds, lambda feed: feed),
        nncf.Dataset(Feeds(folder, len(list(folder.glob("*.npz")))), lambda feed: feed),
        judged,
        max_drop=float(os.environ["MAX_DROP"]),
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(feeds),
        model_type=nncf_quantize.model_type(model),
    )
    onnx.save(found, out)


if __name__ == "__main__":
    main(quantize)
