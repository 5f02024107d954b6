"""The floors of the architecture, read from the source: a file imports only from floors below its own."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "edgeq").rglob("*.py"))

FLOORS = (
    {"__init__", "__main__", "cli", "pytest_plugin"},
    {"gate", "fitting", "speculation", "trials", "tune"},
    {"pipeline", "recalibration", "retarget"},
    {"package", "search"},
    {"collecting", "verifying", "request"},
    {"report"},
    {"runners", "export", "export_quantized", "train", "formats"},
    {"passes"},
    {"planning", "nnapi"},
    {"graph", "recipe", "target", "data", "lock"},
    {"weights", "calibrate", "intops"},
    {"numerics"},
    {"types", "errors", "registry", "files", "lighter", "memory", "processors"},
)
LEVEL = {unit: -depth for depth, floor in enumerate(FLOORS) for unit in floor}

# The only steps sideways. Within a line each unit imports from those that follow it, so there is no way round.
SIDEWAYS = (
    ("__main__", "cli", "__init__"),
    ("tune", "fitting", "speculation", "trials"),
    ("train", "export", "export_quantized", "runners", "formats"),
    ("nnapi", "planning"),
    ("data", "lock", "recipe", "target"),
    ("registry", "errors"),
    ("files", "errors"),
)

MATHEMATICS = {"numerics", "weights", "calibrate", "intops"}
RUNTIMES = {"onnxruntime", "ai_edge_litert", "openvino"}
PRINTERS = ("edgeq/cli/", "edgeq/runners/_child.py")  # the child is a program of its own, on another machine
COMMAND = """
import runpy
sys.argv = ["edgeq", {!r}]
try:
    runpy.run_module("edgeq", run_name="__main__")
except SystemExit:
    pass
