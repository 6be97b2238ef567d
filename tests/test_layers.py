"""Imports of the package: no circles, and from each layer only to those below it.

docs/developing.md draws the layers. Imports for type checkers alone count, too.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.check

ROOT = Path(__file__).parent.parent
PACKAGE = "torchdelta"


def modules() -> dict[str, Path]:
    """Give the package's files by the name that imports them."""
    found = {}
    for path in sorted((ROOT / "src" / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = modules()


def imports(source: str) -> Iterator[str]:
    """Give the modules of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name their module in full"
            base = node.module or ""
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from (name if name in FILES else base for name in names if base in FILES)


GRAPH = {name: set(imports(path.read_text(encoding="utf-8"))) for name, path in FILES.items()}


def layers() -> list[list[str]]:
    """Read the layers from the page, the highest first: names of packages and of files above."""
    page = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
    section = page.partition("\n## Layers\n")[2].partition("\n## ")[0]
    drawing = re.findall(r"```\n(.*?)```", section, re.S)[0]
    return [line.partition("  ")[0].split() for line in drawing.splitlines()]


def unit(module: str) -> str:
    """Give what stands in a layer for a module: its package, or the file itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_no_import_circles() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as circle:
        pytest.fail(f"imports in a circle: {' <- '.join(circle.args[1])}")


def test_imports_go_to_layers_below() -> None:
    drawn = layers()
    names = [name for layer in drawn for name in layer]
    assert sorted(names) == sorted({unit(module) for module in FILES})
    height = {name: -n for n, layer in enumerate(drawn) for name in layer}
    upward = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if unit(module) != unit(other) and height[unit(module)] <= height[unit(other)]
    ]
    assert not upward


def test_imports_are_seen_wherever_they_stand() -> None:
    source = """
from typing import TYPE_CHECKING
import torchdelta.errors
if TYPE_CHECKING:
    from torchdelta.state import State
def f():
    from torchdelta.plan import ir, Plan
"""
    seen = {"torchdelta.errors", "torchdelta.state", "torchdelta.plan.ir", "torchdelta.plan"}
    assert set(imports(source)) == seen
