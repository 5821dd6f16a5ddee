"""Methods by name, and the schema of their hyper-parameters.

A method is a public module of `methods` with a function `method`, or a plugin's. The signature of
that function is the schema: keyword-only hyper-parameters, each with a type and a default.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

import methods
from bench.code_version import method_digest
from bench.faults import LOAD_FAULTS, name_and_reason
from bench.method import Method
from bench.registry import Registry, unknown
from methods._joint import with_soft_logits

JOINT = "with_soft_logits"
"""A switch that every method has in addition to its hyper-parameters; see `methods._joint`."""

_FOLDER = Path(methods.__file__).parent
_DEFINES_METHOD = re.compile(r"^def method\(", re.MULTILINE)


def _import(name: str) -> ModuleType:
    try:
        return import_module(f"methods.{name}")
    except LOAD_FAULTS as error:
        raise ValueError(
            f"method {name}: methods/{name}.py cannot be loaded: {name_and_reason(error)}"
        ) from error


def _own_methods() -> dict[str, Callable[[], ModuleType]]:
    """Read off the modules' text: none of them is imported before it is used."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in _FOLDER.glob("[!_]*.py")}
    return {
        name: partial(_import, name)
        for name in sorted(texts)
        if _DEFINES_METHOD.search(texts[name])
    }


def _check_added(name: str, module: Callable[[], ModuleType]) -> None:
    if name in ("teacher", "source"):
        raise ValueError(f"a row {name} is in every table; choose another name for the method")


METHODS: Registry[Callable[[], ModuleType]] = Registry("method", _own_methods(), _check_added)
"""Each method's name and what loads its module."""


def method_code(name: str) -> str:
    """The digest of a method's code: an edited method is another method.

    Raises:
        ValueError: an unknown method.
    """
    return METHODS.code(name) or _own_code(name)


@cache
def _own_code(name: str) -> str:
    METHODS.get(name)
    return method_digest(name, (_FOLDER / f"{name}.py").read_text(encoding="utf-8"))


def _maker(name: str) -> Callable[..., Method]:
    return METHODS.get(name)().method


@cache
def _validator(wanted: Any) -> TypeAdapter:
    return TypeAdapter(wanted, config=ConfigDict(strict=True, allow_inf_nan=False))


def _canonical(label: str, value: Any, wanted: Any) -> Any:
    """`value` in the type `wanted`; ValueError naming `label` if it is not of that type."""
    try:
        # As JSON: there a list may stand for a tuple, and an int for a float, but no bool does.
        return _validator(wanted).validate_json(to_json(value, inf_nan_mode="constants"))
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"{label}: got {value!r}; {message[0].lower()}{message[1:]}") from None


def default_hyperparameters(name: str) -> dict[str, Any]:
    """The method's hyper-parameters and their defaults, in the order of its signature.

    Raises:
        ValueError: an unknown method; names near ones and all there are.
        TypeError: the method's own fault: a parameter that is positional or has no default.

    Example:
        >>> default_hyperparameters("soft_logits")
        {'temperature': 4.0, 'rho': 0.9, 'scale_by_temperature_squared': True}
    """
    parameters = inspect.signature(_maker(name)).parameters
    for key, parameter in parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise TypeError(f"method {name}: {key} must be keyword-only and have a default")
    return {key: parameter.default for key, parameter in parameters.items()}


def resolve_hyperparameters(name: str, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyper-parameter of the method: the given values over the defaults, in canonical types.

    An int given for a float becomes a float, so equal settings are equal however they were
    written. A bool is no number, and NaN and infinity are no values.

    Args:
        name: the method's name.
        hparams: some of its hyper-parameters.

    Raises:
        ValueError: an unknown method or hyper-parameter, or a value of the wrong type.

    Example:
        >>> resolve_hyperparameters("soft_logits", {"temperature": 2})
        {'temperature': 2.0, 'rho': 0.9, 'scale_by_temperature_squared': True}
    """
    hparams = dict(hparams)
    joint = hparams.pop(JOINT, False)
    if not isinstance(joint, bool):
        raise ValueError(f"method {name}: {JOINT} is {joint!r}, wanted true or false")
    known = default_hyperparameters(name)
    for key in hparams:
        if key not in known:
            raise ValueError(f"method {name}: {unknown('hyper-parameter', key, known)}")
    wanted = get_type_hints(_maker(name))
    resolved = {
        key: _canonical(f"method {name}: {key}", value, wanted.get(key, type(known[key])))
        for key, value in {**known, **hparams}.items()
    }
    # Absent unless set: a cell's id does not depend on a switch that is off.
    return {**resolved, JOINT: True} if joint else resolved


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
    known, given = default_hyperparameters(name), dict(hparams or {})
    own = METHODS.get(name)()
    space, conditions = getattr(own, "SEARCH", {}), getattr(own, "READ_WHEN", {})
    for label, keys in (("SEARCH", space), ("READ_WHEN", conditions)):
        for key in keys:
            if key not in known:
                raise TypeError(f"method {name}: {label}: {unknown('hyper-parameter', key, known)}")
    settings = {**known, **given}
    free = {}
    for key, values in space.items():
        for value in values:
            build_method(name, **{key: value})
        read = all(settings[other] == wanted for other, wanted in conditions.get(key, {}).items())
        if read and key not in given:
            free[key] = list(values)
    return free


def build_method(name: str, /, **hparams: Any) -> Method:
    """The method `name` with `hparams` over its defaults.

    Raises:
        ValueError: an unknown method or hyper-parameter, or a value of the wrong type or range.

    Example:
        >>> build_method("soft_logits", temperature=2).category
        'response'
        >>> build_method("soft_logits", temprature=2)
        Traceback (most recent call last):
        ValueError: method soft_logits: unknown hyper-parameter 'temprature'; did you mean
        temperature?
    """
    resolved = resolve_hyperparameters(name, hparams)
    joint = resolved.pop(JOINT, False)
    method = _maker(name)(**resolved)
    if not isinstance(method, Method):
        raise ValueError(f"method {name}: method() gave a {type(method).__name__}, wanted a Method")
    return with_soft_logits(method) if joint else method
