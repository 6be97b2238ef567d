"""What a frame's numbers mean: colour order, range, mean and std, and lazily negated memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from support import ENGINE_CASES, new_session
from torchdelta.capture.load import LoadedModel, _with_preprocess
from torchdelta.errors import ModelError
from torchdelta.ops.preprocess import Preprocess
from torchdelta.tasks import Tail


def negated(x: Tensor) -> Tensor:
    """Give the same values in memory that holds their opposites."""
    lazy = torch.complex(x, -x).conj().imag
    assert lazy.is_neg()
    assert torch.equal(lazy, x)
    return lazy


@pytest.mark.parametrize("engine", ENGINE_CASES)
@pytest.mark.parametrize("float_frame", [False, True])
@pytest.mark.parametrize(("channels", "order"), [(3, [2, 1, 0]), (4, [2, 1, 0, 3])])
def test_bgr_swaps_red_and_blue_and_leaves_alpha(
    engine: str, float_frame: bool, channels: int, order: list[int]
) -> None:
    mean, std = (10.0, 20.0, 30.0, 40.0)[:channels], (2.0, 4.0, 8.0, 16.0)[:channels]
    frame = torch.randint(0, 256, (1, channels, 5, 7), dtype=torch.uint8)
    fast = torchdelta.compile(
        nn.Conv2d(channels, 2, 1).eval(), frame, tolerance=0, input_range=(0, 255), mean=mean,
        std=std, color="bgr",
    )  # fmt: skip
    session = new_session(fast, engine, 0.0)
    session.step({"s": 255 - frame})
    session.step({"s": frame.float() if float_frame else frame})
    shape = (1, channels, 1, 1)
    expected = (frame[:, order] - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(
        session.stream("s").published().cpu(), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_bgr_needs_red_and_blue(channels: int) -> None:
    model, frame = nn.Conv2d(channels, 2, 1).eval(), torch.rand(1, channels, 5, 7)
    with pytest.raises(ValueError, match=f"'bgr' and frames have {channels} channels"):
        torchdelta.compile(model, frame, color="bgr")


def test_pictures_are_swapped_back() -> None:
    """What a BGR model gives as a picture is shown in the frame's order."""
    loaded = LoadedModel(nn.Identity(), "x", color="bgr")
    frame = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    x = loaded.model_input(frame[None])
    torch.testing.assert_close(x[0, 0], torch.from_numpy(frame[..., 2] / np.float32(255)))
    applied = Preprocess(color="bgr").apply(torch.from_numpy(frame), torch.float32)
    torch.testing.assert_close(x[0], applied.permute(2, 0, 1))
    tail = Tail("image", None, 3, Preprocess(color="bgr"))
    assert np.array_equal(tail.picture(x[0]), frame)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("color", ["BGR", "yuv", None, 3])
def test_a_colour_order_is_rgb_or_bgr(color: Any) -> None:
    with pytest.raises(ValueError, match=f"color is {color!r}, expected 'rgb' or 'bgr'"):
        torchdelta.compile(nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 5, 7), color=color)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"mean": (0.5, NAN, 0.5)}, "mean is .*nan.*, expected finite numbers"),
        ({"std": (0.5, INF, 0.5)}, "std is .*inf.*, expected finite numbers"),
        ({"input_range": (0, INF)}, "input_range is .*inf.*, expected finite numbers"),
        ({"mean": "123"}, "'123': expected a number or a list of numbers"),
        ({"mean": True}, "True: expected a number or a list of numbers"),
        ({"std": ["1", "1", "1"]}, "expected a number or a list of numbers"),
        ({"color": "bgr", "channels": 1}, "color is 'bgr' and frames have 1 channels"),
    ],
)
def test_a_stated_preprocess_must_make_sense(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        _with_preprocess(LoadedModel(nn.Conv2d(3, 2, 1), "net"), stated, "net")


@pytest.mark.parametrize("engine", ENGINE_CASES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_a_negated_frame_is_read_as_its_values(engine: str, dtype: torch.dtype) -> None:
    frame = torch.rand(1, 3, 5, 70)
    if dtype == torch.uint8:
        # no public operation makes such bytes
        frame = (frame * 255).to(dtype)
        lazy = torch._neg_view(-frame)
    elif dtype == torch.float32:
        lazy = negated(frame)
    else:
        frame = frame.to(dtype)
        lazy = torch._neg_view(-frame)
    fast = torchdelta.compile(nn.Conv2d(3, 2, 1).eval(), frame, tolerance=0, input_range=(0, 1))
    session = new_session(fast, engine, 0.0, slots=2)
    results = session.step({"plain": frame[0], "lazy": lazy[0]})
    assert torch.equal(results["plain"].output, results["lazy"].output)
    assert torch.equal(session.stream("plain").published(), session.stream("lazy").published())


class Holds(nn.Module):
    """Weights, a buffer and a constant whose memory holds the opposite of their values."""

    def __init__(self, lazy: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def rand(*shape: int) -> Tensor:
            return lazy(torch.rand(*shape, generator=generator) - 0.5)

        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.conv.weight = nn.Parameter(rand(4, 3, 3, 3))
        self.conv.bias = nn.Parameter(rand(4))
        self.register_buffer("scale", rand(1, 4, 9, 11))
        self.phase = torch.complex(rand(4, 1, 1), rand(4, 1, 1))
        if lazy is negated:
            self.phase = torch.conj(torch.conj_physical(self.phase))
        self.slope = nn.PReLU(4)
        self.slope.weight = nn.Parameter(rand(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.slope(self.conv(x)) * self.scale + self.phase.imag
        return y, torch.complex(y, -y).conj().imag * 2


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_negated_weights_and_constants_are_read_as_their_values(engine: str) -> None:
    frame = torch.rand(1, 3, 9, 11)
    fast = torchdelta.compile(Holds(negated).eval(), frame, tolerance=0, input_range=(0, 1))
    session = new_session(fast, engine, 0.0)
    session.step({"s": 1 - frame})
    with torch.no_grad():
        expected = Holds(Tensor.clone).eval()(frame)
    assert torchdelta.relative_error(session.step({"s": frame})["s"].output, expected) < 1e-5
    assert session.stream("s").audit().ok

    assert session.stream("s").audit().ok
    assert torchdelta.relative_error(fast.dense(fast.preprocess(frame)), expected) < 1e-5


def test_relative_error_counts_imaginary_parts() -> None:
    a = torch.tensor([3 + 4j, 0j])
    assert torchdelta.relative_error(torch.tensor([3 + 0j, 0j]), a) == pytest.approx(4 / 5)
    assert torchdelta.relative_error(a.conj(), a) == pytest.approx(8 / 5)
    assert torchdelta.relative_error(a.conj().imag, -a.imag) == 0
    assert torchdelta.relative_error({"x": a}, {"x": a}) == 0
    odd = torch.tensor([complex(NAN, 1), complex(1, INF)])
    assert torchdelta.relative_error(odd, odd.clone()) == 0
    assert torchdelta.relative_error(odd, torch.tensor([complex(NAN, 2), complex(1, INF)])) > 0
    with pytest.raises(ValueError, match="one result is complex"):
        torchdelta.relative_error(a, a.real)
