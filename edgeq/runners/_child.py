"""Runs one job on the machine that has the runtime; it needs Python 3.8+, numpy and onnxruntime, and nothing of edgeq.

    python _child.py FOLDER

FOLDER/job.json: {"model", "optimization", "threads", "providers", "config", "outputs", "inputs", "samples",
"save_optimized", "plugin"}. Feeds are FOLDER/in/SAMPLE_INPUT.npy, results FOLDER/out/SAMPLE_OUTPUT.npy, both by
position in the name lists. FOLDER/result.json: {"latency_ms": median, "version", "machine", "providers"}.
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}


def session(job: dict, folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[job["optimization"]])
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    for key, value in job["config"].items():
        options.add_session_config_entry(key, value)
    if job["save_optimized"]:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
    model = str(folder / job["model"])
    if not job["plugin"]:
        return ort.InferenceSession(model, options, providers=job["providers"])
    plugin = __import__(job["plugin"])  # an execution provider that comes as a library beside onnxruntime
    name, settings = job["providers"][0]
    ort.register_execution_provider_library(name, plugin.get_library_path())
    devices = [d for d in ort.get_ep_devices() if d.ep_name == name]
    options.add_provider_for_devices(devices[:1], settings)
    return ort.InferenceSession(model, options)


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    loaded = session(job, folder)
    times = []
    for sample in range(job["samples"]):
        feeds = {
            name: np.load(folder / "in" / f"{sample}_{i}.npy", allow_pickle=False)
            for i, name in enumerate(job["inputs"])
        }
        began = time.perf_counter()
        results = loaded.run(job["outputs"], feeds)
        times.append((time.perf_counter() - began) * 1e3)
        for i, array in enumerate(results):
            np.save(folder / "out" / f"{sample}_{i}.npy", np.asarray(array), allow_pickle=False)
    report = {
        "latency_ms": statistics.median(times),
        "version": ort.__version__,
        "machine": platform.machine(),
        "providers": loaded.get_providers(),
    }
    (folder / "result.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
