"""Which code produced a result: digests of what code does, and the commit.

Comments, docstrings and layout are not part of a digest.
"""

import ast
import hashlib
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "methods"
NUMERICAL = (
    "bench/cell.py",
    "bench/method.py",
    "bench/seeds.py",
    "bench/data/*.py",
    "bench/models/*.py",
    "bench/train/*.py",
    "methods/_*.py",
)
"""The code that decides the numbers of every cell. A method's own file has its own digest."""


def method_digest(name: str, text: str) -> str:
    """The digest of a module of this name and source, and of all of `methods` that it imports."""
    texts: dict[str, str] = {}
    waiting = {name: text}
    while waiting:
        module, text = waiting.popitem()
        texts[module] = text
        imported = _imports(text) - texts.keys()
        waiting |= {piece: (METHODS / f"{piece}.py").read_text("utf-8") for piece in imported}
    return _digest(texts)


@cache
def numerics_digest(*more: str, root: Path = ROOT) -> str:
    """The digest of the code that decides the numbers of every cell; `more` are further patterns.

    Records name it, so that tables can say which rows were trained by different code.
    """
    files = {path for pattern in (*NUMERICAL, *more) for path in root.glob(pattern)}
    return _digest({path.relative_to(root).as_posix(): path.read_text("utf-8") for path in files})


def provenance() -> dict[str, object]:
    """The digest of the code, the commit, and whether files differ from it, for records.

    The commit is left out where the code does not run from its git checkout. Changes in results/
    do not count: a run writes them.
    """
    about: dict[str, object] = {"code": numerics_digest()}
    if _git("rev-parse", "--show-toplevel") != str(ROOT):
        return about
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {**about, "commit": _git("rev-parse", "HEAD") or "none", "dirty": bool(changes)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _digest(texts: Mapping[str, str]) -> str:
    parts = "\n".join(f"{name}: {_code(texts[name])}" for name in sorted(texts))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@cache
def _imports(text: str) -> set[str]:
    """The modules of `methods` that a module imports, in any form of import."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        # `from methods import a` names modules; `from methods.a import b` what is in one.
        inside = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            package, *names = f"{inside}{alias.name}".split(".")
            if package == "methods" and names:
                found.add(names[0])
    return found


@cache
def _code(text: str) -> str:
    """A module's syntax tree as text, without comments, docstrings and layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return ast.dump(tree)
