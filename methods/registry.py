"""Finds methods by name and checks their hyper-parameters before anything trains.

A method is a public module of this package with a function `method`, or one from elsewhere that
`add` was given. The function's signature is the schema of its hyper-parameters: keyword-only, each
with a type and a default.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bench.faults import LOAD_FAULTS
from bench.method import Method
from methods._forms import Forms, in_reference_form, two_forms
from methods._joint import with_soft_logits

__all__ = [
    "add",
    "build",
    "check",
    "code_digest",
    "defaults",
    "digest",
    "in_reference_form",
    "loss_forms",
    "module",
    "names",
    "remove",
    "resolve",
    "search_space",
]

_PACKAGE = Path(__file__).parent
_DEFINES_METHOD = re.compile(r"^def method\(", re.MULTILINE)
_LISTS = (list, tuple, Sequence)
_NO_MATCH = object()
RESERVED = {"registry", "teacher", "source"}
"""Names that are no method's: this module, and rows of every table."""
JOINT = "with_soft_logits"
"""A switch that every method has beside its own hyper-parameters; see `methods._joint`."""


@dataclass(frozen=True)
class _Added:
    """A method from outside of this package."""

    module: ModuleType
    digest: str


_ADDED: dict[str, _Added] = {}


def names() -> list[str]:
    """Every method's name, sorted. Reads the modules' text; imports none of them.

    Example:
        >>> {"student", "soft_logits", "fitnet"} <= set(names())
        True
    """
    return sorted([*_names(), *_ADDED])


def add(name: str, module: ModuleType, code: str) -> None:
    """Makes a module from outside of this package a method, until `remove`.

    Args:
        name: the method's.
        module: loaded, with a function `method`.
        code: the `digest` of its text.

    Raises:
        ValueError: a name that is taken.
    """
    if name in names() or name in RESERVED:
        raise ValueError(f"a method {name} exists already; rename the file")
    _ADDED[name] = _Added(module, code)


def remove(name: str) -> None:
    """Forgets a method that was added."""
    del _ADDED[name]


@cache
def _names() -> tuple[str, ...]:
    # Once: every build asks, and a grid builds thousands.
    return tuple(sorted(path.stem for path in _PACKAGE.glob("*.py") if _is_method(path)))


def _is_method(path: Path) -> bool:
    if path.stem.startswith("_") or path.stem in RESERVED:
        return False
    return _DEFINES_METHOD.search(path.read_text(encoding="utf-8")) is not None


def defaults(name: str) -> dict[str, Any]:
    """The method's hyper-parameters and their defaults, in the order of its signature.

    Raises:
        ValueError: an unknown method; names near ones and all there are.
        TypeError: the method's own fault: a parameter that is positional or has no default.

    Example:
        >>> defaults("soft_logits")
        {'temperature': 4.0, 'rho': 0.9, 'scale_by_temperature_squared': True}
    """
    parameters = inspect.signature(_maker(name)).parameters
    for key, parameter in parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise TypeError(f"method {name}: {key} must be keyword-only and have a default")
    return {key: parameter.default for key, parameter in parameters.items()}


