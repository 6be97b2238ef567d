"""The faults of tools/mutants.py fit the sources; whether tests notice them `make mutants` says."""

from pathlib import Path

from support import load_file

ROOT = Path(__file__).resolve().parents[1]


def test_every_fault_applies_once() -> None:
    module = load_file(ROOT / "tools" / "mutants.py")
    texts = {m.path: (ROOT / m.path).read_text(encoding="utf-8") for m in module.MUTANTS}
    wrong = [m.name for m in module.MUTANTS if texts[m.path].count(m.old) != 1]
    assert not wrong
    names = [m.name for m in module.MUTANTS]
    assert len(set(names)) == len(names)
