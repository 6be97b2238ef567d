"""The faults of tools/mutants.py fit the sources; whether tests notice them `make mutants` says."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_fault_applies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # its dataclass looks its own module up
    monkeypatch.setitem(sys.modules, "mutants", module)
    spec.loader.exec_module(module)
    texts = {m.path: (ROOT / m.path).read_text(encoding="utf-8") for m in module.MUTANTS}
    wrong = [m.name for m in module.MUTANTS if texts[m.path].count(m.old) != 1]
    assert not wrong
    names = [m.name for m in module.MUTANTS]
    assert len(set(names)) == len(names)
