"""Fixtures that all tests share."""

import importlib
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support import GPU_NAMES

# what runs behind a shell's `&` is started deaf to Ctrl-C, and so would be what tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def require(module: str) -> ModuleType:
    """Import a module of the extra "models"; without it the caller is skipped, or fails."""
    if is_required("data"):
        return importlib.import_module(module)
    found: ModuleType = pytest.importorskip(module)
    return found


def is_required(what: str) -> bool:
    """Whether TORCHDELTA_REQUIRE names what must not be missing.

    data, cuda, triton-interpreter (for the tests in Triton's interpreter), or an engine.
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


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """Return the GPU; without one the test is skipped, or fails where one is required."""
    if not torch.cuda.is_available():
        if is_required("cuda"):
            pytest.fail("TORCHDELTA_REQUIRE=cuda, and PyTorch finds no GPU")
        pytest.skip("PyTorch finds no GPU")
    return torch.device("cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `gpu` what runs there: tests of an engine on a GPU, or with the GPU as a fixture."""
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {}).values()
        engines = {value for value in given if isinstance(value, str)}
        if "cuda" in getattr(item, "fixturenames", ()) or not engines.isdisjoint(GPU_NAMES):
            item.add_marker(pytest.mark.gpu)
