"""What `benchmarks.integer` says of a `.tflite` file: is it the emulator's, how plain is it, and how large?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeq
from benchmarks import peers
from benchmarks.tasks import Feed
from edgeq import registry
from edgeq.formats.tflite_convert import LAYOUT_KEY
from edgeq.formats.tflite_emulate import run
from edgeq.formats.tflite_file import TfModel, build
from edgeq.formats.tflite_read import read

PEER_SAMPLES = 4  # its file is as large for any


@dataclass(frozen=True)
class Tflite:
    """differing: codes that the emulator has otherwise than LiteRT's reference kernels, of so many.

    bytes, peer_bytes: of the `litert` target's file with float ends, and of ai-edge-quantizer's for the same model;
    0 where there is none, and `peer_error` says why it failed.
    """

    differing: tuple[int, int]
    transposes: int
    bytes: int
    peer_bytes: int
    peer_error: str = ""


def nhwc(file: TfModel, arrays: Feed) -> Feed:
    """Images with the channels last, as the file stores them."""
    layout = json.loads(file.metadata.get(LAYOUT_KEY, b"{}"))
    return {n: x.transpose(0, 2, 3, 1) if n in layout else x for n, x in arrays.items()}


def against_reference(file: TfModel, codes: Sequence[Feed], folder: Path) -> tuple[int, int]:
    """(codes of the emulator that differ from LiteRT's reference kernels, all) of a file with integers at its ends."""
    path = folder / "codes.tflite"
    path.write_bytes(build(file))
    session = registry.load("edgeq.runners", "litert").open_session(path, kernels="reference")
    outputs = file.signatures[0].outputs
    wrong = total = 0
    for given, got in zip(codes, session.run_many(codes), strict=True):
        emulated = run(file, nhwc(file, given))
        emulated = nchw(file, {name: emulated[tensor] for name, tensor in outputs.items()})
        wrong += sum(int((emulated[name] != got[name]).sum()) for name in outputs)
        total += sum(got[name].size for name in outputs)
    session.close()
    return wrong, total


def nchw(file: TfModel, arrays: Feed) -> Feed:
    """The reverse of `nhwc`."""
    layout = json.loads(file.metadata.get(LAYOUT_KEY, b"{}"))
    return {n: x.transpose(0, 3, 1, 2) if n in layout else x for n, x in arrays.items()}


def figures(
    model: Path, file: TfModel, codes: Sequence[Feed], calib: Sequence[Feed], folder: Path, beside: bool = False
) -> Tflite:
    """model: float, of fixed shapes. file: its integer file, and codes: what that is fed. calib: float samples.

    beside: make ai-edge-quantizer's file too; that installs it, in an environment of its own.
    """
    one = [{name: array[:1] for name, array in feed.items()} for feed in calib]
    mine = edgeq.quantize(model, "litert", one, folder / "litert", check=False).artifact
    plain = edgeq.quantize(model, "litert", output=folder / "plain", method="float32", check=False).artifact
    transposes = sum(op.code == "TRANSPOSE" for op in read(mine.read_bytes()).ops)
    size, error = peer(plain, one[:PEER_SAMPLES], folder) if beside else (0, "")
    return Tflite(against_reference(file, codes, folder), transposes, mine.stat().st_size, size, error)


def peer(plain: Path, feeds: Sequence[Feed], folder: Path) -> tuple[int, str]:
    """The size of ai-edge-quantizer's static int8 file of a float one, or 0 and its last line."""
    file, out = read(plain.read_bytes()), folder / "peer.tflite"
    turned = [nhwc(file, feed) for feed in feeds]
    samples: dict[str, Any] = {name: np.stack([feed[name] for feed in turned]) for name in turned[0]}
    np.savez(folder / "samples.npz", **samples)
    script = peers.ROOT / "benchmarks" / "peers" / "aeq_quantize.py"
    try:
        command = [str(peers.ensure("aeq")), str(script), str(plain), str(folder / "samples.npz"), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except (subprocess.SubprocessError, OSError) as error:  # it can't be installed here, or hangs
        return 0, str(error)
    said = (done.stderr.splitlines() or [""])[-1]
    return (out.stat().st_size, "") if done.returncode == 0 else (0, said)
