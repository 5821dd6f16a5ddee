"""Methods by name, and the schema of their hyper-parameters: the signature of their `method`."""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_json

from bench.code_version import METHODS as FOLDER
from bench.code_version import method_digest
from bench.faults import LOAD_FAULTS, name_and_reason
from bench.method import Method
from bench.registry import Registry, unknown
from methods._joint import with_soft_logits
from methods._momentum import with_momentum_split

JOINT = "with_soft_logits"
ROW_RECIPE = ("learning_rate", "label_smoothing")  # of the recipe, as a row may have for itself
SWITCHES: dict[str, tuple[Any, Callable[[Method, Any], Method]]] = {
    JOINT: (False, lambda method, _: with_soft_logits(method)),
    "momentum_split": (0.0, with_momentum_split),
}
"""What every method takes in addition to its hyper-parameters: the value for off, the change."""


def _import(name: str) -> ModuleType:
    try:
        return import_module(f"methods.{name}")
    except LOAD_FAULTS as error:
        raise ValueError(
            f"method {name}: methods/{name}.py cannot be loaded: {name_and_reason(error)}"
        ) from error


def _check_added(name: str, module: Callable[[], ModuleType]) -> None:
    if name in ("teacher", "source"):
        raise ValueError(f"a row {name} is in every table; choose another name for the method")


_OWN = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
METHODS: Registry[Callable[[], ModuleType]] = Registry(
    "method", {name: partial(_import, name) for name in _OWN}, _check_added
)
"""Method name -> a function that loads its module: no method is imported before it is used."""


def method_code(name: str) -> str:
    """The digest of a method's code. Cells of an edited method have other ids."""
    return METHODS.code(name) or _own_code(name)


@cache
def _own_code(name: str) -> str:
    METHODS.get(name)
    return method_digest(name, (FOLDER / f"{name}.py").read_text(encoding="utf-8"))


def _maker(name: str) -> Callable[..., Method]:
    return METHODS.get(name)().method


_validator = cache(partial(TypeAdapter, config=ConfigDict(strict=True, allow_inf_nan=False)))


def _canonical(label: str, value: Any, wanted: Any) -> Any:
    """`value` in the type `wanted`; ValueError naming `label` if it is not of that type."""
    try:
        # Strict JSON takes a list for a tuple and an int for a float, but no bool for a number.
        found = _validator(wanted).validate_json(to_json(value, inf_nan_mode="constants"))
        json.dumps(found)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"{label}: got {value!r}; {message[0].lower()}{message[1:]}") from None
    except (TypeError, ValueError, PydanticUserError):
        raise ValueError(f"{label}: {value!r} is of a type that JSON cannot hold") from None
    return found


def default_hyperparameters(name: str) -> dict[str, Any]:
    """The method's hyper-parameters and their defaults, in the order of its signature."""
    parameters = inspect.signature(_maker(name)).parameters
    for key, parameter in parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise TypeError(f"method {name}: {key} must be keyword-only and have a default")
        if key in SWITCHES:
            raise TypeError(f"method {name}: {key} is a switch of every method; rename it")
    return {key: parameter.default for key, parameter in parameters.items()}


def resolve_hyperparameters(name: str, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyper-parameter of the method: the given values over the defaults, in canonical types.

    An int becomes a float where a float is wanted, so 4 and 4.0 give the same cell. A bool is
    refused as a number, and so are NaN and infinity, with a ValueError.
    """
    known, off = default_hyperparameters(name), {key: off for key, (off, _) in SWITCHES.items()}
    for key in hparams:
        if key not in known and key not in off:
            raise ValueError(
                f"method {name}: {unknown('hyper-parameter', key, [*known, *ROW_RECIPE])}"
            )
    types = {key: type(value) for key, value in {**off, **known}.items()}
    types |= get_type_hints(_maker(name))
    resolved = {
        key: _canonical(f"method {name}: {key}", value, types[key])
        for key, value in {**known, **hparams}.items()
    }
    # Switches are left out if off, so that they change no cell id.
    return {key: value for key, value in resolved.items() if key in known or value != off[key]}


def search_space(name: str, hparams: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
    """The values that tuning tries for each hyper-parameter, from the module's `SEARCH`.

    Hyper-parameters that `hparams` sets already are left out, and so are those that the method does
    not read: the module's `READ_WHEN` maps one to the settings under which it is read.

    Example:
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

    Example:
        >>> build_method("soft_logits", temprature=2)
        Traceback (most recent call last):
        ValueError: method soft_logits: unknown hyper-parameter 'temprature'; did you mean
        temperature?
    """
    resolved = resolve_hyperparameters(name, hparams)
    switched = {key: resolved.pop(key) for key in SWITCHES if key in resolved}
    method = _maker(name)(**resolved)
    if not isinstance(method, Method):
        raise ValueError(f"method {name}: method() gave a {type(method).__name__}, wanted a Method")
    for key, value in switched.items():
        method = SWITCHES[key][1](method, value)
    return method
