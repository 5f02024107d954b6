"""Coverage-guided fuzzing of the readers by atheris: `python -m benchmarks.fuzz_guided gguf DIR -max_total_time=1800`.

Kinds are gguf, tflite, golden and stats; what follows goes to libFuzzer, which begins with the kept seeds and puts what
reaches new lines into DIR. `keep gguf DIR` makes that the seeds, which `tests/attacks/test_seeds.py` reads again.
Anything but a result or an EdgeqError of one line ends it and leaves the file that did it. Needs `pip install atheris`.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgeq"]):
    from edgeq.collecting import stats
    from edgeq.errors import EdgeqError
    from edgeq.formats import gguf, tflite_read
    from edgeq.verifying import golden

from benchmarks.fuzz import SEEDS, corpus
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


def keep(kind: str, folder: Path) -> None:
    """The files of a folder as the seeds of a kind; the same files give the same bytes."""
    with zipfile.ZipFile(SEEDS / f"{kind}.zip", "w", zipfile.ZIP_DEFLATED) as kept:
        for file in sorted(folder.iterdir()):
            kept.writestr(zipfile.ZipInfo(file.name[:12]), file.read_bytes(), zipfile.ZIP_DEFLATED)


def main() -> None:
    if sys.argv[1] == "keep":
        return keep(sys.argv[2], Path(sys.argv[3]))
    kind = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sandbox = Sandbox()
        good = corpus(folder, sandbox)[kind]
        sandbox.close()
        (folder / "good").mkdir()
        (folder / "good" / "first").write_bytes(good)
        with zipfile.ZipFile(SEEDS / f"{kind}.zip") as kept:
            kept.extractall(folder / "good")
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
