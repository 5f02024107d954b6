from typing import Any

import pytest

from edgeq.errors import RecipeError
from edgeq.runners.session import COMMON, options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thread": 2}, "runner r has no option 'thread': choose from optimization, threads, timeout"),
        ({"threads": "2"}, "threads='2' must be of type int"),
        ({"threads": True}, "threads=True must be of type int"),
        ({"threads": 0}, "threads=0 must be positive"),
        ({"timeout": -1}, "timeout=-1 must be positive"),
        ({"timeout": float("nan")}, "timeout=nan must be positive"),
        ({"optimization": "most"}, "optimization='most' is not one of disabled, basic, all"),
    ],
)
def test_bad_options_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        options("r", given, COMMON)
    assert message in str(raised.value)


def test_given_options_replace_defaults() -> None:
    assert options("r", {"timeout": 5, "host": "pi"}, {**COMMON, "host": None}) == {
        "optimization": "all", "threads": 1, "timeout": 5, "host": "pi",
    }  # fmt: skip
