"""Export a torch module to ONNX with the dynamo exporter, and hold the file against torch's own output at once.

What differs for modules that torch has quantized is in `edgeq.export_quantized`.
"""

from __future__ import annotations

import contextlib
import io as stdio
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.data import load_object
from edgeq.errors import EdgeqError, ModelError, RecipeError, ToolError
from edgeq.export_quantized import is_packed, rounds, with_codes, wrapped
from edgeq.graph.io import one_line
from edgeq.runners.places import open_here

TOLERANCE = 1e-3  # of the largest output: torch and onnxruntime order their sums differently
CODES_APART = 0.05  # with codes, a sum near the edge between two may fall to either; products of them are of less bits


def export(
    module: Any,
    example: Sequence[Any] | Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    opset: int = 20,
    dynamic: Mapping[str, Sequence[int]] | None = None,
) -> float:
    """Export `module` and give the largest |difference| from torch, relative to the largest output.

    example: the forward arguments, a sequence or a mapping of keywords. dynamic: input name → axes that may vary.
    Raises ModelError that names the module and operator that can't be exported, or the output that differs; nothing is
    written then. Raises ToolError without torch.
    """
    try:
        import torch
    except ImportError:
        raise ToolError("export needs torch: pip install 'edgeq[torch]'") from None
    target = Path(output)
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    module = with_codes(torch, _evaluating(module))
    names = _input_names(module, args, kwargs)
    shapes = _dynamic_shapes(torch, names, dynamic or {})
    try:
        with torch.no_grad():
            found = module(*args, **kwargs)
    except Exception as error:  # the module's own code may raise anything
        raise ModelError(f"{type(module).__name__} can't run on its example arguments: {one_line(error)}") from None
    if any(tensor.dtype == torch.bfloat16 for tensor in _tensors(torch, (args, kwargs, found))):
        raise ModelError(
            f"{type(module).__name__} takes or gives bfloat16, which numpy has no arrays of: export module.float(), or "
            "cast in its forward, x.bfloat16() and y.float()"
        )
    expected = [tensor.detach().cpu().numpy() for tensor in _tensors(torch, found)]
    if target.is_dir() or not target.parent.is_dir():
        raise EdgeqError(f"{target}: can't be written; give a file in a folder that is there")
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        file = Path(folder) / target.name
        with torch.no_grad():
            _run_exporter(torch, module, args, kwargs, file, opset, names, shapes)
        tolerance = CODES_APART if rounds(module) else TOLERANCE
        worst = _compare(torch, file, names, (*args, *kwargs.values()), expected, tolerance)
        _place(Path(folder), target)
    return worst


def _place(folder: Path, target: Path) -> None:
    """Move the folder's files beside `target`, each of them whole or not at all."""
    for made in sorted(folder.iterdir()):
        partial = target.parent / f".{made.name}.partial"
        try:
            shutil.copyfile(made, partial)
            os.replace(partial, target.parent / made.name)
        except OSError as error:
            raise EdgeqError(f"{target}: can't be written ({error.strerror}); choose another place") from None
        finally:
            partial.unlink(missing_ok=True)


def export_factory(spec: str, output: Path, opset: int, dynamic: Sequence[str]) -> float:
    """`export` of what `MODULE:FACTORY` returns: (module, example arguments). dynamic: `INPUT:AXIS` strings."""
    axes: dict[str, list[int]] = {}
    for item in dynamic:
        name, _, axis = item.rpartition(":")
        if not name or not axis.lstrip("-").isdigit():
            raise RecipeError(f"--dynamic {item!r}: write it as INPUT:AXIS, such as input:0")
        axes.setdefault(name, []).append(int(axis))
    factory = load_object(spec)
    try:
        made = factory()
    except Exception as error:  # the user's own code may raise anything
        raise RecipeError(f"{spec} failed: {type(error).__name__}: {one_line(error)}") from None
    if not isinstance(made, tuple) or len(made) != 2:
        raise RecipeError(f"{spec} must return (module, example arguments), it returned a {type(made).__name__}")
    return export(made[0], made[1], output, opset=opset, dynamic=axes)


