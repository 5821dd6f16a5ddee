"""Sensing points: the taps at which a method compares student and teacher."""

from collections.abc import Container, Mapping, Sequence

STAGE_OUTPUTS = ("stage1", "stage2", "stage3")


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


def deepest_map(student: Container[str], teacher: Container[str]) -> str:
    """The tap of the last stage's output: "stage4" where both networks have it, else "stage3"."""
    return "stage4" if "stage4" in student and "stage4" in teacher else "stage3"
