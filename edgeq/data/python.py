"""Samples that Python code gives: a callable, a list, a generator, a torch DataLoader. No torch is imported for it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeq.data.arrays import Shapes
from edgeq.data.dataset import Dataset, Feeds
from edgeq.errors import CalibrationError


def from_callable(
    name: str,
    make: Callable[[], Iterable[Any]],
    inputs: Shapes,
    optional: Sequence[str] = (),
    source: str | None = None,
) -> Dataset:
    """make: called without arguments for each walk; yields samples as `_feeds` takes them."""
    return Dataset(name, lambda: _walk(name, make, inputs, optional), source=source)


def from_iterable(items: Iterable[Any], inputs: Shapes, optional: Sequence[str] = ()) -> Dataset:
    """A loader is walked anew each time; an iterator is kept in memory, for it can be walked only once."""
    if not isinstance(items, (list, tuple, Iterator)):
        return from_callable("data", lambda: items, inputs, optional)
    kept = list(_walk("data", lambda: items, inputs, optional))
    return Dataset.indexed("data", kept.__getitem__, len(kept))


def from_spec(spec: str, inputs: Shapes, optional: Sequence[str] = ()) -> Dataset:
    """`module:callable`. Raises CalibrationError when there is none, or it is not callable."""
    made = load_object(spec)
    if not callable(made):
        raise CalibrationError(f"{spec!r} is a {type(made).__name__}; give a callable that yields {{input: array}}")
    return from_callable(spec, made, inputs, optional, source=spec)


def _walk(name: str, make: Callable[[], Iterable[Any]], inputs: Shapes, optional: Sequence[str]) -> Iterator[Feeds]:
    """The samples, each a mapping of arrays. Raises CalibrationError for anything else."""
    index = 0
    samples: Iterator[Any] | None = None
    while True:
        try:
            samples = iter(make()) if samples is None else samples
            given = next(samples)
            feeds = _feeds(given, [n for n in inputs if n not in optional], inputs)
        except StopIteration:
            return
        except CalibrationError as error:
            raise CalibrationError(f"{name}: sample {index} {error}") from None
        except Exception as error:  # the user's own code may raise anything
            raise CalibrationError(f"{name} failed at sample {index}: {type(error).__name__}: {error}") from None
        yield from _singles(feeds, inputs)
        index += 1


def _feeds(given: Any, names: Sequence[str], inputs: Shapes) -> Feeds:
    """A sample by input name: a mapping, an array for the only input, or a tuple in the order of the model's inputs.

    What a mapping or tuple holds beyond the inputs, such as labels, is left out; so is what comes behind a mapping.
    """
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], Mapping):
        given = given[0]
    if isinstance(given, Mapping):
        if all(name in given for name in names):
            given = {name: given[name] for name in given if name in inputs}
        return {name: _array(value) for name, value in given.items()}
    parts = given if isinstance(given, (list, tuple)) else [given]
    if not all(hasattr(part, "shape") for part in parts[: len(names)]):
        kinds = sorted({type(part).__name__ for part in parts[: len(names)] if not hasattr(part, "shape")})
        raise CalibrationError(
            f"is a {type(given).__name__}"
            + (f" of {', '.join(kinds)}" if parts is given else "")
            + "; yield {input name: array}, an array, or a tuple of arrays"
        )
    if len(parts) < len(names):
        raise CalibrationError(f"holds {len(parts)} arrays for {len(names)} inputs ({', '.join(names)})")
    return {name: _array(part) for name, part in zip(names, parts, strict=False)}


def _array(value: Any) -> np.ndarray:
    """A torch tensor may need a gradient or lie on another device, which numpy refuses. Text as numpy's own."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return array.astype(str) if array.dtype == object else array


def _singles(feeds: Feeds, inputs: Shapes) -> Iterator[Feeds]:
    """A loader's batch one by one, when the model's batch is fixed at 1."""
    sizes = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    shapes = [inputs.get(name) for name in feeds]
    fixed = all(s and s[0] == 1 and len(s) == a.ndim for s, a in zip(shapes, feeds.values(), strict=True))
    if not fixed or len(sizes) != 1 or sizes == {1}:
        yield feeds
        return
    for row in range(sizes.pop()):
        yield {name: array[row : row + 1] for name, array in feeds.items()}


def load_object(spec: str) -> Any:
    """The object that `module:name` names; the current folder is searched too. Raises CalibrationError."""
    module, _, name = spec.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's own code, which may raise anything
        raise CalibrationError(
            f"{spec!r} can't be loaded ({type(error).__name__}: {error}): give module:name of something importable"
        ) from None
    return found
