"""Tensors of all sorts and the types that ranges are chosen for."""

import numpy as np

from edgeq import registry
from edgeq.calibrate.extrema import Extrema
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.types import QSpec

SPECS = [
    QSpec("int8"),
    QSpec("uint8", symmetric=False),
    QSpec("int8", symmetric=False),
    QSpec("uint16", symmetric=False),
    QSpec("int4", narrow=True),
    QSpec("uint4", symmetric=False),
    QSpec("int2"),
]
RNG = np.random.default_rng(7)
TENSORS = {
    "normal": RNG.normal(size=20_000),
    "relu": np.maximum(RNG.normal(size=20_000), 0),
    "laplace": RNG.laplace(size=20_000),
    "outliers": np.concatenate([RNG.normal(size=20_000), [60.0, -20.0]]),
    "silu": (lambda x: x / (1 + np.exp(-x)))(RNG.normal(scale=3, size=20_000)),
    "uniform above": RNG.uniform(3, 5, 5000),
    "negative": -RNG.exponential(size=5000),
    "zeros": np.zeros(10),
    "constant": np.full(10, 0.3),
    "negative constant": np.full(10, -7.0),
    "one": np.array([2.5]),
    "two": np.array([-1.0, 1e-3]),
    "tiny": RNG.normal(scale=1e-38, size=100),
    "huge": RNG.normal(scale=1e37, size=1000),
    "wide": np.linspace(0, 3e4, 5000),
    "integers": RNG.integers(-3, 4, 5000),
    "nan": np.array([np.nan, 1.0, -2.0, np.inf, -np.inf]),
}


def summary_of(*arrays):
    out = Summary(Extrema(), Histogram())
    for a in arrays:
        out.update(np.asarray(a, np.float32))
    return out


def choose(name, summary, spec):
    return registry.load("edgeq.calibrate", name).choose(summary, spec)
