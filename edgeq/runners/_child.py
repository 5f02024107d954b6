"""Runs one job on the machine that has the runtime; it needs Python 3.8+, numpy and that runtime, nothing of edgeq.

    python _child.py FOLDER

FOLDER/job.json: model, inputs, outputs, samples, optimization, threads, proof, engine (a key of ENGINES) and settings,
which are the engine's own. Feeds are FOLDER/in/SAMPLE_INPUT.npy and results FOLDER/out/SAMPLE_OUTPUT.npy, both by
position in the lists of names. FOLDER/result.json: latency_ms (the median), version, machine, providers, and with
proof placement, the number of nodes that each provider executed.

An engine loads the job's model and gives two functions: feeds by name to the arrays of job["outputs"], and the report.
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}


def with_onnxruntime(job: dict, folder: Path) -> tuple:
    """settings: providers, config, and plugin, a module that carries an execution provider as a library."""
    import onnxruntime as ort

    settings = job["settings"]
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[job["optimization"]])
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    for key, value in settings["config"].items():
        options.add_session_config_entry(key, value)
    if job["proof"] and not settings["plugin"]:  # a compiled graph can't be saved
        options.optimized_model_filepath = str(folder / "optimized.onnx")
    if job["proof"]:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
    providers = [tuple(provider) for provider in settings["providers"]]
    if settings["plugin"]:
        (name, given), *_ = providers
        ort.register_execution_provider_library(name, __import__(settings["plugin"]).get_library_path())
        options.add_provider_for_devices([d for d in ort.get_ep_devices() if d.ep_name == name][:1], given)
        providers = []
    if any(name == "CUDAExecutionProvider" for name, _ in providers) and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's libraries may have come as Python packages
    session = ort.InferenceSession(str(folder / job["model"]), options, providers=providers or None)

    def report() -> dict:
        found = {"version": ort.__version__, "providers": session.get_providers()}
        if job["proof"]:
            events = json.loads(Path(session.end_profiling()).read_text())
            nodes = {(e["args"]["provider"], e["name"]) for e in events if e.get("args", {}).get("provider")}
            ran = [provider for provider, event in nodes if event.endswith("_kernel_time")]
            found["placement"] = {name: ran.count(name) for name in sorted(set(ran))}
        return found

    return lambda feeds: session.run(job["outputs"], feeds), report


def with_litert(job: dict, folder: Path) -> tuple:
    """settings: resolver, a name of OpResolverType. Any tensor of the first subgraph can be read by its name."""
    try:
        import ai_edge_litert as package
        from ai_edge_litert import interpreter as lite
    except ImportError:
        import tflite_runtime as package
        from tflite_runtime import interpreter as lite
    interpreter = lite.Interpreter(
        model_path=str(folder / job["model"]),
        num_threads=job["threads"],
        experimental_op_resolver_type=getattr(lite.OpResolverType, job["settings"]["resolver"]),
        experimental_preserve_all_tensors=job["settings"]["taps"],
    )
    interpreter.allocate_tensors()
    inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
    tensors = {d["name"]: d["index"] for d in [*interpreter.get_tensor_details(), *interpreter.get_output_details()]}
    for name in job["outputs"]:
        if name not in tensors:
            raise SystemExit(f"no tensor {name!r} in the model")

    def run(feeds: dict) -> list:
        for name, array in feeds.items():
            if tuple(inputs[name]["shape"]) != array.shape:
                interpreter.resize_tensor_input(inputs[name]["index"], array.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(inputs[name]["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(tensors[name]) for name in job["outputs"]]

    return run, lambda: {"version": package.__version__, "providers": [job["settings"]["resolver"]]}


def with_openvino(job: dict, folder: Path) -> tuple:
    """settings: device, and config, OpenVINO's properties."""
    import openvino

    device = job["settings"]["device"]
    config = dict(job["settings"]["config"], INFERENCE_NUM_THREADS=job["threads"])
    compiled = openvino.Core().compile_model(str(folder / job["model"]), device, config)

    def run(feeds: dict) -> list:
        results = compiled(feeds)
        return [results[name] for name in job["outputs"]]

    return run, lambda: {"version": openvino.__version__, "providers": [device]}


ENGINES = {"onnxruntime": with_onnxruntime, "litert": with_litert, "openvino": with_openvino}


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    run, report = ENGINES[job["engine"]](job, folder)
    times = []
    for sample in range(job["samples"]):
        files = {name: folder / "in" / f"{sample}_{i}.npy" for i, name in enumerate(job["inputs"])}
        feeds = {name: np.load(file, allow_pickle=False) for name, file in files.items()}
        began = time.perf_counter()
        results = run(feeds)
        times.append((time.perf_counter() - began) * 1e3)
        for i, array in enumerate(results):
            np.save(folder / "out" / f"{sample}_{i}.npy", np.asarray(array), allow_pickle=False)
    result = {"latency_ms": statistics.median(times), "machine": platform.machine(), **report()}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
