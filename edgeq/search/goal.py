"""What an artifact must have, and how far a trial is from it."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.report.schema import Trial


@dataclass(frozen=True)
class Goal:
    """What the artifact must have. max_drop: of the metric, absolute, or of float's value when `relative`.

    min_sqnr: dB, of the worst output. max_bytes: of the file. min_speedup: times as fast as float. max_energy: mJ of a
    run, as `edgeq.planning.energy` estimates them. min_integer: share of the multiply-accumulates. time_budget:
    seconds after which no second trial is begun.
    """

    max_drop: float | None = None
    relative: bool = False
    min_sqnr: float | None = None
    max_bytes: int | None = None
    min_speedup: float | None = None
    max_energy: float | None = None
    min_integer: float = 0.0
    time_budget: float = float("inf")

    def inaccuracies(self, trial: Trial) -> list[str]:
        """What a trial lacks in accuracy, a phrase each."""
        found = []
        limit = self.allowed(trial)
        if self.max_drop is not None and not trial.drop <= limit + 1e-12:
            found.append(f"drops {trial.drop:.4f} where {limit:.4f} is allowed")
        if self.min_sqnr is not None and not trial.sqnr_db >= self.min_sqnr:
            found.append(f"has {trial.sqnr_db:.1f} dB of {self.min_sqnr:g}")
        return found

    def misses(self, trial: Trial) -> list[str]:
        """What a trial lacks, a phrase each."""
        found = self.inaccuracies(trial)
        if self.max_bytes is not None and trial.bytes > self.max_bytes:
            found.append(f"takes {trial.bytes} bytes of {self.max_bytes}")
        if self.min_speedup is not None and not trial.speedup >= self.min_speedup:
            found.append(f"is {trial.speedup:.2f} times as fast as float of {self.min_speedup:g}")
        if self.max_energy is not None and trial.energy > self.max_energy:
            found.append(f"takes {trial.energy:.4g} mJ of {self.max_energy:g}")
        if trial.integer < self.min_integer:
            found.append(f"has {trial.integer:.1%} of its multiplications in integers of {self.min_integer:.0%}")
        return found

    def short_of(self, trial: Trial) -> str:
        """The first budget that a trial is over: bytes, time or energy; empty when it is within all."""
        over = {
            "bytes": self.max_bytes is not None and trial.bytes > self.max_bytes,
            "time": self.min_speedup is not None and 0 < trial.speedup < self.min_speedup,
            "energy": self.max_energy is not None and trial.energy > self.max_energy,
        }
        return next((name for name, is_over in over.items() if is_over), "")

    def allowed(self, trial: Trial) -> float:
        """The most that the metric may drop, in its own units; 0 where the goal says nothing of it."""
        return (self.max_drop or 0.0) * (abs(trial.reference) if self.relative else 1.0)

    def order(self, trial: Trial) -> tuple[float, ...]:
        """The better trial is the lesser: what it drops over the budget, then the other misses, then noise."""
        return max(trial.drop - self.allowed(trial), 0.0), len(self.misses(trial)), -trial.sqnr_db


def front(trials: list[Trial]) -> tuple[str, ...]:
    """Digests of the trials that no other beats in both loss and size."""

    def beats(a: Trial, b: Trial) -> bool:
        one, other = (a.drop, -a.sqnr_db, a.bytes), (b.drop, -b.sqnr_db, b.bytes)
        return one != other and all(x <= y for x, y in zip(one, other, strict=True))

    able = [t for t in trials if not t.problem]
    return tuple(dict.fromkeys(t.digest for t in able if not any(beats(other, t) for other in able)))
