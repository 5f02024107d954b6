"""Seeded mutations of good files against every reader: `python -m benchmarks.fuzz [SECONDS] [SEED]`.

What a child answers with anything but a result or one line is kept in `tests/attacks/seeds`, to be mended and tested.
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.attacks.sandbox import BYTES, SECONDS, Sandbox
from tests.attacks.test_files import gguf, tflite
from tests.command import matmul, samples

SEEDS = Path(__file__).resolve().parent.parent / "tests" / "attacks" / "seeds"


def corpus(folder: Path, sandbox: Sandbox) -> dict[str, bytes]:
    """A good file of each kind."""
    model, data = matmul(folder / "m.onnx"), samples(folder / "d.npz")
    sandbox("quantize", model, "--calib", data, "-o", folder / "out", "--save-stats", folder / "s.npz", "-q")
    gguf(folder / "m.gguf")
    tflite(folder / "m.tflite")
    files = {"onnx": "m.onnx", "gguf": "m.gguf", "tflite": "m.tflite", "stats": "s.npz", "golden": "out/golden.npz",
             "toml": "out/recipe.toml"}  # fmt: skip
    return {kind: (folder / file).read_bytes() for kind, file in files.items()}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Some of: bits flipped, a run removed, doubled or made of one byte, the end cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 9))
        match int(rng.integers(5)):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * int(rng.integers(1, 4))
            case 3:
                data[at : at + length] = bytes([int(rng.choice([0, 1, 127, 128, 255]))]) * length
            case 4 if rng.random() < 0.1:
                del data[at:]
    return bytes(data)


def tried(sandbox: Sandbox, kind: str, path: Path) -> str:
    """What is wrong with the answer, or nothing."""
    args = {"onnx": ("plan", path), "toml": ("plan", path.parent / "m.onnx", "--recipe", path)}
    found = sandbox(*args.get(kind, ("read", kind, path)))
    wrong = found.code not in (0, 2) or (found.code == 2 and found.err.count("\n") != 1)
    return f"{found}" if wrong or found.seconds > SECONDS or found.bytes > BYTES else ""


def main() -> None:
    seconds, seed = (int(a) for a in (*sys.argv[1:], *("300", "0")[len(sys.argv) - 1 :]))
    sandbox, rng, count, kept = Sandbox(), np.random.default_rng(seed), 0, 0
    with tempfile.TemporaryDirectory() as work:
        files, until = corpus(Path(work), sandbox), time.monotonic() + seconds
        while time.monotonic() < until:
            kind = list(files)[count % len(files)]
            content = mutated(files[kind], rng)
            path = Path(work) / f"bad.{kind}"
            path.write_bytes(content)
            if wrong := tried(sandbox, kind, path):
                SEEDS.mkdir(exist_ok=True)
                (SEEDS / f"{hashlib.sha256(content).hexdigest()[:12]}.{kind}").write_bytes(content)
                print(kind, wrong[-600:], flush=True)
                kept += 1
            count += 1
    print(f"{count} files tried, {kept} kept")
    sandbox.close()


if __name__ == "__main__":
    main()