"""
HEAVY = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch", "numpy")


class Import(NamedTuple):
    line: int
    module: str


def unit_of(module: str) -> str:
    """`edgeq.graph.io` is of the unit `graph`; the package itself is `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def home(path: str) -> str:
    return Path(path).parts[1].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[Import]:
    """What a module imports at any depth, and the packages of edgeq that it names to load by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            inner = module == "edgeq"
            names = [a.name for a in node.names]
            yield from (Import(node.lineno, f"edgeq.{n}" if inner and n in LEVEL else module) for n in names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            first = parts[0].value if parts and isinstance(parts[0], ast.Constant) else None
            if called in ("load", "names", "import_module", "__import__") and isinstance(first, str):
                name = first.rstrip(".")
                if name.startswith("edgeq.") or called in ("import_module", "__import__"):
                    yield Import(node.lineno, name)


def violations(path: str, source: str) -> list[str]:
    """One line for each import or call of a file that the architecture forbids. path: relative to the repository."""
    tree, unit = ast.parse(source), home(path)
    if unit not in LEVEL:
        return [f"{path}: {unit!r} has no floor; give it one in FLOORS and in docs/architecture.md"]
    found = []
    for line, module in imports(tree):
        if module.split(".")[0] == "edgeq":
            problem = _inside(unit, unit_of(module))
        elif module.startswith("."):
            problem = "relative import; write the whole name"
        else:
            problem = _outside(path, unit, module.split(".")[0])
        if problem:
            found.append(f"{path}:{line}: {module}: {problem}")
    if not path.startswith(PRINTERS):
        found += [f"{path}:{line}: {what} belongs in the command line" for line, what in _speaks(tree)]
    return found


def _inside(unit: str, other: str) -> str:
    if other not in LEVEL:
        return "has no floor"
    if unit == "passes" and other in ("calibrate", "runners"):
        return "passes get what they need as arguments"
    if other == unit or LEVEL[other] < LEVEL[unit]:
        return ""
    if any(unit in row and other in row[row.index(unit) :] for row in SIDEWAYS):
        return ""
    return f"{unit} is not above {other}"


def _outside(path: str, unit: str, package: str) -> str:
    if unit in MATHEMATICS and package not in sys.stdlib_module_names | {"numpy", "ml_dtypes"}:
        return "mathematics imports numpy and ml_dtypes alone"
    if package == "torch" and unit not in ("export", "train"):
        return "torch is for export.py and train/"
    if package in RUNTIMES and unit not in ("runners", "formats"):
        return "runtimes are for runners/ and formats/"
    if package == "onnxscript" and path != "edgeq/graph/prepare.py":
        return "onnxscript is for graph/prepare.py"
    if package in ("typer", "click") and unit != "cli":
        return "is for cli/"
    if package == "rich" and unit not in ("cli", "report"):
        return "is for cli/ and report/"
    return ""


def _speaks(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("print", "exit", "quit", "SystemExit"):
            yield node.lineno, node.id
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.exit", "os._exit"):
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module == "sys" and any(a.name == "exit" for a in node.names):
            yield node.lineno, "sys.exit"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_floors(file):
    assert violations(file.relative_to(ROOT).as_posix(), file.read_text("utf-8")) == []


def test_no_way_round_within_a_folder():
    """What is imported as a module is loaded follows one order of all modules."""
    graph = {}
    for file in FILES:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        body = ast.Module([n for n in ast.parse(file.read_text("utf-8")).body if isinstance(n, ast.ImportFrom)], [])
        graph[name] = {(n.module, f"{n.module}.{a.name}") for n in body.body for a in n.names}
    known = {name: {whole if whole in graph else module for module, whole in read} for name, read in graph.items()}
    list(TopologicalSorter(known).static_order())  # raises CycleError that names the way round


def test_every_floor_stands():
    """Each unit is on one floor, and is a file or folder that is really there."""
    units = [unit for floor in FLOORS for unit in floor]
    assert len(units) == len(set(units))
    assert {home(f.relative_to(ROOT).as_posix()) for f in FILES} == set(units)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("edgeq/numerics/affine.py", "import onnx_ir as ir"),
        ("edgeq/weights/rtn.py", "def f():\n    from onnx import helper"),
        ("edgeq/calibrate/mse.py", "import scipy.stats"),
        ("edgeq/intops/conv.py", "import torch.nn"),
        ("edgeq/numerics/affine.py", "from edgeq.weights import rtn"),
        ("edgeq/weights/rtn.py", "from edgeq.calibrate.summary import Summary"),
        ("edgeq/passes/qdq.py", "from edgeq.calibrate import mse"),
        ("edgeq/passes/qdq.py", "load('edgeq.runners', 'cpu')"),
        ("edgeq/planning/plan.py", "from edgeq.collecting import stats"),
        ("edgeq/planning/eligible.py", "from edgeq.passes import qdq"),
        ("edgeq/planning/solve.py", "load(f'edgeq.runners.{name}', 'cpu')"),
        ("edgeq/report/tables.py", "from edgeq.verifying.verify import verify"),
        ("edgeq/verifying/verify.py", "from edgeq.pipeline import quantize"),
        ("edgeq/graph/io.py", "from edgeq import __version__"),
        ("edgeq/graph/io.py", "from .edit import Names"),
        ("edgeq/graph/edit.py", "import onnxscript"),
        ("edgeq/pipeline.py", "import torch"),
        ("edgeq/verifying/verify.py", "importlib.import_module('onnxruntime')"),
        ("edgeq/pipeline.py", "from ai_edge_litert import interpreter"),
        ("edgeq/pipeline.py", "print('done')"),
        ("edgeq/runners/cpu.py", "import sys\nsys.exit(1)"),
        ("edgeq/newcomer.py", ""),
    ],
)
def test_violations_are_seen(path, source):
    assert violations(path, source)


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter holds after `code`."""
    ask = f"import json, sys\n{code}\nsys.stderr.write(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(ran.stderr.splitlines()[-1]))


def test_import_is_light():
    assert loaded_after("import edgeq") == set()
    assert {"onnx_ir", "numpy"} <= loaded_after("import edgeq; edgeq.load")


def test_the_api_is_functions_whatever_was_imported():
    """Submodules of the same name don't take the functions' place."""
    code = "import sys, edgeq, edgeq.cli.verify, edgeq.pipeline, edgeq.tune; sys.exit(not all(map(callable, CALLED)))"
    called = "[edgeq.load, edgeq.save, edgeq.export, edgeq.prepare, edgeq.plan, edgeq.quantize, edgeq.verify]"
    subprocess.run([sys.executable, "-c", code.replace("CALLED", called)], cwd=ROOT, timeout=120, check=True)


@pytest.mark.parametrize("first", ["", "import onnx_ir", "import sympy"])
def test_shapes_are_worked_out_whatever_was_imported_first(first):
    """SymPy comes when a size is calculated; by then onnx-ir is a module like any other."""
    code = """
import sys
import edgeq.graph.io as io
import onnx_ir as ir
assert bool({first!r}) == ("sympy.core" in sys.modules)
assert (ir.SymbolicDim("N") + 2).value == "N + 2"
import sympy
from sympy.core.numbers import Integer
assert sympy.Integer(2) == Integer(2) and "sympy.core" in sys.modules
import importlib.resources, inspect
assert importlib.resources.files("onnx_ir").is_dir() and "SymbolicDim" in inspect.getsource(ir._core)
"""
    code = f"{first}\n{code.format(first=first)}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=True)


def test_quantizing_needs_no_symbols(tmp_path):
    """Nor does a model with free sizes."""
    code = f"""
import sys, edgeq
edgeq.quantize("sample_models/digits.onnx", "x86_64", "sample_models/digits_calib.npz", {str(tmp_path / "out")!r})
assert "sympy.core" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=True)


def test_help_is_light():
    assert loaded_after(COMMAND.format("--help")) == set()
    assert "onnxruntime" in loaded_after(COMMAND.format("doctor"))
