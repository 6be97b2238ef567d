"""Fixtures that all tests share."""

import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest


def require(module: str) -> ModuleType:
    """Import a module of the extra "models"; without it the caller is skipped, or fails."""
    if is_required("data"):
        return importlib.import_module(module)
    found: ModuleType = pytest.importorskip(module)
    return found


def is_required(what: str) -> bool:
    """Whether TORCHDELTA_REQUIRE names what must not be missing.

    data, cuda, triton-interpreter (for test_triton.py), or an engine.
    """
    return what in os.environ.get("TORCHDELTA_REQUIRE", "").split(",")


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real clips and weights; without it the test is skipped, or fails."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TORCHDELTA_DATA") or root.parent / "shared" / "data").resolve()
    if not (folder / "clips").is_dir():
        reason = f"no clips in {folder}; set TORCHDELTA_DATA to the data folder"
        if is_required("data"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
