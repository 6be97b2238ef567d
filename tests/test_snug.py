"""Frames whose windows are no larger than the frames were, and the note that names their size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchdelta
from torchdelta.runtime.windows import snug_size, window_size


@pytest.mark.parametrize(
    ("size", "stride"),
    [((360, 640), (32, 32)), ((97, 129), (32, 32)), ((64, 96), (16, 16)), ((65, 97), (16, 32)),
     ((48, 64), (1, 1)), ((720, 1280), (32, 32))],
)  # fmt: skip
def test_snug_frames_have_windows_within_the_old_frame(
    size: tuple[int, int], stride: tuple[int, int]
) -> None:
    snug = snug_size(size, stride)
    assert snug is not None
    window = window_size(snug, stride)
    assert all(side <= old for side, old in zip(window, size, strict=True))
    # and none larger has that
    for axis in (0, 1):
        larger = [*snug]
        larger[axis] += 1
        assert window_size((larger[0], larger[1]), stride)[axis] > size[axis]


def test_none_fits_where_frames_are_hardly_larger_than_a_stride() -> None:
    assert snug_size((40, 640), (32, 32)) is None


@pytest.mark.parametrize(("size", "told"), [((33, 49), True), ((96, 128), False)])
def test_the_note_names_a_size_where_the_window_is_much_larger(
    size: tuple[int, int], told: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)).eval()
    fast = torchdelta.compile(net, torch.zeros(1, 3, *size).byte(), engine="torch")
    (note,) = fast.session(motion="features").notes
    assert ("frames of" in note) == told
    if told:
        # 33x49: windows of 40x56, at a total stride of 4
        assert f"{40 * 56 / (33 * 49) - 1:.0%} more pixels than the frames of 33x49" in note
        assert "frames of 28x44 would have windows no larger than that" in note
