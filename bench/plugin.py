"""A file of the user's own that adds a method, models or data sources: `--plugin FILE`.

    def method(*, ...) -> Method          the method named like the file, as in `methods/`
    MODELS = {"name": builder}            (K, (C, H, W)) -> `bench.models.network.Network`
    DATA_SOURCES = {"name": source}       `bench.data.sources.Source`

The code of a method or model is part of the ids of its cells, so an edited one trains again.
"""

import inspect
import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.code_version import method_digest
from bench.faults import LOAD_FAULTS, UserError, name_and_reason
from bench.registry import Registry


class PluginError(UserError):
    """A plugin that cannot be used; one line with the file, the fault and the cure."""


@dataclass(frozen=True)
class Plugin:
    """A plugin's absolute path, and its text when the command began, which workers run."""

    path: str
    text: str

    @property
    def name(self) -> str:
        """The file's stem: the name of its method."""
        return Path(self.path).stem

    @property
    def code(self) -> str:
        """The digest of its code, as in cells."""
        return method_digest(self.name, self.text)


def read_plugins(paths: Iterable[Path]) -> tuple[Plugin, ...]:
    """Reads files without running them; PluginError if one cannot be read or two have one name."""
    plugins = tuple(dict.fromkeys(_read(path) for path in paths))
    names = [plugin.name for plugin in plugins]
    if repeated := [plugin for plugin in plugins if names.count(plugin.name) > 1]:
        both = " and ".join(plugin.path for plugin in repeated[:2])
        raise PluginError(f"--plugin: {both} are both named {repeated[0].name}; rename one")
    return plugins


def _read(path: Path) -> Plugin:
    if path.suffix != ".py" or not path.stem.isidentifier() or path.stem.startswith("_"):
        raise PluginError(
            f"--plugin {path}: wanted a Python file named like a method, in letters, digits and "
            "'_', such as my_method.py"
        )
    try:
        return Plugin(str(path.absolute()), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise PluginError(f"--plugin {path}: cannot be read: {reason}") from None


_plugged: list[Plugin] = []


@contextmanager
def plugged(plugins: Iterable[Plugin]) -> Iterator[None]:
    """Registers what the files define until the context ends; PluginError if one is unusable."""
    with ExitStack() as stack:
        for plugin in plugins:
            if plugin not in _plugged:
                _plug(plugin, stack)
        yield


def _plug(plugin: Plugin, stack: ExitStack) -> None:
    try:
        _add(plugin, _load(plugin, stack), stack)
    except BaseException as error:
        if isinstance(error, PluginError | KeyboardInterrupt):
            raise
        # Any error with a frame in the file is the file's, SystemExit and its own classes included.
        # Errors of registration, such as a name that is taken, have no such frame.
        where = _line(plugin, error)
        if not where and not isinstance(error, LOAD_FAULTS):
            raise
        cure = "; keep a plugin in one file" if isinstance(error, ImportError) else ""
        text = f"{where}{name_and_reason(error)}{cure}"
        raise PluginError(f"--plugin {plugin.path}: {text}") from error
    _plugged.append(plugin)
    stack.callback(_plugged.remove, plugin)


def _load(plugin: Plugin, stack: ExitStack) -> ModuleType:
    module = ModuleType(f"kd_bench_plugin.{plugin.name}")
    module.__file__ = plugin.path
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    stack.callback(sys.modules.pop, module.__name__, None)
    # Tracebacks show the text that ran, even if the file has changed or is missing.
    lines = plugin.text.splitlines(keepends=True)
    linecache.cache[plugin.path] = (len(plugin.text), None, lines, plugin.path)
    exec(compile(plugin.text, plugin.path, "exec", dont_inherit=True), module.__dict__)
    return module


def _add(plugin: Plugin, module: ModuleType, stack: ExitStack) -> None:
    from bench.data.sources import SOURCES
    from bench.hyperparameters import METHODS, build_method, search_space
    from bench.models.zoo import MODELS

    def register(registry: Registry, name: str, item: object) -> None:
        registry.add(name, item, plugin.code)
        stack.callback(registry.remove, name)

    models, data = _table(module, "MODELS"), _table(module, "DATA_SOURCES")
    has_method = inspect.isfunction(getattr(module, "method", None))
    if not (models or data or has_method):
        raise PluginError(
            f"--plugin {plugin.path}: defines nothing to add; wanted a function method(*, ...), "
            "MODELS or DATA_SOURCES"
        )
    for name, builder in models.items():
        register(MODELS, name, builder)
    for name, source in data.items():
        register(SOURCES, name, source)
    if has_method:
        register(METHODS, plugin.name, lambda: module)
        build_method(plugin.name)
        search_space(plugin.name)


def _table(module: ModuleType, name: str) -> Mapping[str, Any]:
    found = getattr(module, name, {})
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise TypeError(f"{name} is {found!r}, wanted {{'name': ...}}")
    return found


def _line(plugin: Plugin, error: BaseException) -> str:
    """The line of the file that raised an error, as text; empty if it is not in the file."""
    if isinstance(error, SyntaxError) and error.filename == plugin.path:
        return f"line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == plugin.path]
    return f"line {lines[-1]}: " if lines else ""
