"""Errors that a user can mend, errors that code can raise, and messages of one line."""

import errno


class UserError(ValueError):
    """An error that the user of a command can mend: one line with what was wanted and the cure."""


class DamagedError(UserError):
    """A file that was truncated or changed after it was written; the message says which and how."""


CODE_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of a method, a model, a data set or a plugin while it runs; no full disk or interrupt."""

LOAD_FAULTS = (*CODE_FAULTS, OSError, SyntaxError)
"""Errors of such code while its file is loaded, or while it reads files of its own."""

LONGEST_MESSAGE = 300
MEMORY_SIGNS = (
    "Cannot allocate memory",
    "t allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "failed to map segment",
)


def is_memory_error(error: BaseException) -> bool:
    """Whether the machine had no memory left; libraries say so in errors of their own, too."""
    raised = isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM
    said = isinstance(error, RuntimeError | ImportError) and any(
        s in str(error) for s in MEMORY_SIGNS
    )
    return raised or said


def one_line(text: object) -> str:
    """Text without line breaks, runs of spaces or control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def reason(error: BaseException) -> str:
    """An error's message in one line, cut to a table's width.

    Example:
        >>> reason(ValueError("wanted\\n a number")), reason(EOFError())
        ('wanted a number', 'EOFError')
    """
    text = one_line(error) or type(error).__name__
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 3]}..."


def name_and_reason(error: BaseException) -> str:
    """The error's class and message in one line."""
    name, why = type(error).__name__, reason(error)
    return name if why == name else f"{name}: {why}"
