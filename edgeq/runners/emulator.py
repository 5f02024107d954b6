"""NNAPI as its reference driver computes, on this machine: quantized units in NumPy, everything else in onnxruntime."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError, ToolError
from edgeq.graph import io
from edgeq.graph.infer import infer
from edgeq.intops.requantize import dequantize
from edgeq.nnapi.arithmetic import execute, quant
from edgeq.nnapi.partition import Group, borders, groups, partition
from edgeq.nnapi.support import LEVELS, refusal
from edgeq.nnapi.units import Operand, Unit, units
from edgeq.runners import cpu
from edgeq.runners.session import COMMON, Feeds, Outputs, options

TITLE = "NNAPI's arithmetic, emulated"
TIMED = False


def missing() -> str | None:
    return None


def version() -> str:
    """edgeq's own: the arithmetic is here."""
    return metadata.version("edgeq")


def open_session(model: Path, **given: Any) -> EmulatorSession:
    """Options: threads, timeout, optimization (of what onnxruntime runs); api_level, "27" to "35"; rounding, "double"
    as the reference driver's, or "single". Raises ModelError, RecipeError.
    """
    choices = {
        "optimization": ("disabled", "basic", "all"),
        "api_level": tuple(map(str, LEVELS)),
        "rounding": ("double", "single"),
    }
    defaults = {**COMMON, "api_level": "29", "rounding": "double"}
    return EmulatorSession(Path(model), options("emulator", given, defaults, choices))


class EmulatorSession:
    """See `edgeq.runners.session.Session`. report: beside version and machine, what NNAPI takes and what is copied."""

    def __init__(self, path: Path, chosen: dict[str, Any]) -> None:
        self.model, self._chosen = path, chosen
        model = io.load(path)
        infer(model)
        level = int(chosen["api_level"])
        found = units(model.graph)
        self._groups = groups(found, lambda unit: unit.quantized and not refusal(unit, level))
        self._work = tempfile.TemporaryDirectory(prefix="edgeq-")
        self._sessions = {
            group: self._open(model, group, found, Path(self._work.name) / f"{index}.onnx")
            for index, group in enumerate(self._groups)
            if not group.taken
        }
        self._operands = _floats(found)
        self._times: list[float] = []
        self.inputs = {v.name or "": v for v in model.graph.inputs}
        self._constants = {
            v.name: v.const_value.numpy() for v in model.graph.outputs if v.name and v.const_value is not None
        }
        self.outputs = tuple(v.name or "" for v in model.graph.outputs)
        taken = partition(model.graph, level)
        self.report: dict[str, Any] = {
            "version": version(),
            "machine": platform.machine(),
            "nnapi": {
                "api_level": level,
                "partitions": len(taken.partitions),
                "nodes": taken.nodes - len(taken.cpu),
                "cpu_nodes": len(taken.cpu),
                "copied_bytes": taken.bytes,
            },
        }

    def _open(self, model: ir.Model, group: Group, found: Sequence[Unit], path: Path) -> cpu.CpuSession:
        """A session of what a group of other units is, with every value that is read elsewhere as output."""
        reads, gives = borders(group, found)
        graph = ir.convenience.extract(model.graph, list(reads), list(gives))
        io.save(ir.Model(graph, ir_version=model.ir_version), path)
        chosen = {name: self._chosen[name] for name in COMMON}
        return cpu.open_session(path, **chosen)

    @property
    def latency_ms(self) -> float | None:
        return median(self._times) * 1e3 if self._times else None

    def run(self, feeds: Feeds, taps: Sequence[str] = ()) -> Outputs:
        began = time.perf_counter()
        arrays = dict(self._constants)
        for name in self.inputs:
            if name not in feeds:
                raise ModelError(f"{self.model}: no array was given for the input {name!r}")
            arrays[name] = feeds[name]
        for group in self._groups:
            if group.taken:
                for unit in group.units:
                    arrays[unit.outputs[0].name] = execute(unit, arrays, self._chosen["rounding"])
                    if time.perf_counter() - began > self._chosen["timeout"]:
                        limit = self._chosen["timeout"]
                        raise ToolError(f"{self.model}: stopped after {limit:g} s; raise the timeout option")
            else:
                session = self._sessions[group]
                inside = {out.name for unit in group.units for out in unit.outputs}
                wanted = [tap for tap in taps if tap in inside and tap not in session.outputs]
                arrays.update(session.run({name: arrays[name] for name in session.inputs}, wanted))
        self._times.append(time.perf_counter() - began)
        names = dict.fromkeys([*self.outputs, *taps])
        return {name: np.ascontiguousarray(self._found(name, arrays)) for name in names}

    def _found(self, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """A value of the model; floats within a unit are its codes, dequantized."""
        if name in arrays:
            return arrays[name]
        operand = self._operands.get(name)
        if operand is None or operand.name not in arrays:
            raise ModelError(f"{self.model}: no value {name!r} is computed; take names from its nodes' outputs")
        return dequantize(arrays[operand.name], quant(operand))

    def run_many(self, batches: Iterable[Feeds], taps: Sequence[str] = ()) -> Iterator[Outputs]:
        self._times.clear()
        for feeds in batches:
            yield self.run(feeds, taps)

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._work.cleanup()


def _floats(found: Sequence[Unit]) -> dict[str, Operand]:
    """What is float within a unit, by name: the codes before a DequantizeLinear, or after a QuantizeLinear."""
    named = {}
    for unit in found:
        for operand in (*unit.inputs, *unit.outputs):
            if operand is not None and operand.around is not None and unit.joined:
                into = operand.around.inputs[0] if operand in unit.outputs else operand.around.outputs[0]
                named[(into.name if into is not None else None) or ""] = operand
    return named
