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

ANY_FAULT = (Exception, SystemExit)
"""What such code may raise where nothing but it runs."""

LOAD_FAULTS = (*CODE_FAULTS, OSError, SyntaxError)
"""Errors of such code while its file is loaded, or while it reads files of its own."""

MEMORY_SIGNS = (
    "t allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "failed to map segment",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
    "CUDA out of memory",
    "error: out of memory",
    "FIND was unable to find an engine",  # cuDNN's, where no algorithm has the memory it needs
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or a device had no memory left; libraries raise errors of their own."""
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM:
        return True
    told = isinstance(error, RuntimeError | ImportError)
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, which this module does not import
    return told and (named or any(sign in str(error) for sign in MEMORY_SIGNS))


def is_utf8(text: str) -> bool:
    """Whether a name from the system was UTF-8; Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def one_line(text: object) -> str:
    """Text without line breaks, runs of spaces or control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def reason(error: BaseException) -> str:
    """An error's message in one line, cut to a table's width; its class where it has none."""
    return shortened(one_line(error) or type(error).__name__)


def shortened(text: str, longest: int = 300) -> str:
    """Text of at most `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def counted(n: float | str, what: str) -> str:
    """A number of things, or the text of a range: "1 seed", "1,297 images", "2 to 10 seeds"."""
    text = n if isinstance(n, str) else f"{n:,.0f}"
    return f"{text} {what}{'' if text == '1' else 's'}"


def name_and_reason(error: BaseException) -> str:
    """The error's class and message in one line."""
    name, why = type(error).__name__, reason(error)
    return name if why == name else f"{name}: {why}"
