"""Rules of this folder: short files by subject, none that imports another's tests, whole groups."""

import ast
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.check

FILES = sorted(Path(__file__).parent.glob("*.py"))
MOST_LINES = 500


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_are_short_and_import_no_tests(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    imported = {
        name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert not {name for name in imported if name.split(".")[0].startswith("test_")}


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="runs in one process")
@pytest.mark.xdist_group("house")
def test_groups_stay_on_one_worker(request: pytest.FixtureRequest) -> None:
    """Where pytest-xdist loses a group, each worker compiles its network anew, and says nothing."""
    assert request.node.nodeid.endswith("@house")
