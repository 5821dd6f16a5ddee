"""The list of methods with their hyper-parameters, models, data sources and grids."""

import textwrap

import yaml

from bench.data import sources
from bench.grid import find_grid, grid_names
from bench.hyperparameters import METHODS, build_method, default_hyperparameters
from bench.models import zoo


def catalogue(width: int) -> str:
    """The list as plain text, in lines of at most `width` characters."""

    def wrapped(text: str, indent: str) -> str:
        return textwrap.fill(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )

    lines = ["methods (hyper-parameters with their defaults):"]
    for name in METHODS.names():
        lines.append(f"  {name:<20} {build_method(name).category}")
        values = [f"{key}={value!r}" for key, value in default_hyperparameters(name).items()]
        lines += [wrapped(", ".join(values), "      ")] if values else []
    lines += ["", "models:", wrapped(" ".join(zoo.MODELS.names()), "  ")]
    lines += ["", "data sources:", wrapped(" ".join(sources.names()), "  ")]
    lines += ["", "grids:"]
    for name in grid_names():
        values = yaml.safe_load(find_grid(name).read_text(encoding="utf-8"))
        lines += [f"  {name}", wrapped(values["description"], "      ")]
    return "\n".join(lines)
