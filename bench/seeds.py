"""Independent random streams from one master seed.

A stream is named, not positional: drawing more from one never shifts another, and any epoch's
draws can be made again without replaying those before it.
"""

import hashlib

MOST_SEEDS = 10_000  # the most seeds of one phase of a grid


def derive(seed: int, *names: str | int) -> int:
    """The seed of the stream called `names`, in [0, 2^63)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
