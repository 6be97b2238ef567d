"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real clips and weights; without it the test is skipped, or fails."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TORCHDELTA_DATA") or root.parent / "shared" / "data")
    if not (folder / "clips").is_dir():
        reason = f"no clips in {folder}; set TORCHDELTA_DATA to the data folder"
        if "data" in os.environ.get("TORCHDELTA_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
