"""Coverage-guided fuzzing of the readers by atheris: `python -m benchmarks.fuzz_guided gguf -max_total_time=1800`.

Kinds are gguf, tflite, golden and stats; what follows goes to libFuzzer. Anything but a result or an EdgeqError of one
line stops it and leaves the file that did it. Needs `pip install atheris`.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgeq"]):
    from edgeq.collecting import stats
    from edgeq.errors import EdgeqError
    from edgeq.formats import gguf, tflite_read
    from edgeq.verifying import golden

from benchmarks.fuzz import corpus
from tests.attacks.sandbox import Sandbox


def whole_gguf(path: Path) -> None:
    for tensor in gguf.read(path).tensors.values():
        tensor.floats()


READERS = {
    "gguf": whole_gguf,
    "tflite": lambda path: tflite_read.read(path.read_bytes()),
    "golden": golden.load,
    "stats": stats.load,
}


def main() -> None:
    kind = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sandbox = Sandbox()
        good = corpus(folder, sandbox)[kind]
        sandbox.close()
        (folder / "good").mkdir()
        (folder / "good" / "first").write_bytes(good)
        path = folder / f"tried.{kind}"

        def one(content: bytes) -> None:
            path.write_bytes(content)
            try:
                READERS[kind](path)
            except EdgeqError as error:
                if "\n" in str(error):
                    raise

        atheris.Setup([*sys.argv, str(folder / "good")], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
