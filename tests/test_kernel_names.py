"""Numbers of the triton engine's kernels have names, each in one place."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "src" / "torchdelta" / "engines" / "triton"
FILES = sorted(ENGINE.rglob("*.py"))
# what kernels call a code: never to be compared with a bare number
CODES = {"KIND", "mode", "level", "moved"}


def constants(tree: ast.Module) -> set[str]:
    """Name the constants of a module, also those that come several in a line."""
    found = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else ()
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        found |= {name for name in names if name.isupper()}
    return found


def duplicates(sources: dict[str, str]) -> dict[str, list[str]]:
    """Give the constants that several modules define, and which."""
    where = defaultdict(list)
    for file, source in sources.items():
        for name in constants(ast.parse(source)):
            where[name].append(file)
    return {name: files for name, files in where.items() if len(files) > 1}


def bare(source: str) -> list[str]:
    """List the comparisons of a code, or of what is loaded from a mode's place, with a number."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        names = {n.id for side in sides for n in ast.walk(side) if isinstance(n, ast.Name)}
        numbers = any(isinstance(side, ast.Constant) for side in sides)
        if numbers and names & (CODES | {"MODE"}):
            found.append(ast.unparse(node))
    return found


def test_constants_have_one_place() -> None:
    sources = {str(file.relative_to(ENGINE)): file.read_text() for file in FILES}
    assert len(sources) > 20
    assert "MODE" in constants(ast.parse(sources["kernels/shared.py"]))
    assert duplicates(sources) == {}


def test_kernels_compare_codes_by_their_names() -> None:
    for file in FILES:
        if file.parent.name == "kernels":
            assert bare(file.read_text()) == [], file.name


def test_what_these_tests_look_for() -> None:
    assert duplicates({"a": "A, B = 0, 1\nC: int = 2", "b": "B = f(1)\nc = 2", "c": "C = 2"}) == {
        "B": ["a", "b"], "C": ["a", "c"],
    }  # fmt: skip
    assert bare("a = KIND == 1") == ["KIND == 1"]
    assert bare("if tl.load(p + MODE + s) != 0: pass") == ["tl.load(p + MODE + s) != 0"]
    assert bare("ok &= at * 0 + mode != 0") == ["at * 0 + mode != 0"]
    assert bare("KIND == IS_TOUCH; x > 0; threshold == 0.0") == []