def _evaluating(module: Any) -> Any:
    try:
        return module.eval()
    except NotImplementedError:  # graphs of torch.export have their mode in them, and raise this
        return module


def _input_names(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    import inspect

    parameters = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind != p.VAR_KEYWORD]
    return [*(parameters[i] if i < len(parameters) else f"input_{i}" for i in range(len(args))), *kwargs]


def _dynamic_shapes(torch: Any, names: list[str], dynamic: Mapping[str, Sequence[int]]) -> Any:
    for name in dynamic:
        if name not in names:
            raise RecipeError(f"no input {name!r} to make dynamic: the module has {', '.join(names)}")
    if not dynamic:
        return None
    return tuple(dict.fromkeys(dynamic[n], torch.export.Dim.DYNAMIC) if n in dynamic else None for n in names)


def _run_exporter(
    torch: Any, module: Any, args: Any, kwargs: Any, file: Path, opset: int, names: list[str], shapes: Any
) -> None:
    name = type(module).__name__
    named, dynamo = dict(zip(names, shapes or (), strict=shapes is not None)), not is_packed(module)
    if dynamo:
        further: dict[str, Any] = {"dynamic_shapes": named if named and kwargs else shapes}
    else:
        args, kwargs = (*args, *kwargs.values()), {}  # it knows none by name
        module = wrapped(torch, module)
        further = {"dynamic_axes": {n: list(axes) for n, axes in named.items() if axes}}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(stdio.StringIO()), _no_logging():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                args,
                str(file),
                kwargs=kwargs or None,
                dynamo=dynamo,
                opset_version=opset if dynamo else min(opset, 17),
                input_names=names,
                external_data=False,
                verbose=False,
                **further,
            )
    except Exception as error:  # the exporter raises its own and torch's errors of every kind
        raise ModelError(f"{name} can't be exported: {_cause(error)}") from None


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """The exporter logs what it can't find on its way; what matters it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """The innermost message, with the operator and the module path that torch put into the chain of errors."""
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    text = "\n".join(str(e) for e in chain)
    op = re.search(r"OpOverload\(op='([\w.:]+)'|\b((?:aten|prims|torchvision)[.:]{1,2}\w[\w.]*)", text)
    where = re.search(r"nn_module_stack[^\n]*?'([^']+)'|File \"[^\"]*\", line \d+, in (?:forward|\w+)", text)
    parts = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()][:1]
    if op:
        parts.append(f"operator {op.group(1) or op.group(2)}")
    if where:
        parts.append(f"in {where.group(1) or where.group(0)}")
    return "; ".join(parts)[:400]


def _tensors(torch: Any, nested: Any) -> list[Any]:
    flat, _ = torch.utils._pytree.tree_flatten(nested)
    return [value for value in flat if isinstance(value, torch.Tensor)]


def _compare(
    torch: Any, file: Path, names: list[str], example: Sequence[Any], expected: list[np.ndarray], tolerance: float
) -> float:
    session = open_here(file)
    feeds = {n: v.detach().cpu().numpy() for n, v in zip(names, example, strict=True) if isinstance(v, torch.Tensor)}
    try:
        got = session.run({n: feeds[n] for n in session.inputs if n in feeds})
    finally:
        session.close()
    if len(got) != len(expected):
        raise ModelError(f"the ONNX file has {len(got)} outputs where torch gives {len(expected)}")
    worst = 0.0
    for (name, array), want in zip(got.items(), expected, strict=True):
        if array.shape != want.shape:
            raise ModelError(f"output {name!r} has shape {array.shape} in ONNX and {want.shape} in torch")
        scale = max(float(np.abs(want).max(initial=0.0)), 1e-6) if want.dtype.kind == "f" else 1.0
        difference = float(np.abs(array.astype(np.float64) - want).max(initial=0.0)) / scale
        worst = max(worst, difference)
        if not difference <= tolerance:
            raise ModelError(f"output {name!r} differs from torch by {difference:.2e} of its largest value")
    return worst
