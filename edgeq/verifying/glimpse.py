"""A first look at an artifact: what a few samples say, before its metric is worth a walk through all of them."""

from __future__ import annotations

from pathlib import Path

from edgeq.data import Dataset
from edgeq.numerics.metrics import Drift
from edgeq.runners.feedback import Pairs, with_state
from edgeq.runners.places import of_target
from edgeq.runners.recorded import Recorded
from edgeq.target import Target


def glimpse(
    reference: Path, artifact: Path, target: Target, samples: Dataset, state: Pairs, recorded: Path, threads: int = 1
) -> float:
    """SQNR of the worst output over the samples, dB; state, recorded: as for `edgeq.verifying.verify.verify`."""
    float_session = Recorded(reference, recorded, threads)
    session = of_target(target).open(artifact, threads=threads)
    left, right = (with_state(opened, reference, state) for opened in (float_session, session))
    drifts: dict[str, Drift] = {}
    for feeds in samples:
        wanted, got = left.run(feeds), right.run(feeds)
        for name, array in wanted.items():
            drifts.setdefault(name, Drift(axes=())).update(array, got[name])
    session.close()
    float_session.close()
    return min((drift.result().sqnr_db for drift in drifts.values()), default=0.0)