def resolve(name: str, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyper-parameter of the method: the given values over the defaults, in canonical types.

    An int given for a float becomes a float, so equal settings are equal however they were
    written. A bool is no number, and NaN and infinity are no values.

    Args:
        name: the method's name.
        hparams: some of its hyper-parameters.

    Raises:
        ValueError: an unknown method or hyper-parameter, or a value of the wrong type.

    Example:
        >>> resolve("soft_logits", {"temperature": 2})
        {'temperature': 2.0, 'rho': 0.9, 'scale_by_temperature_squared': True}
    """
    hparams = dict(hparams)
    joint = hparams.pop(JOINT, False)
    if not isinstance(joint, bool):
        raise ValueError(f"method {name}: {JOINT} is {joint!r}, wanted true or false")
    known = defaults(name)
    if unknown := [key for key in hparams if key not in known]:
        listing = [f"{key}={value!r}" for key, value in known.items()]
        raise ValueError(_unknown(f"method {name}: hyper-parameter", unknown[0], known, listing))
    types_wanted = get_type_hints(_maker(name))
    resolved = {}
    for key, value in {**known, **hparams}.items():
        wanted = types_wanted.get(key, type(known[key]))
        resolved[key] = _canonical(value, wanted)
        if resolved[key] is _NO_MATCH:
            raise ValueError(f"method {name}: {key} must be {_words(wanted)}, not {value!r}")
    # Absent unless set: a cell's id does not depend on a switch that is off.
    return {**resolved, JOINT: True} if joint else resolved


def check(name: str, hparams: Mapping[str, Any]) -> None:
    """Raises the ValueError that `build` would, if it would.

    Args:
        name: the method's name.
        hparams: some of its hyper-parameters.
    """
    build(name, **hparams)


def search_space(name: str, hparams: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
    """What tuning tries: hyper-parameter -> values, from the module's `SEARCH`; {} without one.

    A hyper-parameter that is set already is left out, and so is one that a setting makes unread:
    the module's `READ_WHEN` names, for a hyper-parameter, the settings under which it is read.

    Args:
        name: the method's name.
        hparams: what is set already.

    Raises:
        ValueError: an unknown method, or a value that the method would refuse.
        TypeError: the method's own fault: `SEARCH` or `READ_WHEN` names no hyper-parameter of it.

    Example:
        >>> sorted(search_space("soft_logits"))
        ['rho', 'temperature']
        >>> sorted(search_space("attention_transfer", {"mode": "joint"}))
        ['beta']
    """
    known, given = defaults(name), dict(hparams or {})
    own = module(name)
    space, conditions = getattr(own, "SEARCH", {}), getattr(own, "READ_WHEN", {})
    for label, keys in (("SEARCH", space), ("READ_WHEN", conditions)):
        if wrong := [key for key in keys if key not in known]:
            raise TypeError(
                f"method {name}: {label} names {wrong[0]!r}, which is no hyper-parameter"
            )
    settings = {**known, **given}
    free = {}
    for key, values in space.items():
        for value in values:
            check(name, {key: value})
        read = all(settings[other] == wanted for other, wanted in conditions.get(key, {}).items())
        if read and key not in given:
            free[key] = list(values)
    return free


def loss_forms(name: str) -> dict[str, Forms]:
    """The method's losses that come in two forms; {} where a second would differ in nothing.

    `in_reference_form(build(name))` is the method with the textbook form of all of them.

    Raises:
        ValueError: an unknown method.

    Example:
        >>> sorted(loss_forms("rkd")), loss_forms("soft_logits")
        (['rkd_angle_loss', 'rkd_distance_loss'], {})
    """
    _maker(name)
    return two_forms(module(name))


def code_digest(name: str) -> str:
    """Hash of what the method's code does, see `digest`.

    An edited method is another method: results of the old one are not taken for its own.

    Raises:
        ValueError: an unknown method.
    """
    _maker(name)
    return _ADDED[name].digest if name in _ADDED else _own_digest(name)


@cache
def _own_digest(name: str) -> str:
    return digest(name, _text(name))


def digest(name: str, text: str) -> str:
    """Hash of what a module's code does: its own and that of every piece it imports from here.

    Comments, docstrings and layout do not count, nor do other packages.

    Args:
        name: the module's.
        text: its source.

    Returns:
        16 hexadecimal digits.

    Raises:
        SyntaxError: the text is not Python.
        OSError: it imports a piece that does not exist.

    Example:
        >>> digest("mine", "rate = 2") == digest("mine", "# faster\\nrate  =  2")
        True
        >>> digest("mine", "rate = 2") == digest("mine", "rate = 3")
        False
    """
    seen: dict[str, str] = {}
    waiting = [(name, text)]
    while waiting:
        module, text = waiting.pop()
        tree = ast.parse(text)
        seen[module] = ast.dump(_without_docstrings(tree))
        waiting += [(piece, _text(piece)) for piece in _pieces(tree) if piece not in seen]
    parts = "\n".join(f"{module}: {seen[module]}" for module in sorted(seen))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _text(module: str) -> str:
    return (_PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def _pieces(tree: ast.Module) -> Iterator[str]:
    """The modules of this package that a module imports, however it says so."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            # `from methods import a` names modules; `from methods.a import b` what is in one.
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            if name.startswith(f"{__package__}."):
                yield name.split(".")[1]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # pyright: ignore[reportAttributeAccessIssue]
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return tree


def build(name: str, /, **hparams: Any) -> Method:
    """The method `name` with `hparams` over its defaults.

    Raises:
        ValueError: an unknown method or hyper-parameter, or a value of the wrong type or range.

    Example:
        >>> build("soft_logits", temperature=2).category
        'response'
        >>> build("soft_logits", temprature=2)
        Traceback (most recent call last):
        ValueError: method soft_logits: hyper-parameter 'temprature' is unknown, did you mean
        temperature? Known: temperature=4.0, rho=0.9, scale_by_temperature_squared=True
    """
    resolved = resolve(name, hparams)
    joint = resolved.pop(JOINT, False)
    method = _maker(name)(**resolved)
    if not isinstance(method, Method):
        raise ValueError(f"method {name}: method() gave {method!r}, wanted a Method")
    return with_soft_logits(method) if joint else method


def _maker(name: str) -> Callable[..., Method]:
    known = names()
    if name not in known:
        unknown = _unknown("method", name, known, known)
        raise ValueError(f"{unknown}; a file of your own: --plugin FILE.py")
    return module(name).method


def module(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        ValueError: it cannot be loaded.
    """
    if name in _ADDED:
        return _ADDED[name].module
    try:
        return import_module(f"{__package__}.{name}")
    except LOAD_FAULTS as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"method {name}: methods/{name}.py cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def _unknown(what: str, word: object, known: Iterable[str], listing: Iterable[str]) -> str:
    """One line: what is unknown, what may have been meant, what there is."""
    near = difflib.get_close_matches(str(word), list(known))
    meant = f", did you mean {' or '.join(near)}?" if near else "."
    return f"{what} {word!r} is unknown{meant} Known: {', '.join(listing) or 'none'}"


def _canonical(value: Any, wanted: Any) -> Any:
    """`value` in the type `wanted`, or `_NO_MATCH`."""
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        tries = (_canonical(value, choice) for choice in get_args(wanted))
        return next((match for match in tries if match is not _NO_MATCH), _NO_MATCH)
    if origin is Literal:
        same = (c for c in get_args(wanted) if type(c) is type(value) and c == value)
        return next(same, _NO_MATCH)
    if origin in _LISTS:
        return _canonical_list(value, wanted)
    if wanted is float:
        number = type(value) in (int, float) and math.isfinite(value)
        return float(value) if number else _NO_MATCH
    # type() and not isinstance(): a bool is an int to the latter.
    return value if type(value) is wanted else _NO_MATCH


def _canonical_list(value: Any, wanted: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return _NO_MATCH
    items = [_canonical(item, get_args(wanted)[0]) for item in value]
    if any(item is _NO_MATCH for item in items):
        return _NO_MATCH
    return tuple(items) if get_origin(wanted) is tuple else items


def _words(wanted: Any) -> str:
    """A type as a user would say it."""
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(choice) for choice in get_args(wanted))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(wanted))
    if origin in _LISTS:
        return f"a list, each {_words(get_args(wanted)[0])}"
    plain = {
        float: "a finite number",
        int: "a whole number",
        bool: "true or false",
        str: "a text",
        types.NoneType: "none",
    }
    return plain.get(wanted, str(wanted))
