"""A first look at an artifact: what a few samples say, before its metric is worth a walk through all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeq.data import Dataset
from edgeq.numerics.metrics import Drift
from edgeq.runners.feedback import Pairs, with_state
from edgeq.runners.places import of_target
from edgeq.runners.recorded import Recorded
from edgeq.target import Target


@dataclass(frozen=True)
class Glimpse:
    """sqnr_db: of the worst output. agreement: how often the greatest element of the first one's rows is float's.

    Noise that all classes share moves the first and not the second, and few codes that differ may do the opposite.
    """

    sqnr_db: float
    agreement: float

    def beats(self, other: Glimpse) -> bool:
        """In decibels or in agreement, by however little: few samples can't tell a small gain from none."""
        return self.sqnr_db > other.sqnr_db or self.agreement > other.agreement


def glimpse(
    reference: Path, artifact: Path, target: Target, samples: Dataset, state: Pairs, recorded: Path, threads: int = 1
) -> Glimpse:
    """What the samples say; state, recorded: as for `edgeq.verifying.verify.verify`."""
    float_session = Recorded(reference, recorded, threads)
    session = of_target(target).open(artifact, threads=threads)
    left, right = (with_state(opened, reference, state) for opened in (float_session, session))
    drifts: dict[str, Drift] = {}
    agreed: list[np.ndarray] = []
    for feeds in samples:
        wanted, got = left.run(feeds), right.run(feeds)
        for name, array in wanted.items():
            drifts.setdefault(name, Drift(axes=())).update(array, got[name])
        first = next(iter(wanted))
        if wanted[first].ndim and wanted[first].size and wanted[first].shape == got[first].shape:
            agreed.append((wanted[first].argmax(-1) == got[first].argmax(-1)).reshape(-1))
    session.close()
    float_session.close()
    decibels = min((drift.result().sqnr_db for drift in drifts.values()), default=0.0)
    return Glimpse(decibels, float(np.concatenate(agreed).mean()) if agreed else 0.0)
