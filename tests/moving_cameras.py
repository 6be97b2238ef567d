"""Cameras over a made world for the tests of sessions that follow them."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

import torchdelta
from chain_nets import conv
from support import ENGINE_NAMES, GPU_NAMES
from torchdelta.motion.homography import shift
from torchdelta.runtime.session import Session

ENGINES = (*ENGINE_NAMES, *GPU_NAMES)
SIZE = (60, 84)
Picture = np.ndarray


@cache
def compiled(engine: str, tolerance: float = 0.0) -> torchdelta.CompiledModel:
    """Compile a network of total stride 4 that gives a small map and one of the input's size."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Sequential(conv(3, 6, 3, 2), nn.ReLU(), conv(6, 6, 3, 2))
            self.up = nn.Sequential(nn.Upsample(scale_factor=4), conv(6, 2, 3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            small = self.down(x)
            return small, self.up(small)

    torch.manual_seed(0)
    example = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    model = Net().eval().to("cuda" if engine in GPU_NAMES else "cpu")
    return torchdelta.compile(
        model, example, engine=engine, tolerance=tolerance, input_range=(0, 1)
    )


@cache
def world(side: int = 420) -> Picture:
    """Make a large textured picture, uint8 [side, side, 3]."""
    rng = np.random.default_rng(5)
    layers = [
        cv2.resize(rng.random((side // k, side // k, 3), np.float32), (side, side),
                   interpolation=cv2.INTER_CUBIC)
        for k in (5, 11, 40)
    ]  # fmt: skip
    return np.clip(sum(layers) / 3 * 255, 0, 255).astype(np.uint8)


def view(y: int, x: int, size: tuple[int, int] = SIZE) -> Picture:
    """Give what a camera sees whose frame begins at a pixel of the world."""
    return world()[y : y + size[0], x : x + size[1]].copy()


def path(start: tuple[int, int], step: tuple[int, int], count: int) -> list[tuple[int, int]]:
    return [(start[0] + n * step[0], start[1] + n * step[1]) for n in range(count)]


def to_previous(here: tuple[int, int], before: tuple[int, int]) -> np.ndarray:
    return shift(here[1] - before[1], here[0] - before[0])


class Camera:
    """Walks over the world and tells its homographies."""

    def __init__(self, name: str, places: list[tuple[int, int]]) -> None:
        self.name, self.places, self.at = name, places, 0

    def next(self) -> tuple[Picture, np.ndarray]:
        here = self.places[self.at]
        before = self.places[max(0, self.at - 1)]
        self.at += 1
        return view(*here), to_previous(here, before)


def play(session: Session, *cameras: Camera, **kwargs: Any) -> dict[str, torchdelta.Result]:
    shown = {camera.name: camera.next() for camera in cameras}
    return session.step(
        {name: frame for name, (frame, _) in shown.items()},
        homographies={name: h for name, (_, h) in shown.items()},
        **kwargs,
    )


def dense_on_published(
    fast: torchdelta.CompiledModel, session: Session, result: torchdelta.Result
) -> float:
    expected = fast.dense(session.stream(result.stream).published())
    return torchdelta.relative_error(result.output, expected)


def published(session: Session, stream: str = "a") -> Tensor:
    """Give what the network has been shown, [1, 3, H, W] on the CPU."""
    return session.stream(stream).published().cpu()


def placed(
    fast: torchdelta.CompiledModel, result: torchdelta.Result, frame: Picture
) -> tuple[Tensor, Tensor]:
    """Bring a frame into the window where the session does: [3, H, W] as published, bool [H, W]."""
    assert result.aligned is not None
    warped = result.aligned.warp(torch.from_numpy(frame).to(fast.device)).permute(2, 0, 1)
    return fast.preprocess(warped)[0].cpu(), torch.from_numpy(result.aligned.mask())


PAN_SIZE = (120, 160)
