import pytest

from tests.attacks.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox():
    made = Sandbox()
    yield made
    made.close()
