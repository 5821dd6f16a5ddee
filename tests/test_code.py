"""The hash of the code that decides numbers."""

from __future__ import annotations

import shutil

from processes import ROOT

from bench.launch import code


def test_code_is_told_apart_by_what_decides_numbers(tmp_path, monkeypatch):
    for package in ("bench", "methods"):
        shutil.copytree(ROOT / package, tmp_path / package)
    monkeypatch.setattr(code.bench, "__file__", str(tmp_path / "bench/__init__.py"))
    monkeypatch.setattr(code.registry, "__file__", str(tmp_path / "methods/registry.py"))
    own = code.code_digest()
    (tmp_path / "bench/report/tables.py").write_text("")
    assert code.code_digest() == own
    found = {own}
    for name in ("bench/train/engine.py", "bench/cell.py", "methods/rkd.py", "bench/models/wrn.py"):
        path = tmp_path / name
        path.write_text(path.read_text() + "# edited\n")
        found.add(code.code_digest())
    assert len(found) == 5
    with_cost = code.code_digest("cost")
    (tmp_path / "bench/cost/loss.py").write_text("")
    assert code.code_digest("cost") != with_cost
