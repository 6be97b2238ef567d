"""The faults beside the tests fit the sources; whether tests notice them `make mutants` says."""

from pathlib import Path

import pytest

from mutant import Mutant, spans
from support import load_file

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parents[1]
MUTANTS: list[Mutant] = load_file(ROOT / "tools" / "mutants.py").all_mutants()

PYTHON = """
class A:
    def f(self):
        return 1

    def g(self):
        def f():
            return 2
        return f() + 1
"""
NATIVE = """
int f(int x);
int f(int x) { if (g(x)) { return 1; } return 2; }
struct A { A(int n) : n_(n) {} int g() const { return f(n_) + 1; } int n_; };
"""


def test_every_fault_applies_once() -> None:
    texts = {m.path: (ROOT / m.path).read_text(encoding="utf-8") for m in MUTANTS}
    for mutant in MUTANTS:
        assert mutant.planted(texts[mutant.path]) != texts[mutant.path]
    names = [m.name for m in MUTANTS]
    assert len(set(names)) == len(names)


def test_every_fault_names_tests_that_are_there() -> None:
    missing = {test for m in MUTANTS for test in m.tests if not (ROOT / "tests" / test).exists()}
    assert not missing


def test_the_few_are_of_every_engine() -> None:
    few = [m for m in MUTANTS if m.few]
    assert 40 <= len(few) <= 50
    assert any(m.native for m in few)
    assert any(m.interpreted for m in few)


@pytest.mark.parametrize(
    ("text", "name", "inside"),
    [
        (PYTHON, "A.f", ["return 1"]),
        (PYTHON, "A.g.f", ["return 2"]),
        (PYTHON, "A.g", ["return 2"]),
        (NATIVE, "f", ["return 2"]),
        (NATIVE, "g", ["return f(n_)"]),
        (NATIVE, "A", ["n_(n) {}"]),
    ],
)
def test_functions_are_found_by_their_names(text: str, name: str, inside: list[str]) -> None:
    found = [text[begin:end] for begin, end in spans(text, name, python=text is PYTHON)]
    assert len(found) == len(inside)
    assert all(part in span for part, span in zip(inside, found, strict=True))


@pytest.mark.parametrize(("old", "times"), [("return 3", 0), ("return", 2)])
def test_a_fault_that_does_not_apply_once_is_refused(old: str, times: int) -> None:
    mutant = Mutant("m", "a.py", "A.g", old, "", ())
    with pytest.raises(LookupError, match=f"applies {times} times in A.g"):
        mutant.planted(PYTHON)
