"""The code that decides a cell's numbers, as one hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import bench
from methods import registry

NUMBERS = ("cell.py", "method.py", "seeds.py", "data", "models", "train")
"""What of this package decides a cell's numbers, beside the methods."""


def code_digest(*more: str) -> str:
    """Hash of all files that decide a cell's numbers: the same cell by others is another result.

    Args:
        more: further parts of the package that count, as `NUMBERS` names them.
    """
    package, methods = Path(bench.__file__).parent, Path(registry.__file__).parent
    places = [*(package / name for name in (*NUMBERS, *more)), methods]
    files = [f for p in places for f in (p.rglob("*.py") if p.is_dir() else [p])]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.parts[-2:]):
        digest.update("/".join(file.parts[-2:]).encode() + file.read_bytes())
    return digest.hexdigest()
