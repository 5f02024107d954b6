"""Build the corpus of tinypy: `make_corpus.py STDLIB_DIR SITE_PACKAGES_DIR` writes train.xz and eval.bin here.

Training text: ASCII Python files of 400 B to 400 kB of the CPython 3.11 standard library (no tests) and of permissively
licensed packages, without duplicates, shuffled with seed 0 and joined by a NUL byte. Evaluation text: the
standard-library modules in HELD_OUT, in name order.
"""

import hashlib
import lzma
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    *("numpy", "scipy", "sklearn", "torch", "onnx", "onnxscript", "onnx_ir", "rich", "typer", "pytest"),
    *("_pytest", "joblib", "networkx", "pygments", "jinja2", "markdown_it", "psutil", "google", "mpmath"),
}
HELD_OUT = {
    *("statistics.py", "heapq.py", "textwrap.py", "fractions.py", "shelve.py", "bisect.py", "difflib.py"),
    *("sched.py", "colorsys.py", "graphlib.py", "calendar.py", "csv.py", "string.py", "queue.py", "shlex.py"),
    *("configparser.py", "random.py", "secrets.py", "timeit.py", "zipapp.py"),
}


def files(stdlib: str, site: str) -> Iterator[tuple[str, bool, bytes]]:
    """(name, held out?, text) of every candidate."""
    for root, is_stdlib in ((stdlib, True), (site, False)):
        for folder, subfolders, names in os.walk(root):
            inside = os.path.relpath(folder, root)
            skipped = is_stdlib and inside.startswith(("site-packages", "test", "idlelib", "lib2to3/tests"))
            foreign = not is_stdlib and inside != "." and inside.split("/")[0] not in PACKAGES
            if skipped or foreign:
                subfolders[:] = []
                continue
            for name in names:
                if name.endswith(".py") and "__pycache__" not in inside:
                    held = is_stdlib and inside == "." and name in HELD_OUT
                    yield name, held, Path(folder, name).read_bytes()


def main() -> None:
    seen: set[bytes] = set()
    train: list[bytes] = []
    held_out: dict[str, bytes] = {}
    for name, held, text in files(*sys.argv[1:3]):
        digest = hashlib.sha1(text).digest()
        if not 400 <= len(text) <= 400_000 or not text.isascii() or digest in seen:
            continue
        seen.add(digest)
        if held:
            held_out[name] = text
        else:
            train.append(text)
    random.Random(0).shuffle(train)
    Path("eval.bin").write_bytes(b"\0".join(held_out[k] for k in sorted(held_out)))
    with lzma.open("train.xz", "wb", preset=4) as out:
        out.write(b"\0".join(train))


if __name__ == "__main__":
    main()
