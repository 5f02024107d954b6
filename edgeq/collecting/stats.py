"""Statistics as plain arrays in an `.npz`: to send, to save, and to use again without the data. No pickle.

The file holds `about`, JSON as uint8, and for the i-th of its values the arrays `i.NAME` of `Summary.state`.
"""

from __future__ import annotations

import io as streams
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.data.arrays import read_npz
from edgeq.errors import CalibrationError
from edgeq.files import replacing

FORMAT = 1


@dataclass(frozen=True)
class Statistics:
    """values: all that were looked at; those that no sample reached have no summary. samples: how many were seen.

    model: SHA-256 of the prepared model. data: the name of the data. settings: what of the recipe chose and made the
    samples.
    """

    summaries: dict[str, Summary]
    values: tuple[str, ...]
    samples: int
    model: str = ""
    data: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def merged(self, other: Self) -> Self:
        """Both together. Merging is exact, so neither order nor grouping matters."""
        summaries = dict(self.summaries)
        for name, summary in other.summaries.items():
            if name in summaries:
                summaries[name].merge(summary)
            else:
                summaries[name] = summary
        return replace(self, summaries=summaries, samples=self.samples + other.samples)


def dump(statistics: Statistics) -> bytes:
    """The same statistics give the same bytes."""
    about = asdict(replace(statistics, summaries={})) | {"format": FORMAT}
    arrays = {"about": np.frombuffer(msgspec.json.encode(about), np.uint8)}
    for index, name in enumerate(statistics.values):
        if name in statistics.summaries:
            arrays |= {f"{index}.{key}": array for key, array in statistics.summaries[name].state().items()}
    stream = streams.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def parse(content: bytes, name: str = "statistics") -> Statistics:
    """The inverse of `dump`. Raises CalibrationError for anything that `dump` doesn't write."""
    arrays = read_npz(streams.BytesIO(content), name)
    try:
        about = msgspec.json.decode(arrays.pop("about").tobytes())
        if about.pop("format") != FORMAT:
            raise ValueError("written by another version of edgeq")
        found = msgspec.convert(about | {"summaries": {}}, Statistics)
        states: dict[int, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            index, _, part = key.partition(".")
            states.setdefault(int(index), {})[part] = array
        summaries = {found.values[index]: _summary(state) for index, state in states.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, msgspec.MsgspecError) as error:
        raise CalibrationError(f"{name}: not a file of statistics ({error}); write it with --save-stats") from None
    return replace(found, summaries=summaries)


def _summary(state: dict[str, np.ndarray]) -> Summary:
    """A summary whose arrays are what `Summary.state` gives. Raises ValueError for others."""
    like = Summary(histogram=Histogram()).state()
    for key, array in state.items():
        if key in like and (array.shape != like[key].shape or array.dtype.kind != like[key].dtype.kind):
            raise ValueError(f"{key} is {array.dtype} of shape {array.shape}")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(f"{key} is not a number")
    return Summary.from_state(state)


def save(statistics: Statistics, path: Path) -> None:
    """Whole or not at all. Raises ModelError when the folder or the disk refuses it."""
    with replacing(path) as temporary:
        temporary.write_bytes(dump(statistics))


def load(path: Path) -> Statistics:
    """Raises CalibrationError for a file that is not there, or holds no statistics."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: can't be read ({error.strerror}); give a file of --save-stats") from None
    return parse(content, str(path))
