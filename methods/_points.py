"""Sensing points: the taps at which a method compares student and teacher."""

from collections.abc import Container, Mapping, Sequence

STAGE_OUTPUTS = ("stage1", "stage2", "stage3")
DEEPER = ("stage4",)
"""The outputs that only some networks have: optional taps."""


def common_stages(*networks: Container[str]) -> tuple[str, ...]:
    """The outputs of three stages, and of the fourth where all of these networks have it.

    Example:
        >>> common_stages({"stage4"}, {"stage4"}), common_stages({"stage4"}, {})
        (('stage1', 'stage2', 'stage3', 'stage4'), ('stage1', 'stage2', 'stage3'))
    """
    return (*STAGE_OUTPUTS, *(tap for tap in DEEPER if all(tap in taps for taps in networks)))


def deepest_map(*networks: Container[str]) -> str:
    """The tap of the deepest map: the last of `common_stages`."""
    return common_stages(*networks)[-1]


def sensing_points(
    method: str, points: str | Sequence[str], named: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The taps that `points` means: a name of `named`, or the taps themselves.

    Raises:
        ValueError: an unknown name, no tap, or a tap twice.

    Example:
        >>> sensing_points("fitnet", "all", {"all": STAGE_OUTPUTS})
        ('stage1', 'stage2', 'stage3')
        >>> sensing_points("fitnet", ["stage2"], {"all": STAGE_OUTPUTS})
        ('stage2',)
    """
    if isinstance(points, str):
        if points not in named:
            raise ValueError(
                f"{method}: points {points!r} must be one of {', '.join(named)}, or a list of taps"
            )
        return tuple(named[points])
    if not points or len(set(points)) != len(points):
        raise ValueError(f"{method}: points {list(points)} must name at least one tap, each once")
    return tuple(points)
