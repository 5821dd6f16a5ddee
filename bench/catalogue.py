"""What a grid can name: methods with their hyper-parameters, models, data sources and grids."""

import textwrap
from collections.abc import Mapping

from bench.data import sources
from bench.grid import grid_names, load_grid
from bench.hyperparameters import METHODS, SWITCHES, build_method, default_hyperparameters
from bench.models import zoo
from bench.models.network import tap_shapes


def describe_model(name: str, image_shape: tuple[int, int, int]) -> str:
    """The taps of a model for 10 classes with the shapes of one sample, as plain text."""
    network = zoo.build(name, 10, image_shape)
    count = sum(parameter.numel() for parameter in network.parameters())
    lines = [f"{name} on images of {image_shape}: {count:,} parameters"]
    for tap, shape in tap_shapes(network, image_shape).items():
        lines.append(f"  {tap:<14} {' x '.join(map(str, shape))}")
    return "\n".join(lines)


def _shown(values: Mapping[str, object]) -> str:
    shorter = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
    return ", ".join(f"{key}={value!r}" for key, value in shorter.items())


def catalogue(width: int) -> str:
    """The list as plain text, in lines of at most `width` characters."""

    def wrapped(text: str, indent: str) -> str:
        return textwrap.fill(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )

    lines = ["methods (hyper-parameters with their defaults):"]
    for name in METHODS.names():
        lines.append(f"  {name:<20} {build_method(name).category}")
        values = _shown(default_hyperparameters(name))
        lines += [wrapped(values, "      ")] if values else []
    switches = _shown({key: off for key, (off, _) in SWITCHES.items()})
    lines.append(wrapped(f"switches: {switches}", "  "))
    lines += ["", "models:", wrapped(" ".join(zoo.MODELS.names()), "  ")]
    for library in zoo.LIBRARIES:
        try:
            text = f"{len(zoo.library_names(library))} classifiers by its names"
        except ValueError as error:
            text = str(error)
        lines.append(wrapped(f"{library}/NAME: {text}", "  "))
    lines += ["", "data sources:", wrapped(" ".join(sources.names()), "  ")]
    lines += ["", "grids:"]
    for name in grid_names():
        lines += [f"  {name}", wrapped(load_grid(name, checked=False).description, "      ")]
    return "\n".join(lines)
