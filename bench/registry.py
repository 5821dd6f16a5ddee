"""Registries of methods, models and data sources, and the message for an unknown name."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")
PLUGIN_HINT = " (a file of your own: --plugin FILE.py)"


class Registry(Generic[Item]):
    """Items of one kind by name.

    Example:
        >>> models = Registry("model", {"cnn4": 4})
        >>> models.add("cnn64", 64, code="0123")
        >>> models.names(), models.get("cnn64"), models.code("cnn64"), models.code("cnn4")
        (['cnn4', 'cnn64'], 64, '0123', '')
        >>> models.get("cnn46")
        Traceback (most recent call last):
        ValueError: unknown model 'cnn46'; did you mean cnn4 or cnn64? (a file of
        your own: --plugin FILE.py)
    """

    def __init__(
        self,
        kind: str,
        own: Mapping[str, Item],
        check: Callable[[str, Item], None] = lambda name, item: None,
    ) -> None:
        """`own`: the items of the harness. `check` refuses an item that is added by raising."""
        self.kind = kind
        self._items = dict(own)
        self._code: dict[str, str] = {}
        self._check = check

    def __contains__(self, name: object) -> bool:
        """Whether an item has this name."""
        return name in self._items

    def names(self) -> list[str]:
        """All names, those of the harness first."""
        return list(self._items)

    def get(self, name: str) -> Item:
        """The item called `name`; ValueError with near names if there is none."""
        if name not in self._items:
            raise ValueError(unknown(self.kind, name, self._items) + PLUGIN_HINT)
        return self._items[name]

    def code(self, name: str) -> str:
        """The digest of the code that defines an added item; "" for an item of the harness."""
        return self._code.get(name, "")

    def add(self, name: str, item: Item, code: str) -> None:
        """Adds an item until `remove`. `code` is the digest of the code that defines it."""
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{self.kind} {name!r}: wanted letters, digits, '_', '-' and '.'")
        if name in self._items:
            raise ValueError(f"a {self.kind} {name} exists already; choose another name")
        self._check(name, item)
        self._items[name], self._code[name] = item, code

    def remove(self, name: str) -> None:
        """Removes an item that was added."""
        del self._items[name], self._code[name]


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name, with near names, or else all known names.

    Example:
        >>> unknown("method", "fitnett", ["fitnet", "rkd"])
        "unknown method 'fitnett'; did you mean fitnet?"
        >>> unknown("method", "x", ["fitnet", "rkd"])
        "unknown method 'x'; known: fitnet, rkd"
    """
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower)
    if near:
        hint = f"did you mean {' or '.join(by_lower[match] for match in near)}?"
    else:
        hint = f"known: {', '.join(by_lower.values()) or 'none'}"
    return f"unknown {kind} {name!r}; {hint}"
