"""The list of methods with their hyper-parameters, models, data sources and grids."""

from __future__ import annotations

import textwrap

import yaml

from bench.data import sources
from bench.grid import find_grid, grid_names
from bench.hyperparameters import METHODS, build_method, default_hyperparameters
from bench.models import zoo


def catalogue() -> str:
    """The list as plain text."""
    lines = ["methods (hyper-parameters with their defaults):"]
    for name in METHODS.names():
        values = ", ".join(f"{k}={v!r}" for k, v in default_hyperparameters(name).items())
        lines.append(f"  {name:<20} {build_method(name).category:<22} {values}".rstrip())
    lines += ["", "models:", _wrapped(zoo.MODELS.names())]
    lines += ["", "data sources:", _wrapped(sources.names())]
    lines += ["", "grids:"]
    for name in grid_names():
        values = yaml.safe_load(find_grid(name).read_text(encoding="utf-8"))
        lines.append(f"  {name:<20} {' '.join(values['description'].split())}")
    return "\n".join(lines)


def _wrapped(names: list[str]) -> str:
    return textwrap.fill(
        " ".join(names), 96, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
