"""onnxruntime's CPU provider on this machine."""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgeq.errors import CalibrationError, ModelError, RecipeError, ToolError
from edgeq.graph.io import load, one_line, read_graph, save
from edgeq.graph.observe import observable
from edgeq.graph.unsigned import unsigned_weights
from edgeq.runners.session import COMMON, Feeds, Outputs, in_streams, options

TITLE = "onnxruntime CPU"
TIMED = True
STREAMS = True
ROUNDS = 5
KERNEL = "_kernel_time"  # ends the name of an event of onnxruntime's profile
LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
PAIR = (("a", ir.DataType.UINT8, (1, 2)), ("w", ir.DataType.INT8, (2, 1)))
NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32,
    "tensor(int64)": np.int64,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def missing() -> str | None:
    return None


def version() -> str:
    return ort.__version__


def processor() -> str:
    """This machine's processor, on which the last bits of float32 sums depend."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


@cache
def saturates() -> bool:
    """Whether this machine's kernels add u8·s8 products in saturating 16 bits, as those of x86-64 without VNNI do.

    Sessions keep clear of them (`edgeq.graph.unsigned`) unless told not to, at the price of time: most targets' kernels
    add exactly. Asked of the runtime: 255 · 127 + 255 · 127 is 64770, and 32767 there.
    """
    codes = [ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape)) for name, kind, shape in PAIR]
    node = ir.node("MatMulInteger", codes)
    node.outputs[0].name, node.outputs[0].type = "sum", ir.TensorType(ir.DataType.INT32)
    graph = ir.Graph(codes, node.outputs, nodes=[node], opset_imports={"": 17}, name="pair")
    session = ort.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString(), quiet_options(1, "all", {})
    )
    fed = {"a": np.full((1, 2), 255, np.uint8), "w": np.full((2, 1), 127, np.int8)}
    return int(session.run(None, fed)[0].item()) != 2 * 255 * 127


def exact(model: Path, folder: Path) -> Path:
    """The model, or a copy in the folder that doesn't saturate. What can't be read is left to onnxruntime to refuse."""
    try:
        made = load(model)
    except ModelError:
        return model
    if not unsigned_weights(made):
        return model
    path = Path(tempfile.mkdtemp(dir=folder)) / model.name
    save(made, path)
    return path


def open_session(model: Path, **given: Any) -> CpuSession:
    """Options: optimization, threads, timeout, config (session config entries),
    keep: whether memory that an inference needed is kept for the next one, which is faster, in_order: whether nodes run
    in the order of the file, exact: whether sums are kept from saturating where this machine's would, and streams: how
    many samples `run_many` has under way; latencies are of the first few, which run alone.

    This runs in-process, and onnxruntime sees that its time is over when a node ends.
    Raises ModelError when onnxruntime refuses the model, RecipeError for an unknown option.
    """
    own = {"config": {}, "save_optimized": "", "keep": True, "in_order": False, "exact": True, "streams": 1}
    return CpuSession(Path(model), options("cpu", given, {**COMMON, **own}))


def optimized(model: Path, feeds: Feeds | None = None, **given: Any) -> ir.Model:
    """The graph that a session really runs, after every optimization; it is run once when there are feeds."""
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        path = Path(folder) / "optimized.onnx"
        session = open_session(model, save_optimized=str(path), **given)
        try:
            if feeds is not None:
                session.run(feeds)
        finally:
            session.close()
        return read_graph(path)


def kernel_times(model: Path, feeds: Sequence[Feeds], threads: int = 1) -> dict[str, float]:
    """Name of a node of the graph that runs → ms of its kernel, the median over the feeds, each run `ROUNDS` times."""
    chosen = quiet_options(threads, "all", {})
    chosen.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        chosen.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(model), chosen, providers=["CPUExecutionProvider"])
        for fed in [*feeds] * ROUNDS:
            session.run(None, dict(fed))
        events = json.loads(Path(session.end_profiling()).read_text())
    took: dict[str, list[float]] = {}
    for event in events:
        if event["name"].endswith(KERNEL):
            took.setdefault(event["name"].removesuffix(KERNEL), []).append(event["dur"] / 1e3)
    return {name: statistics.median(times) for name, times in took.items()}


def quiet_options(threads: int, optimization: str, config: dict[str, str]) -> ort.SessionOptions:
    chosen = ort.SessionOptions()
    chosen.graph_optimization_level = LEVELS[optimization]
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 4
    for key, value in config.items():
        try:
            chosen.add_session_config_entry(key, value)
        except RuntimeError as error:
            raise RecipeError(f"session_config {key!r} of the target: {one_line(error)}") from None
    return chosen


class Watch:
    """Ends inferences that are over their time, from one thread for all sessions."""

    def __init__(self) -> None:
        self._until: dict[int, tuple[float, ort.RunOptions]] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[ort.RunOptions]:
        options = ort.RunOptions()
        options.log_severity_level = 4
        self._until[id(options)] = time.monotonic() + seconds, options
        if self._thread is None or not self._thread.is_alive():  # a forked process begins without it
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        try:
            yield options
        finally:
            del self._until[id(options)]

    def _look(self) -> None:
        while True:
            time.sleep(0.1)
            for until, running in list(self._until.values()):
                if time.monotonic() > until:
                    running.terminate = True


WATCH = Watch()


class CpuSession:
    """See `edgeq.runners.session.Session`."""

    def __init__(self, model: Path, chosen: dict[str, Any]) -> None:
        self.model, self._chosen = model, chosen
        self._work = tempfile.TemporaryDirectory(prefix="edgeq-")
        session = self._open(model)
        self._sessions: dict[tuple[str, ...], ort.InferenceSession] = {(): session}
        self._times: list[float] = []
        self.report = {"version": version(), "machine": platform.machine()}
        self.outputs = tuple(o.name for o in session.get_outputs())
        self.inputs = {i.name: (i.type, tuple(i.shape)) for i in session.get_inputs()}
        self._optional = {i.name for i in session.get_overridable_initializers()}

    def _open(self, model: Path) -> ort.InferenceSession:
        chosen = quiet_options(self._chosen["threads"], self._chosen["optimization"], self._chosen["config"])
        chosen.enable_cpu_mem_arena = self._chosen["keep"]
        if self._chosen["save_optimized"]:
            chosen.optimized_model_filepath = self._chosen["save_optimized"]
        if self._chosen["in_order"]:
            chosen.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # all have the same priority
        try:
            shown = exact(model, Path(self._work.name)) if self._chosen["exact"] and saturates() else model
            return ort.InferenceSession(str(shown), chosen, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base for its errors
            raise ModelError(f"{model}: onnxruntime can't load it ({one_line(error)})") from None

    @property
    def latency_ms(self) -> float | None:
        return statistics.median(self._times) * 1e3 if self._times else None

    def run(self, feeds: Feeds, taps: Sequence[str] = (), timed: bool = True) -> Outputs:
        names = tuple(dict.fromkeys([*self.outputs, *taps]))
        session = self._with_taps(names[len(self.outputs) :])
        limit = self._chosen["timeout"]
        try:
            with WATCH.within(limit) as options:
                began = time.perf_counter()
                arrays = session.run(list(names), dict(feeds), options)
                took = time.perf_counter() - began
        except Exception as error:  # onnxruntime has no common base for its errors
            if options.terminate:
                raise ToolError(f"{self.model}: stopped after {limit:g} s; raise the timeout option") from None
            check_feeds(self.inputs, feeds, self._optional)  # names the feeds when they are at fault
            raise ModelError(f"{self.model}: onnxruntime failed to run it ({one_line(error)})") from None
        if timed:
            self._times.append(took)
        return dict(tensors(names, arrays))

    def run_many(self, batches: Iterable[Feeds], taps: Sequence[str] = ()) -> Iterator[Outputs]:
        self._times.clear()
        streams, left = self._chosen["streams"], iter(batches)
        for feeds in left if streams == 1 else islice(left, ROUNDS):
            yield self.run(feeds, taps)
        yield from in_streams(partial(self.run, taps=taps, timed=False), left, streams)

    def close(self) -> None:
        self._sessions.clear()
        self._work.cleanup()

    def _with_taps(self, names: tuple[str, ...]) -> ort.InferenceSession:
        if names not in self._sessions:
            folder = Path(tempfile.mkdtemp(dir=self._work.name))
            self._sessions[names] = self._open(observable(self.model, names, folder)[0])
        return self._sessions[names]


def tensors(names: Iterable[str], values: Iterable[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Outputs by name, the items of a sequence as `name[0]`, `name[1]` …; optionals without a value are left out."""
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list):
            yield from tensors([f"{name}[{i}]" for i in range(len(value))], value)
        elif value is not None:
            array = np.asarray(value)
            yield name, array.astype(str) if array.dtype == object else array


def check_feeds(inputs: dict[str, tuple[str, tuple[Any, ...]]], feeds: Feeds, optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Raises CalibrationError for an unknown or missing input name, a wrong dtype or a wrong shape."""
    for name, array in feeds.items():
        if name not in inputs and name not in optional:
            raise CalibrationError(
                f"the data holds {name!r}, which is no input of the model: it has {', '.join(inputs)}"
            )
        if name not in inputs:
            continue
        kind, shape = inputs[name]
        wanted = NUMPY_TYPES.get(kind)
        if wanted is not None and array.dtype != wanted:
            raise CalibrationError(
                f"input {name!r} is {array.dtype}, the model wants {np.dtype(wanted).name}: convert it"
            )
        fixed = [d if isinstance(d, int) else None for d in shape]
        if len(fixed) != array.ndim or any(d is not None and d != n for d, n in zip(fixed, array.shape, strict=True)):
            raise CalibrationError(f"input {name!r} has shape {list(array.shape)}, the model wants {list(shape)}")
    for name in inputs:
        if name not in feeds:
            raise CalibrationError(f"the data lacks input {name!r}: it holds {', '.join(feeds) or 'nothing'}")
