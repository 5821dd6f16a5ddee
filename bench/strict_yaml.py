"""YAML as grids use it: plain values, where nothing is read in two ways or multiplies in memory.

Keys that are given twice, tags, control characters, deep nesting and what holds itself are refused.
Numbers are those of YAML 1.2: `1e-3` is one, `1:30` and `2026-01-01` are text.
"""

import re
from typing import Any

import yaml

DEEPEST, MOST_VALUES = 20, 100_000
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
PLAIN = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
    "int": "[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}


def read_yaml(text: str) -> Any:
    """The value of a YAML text; ValueError, with the place, for what is no plain YAML."""
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{getattr(error, 'problem', None) or error}") from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - of the class it extends

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Counts values and levels, those behind an alias too, before anything is built."""
        event, before = self.peek_event(), self._values
        self._depth += 1
        self._values += 1
        if getattr(event, "tag", None) is not None:
            raise _refusal(f"the tag {event.tag} is not read; write a plain value", event)
        if self._depth > DEEPEST:
            raise _refusal(f"more than {DEEPEST} levels", event)
        node: Any = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _refusal(f"{event.anchor} holds itself", event)
            self._values += self._sizes[id(node)]
        else:
            self._sizes[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise _refusal(f"more than {MOST_VALUES} values", event)
        self._depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        """Refuses characters that no name, number or sentence has."""
        event, node = self.peek_event(), super().compose_scalar_node(anchor)
        if CONTROL.search(node.value):
            raise _refusal(f"control character in {node.value[:80]!r}", event)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuses a key that is given twice: one of the values would be lost."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _refusal(f"{key.value[:80]!r} is given twice", key)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return node


def _refusal(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


for _name, _pattern in PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"({_pattern})$"), None)
