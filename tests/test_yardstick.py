"""What the comparison of two checkouts notices."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support import load_file

ROOT = Path(__file__).resolve().parents[1]
RUN: dict[str, Any] = {
    "outputs": ["a", "b", "c"],
    "shares": [[1.0, 1.0, 0.0], [0.1, 0.2, 0.0], [0.1, 0.3, 0.0]],
    "counts": [["conv2d", 7], ["add", 9]],
}


@pytest.fixture(scope="module")
def yardstick() -> ModuleType:
    return load_file(ROOT / "tools/yardstick.py")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"outputs": ["a", "x", "y"]}, "outputs of 2 frames differ, first of frame 1"),
        ({"shares": [[1.0, 1.0, 0.0]] * 3}, "frames' shares differ"),
        ({"counts": [["conv2d", 7], ["add", 8]]}, "counts of 1 steps differ, first of step 1"),
        ({"counts": [["conv2d", 7]]}, "counts of 0 steps differ, in number"),
        # an operation's name may change, what it did may not
        ({"counts": [["convolution", 7], ["sum", 9]]}, ""),
    ],
)
def test_differences_are_named(yardstick: ModuleType, change: dict[str, Any], said: str) -> None:
    assert yardstick.difference(RUN, RUN | change) == said


def test_this_checkout_has_an_adapter(yardstick: ModuleType) -> None:
    assert yardstick.ADAPTERS[0].offered()


def test_an_interface_that_nobody_knows_is_named(
    yardstick: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    for adapter in yardstick.ADAPTERS:
        monkeypatch.setattr(adapter, "offered", lambda: False)
    with pytest.raises(SystemExit, match=r"ByHandle, ByStep.*write one more"):
        yardstick.adapter()


def test_another_checkout_than_named_is_refused(
    yardstick: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    with pytest.raises(SystemExit, match="not the checkout's"):
        yardstick.adapter()
