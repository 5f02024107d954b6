"""The drift gate: rebuild what `edgeq.lock` holds, verify it again, and say what moved.

A source (model, data, recipe) that is not the locked one fails: nobody can tell whether it was meant. Another version
of a library explains an artifact with other bytes, which passes while it stays within the budget. Other bytes that
nothing explains fail.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeq.collecting.observation import statistics_key
from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.lock import Locked, Seen
from edgeq.pipeline import quantize
from edgeq.recipe import Recipe
from edgeq.recipe import dump as dump_recipe
from edgeq.report.build import versions
from edgeq.report.schema import OutputDrift, PlaceOutput, PlaceRow, Verification
from edgeq.types import Progress, silent

Verdict = Literal["same", "moved", "failed"]
SOURCES = ("model", "calib", "eval")
CHANGED = "not what was locked; if that is meant, run `edgeq check --update`"


@dataclass(frozen=True)
class Row:
    """One thing that was compared. moved: not as locked, but explained or within the budget."""

    what: str
    locked: str
    now: str
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Checked:
    """An artifact of the lock after its rebuild."""

    name: str
    rows: tuple[Row, ...]
    seen: Seen

    @property
    def ok(self) -> bool:
        return all(row.verdict != "failed" for row in self.rows)


def check(name: str, locked: Locked, folder: Path, progress: Progress = silent, cache: Path | None = None) -> Checked:
    """Rebuild one artifact and compare it with what was seen; paths are relative to `folder`.

    An artifact that was never seen fails with a row that says so.
    """
    seen = build(name, locked, folder, progress, cache)
    if locked.seen is None:
        why = "never seen before; run `edgeq check --update`"
        return Checked(name, (Row("artifact", "none", seen.artifact[:12], "failed", why),), seen)
    return Checked(name, tuple(compare(locked, locked.seen, seen)), seen)


def build(name: str, locked: Locked, folder: Path, progress: Progress = silent, cache: Path | None = None) -> Seen:
    """Quantize and verify as the lock says. Raises an EdgeqError.

    cache: a folder that keeps statistics and the reference's answers, by the hash of all that they depend on.
    """
    recipe = locked.resolved()
    model, calib, data = (locate(folder, getattr(locked, kind)) for kind in SOURCES)
    if model is None or (data is None and calib is None):
        raise RecipeError(f"artifact {name!r} of the lock needs a `model`, and `eval` or `calib` data to verify on")
    judged: dict[str, Any] = {"labels": locked.labels or None, "metric": locked.metric or None, "progress": progress}
    judged["recorded"] = None if cache is None else cache / "answers"
    hashes = sources(locked, folder)
    with tempfile.TemporaryDirectory(prefix="edgeq-check-") as work:
        out, kept = Path(work) / "out", _statistics(cache, locked, recipe, calib, hashes)
        made = quantize(
            model, locked.target, eval_data=data or calib, output=out, recipe=recipe, also=locked.also, **kept, **judged
        )
    report = made.report
    assert report.verification is not None
    further = zip(locked.also, report.verification.matrix[1:], strict=True)
    found: dict[str, Verification | PlaceRow] = {locked.target: report.verification, **dict(further)}
    return Seen(
        artifact=report.artifact.sha256,
        bytes=report.artifact.bytes,
        nodes=report.nodes.total,
        integer=report.nodes.integer,
        recipe=hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
        sources=hashes,
        versions=report.versions,
        targets={target: _decibels(one.outputs) for target, one in found.items()},
        metrics={target: one.metric.quantized for target, one in found.items() if one.metric is not None},
    )


def _statistics(
    cache: Path | None, locked: Locked, recipe: Recipe, calib: str | None, hashes: dict[str, str]
) -> dict[str, Any]:
    """The calibration data for `quantize`, and what the cache holds of it; what a callable yields has no hash."""
    if cache is None or recipe.method != "static" or "calib" not in hashes:
        return {"calib": calib}
    key = statistics_key([hashes["model"], hashes["calib"], versions(), locked.target], recipe)
    file = cache / "statistics" / f"{key}.stats"
    file.parent.mkdir(parents=True, exist_ok=True)
    return {"calib": calib, "stats" if file.exists() else "save_stats": file}  # passes look at the data itself


def sources(locked: Locked, folder: Path) -> dict[str, str]:
    """sha256 of the model and of the data, by kind; a callable has none, since nobody knows what it reads."""
    found = {}
    for kind in SOURCES:
        where = locate(folder, getattr(locked, kind))
        if where is None:
            continue
        path = Path(where)
        content = io.sha256(io.files(path)) if kind == "model" and path.is_file() else io.content(path)
        if content is not None:
            found[kind] = content
    return found


def compare(locked: Locked, before: Seen, now: Seen) -> Iterator[Row]:
    """A row for each source, the artifact's bytes, its size, its coverage, and each metric and output."""
    kinds = dict.fromkeys([*before.sources, *now.sources])
    pairs = {kind: (before.sources.get(kind, "none"), now.sources.get(kind, "none")) for kind in kinds}
    pairs["recipe"] = (before.recipe, now.recipe)
    for kind, (old, new) in pairs.items():
        yield Row(kind, old[:12], new[:12], "same" if old == new else "failed", "" if old == new else CHANGED)
    newer = []
    for name in dict.fromkeys([*before.versions, *now.versions]):
        old, new = before.versions.get(name, "none"), now.versions.get(name, "none")
        if old != new:
            newer.append(f"{name} {old} → {new}")
            yield Row(name, old, new, "moved", "another version")
    changed = [kind for kind, (old, new) in pairs.items() if old != new]
    yield _bytes(before.artifact, now.artifact, changed or newer)
    allowed = locked.budget
    yield _bounded("bytes", before.bytes, now.bytes, before.bytes * (1 + allowed.bytes), most=True)
    share = before.integer / max(before.nodes, 1)
    yield _bounded("integer nodes", share, now.integer / max(now.nodes, 1), share - allowed.integer)
    for target, metric in before.metrics.items():
        yield _bounded(f"metric on {target}", metric, now.metrics.get(target, math.nan), metric - allowed.metric)
    for target, outputs in before.targets.items():
        for output, db in outputs.items():
            found = now.targets.get(target, {}).get(output, math.nan)
            yield _bounded(f"SQNR of {output} on {target}", db, found, db - allowed.sqnr_db)


def _bytes(before: str, now: str, reasons: list[str]) -> Row:
    if before == now:
        return Row("artifact", before[:12], now[:12], "same")
    if reasons:
        return Row("artifact", before[:12], now[:12], "moved", f"explained by {', '.join(reasons)}")
    return Row("artifact", before[:12], now[:12], "failed", "other bytes from the same sources and versions")


def _bounded(what: str, before: float, now: float, limit: float, most: bool = False) -> Row:
    """`now` may not pass the limit; nan, a thing that is gone, always does."""
    inside = now <= limit if most else now >= limit
    verdict: Verdict = "same" if before == now else "moved" if inside else "failed"
    why = "" if inside else f"{'at most' if most else 'at least'} {limit:.6g} is allowed"
    return Row(what, f"{before:.6g}", f"{now:.6g}", verdict, why)


def _decibels(outputs: Iterable[OutputDrift | PlaceOutput]) -> dict[str, float]:
    return {o.name: math.inf if o.sqnr_db is None else round(o.sqnr_db, 3) for o in outputs}


def locate(folder: Path, text: str) -> str | None:
    """A path of the lock, from where the lock lies; module:callable stays as it is, and nothing is None."""
    if not text:
        return None
    return text if ":" in text and not (folder / text).exists() else str(folder / text)
