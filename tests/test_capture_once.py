"""What a model does once, in its first frame, and tensors of it that have no elements."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from torchdelta.errors import CaptureError

pytestmark = pytest.mark.check

FRAMES = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """One convolution; forward: of the model and the frame."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.call, self.done = forward, False
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def through_data(self: Any, x: Tensor) -> Tensor:
    if not self.done:
        self.conv.weight.data.mul_(1.5)
        self.done = True
    return self.conv(x)


@torch.no_grad()
def in_place(self: Any, x: Tensor) -> Tensor:
    if not self.done:
        self.conv.weight.copy_(self.conv.weight + 0.1)
        self.done = True
    return self.conv(x)


def replaced(self: Any, x: Tensor) -> Tensor:
    if not self.done:
        self.conv.weight = nn.Parameter(2 * self.conv.weight.detach())
        self.done = True
    return self.conv(x)


@torch.no_grad()
def clamped(self: Any, x: Tensor) -> Tensor:
    self.conv.weight.clamp_(-0.1, 0.1)
    return self.conv(x)


def compiled(model: nn.Module) -> torchdelta.CompiledModel:
    return torchdelta.compile(model, FRAMES[:1], tolerance=0, engine="torch", input_range=(0, 1))


@pytest.mark.parametrize("rewrite", [through_data, in_place, replaced, clamped])
def test_weights_that_the_first_frame_rewrites(rewrite: Callable[..., Tensor]) -> None:
    model = Net(rewrite)
    before = model.conv.weight.detach().clone()
    fast = compiled(model)
    assert torch.equal(model.conv.weight, before), "the model is the caller's"
    assert "rewrites conv.weight in its first frame" in fast.explain()
    dense = copy.deepcopy(model)
    for size in ((20, 24), (12, 16)):
        session = fast.session(size=size)
        for frame in FRAMES:
            frame = frame[:, : size[0], : size[1]].contiguous()
            with torch.no_grad():
                expected = dense(frame[None])
            torch.testing.assert_close(session.step({"a": frame})["a"].output, expected)
            torch.testing.assert_close(fast.dense(frame[None]), expected)


def test_weights_that_every_frame_rewrites_are_state() -> None:
    def grows(self: Any, x: Tensor) -> Tensor:
        self.conv.weight.data.mul_(1.01)
        return self.conv(x)

    with pytest.raises(CaptureError, match=r"keeps state from frame to frame.*conv.weight"):
        compiled(Net(grows))


def test_weights_that_are_not_numbers_are_not_rewritten() -> None:
    model = Net(lambda self, x: self.conv(x))
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = torch.nan
    assert "rewrites" not in compiled(model).explain()


def test_an_empty_part_of_a_concatenation() -> None:
    def joins(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([y, y[:, :0], x], 1)

    model = Net(joins)
    fast = compiled(model)
    assert "dense:" not in fast.explain()
    session = fast.session()
    for frame in FRAMES:
        with torch.no_grad():
            torch.testing.assert_close(session.step({"a": frame})["a"].output, model(frame[None]))


def test_an_empty_output_beside_another() -> None:
    model = Net(lambda self, x: (self.conv(x), self.conv(x)[:, :, :, 200:]))
    first, second = compiled(model).session().step({"a": FRAMES[0]})["a"].output
    assert first.shape == (1, 8, 20, 24)
    assert second.shape == (1, 8, 20, 0)


@pytest.mark.parametrize("shape", [None, (-1, 7777), (1, 0)])
def test_an_empty_result_is_refused_with_the_size(shape: tuple[int, int] | None) -> None:
    def cut(self: Any, x: Tensor) -> Tensor:
        below = self.conv(x)[:, :, 100:]
        return below if shape is None else below.reshape(shape)

    with pytest.raises(CaptureError, match="for a frame of 20x24 what it gives is empty"):
        compiled(Net(cut))
