"""Everything that edgeq raises on purpose.

    EdgeqError                 one line: what, where, and what to do about it
    ├── ModelError             the model file or graph can't be used
    ├── RecipeError            a recipe, option or target name is wrong
    ├── TargetError            the target can't do this: op, reason, alternatives
    ├── CalibrationError       the data can't be used
    ├── VerifyError            the artifact is not what it should be
    └── ToolError              something outside edgeq is missing or failed

The command line prints the message alone and exits with `exit_code`.
"""

from __future__ import annotations


class EdgeqError(Exception):
    """Base of all deliberate errors. The message is one line that says what to do."""

    exit_code = 2


class ModelError(EdgeqError):
    """The model can't be read, or holds something that is not valid."""


class RecipeError(EdgeqError):
    """A recipe, an option, or the name of a target or method is wrong."""


class TargetError(EdgeqError):
    """The target can't run what was asked for."""

    def __init__(self, op: str, reason: str, alternatives: str = "") -> None:
        self.op, self.reason, self.alternatives = op, reason, alternatives
        super().__init__(f"{op}: {reason}" + (f"; {alternatives}" if alternatives else ""))


class CalibrationError(EdgeqError):
    """The calibration or evaluation data can't be used."""


class VerifyError(EdgeqError):
    """Verification found the artifact wanting."""

    exit_code = 1


class ToolError(EdgeqError):
    """A runtime or program outside edgeq is missing, failed, or took too long."""
