"""How far a result is from its reference: SQNR, cosine, largest difference, KL divergence, and lost slices.

    SQNR = 10 log10( Σ ref² / Σ (ref - got)² )   in dB; 6.02 dB a bit

All functions take arrays of equal shape and any real type and compute in float64. An element that is the same in
both (equal, both NaN, or the same infinity) has no error; any other element that is not finite makes the error
infinite, so that a NaN can never pass for a good result. `Drift` is the streaming form.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LOST_DB = 3.0  # below this about half of the signal's energy is error
SIGNAL = 1e-6  # a slice whose RMS is below this fraction of the largest slice's has no signal to lose
MAX_SLICES = 4096


@dataclass(frozen=True)
class LostSlice:
    """Index `index` along `axis` of an output, whose own SQNR is `sqnr_db`."""

    axis: int
    index: int
    sqnr_db: float


@dataclass(frozen=True)
class DriftResult:
    """What `Drift` found. sqnr_db: dB. cosine: −1 to 1. max_abs: in the output's units. count: elements seen."""

    sqnr_db: float
    cosine: float
    max_abs: float
    count: int
    lost: tuple[LostSlice, ...]


def _clean(ref: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reference and error, float64; the reference is 0 where not finite, the error inf where it can't be told.

    Text is 1 each, and off by 1 where it differs.
    """
    if ref.shape != got.shape:
        raise ValueError(f"shapes differ: reference {ref.shape}, got {got.shape}")
    if ref.dtype.kind == "U":
        return np.ones(ref.shape), (ref != got).astype(np.float64)
    r, g = np.asarray(ref, np.float64), np.asarray(got, np.float64)
    finite = np.isfinite(r) & np.isfinite(g)
    if finite.all():
        return r, g - r
    same = (r == g) | (np.isnan(r) & np.isnan(g))
    with np.errstate(invalid="ignore"):
        error = np.where(finite, g - r, np.where(same, 0.0, np.inf))
    return np.where(np.isfinite(r), r, 0.0), error


def ratio_db(signal: np.ndarray | float, noise: np.ndarray | float) -> np.ndarray:
    """10 log10(signal / noise): inf where there is no noise, -inf where there is noise and no signal, never NaN."""
    s, n = np.asarray(signal, np.float64), np.asarray(noise, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        db = 10.0 * (np.log10(s) - np.log10(n))
    return np.where(n == 0, np.inf, np.where((s == 0) | np.isinf(n), -np.inf, db))


def sqnr_db(ref: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB; inf when identical, -inf for noise on an all-zero reference."""
    r, error = _clean(np.asarray(ref), np.asarray(got))
    return float(ratio_db(np.sum(r * r), np.sum(error * error)))


def max_abs(ref: np.ndarray, got: np.ndarray) -> float:
    """The largest |ref - got|; 0 for empty arrays, inf where one is not finite and the other differs."""
    return float(np.abs(_clean(np.asarray(ref), np.asarray(got))[1]).max(initial=0.0))


def cosine(ref: np.ndarray, got: np.ndarray) -> float:
    """Cosine similarity: 1 for two zero vectors, 0 when only one is zero or a difference is not finite."""
    return _cosine(*_moments(*_clean(np.asarray(ref), np.asarray(got))))


def _moments(r: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Σ r², Σ e², Σ r e; the last is 0 when the error is not finite."""
    noise = float(np.sum(error * error))
    return float(np.sum(r * r)), noise, float(np.sum(r * error)) if np.isfinite(noise) else 0.0


def _cosine(rr: float, ee: float, re: float) -> float:
    """Cosine of r and r + e from their inner products."""
    gg = rr + 2 * re + ee
    if not np.isfinite(ee):
        return 0.0
    if rr == 0 or gg <= 0:
        return 1.0 if ee == 0 else 0.0
    return float(np.clip((rr + re) / np.sqrt(rr) / np.sqrt(gg), -1.0, 1.0))


def kl_divergence(p: np.ndarray, q: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Σ p log(p / q) in nats along `axis` (default: over all), of non-negative weights scaled to sum to 1.

    inf where p has mass and q has none; 0 for an empty (all-zero) p.
    """
    a, b = np.asarray(p, np.float64), np.asarray(q, np.float64)
    total_a, total_b = a.sum(axis=axis, keepdims=True), b.sum(axis=axis, keepdims=True)
    a = a / np.where(total_a > 0, total_a, 1.0)
    b = b / np.where(total_b > 0, total_b, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0)
    return np.maximum(terms.sum(axis=axis), 0.0)


def _find_lost(signal: np.ndarray, noise: np.ndarray, axis: int) -> list[LostSlice]:
    """Slices below LOST_DB that hold real signal; none when the whole is lost, which needs no finer telling."""
    if len(signal) < 2 or float(ratio_db(signal.sum(), noise.sum())) < LOST_DB:
        return []
    db = ratio_db(signal, noise)
    lost = np.flatnonzero((db < LOST_DB) & (signal > SIGNAL**2 * signal.max()))
    return [LostSlice(axis, int(i), float(db[i])) for i in lost]


def slice_energies(ref: np.ndarray, got: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ ref² and Σ (ref - got)² for each index along `axis`: two float64 arrays (shape[axis],)."""
    r, error = _clean(np.asarray(ref), np.asarray(got))
    others = tuple(i for i in range(r.ndim) if i != axis % r.ndim)
    return (r * r).sum(axis=others), (error * error).sum(axis=others)


def lost_slices(ref: np.ndarray, got: np.ndarray, axes: tuple[int, ...] | None = None) -> tuple[LostSlice, ...]:
    """Slices lost (own SQNR < 3 dB, with signal) though the whole is not: rows of an output that mixes units.

    The case is an output that concatenates boxes of 0 to 300 and scores of 0 to 1 under one scale: 40 dB as a
    whole while every score has become 0. Looks along `axes`, by default every one of 2 to 4096 indices.
    """
    drift = Drift(axes)
    drift.update(ref, got)
    return drift.result().lost


@dataclass
class Drift:
    """Streaming comparison in constant memory: `update` with each sample's output, then `result`.

    Shapes may vary from sample to sample; an axis whose length varies has no fixed slices and is dropped.
    axes: where to look for lost slices; by default every axis of 2 to 4096 indices.
    """

    axes: tuple[int, ...] | None = None
    signal: float = 0.0
    noise: float = 0.0
    inner: float = 0.0
    largest: float = 0.0
    count: int = 0
    updates: int = 0
    slices: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def update(self, ref: np.ndarray, got: np.ndarray) -> None:
        """Take one pair of arrays of equal shape; raises ValueError when their shapes differ."""
        r, error = _clean(np.asarray(ref), np.asarray(got))
        rr, ee = r * r, error * error
        one = Drift(self.axes, *_moments(r, error))
        one.largest, one.count, one.updates = float(np.abs(error).max(initial=0.0)), r.size, 1
        wanted = range(r.ndim) if self.axes is None else {a % r.ndim for a in self.axes if -r.ndim <= a < r.ndim}
        for axis in wanted:
            if 2 <= r.shape[axis] <= MAX_SLICES:
                others = tuple(i for i in range(r.ndim) if i != axis)
                one.slices[axis] = rr.sum(axis=others), ee.sum(axis=others)
        self.merge(one)

    def merge(self, other: Drift) -> None:
        """Add what `other` saw."""
        if other.updates and self.updates:
            kept = {a: s for a, s in self.slices.items() if a in other.slices and len(other.slices[a][0]) == len(s[0])}
            self.slices = {a: (s + other.slices[a][0], n + other.slices[a][1]) for a, (s, n) in kept.items()}
        elif other.updates:
            self.slices = dict(other.slices)
        self.signal += other.signal
        self.noise += other.noise
        self.inner += other.inner
        self.largest = max(self.largest, other.largest)
        self.count += other.count
        self.updates += other.updates

    def result(self) -> DriftResult:
        """The measures over everything seen. With nothing seen: inf dB, cosine 1, 0 elements."""
        lost = [s for axis in sorted(self.slices) for s in _find_lost(*self.slices[axis], axis)]
        db = float(ratio_db(self.signal, self.noise))
        return DriftResult(db, _cosine(self.signal, self.noise, self.inner), self.largest, self.count, tuple(lost))
