"""Mutation testing: `python -m benchmarks.mutation --jobs 16 --json survivors.json edgeq/numerics edgeq/intops`.

Each mutant is one change of one operator, comparison, constant, choice, return or call. A fork of this process, which
has the heavy libraries loaded already, imports that file changed and all others as they are, and runs the file's own
tests, then those of the folder that mirrors its folder, until one fails. Nothing is written into the source.
Strings, annotations, decorators and what is raised stay: no test holds the wording of a message.
"""

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDERS = ("edgeq/numerics", "edgeq/intops", "edgeq/calibrate")
HEAVY = ("hypothesis.extra.numpy", "onnx.reference", "onnxruntime.quantization.calibrate", "onnxscript", "onnx_ir")
HEAVY += ("ml_dtypes", "scipy.special", "sklearn.cluster", "sklearn.metrics.pairwise", "gguf", "xllamacpp", "msgspec")
HEAVY += ("typer", "rich.progress", "tomli_w")
HEAVY += ("ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated")
MEMORY = 8 << 30  # of addresses, for a mutant that wants terabytes
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"

BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
}  # fmt: skip
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NAMES = {"minimum": "maximum", "min": "max", "any": "all", "floor": "ceil"}
NAMES |= {new: old for old, new in NAMES.items()} | {"rint": "trunc", "trunc": "floor"}


@dataclass(frozen=True)
class Mutant:
    """The bytes [start, end) of a file replaced."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def source(self) -> bytes:
        text = Path(self.file).read_bytes()
        return text[: self.start] + self.after.encode() + text[self.end :]


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""

    def other(**fields: object) -> ast.AST:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in BINARY:
            yield other(op=BINARY[type(op)]())
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield other(ops=[*ops[:i], COMPARE[type(op)](), *ops[i + 1 :]])
        case ast.BoolOp(op=op):
            yield other(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 or 1.0)
        case ast.IfExp(test=test, body=body, orelse=orelse) if not isinstance(test, ast.Compare):
            yield other(body=orelse, orelse=body)
        case ast.Name(id=name) if name in NAMES:
            yield ast.Name(NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield other(attr=NAMES[name])
        case ast.Return(value=value) if value is not None and not (
            isinstance(value, ast.Constant) and value.value is None
        ):
            yield ast.Return(None)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all in it that is computed, but strings and errors."""
    yield node
    sizes = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape"
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if sizes and isinstance(child, ast.UnaryOp) and ast.unparse(child) == "-1":
                yield child  # and not its 1: numpy takes any negative size for the one to be found
                continue
            if isinstance(child, ast.keyword) and ast.unparse(child) == "copy=False":
                continue  # numpy's word that a copy isn't needed: one has the same values
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr | ast.ImportFrom):
                yield from parts(child)


def mutants(file: str) -> list[Mutant]:
    text = Path(file).read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in parts(ast.parse(text)):
        for new in changes(node):
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            after = ast.unparse(new) if isinstance(new, ast.stmt) else f"({ast.unparse(new)})"
            found.append(Mutant(file, node.lineno, start, end, text[start:end].decode(), after))
    return found


class Changed(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from other source."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        inside = [str(Path(self.mutant.file).parent)] if self.mutant.file.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            fullname, self.mutant.file, loader=self, submodule_search_locations=inside
        )

    def get_source(self, fullname):
        return self.mutant.source().decode()

    def get_code(self, fullname):
        return compile(self.mutant.source(), self.mutant.file, "exec")


def tests_of(file: str) -> tuple[list[str], list[str]]:
    """The file's own tests, and the other ones of the mirrored folder."""
    path = Path(file)
    own = path.parts[2].removesuffix(".py")
    rest = sorted(map(str, Path("tests", path.parts[1]).glob("test_*.py")))
    first = [t for t in rest if Path(t).name.startswith(f"test_{own}")]
    first = first or [t for t in rest if f"{path.parts[1]}.{own} import" in Path(t).read_text()]
    return first, [t for t in rest if t not in first]


def tested(file: str, mutant: Mutant | None) -> int:
    """pytest's exit code, in a fork."""
    import pytest
    from hypothesis import HealthCheck, Phase, settings

    if mutant:
        sys.meta_path.insert(0, Changed(mutant))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    random.seed(0)
    given = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("mutation", phases=(Phase.explicit, Phase.generate), **given)  # a failure isn't shrunk
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ("-x", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "--hypothesis-profile=mutation")
    return next((code for tests in tests_of(file) if tests and (code := int(pytest.main([*options, *tests])))), 0)


def fork(file: str, mutant: Mutant | None, output: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = tested(file, mutant)
    finally:
        os._exit(code)


def timed(file: str) -> float:
    """Seconds that the unchanged source's tests take; they have to pass."""
    begun = time.monotonic()
    _, status = os.waitpid(fork(file, None, 2), 0)
    if status:
        sys.exit(f"the tests of {file} fail as it is")
    return time.monotonic() - begun


def judge(chosen: list[Mutant], jobs: int, limits: dict[str, float], until: float) -> list[tuple[Mutant, str]]:
    """Every mutant with what became of it, as many at a time as jobs; those not begun by `until` are left out."""
    waiting, running, done = list(reversed(chosen)), {}, []
    nowhere = os.open(os.devnull, os.O_RDWR)
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < until:
            mutant = waiting.pop()
            limit = time.monotonic() + limits[str(Path(mutant.file).parts[1])]
            running[fork(mutant.file, mutant, nowhere)] = (mutant, limit)
        if waiting and time.monotonic() >= until:
            waiting = []
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            mutant, _ = running.pop(pid)
            done.append((mutant, SURVIVED if status == 0 else KILLED))
            continue
        for late in [p for p, (_, limit) in running.items() if time.monotonic() > limit]:
            os.killpg(late, signal.SIGKILL)
            os.waitpid(late, 0)
            done.append((running.pop(late)[0], TIMEOUT))
        time.sleep(0.01)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=FOLDERS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sample", type=int, help="so many mutants, drawn with --seed; all if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no mutant after so long")
    parser.add_argument("--json", type=Path, default=Path("mutation.json"))
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    files = [str(f) for p in args.paths for f in (sorted(Path(p).rglob("*.py")) if Path(p).is_dir() else [Path(p)])]
    chosen = [m for f in files for m in mutants(f)]
    random.Random(args.seed).shuffle(chosen)  # so that whatever is begun in time is a sample
    chosen = chosen[: args.sample]
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    assert "edgeq" not in sys.modules
    limits = {Path(f).parts[1]: 10 + 5 * timed(f) for f in {Path(f).parts[1]: f for f in files}.values()}
    done = judge(chosen, args.jobs, limits, until)
    tally = {f: Counter(fate for m, fate in done if m.file == f) for f in files}
    tally["all"] = Counter(fate for _, fate in done)
    for file, count in tally.items():
        if total := count.total():
            gone = total - count[SURVIVED]
            print(f"{file:<36}{total:>6} mutants{gone:>6} killed{100 * gone / total:>7.1f} %")
    left = [
        {"fate": fate} | asdict(m) for m, fate in sorted(done, key=lambda d: (d[0].file, d[0].start)) if fate != KILLED
    ]
    args.json.write_text(json.dumps({"tried": len(done), "of": len(chosen), "files": tally, "left": left}, indent=1))


if __name__ == "__main__":
    main()
