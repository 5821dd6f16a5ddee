"""The digest of the code that decides numbers."""

from __future__ import annotations

import shutil

from processes import ROOT

from bench.code_version import method_digest, numerics_digest


def test_the_digest_follows_code_and_ignores_words_and_layout():
    plain = method_digest("f", "def f(x):\n    return x + 1\n")
    reworded = 'def f(x):\n    """Adds."""\n    # one\n    return (x +\n            1)\n'
    assert method_digest("f", reworded) == plain
    assert method_digest("f", "def f(x):\n    return x - 1\n") != plain
    imports = ("from methods import rkd\n", "import methods.rkd\n", "from methods import fsp\n")
    assert len({plain, *(method_digest("f", text) for text in imports)}) == 4


def test_every_package_that_decides_numbers_is_in_the_digest(tmp_path):
    found = {numerics_digest()}
    edits = (
        "bench/train/optim.py", "bench/cell.py", "bench/data/augment.py", "bench/models/wrn.py",
        "methods/_pool.py", "bench/report/tables.py", "methods/rkd.py",
    )  # fmt: skip
    for number, name in enumerate(edits):
        root = tmp_path / str(number)
        for package in ("bench", "methods"):
            shutil.copytree(ROOT / package, root / package)
        path = root / name
        path.write_text(path.read_text() + "\nEDITED = True\n")
        found.add(numerics_digest(root=root))
    assert len(found) == 1 + 5  # reports decide no number, and methods have digests of their own
