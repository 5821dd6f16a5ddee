"""What code that is not the harness's own can raise: a method, a model, a data set, a plugin.

Nothing here stands for a full disk or an interrupt: those are nobody's cell and end the run.
"""

from __future__ import annotations

CODE_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""While it runs: its own mistakes, and shapes and sizes that do not go together."""

LOAD_FAULTS = (*CODE_FAULTS, OSError, SyntaxError)
"""While its file is loaded, or reads files of its own."""
