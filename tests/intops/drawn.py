"""Random quantizations and codes, for kernels that are compared bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from edgeq.intops.quant import Quant

SEEDS = st.integers(0, 2**32)


def quants(dtype: str = "int8", low: float = 2.0**-10, high: float = 2.0**2) -> st.SearchStrategy[Quant]:
    """Quantizations with any zero point, both ends often, and log-uniform scales."""
    info = np.iinfo(dtype)
    ends = st.sampled_from([int(info.min), int(info.max), 0 if info.min else 128])
    exponent = st.floats(float(np.log2(low)), float(np.log2(high)))
    return st.builds(
        lambda e, z: Quant(float(np.float32(2.0**e)), z, dtype),
        exponent,
        st.one_of(ends, st.integers(int(info.min), int(info.max))),
    )


def codes(rng: np.random.Generator, shape: Sequence[int], dtype: str = "int8") -> np.ndarray:
    """Uniform codes, in one case of four only the two ends of the type: saturation."""
    info = np.iinfo(dtype)
    if rng.random() < 0.25:
        return rng.choice(np.array([info.min, info.max], dtype), tuple(shape))
    return rng.integers(info.min, info.max + 1, tuple(shape)).astype(dtype)
