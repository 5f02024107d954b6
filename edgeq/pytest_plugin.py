"""The drift gate inside pytest: `pytest --edgeq` adds a test for each artifact of edgeq.lock.

The fixture `edgeq_drift` checks one artifact by name, in a test of the user's own:

    def test_keyword_model(edgeq_drift):
        seen = edgeq_drift("keywords")
        assert seen.bytes < 200_000
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from edgeq.errors import EdgeqError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgeq")
    group.addoption("--edgeq", action="store_true", help="check the artifacts of the lock, a test each")
    group.addoption("--edgeq-lock", default="edgeq.lock", metavar="FILE", help="the lock (default: edgeq.lock)")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--edgeq"):
        items.extend(LockFile.from_parent(session, path=_lock(config)).collect())


@pytest.fixture
def edgeq_drift(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Check an artifact of the lock by name; gives what was seen, and fails the test with what moved too far."""

    def checked(name: str) -> Any:
        found = _check(_lock(request.config), name)
        if not found.ok:
            pytest.fail(_moved(found), pytrace=False)
        return found.seen

    return checked


class Drift(Exception):
    """An artifact moved further than its budget."""


class LockFile(pytest.File):
    def collect(self) -> Iterable[pytest.Item]:
        from edgeq import lock

        return [LockedItem.from_parent(self, name=name) for name in lock.load(self.path).artifact]


class LockedItem(pytest.Item):
    def runtest(self) -> None:
        found = _check(self.path, self.name)
        if not found.ok:
            raise Drift(_moved(found))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, (Drift, EdgeqError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"edgeq: {self.name}"


def _lock(config: pytest.Config) -> Path:
    return config.rootpath / config.getoption("--edgeq-lock")


def _check(path: Path, name: str) -> Any:
    from edgeq import gate, lock

    return gate.check(name, lock.find(lock.load(path), name, path), path.parent)


def _moved(found: Any) -> str:
    rows = [f"{r.what}: {r.locked} → {r.now}: {r.why}" for r in found.rows if r.verdict == "failed"]
    return "\n".join([f"{found.name} moved too far", *rows])
