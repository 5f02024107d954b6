"""`edgeq.lock`: what an artifact was made of and how good it was, in TOML, committed beside the model's code.

    [artifact.NAME]              what to build: model, data, target, recipe, and what to verify on
    [artifact.NAME.budget]       how far it may move
    [artifact.NAME.seen]         what the last `edgeq check --update` saw

Paths are relative to the lock's folder. Sources are locked by their sha256, as a package manager locks packages.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgeq.errors import RecipeError
from edgeq.files import read_toml, replacing
from edgeq.recipe import Recipe

Share = Annotated[float, msgspec.Meta(ge=0)]


class Allowance(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How far a rebuilt artifact may be from the locked one and still pass.

    metric: drop of the task's metric against the locked artifact. sqnr_db: loss of any output, in dB. bytes: growth,
    as a share of the locked size. integer: loss of integer nodes, as a share of all nodes.
    """

    metric: Share = 0.005
    sqnr_db: Share = 1.0
    bytes: Share = 0.01
    integer: Share = 0.0


class Seen(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What a build gave. sources: file or callable → sha256. targets: target → output → dB (inf: unchanged)."""

    artifact: str
    bytes: int
    nodes: int
    integer: int
    recipe: str
    sources: dict[str, str]
    versions: dict[str, str]
    targets: dict[str, dict[str, float]] = {}
    metrics: dict[str, float] = {}


class Locked(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """One artifact: how to build it, where else to verify it, and what was seen the last time.

    recipe: settings of a recipe other than the default ones. also: further targets to verify on.
    """

    model: str
    target: str
    calib: str = ""
    eval: str = ""
    labels: str = ""
    metric: str = ""
    also: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}
    budget: Allowance = msgspec.field(default_factory=Allowance)  # so that it is written for the user to see
    seen: Seen | None = None

    def resolved(self) -> Recipe:
        """The whole recipe. Raises RecipeError for a setting that there isn't."""
        try:
            return msgspec.convert({**self.recipe, "target": self.target}, type=Recipe)
        except msgspec.ValidationError as error:
            raise RecipeError(f"recipe of the lock: {error}") from None


class Lock(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    artifact: dict[str, Locked] = {}
    schema_version: Literal[1] = 1


def load(path: str | os.PathLike[str]) -> Lock:
    """Read a lock. Raises RecipeError that names the field and what it may be."""
    if not Path(path).exists():
        raise RecipeError(f"{path}: no such lock; `edgeq check --add NAME MODEL …` writes one")
    try:
        return msgspec.convert(read_toml(Path(path)), type=Lock)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from None


def find(lock: Lock, name: str, path: str | os.PathLike[str]) -> Locked:
    """The artifact of that name. Raises RecipeError, listing the names there are; `path` names the lock."""
    if name not in lock.artifact:
        raise RecipeError(f"{path}: no artifact {name!r}; it holds {', '.join(lock.artifact) or 'none'}")
    return lock.artifact[name]


def save(lock: Lock, path: str | os.PathLike[str]) -> None:
    """Write a lock, its artifacts in the order of their names; the same lock gives the same bytes."""
    ordered = msgspec.structs.replace(lock, artifact=dict(sorted(lock.artifact.items())))
    with replacing(Path(path)) as file:
        file.write_bytes(msgspec.toml.encode(ordered))
